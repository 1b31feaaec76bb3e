"""Checks of assignment 01: dialogues and masks."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .core import Case, Check, Draw, on_layouts

pad = torch.nn.functional.pad
Messages = list[tuple[str, int]]


def _messages(seed: int) -> Iterator[Case]:
    draw = Draw(seed)
    turns = [m for _ in range(draw.integer(2)) for m in (("assistant", draw.integer(1)), ("user", draw.integer(1)))]
    yield "a random dialogue", ([("system", draw.integer(1)), ("user", draw.integer(1)), *turns],)
    yield "it ends with the assistant", ([*turns, ("assistant", draw.integer(2))],)
    yield (
        "two assistant turns in a row",
        ([("user", 1), ("assistant", 2), ("assistant", draw.integer(1)), ("user", 2)],),
    )
    yield "nobody but the user", ([("user", draw.integer(1))],)


def _rows(seed: int) -> Iterator[Case]:
    draw = Draw(seed)
    rows = [[draw.integer(0, 9) for _ in range(draw.integer(1) + (i == 1))] for i in range(3)]
    yield "the fill token also occurs inside the rows", (rows, rows[1][-1])
    yield "rows of equal length: nothing to fill", ([[1, 2], [3, 4]], draw.integer(1))
    yield "an empty row", ([[5, 6, 7], []], 7)


def _segment(messages: Messages, first: int = 1, by_message: bool = False) -> Tensor:
    ids: list[int] = []
    turn = first - 1
    for role, n in messages:
        turn += by_message or role == "assistant"
        ids += [turn * (role == "assistant")] * n
    return torch.tensor(ids)


def _by_edge(messages: Messages) -> Tensor:
    mask = _segment(messages) > 0
    return (mask & ~pad(mask[:-1], (1, 0))).cumsum(0) * mask


def _last(ids: Tensor) -> Tensor:
    return (ids > 0) & (pad(ids[:, 1:], (0, 1)) != ids)


def _padded(rows: list[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    width, lengths = max(map(len, rows)), torch.tensor([len(row) for row in rows])
    ids = [row + [pad_id] * (width - len(row)) for row in rows]
    return torch.tensor(ids), torch.arange(width) < lengths[:, None]


def _left(rows: list[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Filled on the left: each row, and the result, turned round."""
    ids, mask = _padded([row[::-1] for row in rows], pad_id)
    return ids.flip(1), mask.flip(1)


def _mean(values: Tensor, ids: Tensor) -> Tensor:
    return (values * (ids > 0)).sum() / (ids > 0).sum().clamp(min=1)


check_assistant_mask = Check(
    "assistant mask",
    lambda ids: ids > 0,
    on_layouts(lambda draw, ids, k: (ids,)),
    {
        "you mark what the policy only reads: the user's tokens, glue and padding": lambda ids: ids == 0,
        "only turn 1 is marked; later turns are trained on too": lambda ids: ids == 1,
        "you return the turn ids; wanted is yes or no for each token": lambda ids: ids,
        "every token is marked, the user's and the padding too": torch.ones_like,
    },
)

check_segment_turns = Check(
    "segment turns",
    _segment,
    _messages,
    {
        "you number the messages; only the assistant's turns count": lambda m: _segment(m, by_message=True),
        "turns are numbered from 1: 0 is what the user's tokens have": lambda m: _segment(m, first=0),
        "two assistant turns in a row become one: look at messages, not at edges of a mask": _by_edge,
        "user tokens carry the id of the turn before them; theirs is 0": lambda m: _segment(m).cummax(0).values,
        "one id per message; wanted is one per token": lambda m: _segment([(role, 1) for role, _ in m]),
        "the ids are a mask: each turn needs a number of its own": lambda m: _segment(m) > 0,
    },
)

check_last_tokens = Check(
    "last tokens",
    _last,
    on_layouts(lambda draw, ids, k: (ids,)),
    {
        "you mark the first token of each turn": lambda ids: _last(ids.flip(1)).flip(1),
        "turns that touch: you only see an end before a user token": lambda ids: (
            (ids > 0) & (pad(ids[:, 1:], (0, 1)) == 0)
        ),
        "what follows the last column? Yours wraps around to the first": lambda ids: (
            (ids > 0) & (ids.roll(-1, 1) != ids)
        ),
        "the row's last column is never marked": lambda ids: pad(_last(ids)[:, :-1], (0, 1)),
        "only the last turn's end is marked": lambda ids: _last(ids) & (ids == ids.amax(1, keepdim=True)),
        "you mark the ends of the user's stretches, too": lambda ids: pad(ids[:, 1:], (0, 1)) != ids,
    },
)

check_masked_mean = Check(
    "masked mean",
    _mean,
    on_layouts(lambda draw, ids, k: (draw.normal(*ids.shape) + 3.0 * (ids == 0), ids * (k != 4))),
    {
        "user tokens and padding contribute": lambda v, ids: v.mean(),
        "you divide by all positions; divide by the assistant's tokens": lambda v, ids: (v * (ids > 0)).mean(),
        "you average row means: a short dialogue then weighs as much as a long one": lambda v, ids: torch.stack(
            [_mean(v[b : b + 1], ids[b : b + 1]) for b in range(len(v))]
        ).mean(),
        "you return the sum": lambda v, ids: (v * (ids > 0)).sum(),
        "where no token counts the mean has to be 0, not 0 / 0": lambda v, ids: v[ids > 0].mean(),
    },
)

check_pad_batch = Check(
    "pad batch",
    _padded,
    _rows,
    {
        "you read the mask off the ids: a real token that equals `pad_id` is lost": lambda rows, pad_id: (
            _padded(rows, pad_id)[0],
            _padded(rows, pad_id)[0] != pad_id,
        ),
        "you fill on the left; wanted is the right": _left,
        "the fill has to be `pad_id`": lambda rows, pad_id: (_padded(rows, 0)[0], _padded(rows, pad_id)[1]),
        "the mask marks the padding": lambda rows, pad_id: (_padded(rows, pad_id)[0], ~_padded(rows, pad_id)[1]),
        "you return the ids alone; wanted is a pair (ids, mask)": lambda rows, pad_id: _padded(rows, pad_id)[0],
    },
)
