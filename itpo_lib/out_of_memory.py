"""Out of memory: which knob helps, instead of a stack trace alone."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from accelerate.utils.memory import should_reduce_batch_size

from .errors import ItpoError

if TYPE_CHECKING:
    from .config import ITPOConfig

PLAYING, SCORING, TRAINING = "playing dialogues", "scoring dialogues and training PRM and critic", "the policy's step"


def peak_gib() -> float:
    """The most that this process has held so far: on a GPU what PyTorch allocated, else resident memory; 0: unknown."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    if importlib.util.find_spec("resource") is None:  # Windows
        return 0.0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU's or the main memory ran out."""
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return known or (isinstance(error, Exception) and should_reduce_batch_size(error))


@contextlib.contextmanager
def memory_advice(doing: str, args: ITPOConfig, adapters: bool) -> Iterator[None]:
    """Turn a failed allocation into an `ItpoError` that says what to change; other errors pass."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        first = next(iter(str(error).splitlines()), type(error).__name__)
        knobs = "; ".join(f"({i}) {knob}" for i, knob in enumerate(advice(doing, args, adapters), 1))
        raise ItpoError(
            f"out of memory during {doing} ({first}). What helps, cheapest first: {knobs}. A run that has checkpoints "
            "goes on with --resume."
        ) from error


def advice(doing: str, args: ITPOConfig, adapters: bool) -> list[str]:
    """What to change for this phase, cheapest first: what keeps the results the same comes before what does not."""
    rows, slices = args.per_device_train_batch_size, args.gradient_accumulation_steps
    played = rows * (args.steps_per_generation or slices)
    micro, mini = args.micro_batch_size, args.prm_mini_batch_size
    knobs = []
    if doing == SCORING and (micro is None or micro > 1):
        knobs.append(f"micro_batch_size={max(1, (micro or played) // 2)} instead of {micro}")
    if doing == TRAINING and rows > 1:
        knobs.append(
            f"per_device_train_batch_size={rows // 2} with gradient_accumulation_steps={slices * 2} instead of {rows} "
            f"and {slices}: the same batch in smaller parts"
        )
    recomputes = doing == TRAINING or (doing == SCORING and adapters)  # full copies of PRM and critic never do
    if recomputes and not args.gradient_checkpointing:
        knobs.append("gradient_checkpointing=true: about a third more time")
    if not adapters:
        knobs.append("--peft lora: policy, PRM, critic and reference share one set of weights")
    elif not args.bf16:
        knobs.append("bf16=true, on a GPU that has it: the base at half the size")
    if doing == SCORING and (mini is None or mini > 1):
        knobs.append(f"prm_mini_batch_size={max(1, (mini or played) // 2)} instead of {mini}: more, smaller PRM steps")
    if doing == PLAYING:
        knobs.append(f"fewer dialogues at a time: gradient_accumulation_steps below {slices} ({played} are played now)")
    knobs.append(f"shorter dialogues: the task's limits, max_tokens={args.max_completion_length} now")
    return knobs
