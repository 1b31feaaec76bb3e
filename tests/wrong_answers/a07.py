"""Assignment 07: five broken runs."""

import torch

TRUTH = {
    "A": "the baseline contains the sample itself",
    "B": "the advantage has the wrong sign",
    "C": "pad = eos",
    "D": "the PRM never steps",
    "E": "user tokens are trained on",
}


def step(*calls, sign=1.0):
    """A step made of named calls, in order."""

    def piece(optimizer, loss):
        for call in calls:
            if call == "backward":
                (sign * loss).backward()
            else:
                getattr(optimizer, call)()

    return piece


def by_hand(optimizer, loss):
    parameters = optimizer.param_groups[0]["params"]
    for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        p.grad = g
    optimizer.step()


def swapped(a, b):
    return lambda: {**TRUTH, a: TRUTH[b], b: TRUTH[a]}


WRONG = {
    "valid_tokens": {
        "off the ids | lengths": lambda i, n, p: i != p,
        "one too few | last real token": lambda i, n, p: torch.arange(i.shape[1]) < n[:, None] - 1,
        "one too many | one token of padding": lambda i, n, p: torch.arange(i.shape[1]) <= n[:, None],
        "padding | mark the padding": lambda i, n, p: torch.arange(i.shape[1]) >= n[:, None],
        "all": lambda i, n, p: torch.ones_like(i).bool(),
        "up to the first fill": lambda i, n, p: (i != p).int().cumprod(1).bool(),
        "up to the last non-fill": lambda i, n, p: (i != p).flip(1).int().cummax(1).values.flip(1).bool(),
        "the longest row's length": lambda i, n, p: (torch.arange(i.shape[1]) < n.max()).expand(i.shape),
    },
    "train_mask": {
        "valid alone | user tokens": lambda t, valid: valid,
        "the user's": lambda t, valid: valid & (t == 0),
        "turn 1": lambda t, valid: valid & (t == 1),
        "or": lambda t, valid: valid | (t > 0),
        "none | 0 everywhere": lambda t, valid: torch.zeros_like(valid),
        "times the id": lambda t, valid: valid * t,
    },
    "baseline": {
        "group mean | own outcome": lambda r, g: r.reshape(-1, g).mean(1).repeat_interleave(g),
        "batch mean": lambda r, g: r.mean().expand_as(r),
        "the other samples of the batch | whole batch": lambda r, g: (r.sum() - r) / (len(r) - 1),
        "divided by G | divide by G": lambda r, g: (
            (r.reshape(-1, g).sum(1, keepdim=True) - r.reshape(-1, g)) / g
        ).flatten(),
        "zero | 0 everywhere": lambda r, g: torch.zeros_like(r),
        "the neighbour": lambda r, g: r.reshape(-1, g).roll(1, 1).flatten(),
        "the group's median": lambda r, g: r.reshape(-1, g).median(1).values.repeat_interleave(g),
    },
    "policy_loss": {
        "sign | sign": lambda x, a, m: (x * a * m).sum() / m.sum(),
        "no mask | outside the mask": lambda x, a, m: -(x * a).mean(),
        "mean over all | not by all": lambda x, a, m: -(x * a * m).mean(),
        "sum": lambda x, a, m: -(x * a * m).sum(),
        "probabilities": lambda x, a, m: -(x.exp() * a * m).sum() / m.sum(),
        "row means": lambda x, a, m: -((x * a * m).sum(1) / m.sum(1).clamp(min=1)).mean(),
        "size of the advantage": lambda x, a, m: -(x * a.abs() * m).sum() / m.sum(),
    },
    "prm_step": {
        "no step | never change": step("zero_grad", "backward"),
        "no zero_grad | pile up": step("backward", "step"),
        "zero_grad in between | never change": step("backward", "zero_grad", "step"),
        "uphill | sign": step("zero_grad", "backward", "step", sign=-1.0),
        "two steps": step("zero_grad", "backward", "step", "step"),
        "nothing": step(),
        "step before backward": step("zero_grad", "step", "backward"),
        "half the loss": step("zero_grad", "backward", "step", sign=0.5),
    },
    "diagnosis": {
        "two swapped | A, D": swapped("A", "D"),
        "two others swapped | C, E": swapped("C", "E"),
        "all the same | 1 of 5": lambda: dict.fromkeys("ABCDE", "pad = eos"),
        "one cause twice | B": lambda: {**TRUTH, "B": "pad = eos"},
        "a run is missing | keys": lambda: {k: v for k, v in TRUTH.items() if k != "E"},
        "not on the list | none of the causes": lambda: {**TRUTH, "A": "bad luck"},
        "None | dict": lambda: None,
        "not hashable | none of the causes": lambda: {**TRUTH, "A": ["pad = eos"]},
    },
}

RIGHT = {
    "valid_tokens": {
        "loop": lambda i, n, p: torch.tensor([[t < k for t in range(i.shape[1])] for k in n.tolist()]),
        "cumsum": lambda i, n, p: torch.ones_like(i).cumsum(1) <= n[:, None],
    },
    "train_mask": {
        "and": lambda t, valid: torch.logical_and(valid, t != 0),
        "product": lambda t, valid: valid * (t > 0),
    },
    "baseline": {
        "from the mean": lambda r, g: (
            (g * r.reshape(-1, g).mean(1, keepdim=True) - r.reshape(-1, g)) / (g - 1)
        ).flatten(),
        "matrix": lambda r, g: (r.view(-1, g) @ ((1 - torch.eye(g)) / (g - 1))).flatten(),
    },
    "policy_loss": {
        "indexing": lambda x, a, m: -(x * a)[m].mean(),
        "einsum": lambda x, a, m: torch.einsum("bt,bt,bt->", -x, a, m.to(x.dtype)) / m.sum(),
    },
    "prm_step": {
        "usual": step("zero_grad", "backward", "step"),
        "zero_grad last": step("backward", "step", "zero_grad"),
        "by hand": by_hand,
    },
    "diagnosis": {"as it is": lambda: dict(TRUTH), "another order": lambda: dict(reversed(TRUTH.items()))},
}
