"""The implicit process reward model: a language model whose log-ratio to the reference is a reward.

    token reward     r_φ(y_t) = β · [log π_φ(y_t | context) - log π_ref(y_t | context)]
    dialogue score   R_φ(τ)   = Σ_t r_φ(y_t)                       (assistant tokens only)
    loss             BCE(sigmoid(R_φ(τ)), R)                        (soft labels allowed)

arXiv 2502.01456 (PRIME), arXiv 2603.23550 (ITPO).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .adapters import active, beside, trainable
from .dialogue import DialogueBatch
from .errors import require
from .logprobs import micro_batches, token_logprobs
from .sidecar import Sidecar, average_total

if TYPE_CHECKING:
    from peft import PeftModel


def token_rewards(prm_logprobs: Tensor, ref_logprobs: Tensor, beta: float, clip: float | None = None) -> Tensor:
    """r_φ = β·(log π_φ - log π_ref), (B, T). `clip` bounds |r_φ| per token, in nats times β."""
    rewards = beta * (prm_logprobs - ref_logprobs)
    return rewards if clip is None else rewards.clamp(-clip, clip)


def prm_loss(scores: Tensor, outcomes: Tensor) -> Tensor:
    """Mean BCE of sigmoid(R_φ) against outcomes in [0, 1]; both (B,)."""
    return torch.nn.functional.binary_cross_entropy_with_logits(scores, outcomes)


def balance(outcomes: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and targets, both (B,), under which good and bad count alike, whatever the mean outcome m.

    The loss of a row becomes R/(2m)·(-log p) + (1-R)/(2(1-m))·(-log(1-p)): over the batch, all processes together,
    both parts weigh half as much as the rows in `valid` (B,). Where all outcomes are 0, or all are 1, nothing changes.
    """
    counted = valid.float()
    mean = average_total((outcomes * counted).sum()) / average_total(counted.sum()).clamp(min=1)
    mixed = (mean > 0) & (mean < 1)
    good, bad = outcomes / (2 * mean), (1 - outcomes) / (2 * (1 - mean))
    weights, targets = torch.where(mixed, good + bad, 1.0), torch.where(mixed, good / (good + bad), outcomes)
    return weights * counted, targets


def prm_accuracy(scores: Tensor, outcomes: Tensor) -> float:
    """Share of dialogues on whose side of 1/2 the PRM and the outcome agree."""
    return float(((scores > 0) == (outcomes > 0.5)).float().mean()) if len(scores) else float("nan")


@dataclass
class Seen:
    """What a step saw, part by part: which rows, their scores R_φ before the step, and the parts of the loss."""

    rows: list[Tensor] = field(default_factory=list)
    scores: list[Tensor] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


class ImplicitPRM:
    """π_φ and its training. With a PEFT policy, π_φ is the adapter "prm" on the policy's own base.

    Call it only between a policy's backward pass and its next forward pass: it switches adapters.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        beta: float,
        lr: float,
        max_grad_norm: float = 10.0,
        mini_batch: int | None = None,
        epochs: int = 1,
        clip: float | None = None,
        micro_batch: int | None = None,
        balanced: bool = False,
    ):
        require(beta > 0, f"prm_beta must be > 0, got {beta}")
        self.model, self.beta, self.clip = model, beta, clip
        self.mini_batch, self.epochs, self.micro_batch, self.balanced = mini_batch, epochs, micro_batch, balanced
        self.adapter = "prm" if "prm" in getattr(model, "peft_config", {}) else None
        self.sidecar = Sidecar("prm", trainable(model, self.adapter), lr, max_grad_norm)

    @classmethod
    def beside(cls, policy: PreTrainedModel, **settings) -> ImplicitPRM:
        """A PRM that starts from the policy's weights: a full copy, or an adapter on the same base."""
        return cls(beside(policy, "prm")[0], **settings)

    def logprobs(self, batch: DialogueBatch) -> Tensor:
        """log π_φ of the assistant tokens, (B, T), without gradients."""
        with torch.no_grad(), active(self.model, self.adapter):
            return token_logprobs(self.model, batch, micro_batch=self.micro_batch)

    def rewards(self, batch: DialogueBatch, ref_logprobs: Tensor) -> Tensor:
        """Token rewards r_φ, (B, T)."""
        return token_rewards(self.logprobs(batch), ref_logprobs, self.beta, self.clip)

    def update(
        self, batch: DialogueBatch, ref_logprobs: Tensor, outcomes: Tensor, valid: Tensor
    ) -> tuple[float, Tensor]:
        """Train on one batch of dialogues; rows outside `valid` (B,) bool have no weight.

        Returns the mean loss, and the scores R_φ (B,) that each dialogue had before it was trained on.
        """
        size, losses, fresh = self.mini_batch or len(batch), [], []
        targets = outcomes.nan_to_num(0.0)
        weights = counted = valid.float()
        if self.balanced:
            weights, targets = balance(targets, valid)
        with active(self.model, self.adapter):
            for epoch in range(self.epochs):
                for start in range(0, len(batch), size):
                    rows, seen = slice(start, start + size), Seen()
                    total = average_total(counted[rows].sum()).clamp(min=1)
                    lesson = (batch.rows(rows), ref_logprobs[rows], targets[rows], weights[rows], total)
                    self.sidecar.step(self._loss_parts(*lesson, seen))
                    losses.append(sum(seen.losses))
                    if epoch == 0:
                        fresh.append(torch.cat(seen.scores)[torch.cat(seen.rows).argsort()])
        return sum(losses) / len(losses), torch.cat(fresh)

    def _loss_parts(
        self, batch: DialogueBatch, ref_logprobs: Tensor, targets: Tensor, weights: Tensor, total: Tensor, seen: Seen
    ) -> Iterator[Tensor]:
        """The loss of one step in parts, whose graphs are never held together; notes in `seen` what they were.

        With adapters a part is a micro-batch. A full copy keeps one graph, micro-batches or not: its sums then have
        the order in which the published results were computed. Use mini-batches to bound its memory.
        """
        for rows in micro_batches(batch, self.micro_batch if self.adapter else None):
            scores = self._scores(batch.rows(rows), ref_logprobs[rows])
            errors = torch.nn.functional.binary_cross_entropy_with_logits(scores, targets[rows], reduction="none")
            loss = (errors * weights[rows]).sum() / total
            seen.rows.append(rows)
            seen.scores.append(scores.detach())
            seen.losses.append(loss.item())
            yield loss

    def _scores(self, batch: DialogueBatch, ref_logprobs: Tensor) -> Tensor:
        """R_φ with gradients, (B,)."""
        ref_logprobs = ref_logprobs[:, : batch.turn_ids.shape[1]]
        logprobs = token_logprobs(self.model, batch, micro_batch=self.micro_batch)
        return token_rewards(logprobs, ref_logprobs, self.beta, self.clip).sum(1)


@contextlib.contextmanager
def reference(policy: PreTrainedModel, frozen: PreTrainedModel | None) -> Iterator[PreTrainedModel]:
    """π_ref: the frozen copy, or a PEFT policy with its adapters switched off."""
    if frozen is not None:
        yield frozen
    else:
        with cast("PeftModel", policy).disable_adapter():
            yield policy
