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
from .base import Goal, User
from .disclosure import DisclosingUser, DisclosureTask, choice, said_by_user, split_indices
from .english import SENTENCE_END, name_stems, stems
from .final_answer import equal_numbers, stated_answer
from .slots import Noise

N_PROBLEMS, N_VALIDATION, PROBLEM_SEED = 500, 50, 42
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


class ProblemUser(DisclosingUser):
    """A student with a word problem; ends at a final answer."""

    leads, repeats, vague, absent = LEADS, REPEATS, VAGUE, ABSENT
    finished, puzzled, chatter = FINISHED, PUZZLED, CHATTER

    def is_final(self, text: str) -> bool:
        return stated_answer(text) is not None


class TextMathTutoring(DisclosureTask):
    """The math tutor in English.

    `difficulty`: "easy" hides one sentence, "normal" every sentence with a number, "stress" the
    same from a vaguer user, with more turns.
    """

    name = "math_tutoring"
    outcome_name = "accuracy"
    system_prompt = (
        "You are a math tutor. The student shows you only a part of a word problem. Ask for the missing facts before "
        "you assume anything: one short, specific question at a time. Once you know enough, work it out briefly and "
        "end with: Final answer: <number>"
    )
    levels, max_turn_tokens, tokens_per_turn = LEVELS, 64, 107
    ask_all, wander = ASK_ALL, WANDER

    def size(self, split: str) -> int:
        return len(split_indices(split, N_PROBLEMS, N_VALIDATION))

    def goal(self, index: int, split: str = "train") -> Goal:
        indices = split_indices(split, N_PROBLEMS, N_VALIDATION)
        source = indices[index % len(indices)]
        text, answer, working = problems()[source]
        scene, facts, question = split_problem(text)
        most_hidden = self.level["most_hidden"]
        n_shown = max(0, len(facts) - most_hidden) if most_hidden else 0
        shown = text if self.revealed else " ".join([*scene, *facts[:n_shown], question])
        return Goal(
            index=index,
            split=split,
            opening=OPENINGS[source % len(OPENINGS)].format(shown=shown),
            hidden={f"fact{i}": sentence for i, sentence in enumerate(facts[n_shown:], 1)},
            answer=answer,
            data={"source": source, "problem": text, "question": question, "working": working},
        )

    def user(self, goal: Goal, seed: int) -> User:
        return ProblemUser(goal.hidden, self.noise, seed, names=name_stems(goal.data["problem"]))

    def outcome(self, goal: Goal, messages: Sequence[Message]) -> float:
        """1 if the last turn is the assistant's and states the right number."""
        if messages[-1]["role"] != "assistant":
            return 0.0
        stated = stated_answer(messages[-1]["content"])
        return float(stated is not None and equal_numbers(goal.answer, stated))

    def final_turn(self, goal: Goal, rng: np.random.Generator) -> str:
        return choice(rng, ANSWERS).format(number=goal.answer, working=goal.data["working"]).strip()

    def guess(self, goal: Goal, messages: Sequence[Message], rng: np.random.Generator) -> str:
        seen = DIGITS.findall(said_by_user(messages)) or [str(rng.integers(2, 100))]
        return choice(rng, GUESSES).format(number=choice(rng, seen))

    def concede(self, goal: Goal, messages: Sequence[Message]) -> str:
        return "Final answer: 0"

    def question(self, goal: Goal, wanted: Iterable[str], rng: np.random.Generator) -> str:
        topics = shared_topics(goal, wanted)
        if topics and rng.random() < 0.6:
            return choice(rng, ASK_ABOUT).format(word=choice(rng, topics))
        return choice(rng, ASK_ALL)


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
