"""What a run's checkpoint holds beyond the policy, and which checkpoints a run can go on from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ItpoError, require
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
    (folder / COMPLETE).write_text(json.dumps(checkpoint_note(args, step)) + "\n")


def latest_checkpoint(run: Path) -> Path | None:
    """The newest complete checkpoint of a run; one that was cut off while saving is passed over."""
    complete = [p.parent for p in run.glob(f"checkpoint-*/{COMPLETE}")]
    return max(complete, key=lambda p: int(p.name.split("-")[1]), default=None)


def checkpoint_note(args: ITPOConfig, step: int) -> dict[str, Any]:
    """What a checkpoint says of the processes that made it."""
    note = {"step": step, "processes": args.world_size, "dialogues": dialogues_per_step(args)}
    return note if args.deepspeed_plugin is None else {**note, "deepspeed": True}


def dialogues_per_step(args: ITPOConfig) -> int:
    """Dialogues of one optimizer step, all processes together."""
    return args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size


def check_resumable(note: Path, args: ITPOConfig) -> None:
    """Refuse to go on with other batches than the run began with: goals would be skipped or come twice."""
    try:
        made = json.loads(note.read_text()) if note.exists() else {}
    except ValueError as error:
        raise ItpoError(f"corrupt checkpoint: {note} is not JSON ({error})") from error
    if made:
        check_optimizer_parts(made, note.parent.name, args)
    before, now = made.get("dialogues", dialogues_per_step(args)), dialogues_per_step(args)
    per_row = args.gradient_accumulation_steps * args.world_size
    wanted = f"per_device_train_batch_size={before // per_row}" if before % per_row == 0 else "other batch sizes"
    require(
        before == now,
        f"{note.parent.name} was made by {made.get('processes')} process(es) with {before} dialogues a step; here "
        f"{args.world_size} process(es) would make it {now}. Resume with --set {wanted}",
    )


def check_optimizer_parts(made: dict[str, Any], checkpoint: str, args: ITPOConfig) -> None:
    """Refuse to go on without the optimizer's state: one that DeepSpeed left in parts would be silently begun anew."""
    parts = made["processes"] if made.get("deepspeed") else None
    here = None if args.deepspeed_plugin is None else args.world_size
    by = "without DeepSpeed" if parts is None else f"by {parts} DeepSpeed process(es)"
    wanted = "recipes/accelerate/ddp.yaml or one process"
    if parts is not None:
        wanted = f"recipes/accelerate/zero2.yaml and --num_processes {parts}"
    require(
        parts == here,
        f"{checkpoint} was made {by}, and the optimizer's state in it cannot be read otherwise. Resume with {wanted}",
    )
