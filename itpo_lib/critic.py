"""The critic of PPO: a value per assistant token, from a model of its own."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .dialogue import DialogueBatch
from .logprobs import hidden_states
from .sidecar import Sidecar


def clipped_value_loss(values: Tensor, old_values: Tensor, targets: Tensor, mask: Tensor, clip: float) -> Tensor:
    """PPO's value loss, mean over `mask`; all (B, T). The larger of the plain and the clipped error."""
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    errors = torch.maximum((values - targets).square(), (clipped - targets).square())
    return 0.5 * (errors * mask).sum() / mask.sum().clamp(min=1)


class ValueModel(torch.nn.Module):
    """The policy's backbone, copied, under a scalar head that starts at 0."""

    def __init__(self, policy: PreTrainedModel):
        super().__init__()
        self.model = copy.deepcopy(policy)
        for parameter in self.model.parameters():
            parameter.requires_grad_(True)
        width = self.model.config.get_text_config().hidden_size
        self.head = torch.nn.Linear(width, 1).to(self.model.device)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)

    def forward(self, batch: DialogueBatch) -> Tensor:
        """V of the state before each completion token, (B, T) fp32; 0 off the assistant's tokens."""
        return self.head(hidden_states(self.model, batch).float())[..., 0] * batch.assistant_mask


class Critic:
    """A value model and its training."""

    def __init__(
        self,
        policy: PreTrainedModel,
        lr: float,
        max_grad_norm: float = 1.0,
        clip: float = 0.2,
        epochs: int = 2,
        name: str = "critic",
    ):
        self.model, self.clip, self.epochs = ValueModel(policy), clip, epochs
        trainable = [(n, p) for n, p in self.model.named_parameters() if "lm_head" not in n]
        self.sidecar = Sidecar(name, trainable, lr, max_grad_norm)

    @torch.no_grad()
    def values(self, batch: DialogueBatch) -> Tensor:
        """V before each assistant token, (B, T)."""
        return self.model(batch)

    def update(self, batch: DialogueBatch, old_values: Tensor, targets: Tensor, valid: Tensor) -> float:
        """Regress on `targets` (B, T); rows outside `valid` (B,) bool have no weight. Returns the last loss."""
        mask, loss = batch.assistant_mask & valid[:, None], torch.zeros(())
        for _ in range(self.epochs):
            loss = clipped_value_loss(self.model(batch), old_values, targets, mask, self.clip)
            self.sidecar.step(loss)
        return loss.item()
