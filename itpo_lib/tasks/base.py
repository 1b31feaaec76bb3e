"""What a task is: goals, a user who hides them, an outcome in [0, 1], and limits."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from ..dialogue import Message, said_by
from ..errors import require


@dataclass(frozen=True)
class Limits:
    """Budgets of one dialogue; a turn that runs out of tokens is closed by force."""

    max_turns: int
    max_turn_tokens: int
    max_tokens: int = 4096

    def __post_init__(self) -> None:
        for name in ("max_turns", "max_turn_tokens", "max_tokens"):
            value = getattr(self, name)
            require(isinstance(value, int) and value >= 1, f"{name} must be an integer >= 1, got {value!r}")
        require(
            self.max_turn_tokens < self.max_tokens,
            f"max_tokens={self.max_tokens} must exceed max_turn_tokens={self.max_turn_tokens}: one turn has to fit",
        )


@dataclass(frozen=True)
class Goal:
    """What the user wants. `opening` shows a part of it; `hidden` is what the assistant must find out."""

    index: int
    split: str
    opening: str
    hidden: dict[str, str]
    answer: str
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """What a user says next. `done` ends the dialogue."""

    text: str
    done: bool = False


class User(ABC):
    """A simulated user: private state and private randomness, both cloneable."""

    @abstractmethod
    def reply(self, text: str) -> Reply:
        """Answer the assistant's turn `text`."""

    def start_reply(self, text: str) -> Callable[[], Reply]:
        """Begin to answer; the result fetches the reply. Users that wait for a server overlap their waiting."""
        return partial(self.reply, text)

    def clone(self) -> User:
        """An independent copy that would answer exactly as this one from here on."""
        return copy.deepcopy(self)

    def reseed(self, seed: Sequence[int]) -> None:
        """Other randomness from here on; what was said so far stays. Serves users who keep theirs in `self.rng`."""
        require(
            hasattr(self, "rng"),
            f"{type(self).__name__} keeps no generator in self.rng: give it a reseed(seed) of its own "
            "(one that does nothing, if the user is not random)",
        )
        self.rng = np.random.default_rng(seed)


class ScriptedAssistant(ABC):
    """An assistant that plays by rules: an expert, or a maker of warm-start dialogues."""

    @abstractmethod
    def act(self, messages: Sequence[Message]) -> str:
        """The next assistant turn, given all messages so far."""


class Task(ABC):
    """One world. Subclasses are deterministic in (split, index) and in the user's seed."""

    name: ClassVar[str]
    scale: ClassVar[str]
    system_prompt: str | None = None
    success_threshold: float = 1.0
    outcome_name: str = "outcome"  # what tables call the mean outcome, such as "BLEU"
    limits: Limits

    @abstractmethod
    def goal(self, index: int, split: str = "train") -> Goal:
        """The goal number `index` of a split ("train" or "validation")."""

    @abstractmethod
    def user(self, goal: Goal, seed: int) -> User:
        """A fresh user who wants `goal`."""

    @abstractmethod
    def outcome(self, goal: Goal, messages: Sequence[Message]) -> float:
        """The outcome R in [0, 1] of a finished dialogue."""

    def start_outcome(self, goal: Goal, messages: Sequence[Message]) -> Callable[[], float]:
        """Begin to judge; the result fetches the outcome. Judges that wait for a server overlap their waiting."""
        return partial(self.outcome, goal, messages)

    def size(self, split: str) -> int | None:
        """How many goals a split has; None: as many as one likes."""
        return None

    def expert(self, goal: Goal, seed: int) -> ScriptedAssistant | None:
        """A scripted assistant that sets the ceiling, where the task has one."""
        return None

    def novice(self, goal: Goal, seed: int) -> ScriptedAssistant | None:
        """A scripted assistant that the warm start imitates, where the task has one."""
        return None

    def opening_messages(self, goal: Goal) -> list[Message]:
        """The messages before the assistant's first turn."""
        system: list[Message] = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        return [*system, {"role": "user", "content": goal.opening}]

    def disclosed(self, goal: Goal, messages: Sequence[Message]) -> set[str]:
        """Names of the hidden facts that the user's replies hold so far, word for word."""
        first = next((i for i, m in enumerate(messages) if m["role"] == "assistant"), len(messages))
        said = " ".join(["", *said_by("user", messages[first:]), ""])
        return {name for name, value in goal.hidden.items() if f" {value} " in said}

    def informative_turns(self, goal: Goal, messages: Sequence[Message]) -> list[bool]:
        """For each assistant turn: did the reply to it shrink the set of goals that are still possible?"""
        turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        known = [self.disclosed(goal, messages[:i]) for i in [*turns, len(messages)]]
        return [bool(after - before) for before, after in pairwise(known)]

    def turn_weights(self, goal: Goal, messages: Sequence[Message]) -> list[float]:
        """A scripted judge of turns: weight 1 for each informative turn and for the last one, else 0."""
        require(
            self.scale in ("tiny", "text"),
            f"task {self.name!r} ({self.scale}) has no scripted judge of turns: override its turn_weights, or pass a "
            "judge that has turn_weights(goal, messages)",
        )
        return [float(told) for told in self.informative_turns(goal, messages)[:-1]] + [1.0]

    def checked_outcome(self, goal: Goal, messages: Sequence[Message]) -> float:
        """`outcome`, refused with a clear error where it is no number in [0, 1]."""
        return self.check_outcome(goal, self.outcome(goal, messages))

    def check_outcome(self, goal: Goal, value: float) -> float:
        """An outcome that was fetched, refused likewise."""
        require(
            isinstance(value, int | float | np.number) and 0.0 <= value <= 1.0,
            f"task {self.name!r} ({self.scale}) returned the outcome {value!r} for goal {goal.index} of "
            f"{goal.split!r}; an outcome is a number in [0, 1]",
        )
        return float(value)


def play_scripted(task: Task, goal: Goal, assistant: ScriptedAssistant, user_seed: int) -> tuple[list[Message], float]:
    """Play one dialogue without a language model; returns the messages and the outcome."""
    user, messages = task.user(goal, user_seed), task.opening_messages(goal)
    for turn in range(task.limits.max_turns):
        text = assistant.act(messages)
        messages.append({"role": "assistant", "content": text})
        reply = user.reply(text)
        if reply.done or turn + 1 == task.limits.max_turns:
            break
        messages.append({"role": "user", "content": reply.text})
    return messages, task.checked_outcome(goal, messages)


def ceiling(task: Task, n: int = 1000, split: str = "validation") -> float:
    """Mean outcome of the scripted expert over `n` goals: the best that the user's noise allows."""
    outcomes = []
    for i in range(n):
        goal = task.goal(i, split)
        expert = task.expert(goal, seed=i)
        require(expert is not None, f"task {task.name!r} ({task.scale}) has no scripted expert, hence no ceiling")
        outcomes.append(play_scripted(task, goal, expert, user_seed=i)[1])  # type: ignore[arg-type]
    return float(np.mean(outcomes))
