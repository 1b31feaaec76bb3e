"""Math tutoring at text scale: English word problems whose numbers must be asked for.

The problems are `gsm_symbolic` of reasoning-gym (85 templates, so training and validation share
templates but no problem). The opening shows the question and what carries no number; the user
tells one hidden sentence per turn. "Final answer: 42" or "\\boxed{42}" ends the dialogue, and
math-verify compares that number with the truth.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from ..dialogue import Message
from ..errors import ItpoError, require
from .base import Goal, Limits, Reply, ScriptedAssistant, Task, User
from .english import GENERIC, SENTENCE_END, asked_fact, asking_part, name_stems, stems
from .final_answer import equal_numbers, stated_answer
from .slots import Noise, NoviceHabits, difficulty_level

N_PROBLEMS, N_VALIDATION, SPLIT_SEED, PROBLEM_SEED = 500, 50, 42, 42
LEVELS: dict[str, dict[str, Any]] = {
    "easy": {"most_hidden": 1, "max_turns": 6, "noise": Noise(vague=0.05, chatter=0.1)},
    "normal": {"most_hidden": None, "max_turns": 6, "noise": Noise(vague=0.1, chatter=0.2)},
    "stress": {"most_hidden": None, "max_turns": 8, "noise": Noise(vague=0.3, chatter=0.4)},
}
OPENINGS = ("{shown}", "Can you help me? {shown}", "I am stuck on my homework. {shown}", "Here is my problem. {shown}")
LEADS = ("{fact}", "Oh right: {fact}", "I think it says this: {fact}", "Let me see. {fact}", "Yes, here it is: {fact}")
REPEATS = ("I told you already: {fact}", "As I said before: {fact}")
VAGUE = ("Hmm, I would have to look that up.", "I am not sure, it is a bit confusing.", "Something like that, maybe.")
ABSENT = ("I do not know, it does not say.", "No idea, I cannot find that in the problem.")
FINISHED = ("That is all I have.", "There is nothing more in the problem.")
PUZZLED = ("Okay. Is there something that you need to know from me?", "I am not sure what you want me to tell you.")
CHATTER = ("Math is hard.", "My sister likes these problems.", "I want to be done soon.")
ASK_ALL = (
    "What else does the problem say?",
    "Can you give me more details?",
    "Which numbers does the problem give?",
    "Please tell me what you know about it.",
)
ASK_ABOUT = ("What does it say about the {word}?", "Can you tell me about the {word}?", "What about the {word}?")
WANDER = (
    "Did you sleep well?",
    "Is it sunny outside?",
    "Word problems can be fun.",
    "Take your time, it will be fine.",
)
GUESSES = ("Final answer: {number}", "It should be {number}. Final answer: {number}", "Easy. Final answer: {number}")
ANSWERS = ("{working} Final answer: {number}", "Thank you. {working} Final answer: {number}", "Final answer: {number}")

DIGITS = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")
NUMBER = re.compile(
    r"\d|\b(half|twice|double|thrice|quarter|dozens?|two|three|four|five|six|seven|eight|nine|ten|twelve)\b", re.I
)


class TextMathTutoring(Task):
    """The math tutor in English. `revealed=True` makes openings that hide nothing.

    `difficulty`: "easy" hides one sentence, "normal" every sentence with a number, "stress" the
    same from a vaguer user, with more turns.
    """

    name, scale = "math_tutoring", "text"
    system_prompt = (
        "You are a math tutor. The student shows you only a part of a word problem. Ask for the missing facts before "
        "you assume anything: one short, specific question at a time. Once you know enough, work it out briefly and "
        "end with: Final answer: <number>"
    )

    def __init__(self, difficulty: str = "normal", revealed: bool = False, noise: Noise | None = None):
        level = difficulty_level(LEVELS, difficulty, self.name)
        self.difficulty, self.revealed = difficulty, revealed
        self.most_hidden: int | None = level["most_hidden"]
        self.noise: Noise = noise or level["noise"]
        self.limits = Limits(max_turns=level["max_turns"], max_turn_tokens=64, max_tokens=107 * level["max_turns"])

    def size(self, split: str) -> int:
        return len(split_indices(split))

    def goal(self, index: int, split: str = "train") -> Goal:
        indices = split_indices(split)
        source = indices[index % len(indices)]
        text, answer, working = problems()[source]
        scene, facts, question = split_problem(text)
        n_shown = max(0, len(facts) - self.most_hidden) if self.most_hidden else 0
        hidden = facts[n_shown:]
        shown = text if self.revealed else " ".join([*scene, *facts[:n_shown], question])
        return Goal(
            index=index,
            split=split,
            opening=OPENINGS[source % len(OPENINGS)].format(shown=shown),
            hidden={f"fact{i}": sentence for i, sentence in enumerate(hidden, 1)},
            answer=answer,
            data={"source": source, "problem": text, "question": question, "working": working},
        )

    def user(self, goal: Goal, seed: int) -> User:
        return ProblemUser(goal, self.noise, seed)

    def outcome(self, goal: Goal, messages: Sequence[Message]) -> float:
        """1 if the last turn is the assistant's and states the right number."""
        if messages[-1]["role"] != "assistant":
            return 0.0
        stated = stated_answer(messages[-1]["content"])
        return float(stated is not None and equal_numbers(goal.answer, stated))

    def expert(self, goal: Goal, seed: int) -> ScriptedAssistant:
        return TextExpert(self, goal, np.random.default_rng([7, seed]))

    def novice(self, goal: Goal, seed: int) -> ScriptedAssistant:
        return TextNovice(self, goal, np.random.default_rng([8, seed]))

    def told(self, goal: Goal, messages: Sequence[Message]) -> dict[str, str]:
        """The hidden facts that the user's words hold so far."""
        said = " ".join(m["content"] for m in messages if m["role"] == "user")
        return {name: fact for name, fact in goal.hidden.items() if fact in said}


class ProblemUser(User):
    """Tells the hidden sentence that a question is about, one per turn; ends at a final answer.

    Only the assistant's text reaches it, and it keeps its own record of what it told, so an
    assistant that writes both parts gains nothing.
    """

    def __init__(self, goal: Goal, noise: Noise, seed: int):
        self.facts, self.names, self.noise = tuple(goal.hidden.values()), name_stems(goal.data["problem"]), noise
        self.rng = np.random.default_rng(seed)
        self.told: set[str] = set()

    def reply(self, text: str) -> Reply:
        if stated_answer(text) is not None:
            return Reply("", done=True)
        said = self._answer(asking_part(text))
        if self.rng.random() < self.noise.chatter:
            said = f"{said} {choice(self.rng, CHATTER)}"
        return Reply(said)

    def _answer(self, question: str) -> str:
        if not question:
            return choice(self.rng, PUZZLED)
        fact = asked_fact(question, self.facts, self.told, self.names)
        if fact is None:
            return choice(self.rng, FINISHED if GENERIC.search(question) else ABSENT)
        if fact in self.told:
            return choice(self.rng, REPEATS).format(fact=fact)
        if self.rng.random() < self.noise.vague:
            return choice(self.rng, VAGUE)
        self.told.add(fact)
        return choice(self.rng, LEADS).format(fact=fact)


class TextExpert(ScriptedAssistant):
    """Asks until everything is told, then answers right; out of turns, it says 0."""

    def __init__(self, task: TextMathTutoring, goal: Goal, rng: np.random.Generator):
        self.task, self.goal, self.rng = task, goal, rng

    def act(self, messages: Sequence[Message]) -> str:
        turns_left = self.task.limits.max_turns - sum(m["role"] == "assistant" for m in messages)
        if self.informed(messages):
            return choice(self.rng, ANSWERS).format(number=self.goal.answer, working=self.goal.data["working"]).strip()
        return choice(self.rng, ASK_ALL) if turns_left > 1 else "Final answer: 0"

    def informed(self, messages: Sequence[Message]) -> bool:
        return self.task.revealed or len(self.task.told(self.goal, messages)) == len(self.goal.hidden)


class TextNovice(TextExpert):
    """Answers right once informed, but before that it guesses a number it saw, wanders and repeats itself."""

    habits = NoviceHabits(guess=0.35, wander=0.15, repeat=0.15)

    def act(self, messages: Sequence[Message]) -> str:
        if self.informed(messages):
            return super().act(messages)
        luck, habits = self.rng.random(), self.habits
        if luck < habits.guess:
            said = " ".join(m["content"] for m in messages if m["role"] == "user")
            seen = DIGITS.findall(said) or [str(self.rng.integers(2, 100))]
            return choice(self.rng, GUESSES).format(number=choice(self.rng, seen))
        if luck < habits.guess + habits.wander:
            return choice(self.rng, WANDER)
        told = self.task.told(self.goal, messages)
        wanted = told if told and self.rng.random() < habits.repeat else self.goal.hidden.keys() - told.keys()
        topics = shared_topics(self.goal, sorted(wanted))
        if topics and self.rng.random() < 0.6:
            return choice(self.rng, ASK_ABOUT).format(word=choice(self.rng, topics))
        return choice(self.rng, ASK_ALL)


@lru_cache(maxsize=1)
def problems() -> tuple[tuple[str, str, str], ...]:
    """All problems as (text, answer, last step of the solution): distinct texts with something to hide."""
    try:
        import reasoning_gym
    except ImportError as error:
        raise ItpoError("task 'math_tutoring' (text) needs reasoning-gym: pip install reasoning-gym") from error
    found: dict[str, tuple[str, str, str]] = {}
    for entry in reasoning_gym.create_dataset("gsm_symbolic", seed=PROBLEM_SEED, size=N_PROBLEMS + 50):
        text = entry["question"].split(" Give the result as")[0].strip()
        steps = [line for line in entry["metadata"]["answer_cot"].split("\n") if line and "####" not in line]
        working = steps[-1].strip().rstrip(".") + "." if steps and len(steps[-1]) <= 120 else ""
        if split_problem(text)[1]:
            found.setdefault(text, (text, entry["answer"], working))
    require(len(found) >= N_PROBLEMS, f"reasoning-gym gave {len(found)} distinct problems, {N_PROBLEMS} are needed")
    return tuple(found.values())[:N_PROBLEMS]


@lru_cache(maxsize=2)
def split_indices(split: str) -> list[int]:
    """Which problems a split holds: the first tenth of a fixed shuffle is validation."""
    require(split in ("train", "validation"), f"split must be 'train' or 'validation', got {split!r}")
    order = np.random.default_rng(SPLIT_SEED).permutation(N_PROBLEMS).tolist()
    return order[:N_VALIDATION] if split == "validation" else order[N_VALIDATION:]


def split_problem(text: str) -> tuple[list[str], list[str], str]:
    """A problem as (scene, facts, question).

    A fact is a sentence with a number plus the sentences without one that follow it. A condition
    with numbers inside the question ("If he eats 3, how many ...?", "... if he eats 3?") becomes a
    fact of its own, so that it can be hidden.
    """
    *context, question = SENTENCE_END.split(text)
    front = re.match(r"(.+?),?\s+((?:how|what|calculate)\b.+)", question, re.I | re.S)
    if front and NUMBER.search(front[1]):
        context.append(as_sentence(front[1]))
        question = front[2]
    back = re.match(r"(.+?),?\s+if\s+(.+)\?$", question, re.S)
    if back and NUMBER.search(back[2]):
        context.append(as_sentence(back[2]))
        question = f"{back[1]}?"
    scene: list[str] = []
    facts: list[str] = []
    for sentence in context:
        if NUMBER.search(sentence):
            facts.append(sentence)
        elif facts:
            facts[-1] += f" {sentence}"
        else:
            scene.append(sentence)
    return scene, facts, question[0].upper() + question[1:]


def as_sentence(clause: str) -> str:
    """A clause as a sentence: no leading "if", a capital, a full stop."""
    clause = re.sub(r"^if\s+", "", clause.strip(), flags=re.I)
    return f"{clause[0].upper()}{clause[1:]}."


def shared_topics(goal: Goal, names: Iterable[str]) -> list[str]:
    """Words of the opening that the named facts speak of: what one can ask for without knowing them."""
    facts = frozenset().union(*(stems(goal.hidden[name]) for name in names)) - name_stems(goal.data["problem"])
    return sorted({w for w in re.findall(r"[a-z]{3,}", goal.opening) if stems(w) and stems(w) <= facts})


def choice(rng: np.random.Generator, options: Sequence[str]) -> str:
    """One option, all equally likely."""
    return options[int(rng.integers(len(options)))]
