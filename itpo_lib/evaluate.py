"""How good a policy is: played dialogues summarised with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from transformers import PreTrainedModel

from .chat import ChatFormat
from .dialogue import Dialogue
from .errors import require
from .rollout import Episode, play
from .tasks.base import Task


@dataclass(frozen=True)
class Estimate:
    """A mean with an interval: a 95% bootstrap over dialogues or pairs of runs, or the range of a few seeds."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Evaluation:
    """`success`: share of outcomes at the task's threshold. `words`: assistant's words per dialogue.

    `outcome_name` says what the outcome measures, such as "BLEU".
    """

    success: Estimate
    outcome: Estimate
    turns: Estimate
    words: Estimate
    dialogues: int
    failed: int
    temperature: float
    outcome_name: str

    def to_dict(self) -> dict:
        """Plain JSON types."""
        return asdict(self)


def bootstrap_mean(values: Sequence[float], seed: int = 0, resamples: int = 2000) -> Estimate:
    """Mean and percentile bootstrap interval; a single value has no spread to show."""
    require(len(values) > 0, "cannot average no values")
    data = np.asarray(values, dtype=float)
    draws = np.random.default_rng(seed).integers(len(data), size=(resamples, len(data)))
    low, high = np.quantile(data[draws].mean(1), [0.025, 0.975])
    return Estimate(float(data.mean()), float(low), float(high))


def paired_gain(before: Sequence[float], after: Sequence[float]) -> Estimate:
    """Mean difference of outcomes on the same dialogues (goal, user and sampler seed), with its interval."""
    require(len(before) == len(after), f"paired outcomes must be equally many, got {len(before)} and {len(after)}")
    return bootstrap_mean([b - a for a, b in zip(before, after, strict=True)])


def summarise(task: Task, dialogues: Sequence[Dialogue], temperature: float) -> Evaluation:
    """Evaluation of finished dialogues; failed ones count only as failed."""
    finished = [d for d in dialogues if d.outcome is not None]
    require(len(finished) > 0, f"all {len(dialogues)} dialogues failed: {dialogues[0].failure}")
    measure: Callable[[Callable[[Dialogue], float]], Estimate] = lambda f: bootstrap_mean([f(d) for d in finished])  # noqa: E731
    return Evaluation(
        success=measure(lambda d: float((d.outcome or 0.0) >= task.success_threshold)),
        outcome=measure(lambda d: d.outcome or 0.0),
        turns=measure(lambda d: d.n_turns),
        words=measure(lambda d: d.assistant_words),
        dialogues=len(finished),
        failed=len(dialogues) - len(finished),
        temperature=temperature,
        outcome_name=task.outcome_name,
    )


def evaluate(
    model: PreTrainedModel,
    chat: ChatFormat,
    task: Task,
    n: int = 256,
    *,
    split: str = "validation",
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 256,
) -> tuple[Evaluation, list[Dialogue]]:
    """Play `n` goals of a split, one dialogue each; the summary and the dialogues.

    `temperature` 0 is greedy. Goals repeat where the split has fewer than `n`, each time with another user.
    """
    require(n >= 1, f"need at least one dialogue to evaluate, got n={n}")
    size = task.size(split) or n
    episodes = [Episode(task.goal(i % size, split), seed * 1_000_003 + i) for i in range(n)]
    dialogues: list[Dialogue] = []
    for start in range(0, n, batch_size):
        dialogues += play(model, chat, task, episodes[start : start + batch_size], temperature=temperature)
    return summarise(task, dialogues, temperature), dialogues
