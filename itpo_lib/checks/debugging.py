"""Checks of assignment 07: five broken training runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from . import lab
from .advantages import check_leave_one_out
from .core import VISIBLE, Case, Check, CheckFailed, Draw, on_layouts, run


def _padded(seed: int) -> Iterator[Case]:
    draw = Draw(seed)
    lengths = torch.tensor([draw.integer(1) for _ in range(3)])
    ids = torch.randint(0, 3, (3, int(lengths.max()) + 1), generator=draw.generator)
    ids[(torch.arange(ids.shape[1]) >= lengths[:, None]) | (torch.arange(ids.shape[1]) == 0)] = 3
    yield "every row begins with a real token that equals the fill", (ids, lengths, 3)
    yield "nothing is padded", (ids[:, :1], torch.ones(3).long(), 3)


def _talk(draw: Draw, ids: Tensor, k: int) -> tuple:
    """The user has one word after the last turn; the rest of a row is padding."""
    positions = torch.arange(ids.shape[1])
    return ids, positions <= ((ids > 0) * positions).amax(1, keepdim=True) + 1


def _path(answer: Callable[..., Any], target: Tensor) -> list[Tensor]:
    """Where three steps of gradient descent lead."""
    x = torch.zeros_like(target, requires_grad=True)
    optimizer, path = torch.optim.SGD([x], lr=0.1), []
    for _ in range(3):
        run(lambda: answer(optimizer, (x - target).square().sum()))
        path.append(x.detach().clone())
    return path


check_valid_tokens = Check(
    "valid tokens",
    lab.valid_tokens,
    _padded,
    {
        "a real end of turn looks like padding to you: look at lengths, not at ids": lab.BROKEN["valid_tokens"],
        "off by one: the last real token is lost": lambda ids, n, pad: lab.valid_tokens(ids, n - 1, pad),
        "off by one: one token of padding is let in": lambda ids, n, pad: lab.valid_tokens(ids, n + 1, pad),
        "you mark the padding": lambda ids, n, pad: ~lab.valid_tokens(ids, n, pad),
    },
)
check_train_mask = Check(
    "train mask",
    lab.train_mask,
    on_layouts(_talk),
    {
        "user tokens are trained on": lab.BROKEN["train_mask"],
        "you mark the user's tokens": lambda ids, valid: valid & (ids == 0),
    },
)
check_baseline = replace(check_leave_one_out, title="baseline")
check_policy_loss = Check(
    "policy loss",
    lab.policy_loss,
    on_layouts(lambda draw, ids, k: (-draw.uniform(*ids.shape), draw.normal(*ids.shape), ids > 0)),
    {
        "the sign is reversed: minimising this makes good tokens rarer": lab.BROKEN["policy_loss"],
        "tokens outside the mask contribute": lambda x, a, m: -(x * a).mean(),
        "divide by the tokens of the mask, not by all positions": lambda x, a, m: -(x * a * m).mean(),
    },
)
check_prm_step = Check(
    "the PRM's step",
    lab.prm_step,
    lambda seed: [("three steps on a quadratic", (Draw(seed).normal(3),))],
    {
        "the weights never change: gradients alone are no step": lab.BROKEN["prm_step"],
        "gradients of earlier steps pile up": lambda optimizer, loss: [loss.backward(), optimizer.step()],
        "the loss goes up: sign": lambda optimizer, loss: lab.prm_step(optimizer, -loss),
    },
    probe=_path,
)


def check_diagnosis(answer: Callable[[], Any], seeds: Iterable[int] = VISIBLE) -> None:
    """A cause for each of the five runs; says which runs to look at again, not what ails them."""
    found = run(answer)
    if not isinstance(found, dict) or found.keys() != lab.RUNS.keys():
        raise CheckFailed(f"diagnosis: wanted is a dict with the keys {', '.join(lab.RUNS)}")
    for label, cause in found.items():
        if cause not in list(lab.CAUSES):
            raise CheckFailed(f"diagnosis: run {label}: {cause!r} is none of the causes listed above")
    wrong = [label for label, cause in found.items() if lab.CAUSES[cause] != lab.RUNS[label]]
    if wrong:
        raise CheckFailed(
            f"diagnosis: {5 - len(wrong)} of 5 are right. Look again at {', '.join(wrong)}: in which panel does the "
            "run leave the healthy one, and would your cause do that?"
        )
    print("✓ diagnosis: all five")
