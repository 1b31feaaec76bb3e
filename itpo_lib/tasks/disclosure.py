"""What the text tasks share: a user who owns facts and tells one a turn when asked, and two scripts that ask.

A fact is a sentence of plain English (`Goal.hidden`: name -> sentence) that the user says word for
word, so that anyone can see in the transcript what was told. A question means a fact by the words of
the sentence, or by further words of the task's (`topics`: name -> words, such as "tone style").
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from ..dialogue import Message, said_by
from ..errors import require
from .base import Goal, Limits, Reply, ScriptedAssistant, Task, User
from .english import GENERIC, asked_fact, asking_part
from .slots import Noise, NoviceHabits, difficulty_level

SPLIT_SEED = 42
Phrases = tuple[str, ...]


class DisclosingUser(User):
    """Tells the fact that a question is about, one per turn. A subclass brings the wordings and `is_final`.

    Only the assistant's text reaches it, and it keeps its own record of what it told, so an
    assistant that writes both parts gains nothing. `leads` and `repeats` hold `{fact}`.
    """

    leads: ClassVar[Phrases]
    repeats: ClassVar[Phrases]  # the question was answered before
    vague: ClassVar[Phrases]  # knows, but does not tell this time
    absent: ClassVar[Phrases]  # a question about something that no fact holds
    finished: ClassVar[Phrases]  # asked for anything else: all is told
    puzzled: ClassVar[Phrases]  # nothing was asked
    chatter: ClassVar[Phrases]

    def __init__(
        self,
        hidden: Mapping[str, str],
        noise: Noise,
        seed: int,
        topics: Mapping[str, str] | None = None,
        names: frozenset[str] = frozenset(),
    ):
        self.facts, self.noise, self.names = tuple(hidden.values()), noise, names
        self.topics = {hidden[name]: words for name, words in (topics or {}).items() if name in hidden}
        self.rng = np.random.default_rng(seed)
        self.told: set[str] = set()

    @abstractmethod
    def is_final(self, text: str) -> bool:
        """Whether the assistant's turn ends the dialogue."""

    def heard(self, text: str) -> str:
        """What the assistant's turn asks, in words that the facts may share; empty if it asks nothing."""
        return asking_part(text)

    def reply(self, text: str) -> Reply:
        if self.is_final(text):
            return Reply("", done=True)
        said = self._answer(self.heard(text))
        if self.rng.random() < self.noise.chatter:
            said = f"{said} {choice(self.rng, self.chatter)}"
        return Reply(said)

    def _answer(self, question: str) -> str:
        if not question:
            return choice(self.rng, self.puzzled)
        fact = asked_fact(question, self.facts, self.told, self.names, self.topics)
        if fact is None:
            return choice(self.rng, self.finished if GENERIC.search(question) else self.absent)
        if fact in self.told:
            return choice(self.rng, self.repeats).format(fact=fact)
        if self.rng.random() < self.noise.vague:
            return choice(self.rng, self.vague)
        self.told.add(fact)
        return choice(self.rng, self.leads).format(fact=fact)


class DisclosureTask(Task):
    """A text task. A subclass writes `goal`, `user`, `outcome` and the four methods that its scripts speak with.

    `revealed=True` makes openings that hide nothing (to measure competence); `noise` replaces the
    noise of the difficulty level. Each level has at least the keys max_turns and noise.
    """

    scale = "text"
    levels: ClassVar[Mapping[str, dict[str, Any]]]
    max_turn_tokens: ClassVar[int]
    tokens_per_turn: ClassVar[int]  # the budget of a whole dialogue, per turn: assistant, user and glue
    ask_all: ClassVar[Phrases]  # requests for anything at all
    wander: ClassVar[Phrases]  # small talk that asks for no fact
    habits: ClassVar[NoviceHabits] = NoviceHabits(guess=0.35, wander=0.15, repeat=0.15)

    def __init__(self, difficulty: str = "normal", revealed: bool = False, noise: Noise | None = None):
        self.level = difficulty_level(self.levels, difficulty, self.name)
        self.difficulty, self.revealed = difficulty, revealed
        self.noise: Noise = noise or self.level["noise"]
        turns = self.level["max_turns"]
        self.limits = Limits(turns, self.max_turn_tokens, self.tokens_per_turn * turns)

    @abstractmethod
    def final_turn(self, goal: Goal, rng: np.random.Generator) -> str:
        """The last turn of an assistant that knows all: the best there is."""

    @abstractmethod
    def guess(self, goal: Goal, messages: Sequence[Message], rng: np.random.Generator) -> str:
        """A last turn made of what the user has said so far."""

    @abstractmethod
    def concede(self, goal: Goal, messages: Sequence[Message]) -> str:
        """The last turn of an expert that ran out of turns before it knew enough."""

    @abstractmethod
    def question(self, goal: Goal, wanted: Iterable[str], rng: np.random.Generator) -> str:
        """A question about one of the facts named in `wanted`, from someone who does not know them."""

    def next_question(self, goal: Goal, messages: Sequence[Message], rng: np.random.Generator) -> str:
        """What the expert asks next: for anything else, unless a task knows better."""
        return choice(rng, self.ask_all)

    def told(self, goal: Goal, messages: Sequence[Message]) -> dict[str, str]:
        """The hidden facts that the user's words hold so far."""
        said = said_by_user(messages)
        return {name: fact for name, fact in goal.hidden.items() if fact in said}

    def informed(self, goal: Goal, messages: Sequence[Message]) -> bool:
        """Whether nothing is hidden any more."""
        return self.revealed or len(self.told(goal, messages)) == len(goal.hidden)

    def expert(self, goal: Goal, seed: int) -> ScriptedAssistant:
        return DisclosureExpert(self, goal, np.random.default_rng([7, seed]))

    def novice(self, goal: Goal, seed: int) -> ScriptedAssistant:
        return DisclosureNovice(self, goal, np.random.default_rng([8, seed]))


class DisclosureExpert(ScriptedAssistant):
    """Asks for anything else until everything is told, then ends; concedes when it runs out of turns."""

    def __init__(self, task: DisclosureTask, goal: Goal, rng: np.random.Generator):
        self.task, self.goal, self.rng = task, goal, rng

    def act(self, messages: Sequence[Message]) -> str:
        if self.task.informed(self.goal, messages):
            return self.finish(messages)
        turns_left = self.task.limits.max_turns - len(said_by("assistant", messages))
        if turns_left > 1:
            return self.task.next_question(self.goal, messages, self.rng)
        return self.task.concede(self.goal, messages)

    def finish(self, messages: Sequence[Message]) -> str:
        """The last turn once everything is told."""
        return self.task.final_turn(self.goal, self.rng)


class DisclosureNovice(DisclosureExpert):
    """Ends well once informed, but before that it guesses, wanders and asks again for what it was told."""

    def act(self, messages: Sequence[Message]) -> str:
        task, goal, rng, habits = self.task, self.goal, self.rng, self.task.habits
        if task.informed(goal, messages):
            return self.finish(messages)
        luck = rng.random()
        if luck < habits.guess:
            return task.guess(goal, messages, rng)
        if luck < habits.guess + habits.wander:
            return choice(rng, task.wander)
        told = task.told(goal, messages)
        wanted = told if told and rng.random() < habits.repeat else goal.hidden.keys() - told.keys()
        return task.question(goal, sorted(wanted), rng)


@lru_cache(maxsize=8)
def split_indices(split: str, n: int, n_validation: int) -> list[int]:
    """Which of `n` goals a split holds: the first `n_validation` of a fixed shuffle are validation."""
    require(split in ("train", "validation"), f"split must be 'train' or 'validation', got {split!r}")
    order = np.random.default_rng(SPLIT_SEED).permutation(n).tolist()
    return order[:n_validation] if split == "validation" else order[n_validation:]


def said_by_user(messages: Sequence[Message]) -> str:
    """The user's words, one message after the other."""
    return " ".join(said_by("user", messages))


def choice(rng: np.random.Generator, options: Sequence[str]) -> str:
    """One option, all equally likely."""
    return options[int(rng.integers(len(options)))]
