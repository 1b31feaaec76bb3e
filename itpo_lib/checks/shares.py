"""Checks of assignment 05: normalised turn rewards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import log, log10
from typing import Any

import torch
from torch import Tensor

from ..credit import official_softmax_shares, softmax_shares, unit_lengths
from .core import Case, Check, Draw, numbers, on_groups, run


def _sums(seed: int) -> Iterator[Case]:
    yield from on_groups(lambda draw, mask, g: (draw.normal(*mask.shape) * mask, mask, 0.3 + draw.integer(1) / 7))(seed)
    mask = torch.tensor([[True, True, False], [False, False, False]])
    yield "a dialogue without any turn", (Draw(seed).normal(2, 3) * mask, mask, 0.4)
    yield "rewards so large that exp overflows", (torch.tensor([[900.0, 901.0, -500.0]]), torch.ones(1, 3) > 0, 0.5)


def _outcomes(seed: int) -> Iterator[Case]:
    for special, (sums, mask, temperature) in _sums(seed):
        yield special, (sums, mask, Draw(seed).uniform(len(sums)), temperature)


def _rewards(seed: int) -> Iterator[Case]:
    for special, (sums, mask, temperature) in _sums(seed):
        rewards = softmax_shares(sums, mask, temperature) + 7.0 * ~mask
        outcomes = torch.ones(len(mask)) * mask.any(1)
        for what, errors in (
            ("nothing", (0.0, 0.0)),
            ("a surplus", (0.0, 0.3)),
            ("a lack", (0.0, -0.3)),
            ("both", (0.4, -0.4)),
        ):
            wrong = rewards.clone()
            wrong[:2, 0] += torch.tensor(errors)[: len(wrong)]
            yield f"{special}; wrong is: {what}", (wrong, mask, outcomes)


def _neighbour(answer: Callable[..., Any], rewards: Tensor, ids: Tensor) -> dict[str, bool]:
    """What the student's neighbour does to the released code's shares of a dialogue with the same layout."""
    mate, both = numbers(run(answer, rewards, ids)), torch.stack([ids, ids])
    fits = mate is not None and mate.shape == rewards.shape and bool(mate.isfinite().all())
    change = 0.0
    if mate is not None and fits:
        beside = [torch.stack([rewards.double(), other]) for other in (0 * mate, mate)]
        shares = [official_softmax_shares(r, both, unit_lengths(both, 2) > 0, 0.4)[0] for r in beside]
        change = float((shares[1] - shares[0]).abs().max())
    return {
        "one finite number for each token of the neighbour": fits,
        "rewards on assistant tokens only": mate is not None and fits and not mate[ids == 0].any(),
        "the first dialogue's shares change by 0.2 or more (what is everything divided by?)": change >= 0.2,
    }


def _dialogue(seed: int) -> Iterator[Case]:
    ids = Draw(seed).turn_ids([2], glue=1)[0]
    yield "turn 1 sums to 0.5, turn 2 to -0.5", ((1.5 - ids) * (ids > 0) / (ids[:, None] == ids).sum(1), ids)


def _norm(s: Tensor, m: Tensor, r: Tensor, t: float) -> Tensor:
    return softmax_shares(s, m, t) * r[:, None]


def _errors(r: Tensor, m: Tensor, o: Tensor) -> Tensor:
    return (r * m).sum(1) - o


check_softmax_shares = Check(
    "softmax shares",
    softmax_shares,
    _sums,
    {
        "columns without a turn take a part of the shares": lambda s, m, t: (s / t).softmax(1),
        "missing turns blanked out too late: what is left does not add up to 1": lambda s, m, t: (s / t).softmax(1) * m,
        "η is ignored": lambda s, m, t: softmax_shares(s, m, 1.0),
        "you multiply by η; a small η makes the shares sharper": lambda s, m, t: softmax_shares(s, m, 1 / t),
        "the worst turn gets the most: sign": lambda s, m, t: softmax_shares(-s, m, t),
        "the shares add up to 1 over the batch, not over each dialogue": lambda s, m, t: softmax_shares(s.T, m.T, t).T,
    },
)

check_norm_rewards = Check(
    "Norm-ITPO's turn rewards",
    _norm,
    _outcomes,
    {
        "these are shares of 1; the outcome is to be shared": lambda s, m, r, t: softmax_shares(s, m, t),
        "η is ignored": lambda s, m, r, t: _norm(s, m, r, 1.0),
        "every turn gets the whole outcome": lambda s, m, r, t: r[:, None] * m,
        "what the PRM says is ignored": lambda s, m, r, t: m * (r / m.sum(1).clamp(min=1))[:, None],
        "they add up to K times the outcome": lambda s, m, r, t: _norm(s, m, r, t) * m.sum(1, keepdim=True),
        "these are ITPO's rewards, scaled; nothing is normalised": lambda s, m, r, t: s * r[:, None],
    },
)

check_conservation_error = Check(
    "conservation error",
    lambda *args: _errors(*args).abs().max(),
    _rewards,
    {
        "a sum that is too small goes unseen": lambda r, m, o: _errors(r, m, o).max(),
        "you average: one bad dialogue among many goes unseen": lambda r, m, o: _errors(r, m, o).abs().mean(),
        "errors of different dialogues cancel": lambda r, m, o: _errors(r, m, o).sum().abs(),
        "columns without a turn contribute": lambda r, m, o: (r.sum(1) - o).abs().max(),
        "you return one error per dialogue; wanted is the largest": lambda r, m, o: _errors(r, m, o).abs(),
    },
)

check_temperature_for_share = Check(
    "temperature for a share",
    lambda gap, share: gap / log(share / (1 - share)),
    lambda seed: [(f"a share of {s}", (0.05 + Draw(seed).integer(1) / 9, s)) for s in (0.6, 0.73, 0.9, 0.99)],
    {
        "upside down: a larger gap needs a larger η": lambda gap, share: log(share / (1 - share)) / gap,
        "the other turn has the share 1 - s: compare the two": lambda gap, share: -gap / log(share),
        "the exponential is undone by the natural logarithm": lambda gap, share: gap / log10(share / (1 - share)),
        "the ratio of the shares is not yet the exponent": lambda gap, share: gap / (share / (1 - share)),
    },
)

check_batch_mate = Check(
    "a neighbour that changes the shares", lambda rewards, ids: 1000.0 * (ids > 0), _dialogue, probe=_neighbour
)
