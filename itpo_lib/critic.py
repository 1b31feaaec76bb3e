"""The critic of PPO: a value per assistant token, from a model of its own or an adapter on the policy's base."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .adapters import active, beside, trainable
from .dialogue import DialogueBatch
from .logprobs import hidden_states, micro_batches
from .sidecar import Sidecar, average_total


def clipped_error_sum(values: Tensor, old_values: Tensor, targets: Tensor, mask: Tensor, clip: float) -> Tensor:
    """PPO's value loss, summed over `mask`; all (B, T). The larger of the plain and the clipped error counts."""
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    errors = torch.maximum((values - targets).square(), (clipped - targets).square())
    return 0.5 * (errors * mask).sum()


class ValueModel(torch.nn.Module):
    """A scalar head that starts at 0, over the policy's backbone: copied, or shared under an adapter `name`."""

    def __init__(self, policy: PreTrainedModel, name: str):
        super().__init__()
        self.model, self.adapter = beside(policy, name)
        width = self.model.config.get_text_config().hidden_size
        self.head = torch.nn.Linear(width, 1).to(self.model.device)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)

    def forward(self, batch: DialogueBatch) -> Tensor:
        """V of the state before each completion token, (B, T) in fp32 (the head's type); 0 off the assistant's tokens.

        With an adapter, call it inside `active`.
        """
        states = hidden_states(self.model, batch).to(self.head.weight.dtype)
        return self.head(states)[..., 0] * batch.assistant_mask


class Critic:
    """A value model and its training. `name`: of its state on disk, and of its adapter beside a LoRA policy."""

    def __init__(
        self,
        policy: PreTrainedModel,
        lr: float,
        max_grad_norm: float = 1.0,
        clip: float = 0.2,
        epochs: int = 2,
        name: str = "critic",
        micro_batch: int | None = None,
    ):
        self.model, self.clip, self.epochs, self.micro_batch = ValueModel(policy, name), clip, epochs, micro_batch
        body = [(f"model.{n}", p) for n, p in trainable(self.model.model, self.model.adapter) if "lm_head" not in n]
        head = [(f"head.{n}", p) for n, p in self.model.head.named_parameters()]
        self.sidecar = Sidecar(name, [*body, *head], lr, max_grad_norm)

    @torch.no_grad()
    def values(self, batch: DialogueBatch) -> Tensor:
        """V before each assistant token, (B, T)."""
        head = self.model.head.weight
        values = torch.zeros(batch.turn_ids.shape, dtype=head.dtype, device=head.device)
        with active(self.model.model, self.model.adapter):
            for rows in micro_batches(batch, self.micro_batch):
                part = self.model(batch.rows(rows))
                values[rows, : part.shape[1]] = part
        return values

    def update(self, batch: DialogueBatch, old_values: Tensor, targets: Tensor, valid: Tensor) -> float:
        """Regress on `targets` (B, T); rows outside `valid` (B,) bool have no weight. Returns the last loss."""
        mask, losses = batch.assistant_mask & valid[:, None], [0.0]
        with active(self.model.model, self.model.adapter):
            for _ in range(self.epochs):
                losses = []
                self.sidecar.step(self._loss_parts(batch, old_values, targets, mask, losses))
        return sum(losses)

    def _loss_parts(
        self, batch: DialogueBatch, old_values: Tensor, targets: Tensor, mask: Tensor, losses: list[float]
    ) -> Iterator[Tensor]:
        """The value loss, micro-batch by micro-batch; each part is also noted in `losses`."""
        count = average_total(mask.sum().float()).clamp(min=1)
        for rows in micro_batches(batch, self.micro_batch):
            values = self.model(batch.rows(rows))
            old, aim, own = (tensor[rows, : values.shape[1]] for tensor in (old_values, targets, mask))
            loss = clipped_error_sum(values, old, aim, own, self.clip) / count
            losses.append(loss.item())
            yield loss
