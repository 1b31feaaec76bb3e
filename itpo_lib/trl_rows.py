"""What TRL is given and handed back: goals as rows to draw from, played dialogues as columns, outcomes as rewards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import Dataset

from .dialogue import Dialogue
from .errors import require
from .rollout import blame
from .tasks.base import Goal, Task


def goal_dataset(task: Task, n: int) -> Dataset:
    """`n` training goals of a task as the rows that the trainer draws from."""
    size = task.size("train")
    n = n if size is None else min(n, size)
    require(n > 0, f"task {task.name!r} ({task.scale}) has no goals in split 'train': the dataset is empty")
    goals = [goal_of(task, i, "train") for i in range(n)]
    return Dataset.from_list([{"prompt": task.opening_messages(g), "goal_index": g.index} for g in goals])


def goal_of(task: Task, index: int, split: str = "train") -> Goal:
    """A task's goal; one that says it is another goal would be another one in the next batch."""
    with blame(task, index, split):
        goal = task.goal(index, split)
    require(
        (goal.index, goal.split) == (index, split),
        f"task {task.name!r} ({task.scale}): goal({index}, {split!r}) says that it is goal {goal.index} of "
        f"{goal.split!r}; pass index and split on to Goal as they come",
    )
    return goal


def check_dataset(rows: Dataset, groups: int) -> None:
    """Refuse a dataset that cannot fill one batch of `groups` prompts."""
    require(len(rows) > 0, "train_dataset is empty; it needs rows with prompt and goal_index")
    require(
        len(rows) >= groups,
        f"train_dataset has {len(rows)} goals, fewer than the {groups} prompts of one batch",
    )


def rollout_columns(dialogues: Sequence[Dialogue]) -> dict[str, list]:
    """Played dialogues as TRL's rollout_func returns them."""
    return {
        "prompt_ids": [d.prompt_ids for d in dialogues],
        "completion_ids": [d.completion_ids for d in dialogues],
        "logprobs": [d.logprobs for d in dialogues],
        "env_mask": [[int(k > 0) for k in d.turn_ids] for d in dialogues],
        "outcome": [d.outcome for d in dialogues],
    }


def outcome_reward(completions: list, outcome: list[float | None], **_: Any) -> list[float | None]:
    """TRL's reward function: the outcome that the rollout found; None for a failed dialogue."""
    return outcome


def check_failures(dialogues: Sequence[Dialogue], largest_share: float) -> None:
    """Refuse to learn from a batch of which more than `largest_share` failed."""
    failed = [d.failure for d in dialogues if d.failure]
    require(
        len(failed) <= largest_share * len(dialogues),
        f"{len(failed)} of {len(dialogues)} dialogues failed, more than max_failed_share="
        f"{largest_share}; the first says: {failed[0] if failed else ''}",
    )
