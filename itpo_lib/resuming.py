"""What a run's checkpoint holds beyond the policy, and which checkpoints a run can go on from."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerState
from trl import GRPOTrainer

from .errors import ItpoError, require
from .files import write_whole
from .replay import Replay
from .sidecar import Sidecar

if TYPE_CHECKING:
    from .config import ITPOConfig

COMPLETE = "itpo_complete.json"  # written last: a checkpoint without it was cut off while saving


def check_save_steps(args: ITPOConfig) -> None:
    """A checkpoint inside a reused generation could not resume exactly; refuse the setting."""
    reuse = args.steps_per_batch
    steps = args.save_steps
    require(args.save_strategy != "steps" or steps > 0, f"save_steps must be > 0, got {steps}")
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
    return max(complete, key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which a checkpoint was made."""
    return int(checkpoint.name.split("-")[1])


def checkpoint_note(args: ITPOConfig, step: int) -> dict[str, Any]:
    """What a checkpoint says of the processes that made it."""
    note = {"step": step, "processes": args.world_size, "dialogues": dialogues_per_step(args)}
    return note if args.deepspeed_plugin is None else {**note, "deepspeed": True}


def dialogues_per_step(args: ITPOConfig) -> int:
    """Dialogues of one optimizer step, all processes together."""
    return args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size


def check_resumable(note: Path, args: ITPOConfig) -> None:
    """Refuse to go on with other batches than the run began with: goals would be skipped or come twice."""
    with reading(str(note.parent)):
        made = json.loads(note.read_text()) if note.exists() else {}
    check_files(made, note.parent, args)
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


def file_sizes(folder: Path) -> dict[str, int]:
    """Every file of a checkpoint with its bytes, but for those that other processes may still be writing."""
    files = [p for p in folder.rglob("*") if p.is_file() and not re.match(r"rng_state_|itpo_|.*_rank_", p.name)]
    return {p.relative_to(folder).as_posix(): p.stat().st_size for p in sorted(files)}


def check_files(made: dict[str, Any], folder: Path, args: ITPOConfig) -> None:
    """Refuse a checkpoint that has lost something: transformers would begin anew what is missing, without a word."""
    wanted = made.get("files", {})  # none in the checkpoints of older versions
    here = {name: (folder / name).stat().st_size for name in wanted if (folder / name).is_file()}
    damaged = [name for name, size in wanted.items() if here.get(name) != size]
    if wanted and made["processes"] == args.world_size > 1:
        own = f"rng_state_{args.process_index}.pth"
        damaged += [] if (folder / own).is_file() else [own]
    require(not damaged, corrupt(folder, f"{', '.join(damaged)}: missing or cut off"))
    for file in folder.glob("*.json"):
        try:
            json.loads(file.read_text())
        except ValueError as error:
            raise ItpoError(corrupt(folder, f"{file.name} is not JSON ({error})")) from error


def corrupt(folder: Path, found: object) -> str:
    """What to say of a checkpoint that cannot be gone on from."""
    return f"corrupt checkpoint {folder}: {found}. Restore it, or remove it to resume from the one before"


@contextlib.contextmanager
def reading(checkpoint: str) -> Iterator[None]:
    """Whatever goes wrong while a checkpoint is read: say which one it is."""
    try:
        yield
    except (ItpoError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # each format has errors of its own
        found = f"{type(error).__name__}: {str(error)[:300]}"
        raise ItpoError(corrupt(Path(checkpoint), f"{found} (or it is of another model)")) from error


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


class ResumableTrainer(GRPOTrainer):
    """TRL's trainer with checkpoints that hold all that trains beside the policy, and that say what is wrong with them."""

    args: ITPOConfig

    def _stateful(self) -> list[Sidecar | Replay]:
        """What a checkpoint holds beyond the policy."""
        return []

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
            complete_checkpoint(folder, self._stateful(), self.args, self.state.global_step)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with reading(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with reading(str(checkpoint)):
            super()._load_rng_state(checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            check_resumable(Path(checkpoint) / COMPLETE, self.args)
        with reading(str(checkpoint)):
            super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            for part in self._stateful():
                part.load(Path(checkpoint))

    def restore(self, checkpoint: Path) -> None:
        """The state of a checkpoint, without training on from it."""
        with reading(str(checkpoint)):
            self._load_from_checkpoint(str(checkpoint))
            self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
            for part in self._stateful():
                part.load(checkpoint)
