"""A judge who weighs the turns of finished dialogues: a script of the task's, or a language model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from .dialogue import Dialogue, Message
from .errors import DialogueFailed, require
from .tasks.base import Goal, Task


class TurnJudge(Protocol):
    """Anything with `turn_weights`, such as a `Task` or an `LLMJudge`.

    One with `start_turn_weights` as well, which begins and returns how to fetch, overlaps its waiting.
    """

    def turn_weights(self, goal: Goal, messages: Sequence[Message]) -> list[float]:
        """One number >= 0 for each assistant turn, not all 0."""


def start_weighing(judge: TurnJudge, goal: Goal, messages: Sequence[Message]) -> Callable[[], list[float]]:
    """How to fetch the judge's weights; one that can begins with them now."""
    if hasattr(judge, "start_turn_weights"):
        return judge.start_turn_weights(goal, messages)
    return partial(judge.turn_weights, goal, messages)


def weigh_turns(judge: TurnJudge, task: Task, dialogues: Sequence[Dialogue]) -> tuple[Tensor, Tensor]:
    """The judge's weight of each turn, (B, K), and which dialogues it could judge, (B,) bool."""
    weights = torch.zeros(len(dialogues), task.limits.max_turns)
    judged = torch.zeros(len(dialogues), dtype=torch.bool)
    finished = [(row, d) for row, d in enumerate(dialogues) if d.failure is None]
    pending = [start_weighing(judge, task.goal(d.goal_index, d.split), d.messages) for _, d in finished]
    for (row, dialogue), fetch in zip(finished, pending, strict=True):
        try:
            given = fetch()
        except DialogueFailed:
            continue
        require(
            len(given) == dialogue.n_turns and all(0 <= w < math.inf for w in given) and sum(given) > 0,
            f"the judge weighs a dialogue of {dialogue.n_turns} turns as {given!r}: it takes one finite number >= 0 per "
            "turn, not all 0",
        )
        weights[row, : dialogue.n_turns], judged[row] = torch.tensor(given), True
    return weights, judged
