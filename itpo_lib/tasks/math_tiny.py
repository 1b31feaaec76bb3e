"""Math tutoring at tiny scale: a word problem whose facts must be asked for.

The opening shows a start number and hides what happens to it and by how much. The assistant asks,
the user tells one fact per turn (vaguely at times, rarely wrong), and "the answer is 12 minus 5"
ends it. The outcome evaluates the equation, so a small policy needs to copy, not to calculate.
Guessing from the opening is right once in 18 times.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..dialogue import Message
from .base import Goal
from .slot_task import SlotTask, goal_picker, words_after
from .slots import Noise, Slot

NAMES = ("anna", "ben", "carla", "david", "emma", "felix")
UNITS = ("apples", "books", "coins", "pens", "stones")
STARTS = tuple(range(9, 15))
AMOUNTS = tuple(range(1, 10))

SLOTS = {
    "action": Slot(
        "action",
        frozenset({"happens", "gain", "lose"}),
        ("some are {value} .", "in the story some are {value} .", "well , some are {value} ."),
        ("added", "removed"),
    ),
    "amount": Slot(
        "amount",
        frozenset({"many", "amount"}),
        ("it is {value} of them .", "the amount is {value} .", "i count {value} here ."),
        tuple(map(str, AMOUNTS)),
    ),
    "unit": Slot(
        "unit",
        frozenset({"kind", "sort"}),
        ("they are {value} .", "it is about {value} .", "the things are {value} ."),
        UNITS,
    ),
    "age": Slot("age", frozenset({"old", "age"}), ("{value} years old .",), ("seven", "eight", "nine")),
    "colour": Slot("colour", frozenset({"colour"}), ("{value} i think .",), ("red", "green", "blue")),
}
QUESTIONS = {
    "action": (
        "what happens to the {unit} in the story ?",
        "please tell me what happens then ?",
        "does {name} gain or lose some {unit} ?",
    ),
    "amount": (
        "how many {unit} are we talking about ?",
        "please tell me the amount in the story .",
        "and what is the amount then ?",
    ),
    "unit": (
        "what kind of things does {name} have ?",
        "which sort of things is it about ?",
        "please tell me the kind of things .",
    ),
    "age": ("how old is {name} in the story ?", "please tell me the age of {name} ."),
    "colour": ("which colour do they have ?", "please tell me the colour ."),
    "smalltalk": ("hello {name} , nice to meet you .", "what a nice day , {name} .", "i like this story ."),
}
ANSWERS = (
    "so the answer is {start} {sign} {amount} {unit} .",
    "i think the answer is {start} {sign} {amount} {unit} .",
    "the answer is {start} {sign} {amount} {unit} .",
)
SIGNS = {"added": "plus", "removed": "minus"}
OPENINGS = (
    "{name} has {start} {unit} . then something happens . how many now ?",
    "help me please . {name} starts with {start} {unit} . how many at the end ?",
    "my story : {name} has {start} {unit} and then it changes . what is the result ?",
)
LEVELS: dict[str, dict[str, Any]] = {
    "easy": {"hidden": ("amount",), "max_turns": 5, "noise": Noise(vague=0.1, chatter=0.1)},
    "normal": {"hidden": ("action", "amount"), "max_turns": 6, "noise": Noise(vague=0.2, wrong=0.005, chatter=0.2)},
    "stress": {
        "hidden": ("unit", "action", "amount"),
        "max_turns": 8,
        "noise": Noise(vague=0.3, wrong=0.02, chatter=0.4),
    },
}


class TinyMathTutoring(SlotTask):
    """The tiny math tutor. `revealed=True` makes openings that hide nothing (to measure competence)."""

    name = "math_tutoring"
    outcome_name = "accuracy"
    levels, questions, done_word = LEVELS, QUESTIONS, "answer"
    slots = tuple(SLOTS[name] for name in ("unit", "age", "colour", "action", "amount"))
    max_turn_tokens, max_tokens = 14, 280

    def goal(self, index: int, split: str = "train") -> Goal:
        pick = goal_picker(index, split)
        start, values = pick(STARTS), {slot.name: pick(slot.choices) for slot in SLOTS.values()}
        number = evaluate([str(start), SIGNS[values["action"]], values["amount"]])
        name, unit_hidden = pick(NAMES), "unit" in self.hidden_slots
        opening = pick(OPENINGS).format(name=name, start=start, unit="things" if unit_hidden else values["unit"])
        shown = [s for s in ("action", "amount") if self.revealed or s not in self.hidden_slots]
        return Goal(
            index=index,
            split=split,
            opening=self.stating(opening, ["unit"] * self.revealed + shown, values, pick),
            hidden={name: values[name] for name in self.hidden_slots},
            answer=f"{number} {values['unit']}",
            data={"name": name, "start": start, "values": values},
        )

    def outcome(self, goal: Goal, messages: Sequence[Message]) -> float:
        """1 if the last turn states the right number (and the right unit, where it is hidden)."""
        said, (number, unit) = words_after(messages, "answer"), goal.answer.split()
        units = [word for word in said if word in UNITS]
        return float(evaluate(said) == int(number) and (units == [unit] or "unit" not in self.hidden_slots))

    def phrases(self, goal: Goal) -> dict[str, tuple[str, ...]]:
        """The wordings of each question for this goal's opening."""
        unit = "things" if "unit" in self.hidden_slots else goal.data["values"]["unit"]
        return {k: tuple(q.format(name=goal.data["name"], unit=unit) for q in qs) for k, qs in QUESTIONS.items()}

    def answer_text(self, goal: Goal, told: dict[str, str], rng: np.random.Generator) -> str:
        values = self.known_or_guessed(goal, told, rng)
        sign = SIGNS[values["action"]]
        return str(rng.choice(ANSWERS)).format(
            start=goal.data["start"], sign=sign, amount=values["amount"], unit=values["unit"]
        )

    def texts(self) -> list[str]:
        return [*NAMES, *UNITS, *map(str, range(0, 25)), *SIGNS.values(), "things", *OPENINGS, *ANSWERS]


def evaluate(words: Sequence[str]) -> int | None:
    """The value of a "12 minus 5" or of a lone number among the words; None where there is neither."""
    said = [word for word in words if word.isdigit() or word in SIGNS.values()]
    if len(said) == 1 and said[0].isdigit():
        return int(said[0])
    if len(said) == 3 and said[0].isdigit() and said[2].isdigit() and not said[1].isdigit():
        return int(said[0]) + int(said[2]) * (1 if said[1] == SIGNS["added"] else -1)
    return None
