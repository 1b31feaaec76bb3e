"""The scripted user of the tiny worlds: hidden slots, told one at a time, with noise."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from ..dialogue import Message, said_by
from ..errors import require, unknown_name
from .base import Reply, ScriptedAssistant, User


@dataclass(frozen=True)
class Noise:
    """How unreliable the user is; each knob is a probability per reply.

    `vague`: answers nothing. `wrong`: tells a wrong value the first time; asking again corrects it.
    `chatter`: adds a remark that means nothing.
    """

    vague: float = 0.0
    wrong: float = 0.0
    chatter: float = 0.0

    def __post_init__(self) -> None:
        for knob in fields(self):
            value = getattr(self, knob.name)
            require(0.0 <= value <= 1.0, f"noise.{knob.name} is a probability in [0, 1], got {value!r}")


@dataclass(frozen=True)
class Slot:
    """Something one can ask about. Any word of `keywords` in a turn asks for it.

    `replies` are templates with `{value}`.
    """

    name: str
    keywords: frozenset[str]
    replies: tuple[str, ...]
    choices: tuple[str, ...]


def asked_slot(text: str, slots: Sequence[Slot]) -> Slot | None:
    """The first slot of `slots` that a turn asks for, in the order of `slots`."""
    words = set(text.split())
    return next((slot for slot in slots if words & slot.keywords), None)


class SlotUser(User):
    """Understands keywords, tells one slot per turn, and ends the dialogue on `done_word`."""

    vague_replies = ("i am not sure .", "hmm let me think .", "i do not know yet .")
    chatter = ("i like this .", "what a day .", "my cat is here .")
    puzzled = ("i do not understand .", "what do you mean ?")
    repeat_remark = "you asked that already ."

    def __init__(
        self,
        slots: Sequence[Slot],
        values: Mapping[str, str],
        noise: Noise,
        seed: int,
        done_word: str,
        note_repeats: bool = False,
    ):
        self.slots, self.values, self.noise, self.done_word = tuple(slots), dict(values), noise, done_word
        self.note_repeats = note_repeats
        self.rng = np.random.default_rng(seed)
        self.told: dict[str, str] = {}  # slot -> the value last told

    def reply(self, text: str) -> Reply:
        if self.done_word in text.split():
            return Reply("", done=True)
        slot = asked_slot(text, self.slots)
        said = self._pick(self.puzzled) if slot is None else self._tell(slot)
        if self.rng.random() < self.noise.chatter:
            said = f"{said} {self._pick(self.chatter)}"
        return Reply(said)

    def _tell(self, slot: Slot) -> str:
        if self.rng.random() < self.noise.vague:
            return self._pick(self.vague_replies)
        truth, again = self.values[slot.name], slot.name in self.told
        others = [choice for choice in slot.choices if choice != truth]
        lies = not again and bool(others) and self.rng.random() < self.noise.wrong
        value = self._pick(others) if lies else truth
        said = self._pick(slot.replies).format(value=value)
        if again and self.note_repeats and self.told[slot.name] == truth:
            said = f"{self.repeat_remark} {said}"
        self.told[slot.name] = value
        return said

    def _pick(self, options: Sequence[str]) -> str:
        return options[int(self.rng.integers(len(options)))]


def told_values(messages: Sequence[Message], slots: Sequence[Slot]) -> dict[str, str]:
    """What the user's words reveal: for each slot, the choice named last in a reply to a question for it.

    Openings that reveal everything are read too: a message that matches a reply's template counts.
    """
    told: dict[str, str] = {}
    for text in said_by("user", messages):
        for slot in slots:
            for template, choice in itertools.product(slot.replies, slot.choices):
                if f" {template.format(value=choice)} " in f" {text} ":
                    told[slot.name] = choice
    return told


class SlotExpert(ScriptedAssistant):
    """Asks for each unknown slot until it is told, then answers.

    `verify`: while turns remain, ask once more for what was told only once.
    """

    def __init__(self, slots, questions, answer, max_turns: int, rng: np.random.Generator, verify: bool = False):
        self.slots, self.questions, self.answer = slots, questions, answer
        self.max_turns, self.rng, self.verify = max_turns, rng, verify
        self.times_told = {slot.name: 0 for slot in self.slots}

    def act(self, messages: Sequence[Message]) -> str:
        for name in told_values(messages[-1:], self.slots):
            self.times_told[name] += 1
        told = told_values(messages, self.slots)
        turns_left = self.max_turns - len(said_by("assistant", messages))
        unknown = [slot.name for slot in self.slots if slot.name not in told]
        unsure = [name for name, times in self.times_told.items() if times == 1] if self.verify else []
        if turns_left > 1 and (unknown or unsure):
            options = self.questions[(unknown or unsure)[0]]
            return options[int(self.rng.integers(len(options)))]
        return self.answer(told, self.rng)


@dataclass(frozen=True)
class NoviceHabits:
    """What the warm start imitates while it lacks facts: probabilities per turn.

    `guess`: answer anyway. `wander`: small talk or an irrelevant question. Otherwise it asks for a
    hidden slot, one that is already told with probability `repeat`.
    """

    guess: float = 0.35
    wander: float = 0.2
    repeat: float = 0.2


class SlotNovice(ScriptedAssistant):
    """Answers right once informed, but guesses early, wanders and repeats itself before."""

    def __init__(self, slots, questions, answer, rng: np.random.Generator, habits: NoviceHabits, revealed: bool):
        self.slots, self.questions, self.answer = slots, questions, answer
        self.rng, self.habits, self.revealed = rng, habits, revealed

    def act(self, messages: Sequence[Message]) -> str:
        told, luck = told_values(messages, self.slots), self.rng.random()
        unknown = [slot.name for slot in self.slots if slot.name not in told]
        if self.revealed or not unknown or luck < self.habits.guess:
            return self.answer(told, self.rng)
        if luck < self.habits.guess + self.habits.wander:
            topics = [name for name in self.questions if name not in {slot.name for slot in self.slots}]
        elif self.rng.random() < self.habits.repeat:
            topics = [slot.name for slot in self.slots]
        else:
            topics = unknown
        options = self.questions[topics[int(self.rng.integers(len(topics)))]]
        return options[int(self.rng.integers(len(options)))]


def difficulty_level(levels: Mapping[str, dict], name: str, task: str) -> dict:
    """The settings of one difficulty; an unknown name is an error that lists the known ones."""
    if name not in levels:
        raise unknown_name(f"difficulty of task {task!r}", name, levels)
    return dict(levels[name])
