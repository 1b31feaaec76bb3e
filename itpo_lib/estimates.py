"""What a run will need, computed from shapes before anything is loaded: memory, seconds of a step, cost.

Memory is a sum of what has to be held at the same time. Seconds rest on assumed efficiencies, named below: take
them as an order of magnitude until somebody has measured. `docs/scale.md` says what was measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from .errors import require
from .model_shapes import ModelShape

GIB = 2**30
TRAINED_BYTES = 16  # fp32 weight, gradient and AdamW's two moments
SAVED_HIDDEN, SAVED_MIDDLE = 8, 4  # widths that a layer keeps per token for its backward pass (a test counts them)
LOGIT_COPIES = 3  # logits, their scaled copy, and their gradient


@dataclass(frozen=True)
class Device:
    """A processor: bytes of memory, floating point operations and bytes moved per second (data sheets)."""

    name: str
    memory: float
    flops: float
    bandwidth: float


DEVICES = {
    "t4": Device("T4 16 GB, fp32", 15.0 * GIB, 8.1e12, 3.2e11),
    "a100": Device("A100 80 GB, bf16", 79.0 * GIB, 3.12e14, 2.0e12),
    "h100": Device("H100 80 GB, bf16", 79.0 * GIB, 9.89e14, 3.35e12),
}
FLOP_SHARE = 0.3  # of the peak, reached while scoring and training
BYTE_SHARE = 0.5  # of the bandwidth, reached while decoding
LAYER_SECONDS = 1e-3  # of starting the kernels of one layer for one token: eager decoding waits for the CPU


@dataclass(frozen=True)
class Workload:
    """One process's part of a training step.

    `adapters`: rank of the LoRA adapters on one frozen base; 0 for full copies. `roles`: models that train
    (policy, PRM, critic). `element_bytes`: of weights that do not train and of activations. `rows`: dialogues of
    one training pass; `dialogues`: of one step, played side by side. Tokens are those of one dialogue: its prompt, what
    its limits allow after that (memory), what it usually comes to, and how much of that the assistant says (time).
    """

    shape: ModelShape
    adapters: int = 0
    roles: int = 2
    element_bytes: int = 4
    rows: int = 4
    dialogues: int = 4
    prompt_tokens: int = 100
    completion_limit: int = 600
    completion_tokens: int = 400
    assistant_tokens: int = 200
    turns: int = 5
    checkpointing: bool = False
    critic_epochs: int = 0
    user_seconds: float = 0.0

    def __post_init__(self) -> None:
        for name in ("roles", "rows", "dialogues", "prompt_tokens", "completion_limit", "completion_tokens", "turns"):
            require(getattr(self, name) >= 1, f"{name} must be >= 1, got {getattr(self, name)}")
        require(self.element_bytes in (2, 4), f"element_bytes must be 2 (bf16) or 4 (fp32), got {self.element_bytes}")

    @property
    def longest(self) -> int:
        """Tokens of the longest dialogue that the limits allow."""
        return self.prompt_tokens + self.completion_limit

    @property
    def usual(self) -> int:
        """Tokens of a usual dialogue."""
        return self.prompt_tokens + self.completion_tokens


def model_bytes(shape: ModelShape, adapters: int, roles: int, element_bytes: int) -> int:
    """Weights, gradients and optimizer states of all trained roles and the reference.

    Full copies (`adapters` 0): every role has 16 bytes a parameter, the reference 4. Adapters of rank r: one base
    for all, and 16 bytes for each adapter parameter of each role; the reference is the base itself.
    """
    if adapters:
        return shape.parameters * element_bytes + roles * TRAINED_BYTES * shape.adapter_parameters(adapters)
    return shape.parameters * (roles * TRAINED_BYTES + 4)


def activation_bytes(work: Workload) -> int:
    """What one training pass keeps for its backward pass; with checkpointing, layer inputs and one layer's worth."""
    shape = work.shape
    layer = SAVED_HIDDEN * shape.hidden + 2 * shape.kv_width + SAVED_MIDDLE * shape.intermediate
    kept = shape.layers * shape.hidden + layer if work.checkpointing else shape.layers * layer
    return work.rows * work.longest * kept * work.element_bytes


def memory(work: Workload) -> dict[str, float]:
    """GiB by part, and their peak: playing and training do not happen at the same time."""
    shape = work.shape
    parts = {
        "models": model_bytes(shape, work.adapters, work.roles, work.element_bytes),
        "activations": activation_bytes(work),
        "logits": work.rows * work.completion_limit * shape.vocabulary * 4 * LOGIT_COPIES,
        "cache": work.dialogues * work.longest * shape.layers * 2 * shape.kv_width * work.element_bytes,
    }
    peak = parts["models"] + max(parts["activations"] + parts["logits"], parts["cache"])
    return {name: size / GIB for name, size in {**parts, "peak": peak}.items()}


def passes(work: Workload) -> float:
    """Forward passes' worth of work per token in one step, scoring and training together.

    A backward pass costs two forward passes, one where the base is frozen (no gradients of its weights), and a
    third of either again where activations are recomputed. The reference scores once, the PRM once after its update.
    """
    training = (2.0 if work.adapters else 3.0) + (1.0 if work.checkpointing else 0.0)
    critic = work.critic_epochs * training + 1 if work.critic_epochs else 0.0
    return training + 1 + (training + 1 if work.roles > 1 else 0.0) + critic


def step_seconds(work: Workload, device: Device) -> dict[str, float]:
    """Seconds of one step by part: playing (assistant, users) and learning."""
    shape, rate = work.shape, FLOP_SHARE * device.flops
    read = 2 * shape.parameters * work.dialogues * work.usual / rate
    one_token = max(
        shape.parameters * work.element_bytes / (BYTE_SHARE * device.bandwidth), shape.layers * LAYER_SECONDS
    )
    parts = {
        "playing": read + work.assistant_tokens * one_token,
        "users": work.turns * work.user_seconds,
        "learning": 2 * shape.parameters * work.dialogues * work.usual * passes(work) / rate,
    }
    return {**parts, "step": sum(parts.values())}
