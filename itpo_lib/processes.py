"""Several processes: which ways of sharing the work are supported."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .errors import require

if TYPE_CHECKING:
    from .config import ITPOConfig

SHARDED = (
    "rollouts, PRM and critic need whole weights in every process. Use recipes/accelerate/ddp.yaml: with --peft lora, "
    "bf16 and gradient checkpointing a 7B policy, its PRM and its reference fit one 80 GB GPU by estimate (docs/scale.md)"
)


def check_processes(args: ITPOConfig, adapters: bool) -> None:
    """Refuse ways of sharing the work that would train the wrong weights."""
    fsdp = bool(args.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    require(not fsdp, f"FSDP shards the policy, but {SHARDED}")
    check_replay(args)
    stage = 0 if args.deepspeed_plugin is None else args.deepspeed_plugin.zero_stage
    require(stage < 3, f"DeepSpeed ZeRO stage {stage} shards the policy, but {SHARDED}")
    require(
        args.deepspeed_plugin is None or not adapters,
        "DeepSpeed turns all adapters into its own precision, those of PRM and critic too, whose optimizers are not "
        "DeepSpeed's; with --peft lora use recipes/accelerate/ddp.yaml, or train all weights",
    )


def check_replay(args: ITPOConfig) -> None:
    """A replay is one process's own: another would take other numbers of PRM steps, and resume with the wrong one."""
    require(
        args.world_size == 1 or not args.prm_replay,
        f"prm_replay={args.prm_replay} works in one process, here are {args.world_size}; set prm_replay=0",
    )
