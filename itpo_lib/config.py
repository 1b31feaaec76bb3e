"""`ITPOConfig`: every knob of a run, one documented field each, on top of TRL's `GRPOConfig`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from trl import GRPOConfig

from .advantages import BASELINES, ESTIMATORS, GRPO_BASELINES, GRPO_SCALES, PPO_BASELINES, baselines_for
from .checking import check_bounds, check_types
from .credit import CREDITS, GIVES_SHARES, NEEDS_PRM, SOFTMAX_MODES
from .errors import require, unknown_name
from .learning import LearningRule

PRM_ORDERS = ("update_then_score", "score_then_update")
KL_PLACES = ("loss", "reward")
LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")  # TRL's
BOUNDS = {  # 1e-6: what is divided by it stays finite in float32
    ">= 1e-6": ("credit_temperature", "temperature", "prm_beta"),
    "> 0": ("prm_learning_rate", "critic_learning_rate"),
    "> 0 or infinite": ("prm_max_grad_norm", "prm_clip", "critic_clip"),
    ">= 0 or infinite": ("max_grad_norm",),
    ">= 0": (
        *("learning_rate", "beta", "length_penalty", "weight_decay", "warmup_steps", "prm_replay"),
        *("gamma", "gae_lambda", "max_failed_share"),
    ),
    "<= 1": ("gamma", "gae_lambda", "max_failed_share"),
    ">= 1": (
        *("per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation", "num_iterations"),
        *("prm_epochs", "critic_epochs", "prm_mini_batch_size", "micro_batch_size", "rollout_waves"),
    ),
    ">= 2": ("num_generations", "oracle_samples"),  # a group of one has no baseline
}
BASELINES_OF = {"rloo": BASELINES, "grpo": GRPO_BASELINES, "ppo": PPO_BASELINES}
SETTINGS = {"output_dir": "--out (RunSettings.out)", "seed": "--seed (RunSettings.seed)", "use_cpu": "--device cpu"}


def check_options(options: dict[str, Any]) -> None:
    """Refuse fields that `ITPOConfig` lacks and values of the wrong type, before anything is loaded."""
    for name, place in SETTINGS.items():
        require(name not in options, f"{name} is no option but a setting of the run: use {place}")
    check_types(ITPOConfig, options)


@dataclass
class ITPOConfig(GRPOConfig):
    """Settings of `ITPOTrainer`. The fields of TRL's `GRPOConfig` keep their meaning.

    `beta` is the coefficient of the KL to the reference, as in TRL; the PRM's β is `prm_beta`.
    Of TRL's defaults these differ: no gradient checkpointing, a constant learning rate, bf16 only on a
    GPU that has it, a log line each step, vLLM's importance ratios per token.
    """

    credit: str = field(default="norm_itpo", metadata={"help": "Credit method: " + ", ".join(CREDITS)})
    estimator: str = field(default="rloo", metadata={"help": "Advantage estimator: " + ", ".join(ESTIMATORS)})
    baseline: str = field(
        default="auto",
        metadata={
            "help": "What an advantage is measured against. RLOO: "
            + ", ".join(BASELINES)
            + f"; GRPO: {', '.join(GRPO_BASELINES)}; PPO: {', '.join(PPO_BASELINES)}. auto: credit_weighted where the "
            "credit shares out R, turn where it does not; trajectory: outcome with RLOO and GRPO, turn with PPO"
        },
    )
    grpo_scale: str = field(default="std", metadata={"help": "GRPO's scale: std, or none (Dr. GRPO)"})
    credit_temperature: float = field(default=0.4, metadata={"help": "η of Norm-ITPO's softmax over turns"})
    softmax_mode: str = field(default="sum", metadata={"help": "Norm-ITPO: sum (paper) or official (released code)"})
    gamma: float = field(default=1.0, metadata={"help": "Discount per unit of credit"})
    gae_lambda: float = field(default=0.95, metadata={"help": "λ of GAE: per token (PPO), per turn (credit value)"})
    length_penalty: float = field(default=0.0, metadata={"help": "λ: price of one assistant token, in units of R"})
    whiten_advantages: bool = field(default=True, metadata={"help": "Whiten over all assistant tokens of the batch"})
    kl_in: str = field(
        default="loss", metadata={"help": "Where `beta`'s KL goes: loss (k3) or reward (k1); never both"}
    )
    oracle_samples: int = field(default=8, metadata={"help": "Continuations per turn boundary (credit oracle)"})
    prm_beta: float = field(default=0.05, metadata={"help": "β: scale of the PRM's token rewards"})
    prm_learning_rate: float = field(default=1e-3, metadata={"help": "Learning rate of the PRM"})
    prm_order: str = field(default="update_then_score", metadata={"help": "update_then_score or score_then_update"})
    prm_epochs: int = field(default=1, metadata={"help": "Passes of the PRM over each batch of dialogues"})
    prm_mini_batch_size: int | None = field(default=None, metadata={"help": "Dialogues per PRM step; default: all"})
    prm_max_grad_norm: float = field(default=10.0, metadata={"help": "Gradient clip of the PRM"})
    prm_clip: float | None = field(default=None, metadata={"help": "Bound on |token reward|; default: none"})
    prm_replay: int = field(
        default=0, metadata={"help": "Older dialogues kept for the PRM; each update adds a batch of them (0: none)"}
    )
    prm_balanced: bool = field(
        default=False, metadata={"help": "Good and bad outcomes weigh half each in the PRM's loss"}
    )
    critic_learning_rate: float = field(
        default=1e-3, metadata={"help": "Learning rate of the critic (PPO, credit value)"}
    )
    critic_epochs: int = field(default=2, metadata={"help": "Passes of the critic over each batch (PPO, credit value)"})
    critic_clip: float = field(default=0.2, metadata={"help": "Clip of the value loss (PPO, credit value)"})
    micro_batch_size: int | None = field(default=None, metadata={"help": "Rows per scoring pass; default: all"})
    rollout_waves: int = field(
        default=1, metadata={"help": "Parts of a batch that take turns: one generates while another's users think"}
    )
    max_failed_share: float = field(default=0.25, metadata={"help": "Stop if more of a batch's dialogues failed"})
    # TRL fields with another default
    num_generations: int = 8
    max_completion_length: int | None = None  # the trainer sets it: the task's limits decide
    max_grad_norm: float | None = 1.0  # type: ignore[assignment]  # None: no clip, as the trainer takes it
    gradient_checkpointing: bool = False
    lr_scheduler_type: str = "constant"
    logging_steps: float = 1
    report_to: str | list[str] | None = "none"
    save_total_limit: int | None = 2
    ddp_find_unused_parameters: bool | None = False
    vllm_importance_sampling_mode: str = "token_truncate"  # a whole dialogue's ratio would mask nearly all of them

    def __post_init__(self) -> None:
        ours = {*ITPOConfig.__annotations__, *(name for names in BOUNDS.values() for name in names), "max_steps"}
        check_types(ITPOConfig, {name: getattr(self, name) for name in sorted(ours)})
        for name, choices in (
            ("credit", CREDITS),
            ("estimator", ESTIMATORS),
            ("baseline", (*BASELINES, "auto")),
            ("grpo_scale", GRPO_SCALES),
            ("softmax_mode", SOFTMAX_MODES),
            ("prm_order", PRM_ORDERS),
            ("kl_in", KL_PLACES),
            ("loss_type", LOSSES),
        ):
            if getattr(self, name) not in choices:
                raise unknown_name(name, getattr(self, name), choices)
        check_bounds(self, BOUNDS)
        require(
            self.max_steps == -1 or self.max_steps >= 1,
            f"max_steps must be >= 1 (or -1: as num_train_epochs says), got {self.max_steps}",
        )
        require(
            self.max_completion_length is None,
            f"max_completion_length is the task's limits.max_tokens: leave it out, got {self.max_completion_length}",
        )
        require(
            self.gamma == 1 or self.credit not in ("value", "oracle"),
            f"credit {self.credit!r} is a difference of undiscounted values: gamma must be 1, got {self.gamma}; "
            "gae_lambda is what shortens its sums",
        )
        taken = ("auto", *baselines_for(self.credit))
        require(
            self.baseline in taken,
            f"credit {self.credit!r} takes baseline {', '.join(taken)}; got {self.baseline!r}, which needs shares",
        )
        fitting = ("auto", *BASELINES_OF[self.estimator])
        require(
            self.baseline in fitting,
            f"estimator {self.estimator!r} takes baseline {', '.join(fitting)}; got {self.baseline!r}",
        )
        exact = self.top_p == 1.0 and not self.top_k and self.min_p is None and self.repetition_penalty == 1.0
        require(
            exact,
            "rollouts sample from the exact policy: leave top_p=1, top_k=0, min_p=None and repetition_penalty=1, got "
            f"top_p={self.top_p}, top_k={self.top_k}, min_p={self.min_p}, repetition_penalty={self.repetition_penalty}",
        )
        if self.bf16 is None:
            self.bf16 = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)  # no emulation
        super().__post_init__()

    @property
    def needs_prm(self) -> bool:
        """Whether the credit method reads the implicit PRM."""
        return self.credit in NEEDS_PRM

    @property
    def steps_per_batch(self) -> int:
        """Optimizer steps that are taken on one batch of dialogues; exact resume happens between batches."""
        return max(1, self.num_iterations * (self.steps_per_generation or 1) // self.gradient_accumulation_steps)

    @property
    def rule(self) -> LearningRule:
        """The part of the settings that turns outcomes into advantages."""
        baseline = self.baseline
        if baseline == "auto":
            baseline = "credit_weighted" if self.credit in GIVES_SHARES else "turn"
            if self.credit == "trajectory":  # K·w_k would train its last turn alone
                baseline = "turn" if self.estimator == "ppo" else "outcome"
        return LearningRule(**{f.name: getattr(self, f.name) for f in fields(LearningRule)} | {"baseline": baseline})
