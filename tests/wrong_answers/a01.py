"""Assignment 01: dialogues and masks."""

import numpy as np
import torch


def segment(messages, start=0, merge=False, user_keeps=False, count_user=False, per_message=False):
    """The loop of a student, with switches for what goes wrong."""
    ids, turn, before = [], start, None
    for role, n in messages:
        if count_user or (role == "assistant" and not (merge and before == "assistant")):
            turn += 1
        own = role == "assistant" or user_keeps
        ids += [turn if own else 0] * (1 if per_message else n)
        before = role
    return torch.tensor(ids)


def segment_by_numpy(messages):
    roles = np.array([role == "assistant" for role, _ in messages])
    return np.repeat(np.cumsum(roles) * roles, [n for _, n in messages])


def last_by_loop(ids):
    result = torch.zeros(ids.shape, dtype=torch.bool)
    for b, row in enumerate(ids.tolist()):
        for k in set(row) - {0}:
            result[b, max(t for t, i in enumerate(row) if i == k)] = True
    return result


def pad_by_hand(rows, pad_id, fill=None, left=False, cut=False, mask_from_ids=False, off=0):
    width = (min if cut else max)(len(row) for row in rows)
    ids, mask = [], []
    for row in rows:
        row = row[:width]
        rest = [pad_id if fill is None else fill] * (width - len(row))
        ids.append(rest + row if left else row + rest)
        real = [True] * (len(row) + off if rest else len(row)) + [False] * (len(rest) - off)
        mask.append(real[::-1] if left else real)
    ids = torch.tensor(ids)
    return ids, ids != pad_id if mask_from_ids else torch.tensor(mask)


def pad_in_place(rows, pad_id):
    lengths = [len(row) for row in rows]
    for row in rows:
        row += [pad_id] * (max(lengths) - len(row))
    return torch.tensor(rows), torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


WRONG = {
    "assistant_mask": {
        "the user's tokens | only reads": lambda ids: ids == 0,
        "turn 1 alone | later turns": lambda ids: ids == 1,
        "identity | turn ids": lambda ids: ids,
        "all True": lambda ids: torch.ones_like(ids, dtype=torch.bool),
        "all False": lambda ids: torch.zeros_like(ids, dtype=torch.bool),
        "the last turn alone": lambda ids: ids == ids.max(),
        "hard-coded for the example": lambda ids: torch.tensor(
            [[1, 1, 0, 0, 1, 1, 1, 0], [1, 0, 1, 1, 1, 0, 0, 0]]
        ).bool(),
        "in place | in place": lambda ids: ids.clamp_(max=1),
    },
    "segment_turns": {
        "counts all messages | only the assistant's": lambda m: segment(m, start=-0, count_user=True),
        "starts at 0 | numbered from 1": lambda m: segment(m, start=-1),
        "merges turns that touch | become one": lambda m: segment(m, merge=True),
        "the user keeps the id | theirs is 0": lambda m: segment(m, user_keeps=True),
        "one id per message | one per token": lambda m: segment(m, per_message=True),
        "a mask | number of its own": lambda m: (segment(m) > 0).int(),
        "hard-coded": lambda m: torch.tensor([0, 0, 1, 1, 1, 0, 2, 3, 3]),
        "None | return": lambda m: None,
    },
    "last_tokens": {
        "first tokens | first token": lambda ids: (ids > 0) & (torch.nn.functional.pad(ids[:, :-1], (1, 0)) != ids),
        "before a user token only | touch": lambda ids: (
            (ids > 0) & torch.cat([ids[:, 1:] == 0, torch.ones(len(ids), 1).bool()], 1)
        ),
        "wraps around | wraps around": lambda ids: (ids > 0) & (torch.roll(ids, -1, dims=1) != ids),
        "never the last column | never marked": lambda ids: torch.cat(
            [(ids[:, :-1] > 0) & (ids[:, 1:] != ids[:, :-1]), torch.zeros(len(ids), 1).bool()], 1
        ),
        "last turn alone | last turn": lambda ids: last_by_loop(ids * (ids == ids.max(1, keepdim=True).values)),
        "all of the turn": lambda ids: ids > 0,
        "ends of the user's stretches | user's": lambda ids: torch.nn.functional.pad(ids[:, 1:], (0, 1)) != ids,
    },
    "masked_mean": {
        "everything | contribute": lambda v, ids: v.mean(),
        "divides by all positions | all positions": lambda v, ids: (v * (ids > 0)).sum() / v.numel(),
        "mean of row means | weighs as much": lambda v, ids: (
            (v * (ids > 0)).sum(1) / (ids > 0).sum(1).clamp(min=1)
        ).mean(),
        "0 / 0 | 0 / 0": lambda v, ids: (v * (ids > 0)).sum() / (ids > 0).sum(),
        "the sum | sum": lambda v, ids: v[ids > 0].sum(),
        "0 | 0 everywhere": lambda v, ids: torch.tensor(0.0),
        "weighs by turn id": lambda v, ids: (v * ids).sum() / ids.sum().clamp(min=1),
        "one per dialogue": lambda v, ids: (v * (ids > 0)).sum(1) / (ids > 0).sum(1).clamp(min=1),
        "destroys the values | in place": lambda v, ids: v.mul_(ids > 0).sum() / (ids > 0).sum().clamp(min=1),
    },
    "pad_batch": {
        "mask from ids | off the ids": lambda rows, p: pad_by_hand(rows, p, mask_from_ids=True),
        "fills with 0 | fill": lambda rows, p: pad_by_hand(rows, p, fill=0),
        "left | on the left": lambda rows, p: pad_by_hand(rows, p, left=True),
        "cuts to the shortest": lambda rows, p: pad_by_hand(rows, p, cut=True),
        "one token of padding counts": lambda rows, p: pad_by_hand(rows, p, off=1),
        "no mask | pair": lambda rows, p: pad_by_hand(rows, p)[0],
        "mask upside down | marks the padding": lambda rows, p: (pad_by_hand(rows, p)[0], ~pad_by_hand(rows, p)[1]),
        "in place | in place": pad_in_place,
    },
}

RIGHT = {
    "assistant_mask": {
        "not 0": lambda ids: ids != 0,
        "numpy": lambda ids: ids.numpy().astype(bool),
        "0 and 1": lambda ids: ids.clamp(max=1),
    },
    "segment_turns": {"loop": segment, "numpy": segment_by_numpy, "a list": lambda m: segment(m).tolist()},
    "last_tokens": {
        "loop": last_by_loop,
        "cat": lambda ids: (ids > 0) & (torch.cat([ids[:, 1:], torch.full((len(ids), 1), -1)], 1) != ids),
    },
    "masked_mean": {
        "indexing": lambda v, ids: v[ids > 0].mean() if (ids > 0).any() else torch.tensor(0.0),
        "nan_to_num": lambda v, ids: torch.nan_to_num(v[ids > 0].mean()),
        "python": lambda v, ids: sum(v[ids > 0].tolist()) / max(1, int((ids > 0).sum())),
    },
    "pad_batch": {
        "by hand": pad_by_hand,
        "pad_sequence": lambda rows, p: (
            torch.nn.utils.rnn.pad_sequence([torch.tensor(r).long() for r in rows], True, p),
            torch.nn.utils.rnn.pad_sequence([torch.ones(len(r)) for r in rows], True, 0),
        ),
    },
}
