"""Assignment 04: turn sums."""

import numpy as np
import torch


def sums(values, ids, k, column=-1, user=None, reduce=sum):
    """A student's loop; `user` says what happens to the user's tokens."""
    out = torch.zeros(len(values), k)
    for b in range(len(values)):
        tokens, before = {}, 0
        for t in range(values.shape[1]):
            turn = int(ids[b, t])
            if turn == 0 and user == "before":
                turn = before
            before = turn or before
            if turn and 0 <= turn + column < k:
                tokens.setdefault(turn + column, []).append(float(values[b, t]))
        for c, found in tokens.items():
            out[b, c] = reduce(found)
    return out


def turn_sums_numpy(values, ids, k):
    return np.stack(
        [[v[i == turn].sum() for turn in range(1, k + 1)] for v, i in zip(values.numpy(), ids.numpy(), strict=True)]
    )


def sums_by_edges(values, ids, k):
    """Turns are taken from the mask's edges: those that touch are merged."""
    mask = ids > 0
    starts = mask & ~torch.nn.functional.pad(mask[:, :-1], (1, 0))
    edges = (starts.cumsum(1) * mask).clamp(max=k)
    return sums(values, edges, k)


def spread(values, ids, start=0):
    out = torch.zeros(ids.shape)
    for b in range(ids.shape[0]):
        for t in range(ids.shape[1]):
            if ids[b, t] > 0:
                out[b, t] = values[b, (int(ids[b, t]) - 1 + start) % values.shape[1]]
    return out


def on_last(values, ids, first=False, last_turn=False, share=False, need_user=False):
    out = torch.zeros(ids.shape)
    for b, row in enumerate(ids.tolist()):
        for k in range(1, values.shape[1] + 1):
            where = [t for t, i in enumerate(row) if i == k]
            if not where or (last_turn and k != max(row)):
                continue
            if need_user and where[-1] + 1 < len(row) and row[where[-1] + 1] != 0:
                continue
            out[b, where[0] if first else where[-1]] = values[b, k - 1] / (len(where) if share else 1)
    return out


def priced(rewards, ids, price, sign=-1.0, per_token=True, user=False, all_turns=False):
    out = rewards.clone()
    for b in range(len(ids)):
        before = 0
        for i in ids[b].tolist():
            k = i or (before if user else 0)
            before = k or before
            if k:
                for c in range(rewards.shape[1]) if all_turns else [k - 1]:
                    out[b, c] += sign * price
    if not per_token:
        return rewards + sign * price * (rewards != 0)
    return out


def accumulate(rewards, ids, price):
    for b in range(len(ids)):
        for i in ids[b].tolist():
            if i:
                rewards[b, i - 1] -= price
    return rewards


def mean(x):
    return sum(x) / len(x)


WRONG = {
    "turn_sums": {
        "mean for sum | averaged": lambda v, i, k: sums(v, i, k, reduce=mean),
        "mean for sum, 0 / 0 on top | averaged": lambda v, i, k: torch.stack(
            [torch.stack([v[b][i[b] == turn].mean() for turn in range(1, k + 1)]) for b in range(len(v))]
        ),
        "user tokens to the turn before | turn before them": lambda v, i, k: sums(v, i, k, user="before"),
        "off by one to the right | off by one": lambda v, i, k: sums(v, i, k, column=0),
        "off by one to the left | off by one": lambda v, i, k: sums(v, i, k, column=-2),
        "merged turns": sums_by_edges,
        "largest token": lambda v, i, k: sums(v, i, k, reduce=max),
        "last token": lambda v, i, k: sums(v, i, k, reduce=lambda x: x[-1]),
        "running totals | running": lambda v, i, k: sums(v, i, k).cumsum(1),
        "no mask": lambda v, i, k: v.sum(1, keepdim=True).expand(-1, k),
        "over the batch | wrong axis": lambda v, i, k: sums(v, i, k).sum(0, keepdim=True).expand(len(v), k),
        "identity": lambda v, i, k: v,
        "zeros | 0 everywhere": lambda v, i, k: torch.zeros(len(v), k),
        "hard-coded": lambda v, i, k: torch.tensor([[0.6, -0.1, 0.0], [0.4, 1.0, 0.0]]),
        "whole numbers | lose fractions": lambda v, i, k: sums(v, i, k).int(),
        "swapped | swapped": lambda v, i, k: sums(v, i, k).T,
    },
    "spread_to_tokens": {
        "index -1 | counts from the end": lambda r, i: torch.stack([r[b][i[b] - 1] for b in range(len(r))]),
        "turn 1 for the user | turn 1": lambda r, i: r.gather(1, (i - 1).clamp(min=0)),
        "turn before | before them": lambda r, i: spread(r, i.cummax(1).values),
        "off by one": lambda r, i: spread(r, i, start=1),
        "split over tokens | not a part": lambda r, i: torch.stack(
            [
                sum((r[b, k] / max(1, int((i[b] == k + 1).sum()))) * (i[b] == k + 1) for k in range(r.shape[1]))
                for b in range(len(r))
            ]
        ),
        "last token only": on_last,
        "sign | sign": lambda r, i: -spread(r, i),
        "the first dialogue's values": lambda r, i: spread(r[:1].expand_as(r), i),
    },
    "rewards_on_last_token": {
        "every token | every token": spread,
        "first token | first token": lambda r, i: on_last(r, i, first=True),
        "needs a user token | touch": lambda r, i: on_last(r, i, need_user=True),
        "last turn alone": lambda r, i: on_last(r, i, last_turn=True),
        "split": lambda r, i: on_last(r, i, share=True),
        "one too late": lambda r, i: torch.roll(on_last(r, i), 1, 1),
        "all at the end": lambda r, i: on_last(r.sum(1, keepdim=True).expand_as(r), i, last_turn=True),
    },
    "priced_rewards": {
        "sign | paid out": lambda r, i, p: priced(r, i, p, sign=1.0),
        "once per turn | per token": lambda r, i, p: priced(r, i, p, per_token=False),
        "user tokens | user tokens": lambda r, i, p: priced(r, i, p, user=True),
        "every turn pays all | all of the dialogue's": lambda r, i, p: priced(r, i, p, all_turns=True),
        "identity": lambda r, i, p: r,
        "in place | in place": accumulate,
        "price squared": lambda r, i, p: priced(r, i, p * p),
        "a factor": lambda r, i, p: r * (1 - p),
    },
}

RIGHT = {
    "turn_sums": {
        "loop": sums,
        "numpy": turn_sums_numpy,
        "scatter": lambda v, i, k: torch.zeros(len(v), k + 1).scatter_add(1, i, v)[:, 1:],
        "one_hot": lambda v, i, k: torch.einsum(
            "bt,btk->bk", v, torch.nn.functional.one_hot(i, k + 1)[..., 1:].float()
        ),
    },
    "spread_to_tokens": {
        "loop": spread,
        "where": lambda r, i: torch.where(i > 0, r.gather(1, (i - 1).clamp(min=0)), 0.0),
    },
    "rewards_on_last_token": {
        "loop": on_last,
        "flip": lambda r, i: spread(r, i) * (torch.cat([i[:, 1:], torch.zeros(len(i), 1).long()], 1) != i),
    },
    "priced_rewards": {
        "loop": priced,
        "bincount": lambda r, i, p: (
            r - p * torch.stack([torch.bincount(row, minlength=r.shape[1] + 1)[1 : r.shape[1] + 1] for row in i])
        ),
    },
}
