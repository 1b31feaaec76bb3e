"""Several roles on one frozen base: each is a LoRA adapter of its own, the policy's is called "default".

Switching adapters between a model's forward pass and its backward pass gives zero gradients without a word. So a
role works inside `active`, backward pass included, and never between the policy's forward and backward passes.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

from torch import Tensor
from transformers import PreTrainedModel

if TYPE_CHECKING:
    from peft import PeftModel

POLICY = "default"


def has_adapters(model: PreTrainedModel) -> bool:
    """Whether PEFT has wrapped this model."""
    return hasattr(model, "peft_config")


def beside(policy: PreTrainedModel, name: str) -> tuple[PreTrainedModel, str | None]:
    """A model that starts from the policy, and its adapter: a fresh one on the policy's base, or a full copy (None).

    A fresh adapter starts as the base itself: its B matrices are 0.
    """
    if not has_adapters(policy):
        return full_copy(policy), None
    adapters = cast("PeftModel", policy)
    adapters.add_adapter(name, adapters.peft_config[POLICY])
    return policy, name


def full_copy(policy: PreTrainedModel) -> PreTrainedModel:
    """A copy that trains all its weights. TRL ties `forward` to the policy itself: the copy gets its class's back."""
    model = copy.deepcopy(policy)
    model.__dict__.pop("forward", None)
    return model.requires_grad_(True).eval()


@contextlib.contextmanager
def active(model: PreTrainedModel, name: str | None) -> Iterator[None]:
    """The adapter `name` in place of the policy's; `None`: a model without adapters, nothing to switch."""
    if name is None:
        yield
        return
    adapters = cast("PeftModel", model)
    adapters.set_adapter(name)
    try:
        yield
    finally:
        adapters.set_adapter(POLICY)


def trainable(model: PreTrainedModel, name: str | None) -> list[tuple[str, Tensor]]:
    """The parameters that a role trains: its adapter's, or all that require gradients."""
    with active(model, name):
        return [(n, p) for n, p in model.named_parameters() if p.requires_grad]
