"""Checks of assignment 04: turn sums."""

from __future__ import annotations

import torch
from torch import Tensor

from ..advantages import rewards_on_last_token, spread_to_tokens
from ..credit import Credit, unit_lengths, unit_sums
from .core import Check, on_layouts

pad = torch.nn.functional.pad


def _read_on(ids: Tensor) -> Tensor:
    """Turn ids in which user tokens count to the turn before them."""
    return ids.cummax(1).values


def _lengths(rewards: Tensor, ids: Tensor) -> Tensor:
    return unit_lengths(ids, rewards.shape[1])


def _last(rewards: Tensor, ids: Tensor) -> Tensor:
    return rewards_on_last_token(Credit(rewards, torch.ones_like(rewards) > 0, ids))


check_turn_sums = Check(
    "turn sums",
    unit_sums,
    on_layouts(lambda draw, ids, k: (draw.normal(*ids.shape) + 5.0 * (ids == 0), ids, k)),
    {
        "you averaged where a sum is asked for": lambda v, i, k: unit_sums(v, i, k) / unit_lengths(i, k).clamp(min=1),
        "user tokens contribute: to the turn before them": lambda v, i, k: unit_sums(v, _read_on(i), k),
        "user tokens contribute": lambda v, i, k: unit_sums(v, i, k) + (v * (i == 0)).sum(1, keepdim=True),
        "off by one turn: column 0 holds the user's tokens": lambda v, i, k: unit_sums(v, i + 1, k + 1)[:, :k],
        "these are running totals; turn k has its own tokens only": lambda v, i, k: unit_sums(v, i, k).cumsum(1),
    },
)

_turn_values = on_layouts(lambda draw, ids, k: (draw.normal(len(ids), k) * (unit_lengths(ids, k) > 0), ids))
check_spread_to_tokens = Check(
    "spread to tokens",
    spread_to_tokens,
    _turn_values,
    {
        "user tokens get the last column: index 0 - 1 counts from the end": lambda r, i: r.gather(
            1, (i - 1) % r.shape[1]
        ),
        "user tokens get the value of turn 1": lambda r, i: r.gather(1, (i - 1).clamp(min=0)),
        "user tokens get the value of the turn before them": lambda r, i: spread_to_tokens(r, _read_on(i)),
        "off by one turn: ids start at 1, columns at 0": lambda r, i: spread_to_tokens(pad(r[:, 1:], (0, 1)), i),
        "each token gets all of its turn's value, not a part": lambda r, i: spread_to_tokens(
            r / _lengths(r, i).clamp(min=1), i
        ),
    },
)

check_rewards_on_last_token = Check(
    "rewards on the last token",
    _last,
    _turn_values,
    {
        "every token of a turn is paid; only the last one should be": spread_to_tokens,
        "you pay the first token of each turn": lambda r, i: _last(r, i.flip(1)).flip(1),
        "turns that touch: you only see an end before a user token": lambda r, i: (
            spread_to_tokens(r, i) * (pad(i[:, 1:], (0, 1)) == 0)
        ),
        "a turn that ends with the row loses its reward": lambda r, i: pad(_last(r, i)[:, :-1], (0, 1)),
    },
)

check_priced_rewards = Check(
    "priced rewards",
    lambda r, i, price: r - price * _lengths(r, i),
    on_layouts(lambda draw, ids, k: (draw.normal(len(ids), k) * (unit_lengths(ids, k) > 0), ids, draw.integer(1) / 50)),
    {
        "the price is paid out instead of charged: sign": lambda r, i, price: r + price * _lengths(r, i),
        "you charge once per turn; the price is per token": lambda r, i, price: r - price * (_lengths(r, i) > 0),
        "user tokens are charged too": lambda r, i, price: r - price * _lengths(r, _read_on(i)),
        "each turn is charged for all of the dialogue's tokens": lambda r, i, price: (
            r - price * (i > 0).sum(1, keepdim=True)
        ),
        "each turn pays for the turns before it, too": lambda r, i, price: r - price * _lengths(r, i).cumsum(1),
    },
)
