"""Twenty questions: a task of one's own in under 60 lines of code. docs/own_task.md walks through it.

The user thinks of one of sixteen things. "is it alive ?" gets a yes, a no, or at times no answer, and
"i guess : snail" ends the dialogue. A good question halves the things that are left; a blind guess is
right once in 16 times.
"""

from __future__ import annotations

import numpy as np

from itpo_lib.tasks import Goal, Limits, Reply, ScriptedAssistant, Task, User
from itpo_lib.tasks.slots import difficulty_level

ASPECTS = ("alive", "big", "fast", "loud")  # bit i of a thing's number tells whether aspect i holds
THINGS = (
    *("pebble", "snail", "mountain", "tree", "arrow", "rabbit", "glider", "ostrich"),
    *("bell", "frog", "organ", "elephant", "firework", "dog", "train", "lion"),
)
LEVELS = {"easy": {"vague": 0.0}, "normal": {"vague": 0.1}, "stress": {"vague": 0.3}}
OPENINGS = ("i think of a thing .", "what do i have in mind ?", "try to find out what it is .")


def holds(thing: str, aspect: str) -> bool:
    return bool(THINGS.index(thing) >> ASPECTS.index(aspect) & 1)


class Thinker(User):
    def __init__(self, thing: str, vague: float, seed: int):
        self.thing, self.vague, self.rng = thing, vague, np.random.default_rng(seed)

    def reply(self, text: str) -> Reply:
        if "guess" in text.split():
            return Reply("", done=True)
        aspect = next((word for word in text.split() if word in ASPECTS), None)
        if aspect is None or self.rng.random() < self.vague:
            return Reply("hard to say .")
        return Reply("yes ." if holds(self.thing, aspect) else "no .")


class Guesser(ScriptedAssistant):
    def __init__(self, turns: int, hurry: float, seed: int):
        self.turns, self.hurry, self.rng = turns, hurry, np.random.default_rng([1, seed])

    def act(self, messages) -> str:
        known, aspect = {}, ""
        for word in " ".join(m["content"] for m in messages).split():
            aspect = word if word in ASPECTS else aspect
            if word in ("yes", "no"):
                known[aspect] = word == "yes"
        things = [thing for thing in THINGS if all(holds(thing, a) == yes for a, yes in known.items())]
        self.turns -= 1
        if len(things) == 1 or self.turns == 0 or self.rng.random() < self.hurry:
            return f"i guess : {self.rng.choice(things)}"
        return f"is it {next(a for a in ASPECTS if a not in known)} ?"


class TwentyQuestions(Task):
    name, scale, outcome_name = "twenty_questions", "tiny", "right guesses"
    limits = Limits(max_turns=8, max_turn_tokens=8, max_tokens=120)

    def __init__(self, difficulty: str = "normal", revealed: bool = False):
        self.vague, self.revealed = difficulty_level(LEVELS, difficulty, self.name)["vague"], revealed

    def goal(self, index: int, split: str = "train") -> Goal:
        rng = np.random.default_rng([split == "train", index])
        thing, opening = str(rng.choice(THINGS)), str(rng.choice(OPENINGS))
        facts = [f"{aspect} {'yes' if holds(thing, aspect) else 'no'} ." for aspect in ASPECTS]
        return Goal(index, split, " ".join([opening, *facts * self.revealed]), {"thing": thing}, answer=thing)

    def user(self, goal: Goal, seed: int) -> User:
        return Thinker(goal.answer, self.vague, seed)

    def outcome(self, goal: Goal, messages) -> float:
        words = messages[-1]["content"].split() if messages[-1]["role"] == "assistant" else []
        return float("guess" in words and [word for word in words if word in THINGS] == [goal.answer])

    def expert(self, goal: Goal, seed: int) -> ScriptedAssistant:
        return Guesser(self.limits.max_turns, hurry=0.0, seed=seed)

    def novice(self, goal: Goal, seed: int) -> ScriptedAssistant:
        return Guesser(self.limits.max_turns, hurry=0.3, seed=seed)

    def vocabulary(self) -> list[str]:
        return " ".join([*THINGS, *ASPECTS, *OPENINGS, "is it ? i guess : yes no . hard to say"]).split()
