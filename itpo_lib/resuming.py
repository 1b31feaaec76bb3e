"""What a run's checkpoint holds beyond the policy, and which checkpoints a run can go on from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import require
from .files import write_whole
from .processes import checkpoint_note, file_sizes
from .replay import Replay
from .sidecar import Sidecar

if TYPE_CHECKING:
    from .config import ITPOConfig

COMPLETE = "itpo_complete.json"  # written last: a checkpoint without it was cut off while saving


def check_save_steps(args: ITPOConfig) -> None:
    """A checkpoint inside a reused generation could not resume exactly; refuse the setting."""
    reuse = args.steps_per_batch
    steps = args.save_steps
    require(
        reuse <= 1 or args.save_strategy == "no" or (steps >= 1 and steps % reuse == 0),
        f"save_steps={steps} must be a multiple of {reuse}, the optimizer steps that share one batch of dialogues",
    )


def complete_checkpoint(folder: Path, parts: Sequence[Sidecar | Replay], args: ITPOConfig, step: int) -> None:
    """Write what trains beside the policy, then the mark that all of it is there."""
    for part in parts:
        part.save(folder)
    note = {**checkpoint_note(args, step), "files": file_sizes(folder)}
    write_whole(folder / COMPLETE, json.dumps(note) + "\n")


def latest_checkpoint(run: Path) -> Path | None:
    """The newest complete checkpoint of a run; one that was cut off while saving is passed over."""
    complete = [p.parent for p in run.glob(f"checkpoint-*/{COMPLETE}") if p.parent.name.split("-")[1].isdigit()]
    return max(complete, key=lambda p: int(p.name.split("-")[1]), default=None)
