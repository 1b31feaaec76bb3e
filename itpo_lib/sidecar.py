"""A model trained beside the policy (the PRM, the critic), with its own optimizer and safe state.

The optimizer is a raw torch one: an accelerated optimizer would silently skip its steps while the
policy accumulates gradients. Gradients are averaged over processes by hand.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .errors import ItpoError, require


class Sidecar:
    """Parameters, an AdamW over them, and their exact state on disk."""

    def __init__(self, name: str, parameters: Iterable[tuple[str, Tensor]], lr: float, max_grad_norm: float):
        self.name, self.max_grad_norm = name, max_grad_norm
        self.parameters = dict(parameters)
        require(len(self.parameters) > 0, f"the {name} has no parameters to train")
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=lr, weight_decay=0.0)

    def step(self, loss: Tensor | Iterable[Tensor]) -> float:
        """One optimizer step on `loss`, or on the sum of its parts; returns the gradient norm before clipping.

        Parts are taken one by one, each with its own backward pass: a generator never holds two graphs.
        """
        self.optimizer.zero_grad()
        total = 0.0
        for part in [loss] if isinstance(loss, Tensor) else loss:
            part.backward()
            total += part.item()
        average_gradients(self.parameters.values())
        norm = torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), self.max_grad_norm)
        require(bool(norm.isfinite()), f"the {self.name}'s gradient is not finite (loss {total}); lower its lr")
        self.optimizer.step()
        return float(norm)

    def save(self, folder: Path) -> None:
        """Weights and optimizer state as one safetensors file."""
        tensors = {f"weight/{name}": p.detach().contiguous() for name, p in self.parameters.items()}
        for name, p in self.parameters.items():
            for key, value in self.optimizer.state[p].items():
                tensors[f"{key}/{name}"] = value.contiguous()
        save_file({k: v.cpu().clone() for k, v in tensors.items()}, folder / f"{self.name}.safetensors")

    def load(self, folder: Path) -> None:
        """The inverse of `save`; a missing or corrupt file is an error that names it."""
        path = folder / f"{self.name}.safetensors"
        require(path.exists(), f"checkpoint {folder} lacks {path.name}: it was made without a {self.name}")
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise ItpoError(f"corrupt checkpoint: {path} cannot be read ({error})") from error
        for name, p in self.parameters.items():
            require(f"weight/{name}" in tensors, f"corrupt checkpoint: {path} lacks the weight {name!r}")
            found = tuple(tensors[f"weight/{name}"].shape)
            require(found == p.shape, f"{path} is of another model: {name!r} has shape {found}, not {tuple(p.shape)}")
            with torch.no_grad():
                p.copy_(tensors[f"weight/{name}"])
            state = {key.split("/", 1)[0]: v for key, v in tensors.items() if key.split("/", 1)[1] == name}
            state.pop("weight")
            if state:
                self.optimizer.state[p] = {k: v if k == "step" else v.to(p.device) for k, v in state.items()}


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Average gradients over all processes; nothing to do in one."""
    if several_processes():
        for p in parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            dist.all_reduce(p.grad)
            p.grad /= dist.get_world_size()


def average_total(total: Tensor) -> Tensor:
    """The mean of a weight's total over all processes, (): what to divide by, so that averaged gradients are those of
    one process with all of the data, however the weight is spread over processes."""
    if several_processes():
        total = total.clone()
        dist.all_reduce(total)
        total = total / dist.get_world_size()
    return total


def several_processes() -> bool:
    """Whether this is one process of several."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
