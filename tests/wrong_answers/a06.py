"""Assignment 06: advantages."""

import torch

from itpo_lib.enumerable import World


def others(x, g, own=False, divide=None):
    out = []
    for i in range(len(x)):
        start = i - i % g
        mates = [x[j] for j in range(start, start + g) if own or j != i]
        out.append(sum(mates) / (divide or len(mates)))
    return torch.stack(out)


def to_go(x):
    out = torch.zeros_like(x)
    for k in range(x.shape[1]):
        out[:, k] = x[:, k:].sum(1)
    return out


def outcome(w, m, r, g, own=False, go=True, b=None):
    edge = r - (others(r, g, own) if b is None else b)
    return (to_go(w) if go else w) * edge[:, None] * m


def weighted(w, m, r, g, k=None, own=False, go=False):
    return outcome(w, m, r, g, own, go) * (m.sum(1, keepdim=True) if k is None else k)


def turn(r, m, g, own=False, reach=True, fallback="whole", go=True):
    returns, out = to_go(r * m) if go else r, torch.zeros_like(r)
    for i in range(len(r)):
        start = i - i % g
        mates = [j for j in range(start, start + g) if own or j != i]
        for k in range(int(m[i].sum())):
            there = [returns[j, k] for j in mates if m[j, k] or not reach]
            if there:
                b = sum(there) / len(there)
            elif fallback == "whole":
                b = sum(returns[j, 0] for j in mates) / len(mates)
            elif fallback == "group":
                b = returns[start : start + g, 0].mean()
            else:
                b = 0.0
            out[i, k] = returns[i, k] - b
    return out


def official(r, m, g, columns=False, total=False, late=False, go=True, own=False):
    means = (r * m).sum(1) / (1 if total else r.shape[1] if columns else m.sum(1))
    b = others(means, g, own)[:, None]
    if late:
        return (to_go(r * m) - b) * m
    centred = (r - b) * m
    return (to_go(centred) if go else centred) * m


def bias_by_listing(d, logits, rewards):
    """All pairs of dialogues, one by one."""
    p, scores = d.probabilities(logits), d.scores(logits)
    total, n = torch.zeros_like(logits), len(p)
    means = rewards.sum(1) / d.n_turns
    for i in range(n):
        charged = torch.zeros(d.mask.shape[1], dtype=torch.float64)
        for j in range(n):
            charged += p[j] * means[j] * to_go(d.mask[i : i + 1].double())[0]
        total -= p[i] * torch.einsum("k,ksa->sa", charged * d.mask[i], scores[i])
    return total


def bias(d, logits, rewards, sign=-1.0, mean=True, weigh=True, of="turns"):
    per_turn = rewards.sum(1) / (d.n_turns if mean else 1)
    price = d.expectation(logits, per_turn) if weigh else per_turn.mean()
    return sign * price * d.gradient(logits, d.n_turns if of == "turns" else d.outcomes)


def grpo(r, m, g, eps=1e-6, ddof=1, go=True, scale=True, padded=False, batch=False, guard=True, added=0.0):
    out = torch.zeros_like(r)
    size = len(r) if batch else g
    for i in range(0, len(r), size):
        rows = slice(i, i + size)
        x = r[rows].flatten() if padded else r[rows][m[rows]]
        std = x.std(correction=ddof) if scale else torch.tensor(1.0)
        if not guard or std > eps:
            out[rows] = (r[rows] - x.mean()) / (std + added) * m[rows]
    return (to_go(out) if go else out) * m


def gae(r, v, ids, gamma, lam, skip=True, leak=False, bootstrap=0.0):
    out = torch.zeros_like(v)
    for b in range(len(v)):
        following, running = bootstrap, 0.0
        for t in reversed(range(v.shape[1])):
            if ids[b, t] > 0:
                running = r[b, t] + gamma * following - v[b, t] + gamma * lam * running
                out[b, t], following = running, v[b, t]
            elif not skip:
                running = gamma * lam * running
                following = v[b, t] if leak else gamma * following
    return out


def ppo(n, o, a, ids, c, sign=-1.0, pick=torch.minimum, low=None, high=None, mask=None, ratio=None):
    ratio = (n - o).exp() if ratio is None else ratio
    mask = (ids > 0) if mask is None else mask
    clipped = torch.clamp(ratio, 1 - (c if low is None else low), 1 + (c if high is None else high))
    return sign * pick(ratio * a, clipped * a)[mask].mean()


everything = World(max_turns=2).dialogues()

WRONG = {
    "leave_one_out": {
        "own included | own outcome": lambda r, g: others(r, g, own=True),
        "divided by G | divide by G": lambda r, g: others(r, g, divide=g),
        "whole batch | whole batch": lambda r, g: others(r, len(r)),
        "interleaved | interleaved": lambda r, g: others(r.reshape(g, -1).T.flatten(), g).reshape(-1, g).T.flatten(),
        "the advantage | advantage": lambda r, g: r - others(r, g),
        "sums | take the mean": lambda r, g: others(r, g, divide=1),
        "identity": lambda r, g: r,
        "the next sample": lambda r, g: r.reshape(-1, g).roll(1, 1).flatten(),
        "the best other": lambda r, g: torch.stack(
            [max(x for j, x in enumerate(row) if j != i) for row in r.reshape(-1, g) for i in range(g)]
        ),
        "hard-coded": lambda r, g: torch.tensor([0.5, 1.0, 0.5, 0.2, 0.4, 0.4]),
    },
    "outcome_advantages": {
        "no return-to-go | alone": lambda *a: outcome(*a, go=False),
        "forwards | forwards": lambda w, m, r, g: (w.cumsum(1) * (r - others(r, g))[:, None]) * m,
        "own included | baseline": lambda *a: outcome(*a, own=True),
        "no baseline | no baseline": lambda *a: outcome(*a, b=0.0),
        "sign | sign": lambda *a: -outcome(*a),
        "baseline off each return | off each return": lambda w, m, r, g: (
            (to_go(w) * r[:, None] - others(r, g)[:, None]) * m
        ),
        "no mask": lambda w, m, r, g: (r - others(r, g))[:, None].expand_as(w),
        "whole batch's mean": lambda w, m, r, g: outcome(w, m, r, g, b=r.mean()),
        "zeros | 0 everywhere": lambda w, m, r, g: torch.zeros_like(w),
    },
    "credit_weighted": {
        "no K | factor K": lambda *a: weighted(*a, k=1),
        "K of columns | not of columns": lambda w, m, r, g: weighted(w, m, r, g, k=w.shape[1]),
        "return-to-go | return-to-go": lambda *a: weighted(*a, go=True),
        "own included | baseline": lambda *a: weighted(*a, own=True),
        "no baseline | no baseline": lambda w, m, r, g: m.sum(1, keepdim=True) * w * r[:, None],
        "divided by K": lambda w, m, r, g: w * (r - others(r, g))[:, None] / m.sum(1, keepdim=True),
        "the edge alone": lambda w, m, r, g: (r - others(r, g))[:, None] * m,
        "G for K": lambda w, m, r, g: weighted(w, m, r, g, k=g),
    },
    "turn_advantages": {
        "absent ones count as 0 | count as 0": lambda *a: turn(*a, reach=False),
        "no fallback | no other dialogue": lambda *a: turn(*a, fallback="zero"),
        "own included": lambda *a: turn(*a, own=True),
        "own included where alone | your own return": lambda *a: turn(*a, fallback="group"),
        "single turns": lambda *a: turn(*a, go=False),
        "no baseline | no baseline": lambda r, m, g: to_go(r) * m,
        "official": official,
        "whole batch": lambda r, m, g: turn(r, m, len(r)),
        "sign | sign": lambda *a: -turn(*a),
        "whole return everywhere": lambda r, m, g: (to_go(r) - others(r.sum(1), g)[:, None]) * m,
    },
    "official_advantages": {
        "baseline after the sum | BEFORE": lambda *a: official(*a, late=True),
        "mean over columns | own turns": lambda *a: official(*a, columns=True),
        "row sums | row sums": lambda *a: official(*a, total=True),
        "no sum backwards | summed backwards": lambda *a: official(*a, go=False),
        "own included": lambda *a: official(*a, own=True),
        "turn": turn,
        "charges missing turns | does not have": lambda r, m, g: (
            to_go(r - others((r * m).sum(1) / m.sum(1), g)[:, None]) * m
        ),
        "sign | sign": lambda *a: -official(*a),
    },
    "official_bias": {
        "sign | sign": lambda *a: bias(*a, sign=1.0),
        "total reward | ONE turn": lambda *a: bias(*a, mean=False),
        "unweighted | how likely": lambda *a: bias(*a, weigh=False),
        "gradient of the outcome": lambda *a: bias(*a, of="outcome"),
        "true gradient | true gradient": lambda d, x, r: d.gradient(x, r.sum(1)),
        "with the gradient | only what": lambda d, x, r: d.gradient(x, r.sum(1)) + bias(d, x, r),
        "price alone | does it do": lambda d, x, r: -d.expectation(x, r.sum(1) / d.n_turns) * torch.ones_like(x),
        "zero | 0 everywhere": lambda d, x, r: torch.zeros_like(x),
        "hard-coded for r = 1/2": lambda d, x, r: -0.5 * d.gradient(x, d.n_turns),
        "half": lambda *a: bias(*a, sign=-0.5),
    },
    "grpo_advantages": {
        "no sum backwards | summed backwards": lambda *a: grpo(*a, go=False),
        "whole batch | batch's": lambda *a: grpo(*a, batch=True),
        "only centred | centre": lambda *a: grpo(*a, scale=False),
        "padding counts": lambda *a: grpo(*a, padded=True),
        "TRL's 1e-4 added to the spread | constant added": lambda *a: grpo(*a, added=1e-4),
        "no guard": lambda *a: grpo(*a, guard=False),
        "guard at 0 alone": lambda *a: grpo(*a, eps=0.0),
        "population std | n - 1": lambda *a: grpo(*a, ddof=0),
        "outcomes normalised, not turns": lambda r, m, g: (
            ((r * m).sum(1).reshape(-1, g) - (r * m).sum(1).reshape(-1, g).mean(1, keepdim=True)).flatten()[:, None] * m
        ),
        "sign | sign": lambda *a: -grpo(*a),
    },
    "gae": {
        "user tokens are steps": lambda *a: gae(*a, skip=False, leak=True),
        "decays across the user": lambda *a: gae(*a, skip=False),
        "no λ | λ": lambda r, v, i, gamma, lam: gae(r, v, i, gamma, 1.0),
        "no γ | γ": lambda r, v, i, gamma, lam: gae(r, v, i, 1.0, lam),
        "one step | one-step": lambda r, v, i, gamma, lam: gae(r, v, i, gamma, 0.0),
        "targets | values": lambda r, v, i, gamma, lam: gae(r, v, i, gamma, lam) + v * (i > 0),
        "anew with each turn | begin anew": lambda r, v, i, gamma, lam: sum(
            gae(r, v, i * (i == k), gamma, lam) for k in range(1, int(i.max()) + 1)
        ),
        "value after the end": lambda *a: gae(*a, bootstrap=1.0),
        "user tokens get one too": lambda r, v, i, gamma, lam: gae(r, v, torch.ones_like(i), gamma, lam),
        "sign | sign": lambda *a: -gae(*a),
    },
    "clipped_surrogate": {
        "sign | sign": lambda *a: ppo(*a, sign=1.0),
        "max | smaller": lambda *a: ppo(*a, pick=torch.maximum),
        "no clip | nothing is clipped": lambda *a: ppo(*a, low=9.0, high=1e9),
        "upper clip only | upper": lambda *a: ppo(*a, low=9.0),
        "clip alone | unclipped": lambda *a: ppo(*a, pick=lambda plain, clipped: clipped),
        "upside down | upside down": lambda n, o, a, i, c: ppo(o, n, a, i, c),
        "all tokens | user tokens": lambda n, o, a, i, c: ppo(n, o, a, i, c, mask=torch.ones_like(i).bool()),
        "divided by all | not by all": lambda n, o, a, i, c: ppo(n, o, a, i, c) * (i > 0).float().mean(),
        "log-ratio for ratio": lambda n, o, a, i, c: ppo(n, o, a, i, c, ratio=n - o),
        "no advantage": lambda n, o, a, i, c: ppo(n, o, torch.ones_like(a), i, c),
    },
}

RIGHT = {
    "leave_one_out": {
        "loop": others,
        "from the mean": lambda r, g: (
            (g * r.reshape(-1, g).mean(1, keepdim=True) - r.reshape(-1, g)) / (g - 1)
        ).flatten(),
        "matrix": lambda r, g: (r.view(-1, g) @ ((1 - torch.eye(g)) / (g - 1))).flatten(),
    },
    "outcome_advantages": {
        "loop": outcome,
        "total minus before": lambda w, m, r, g: (
            (w.sum(1, keepdim=True) - w.cumsum(1) + w) * (r - others(r, g)).unsqueeze(1) * m
        ),
    },
    "credit_weighted": {
        "loop": weighted,
        "einsum": lambda w, m, r, g: torch.einsum("bk,b,b->bk", w, m.sum(1).float(), r - others(r, g)),
    },
    "turn_advantages": {
        "loop": turn,
        "nanmean": lambda r, m, g: torch.stack(
            [
                torch.where(
                    m[i],
                    to_go(r)[i]
                    - torch.where(
                        m[j].any(0), torch.where(m[j], to_go(r)[j], torch.nan).nanmean(0), to_go(r)[j][:, 0].mean()
                    ),
                    0.0,
                )
                for i in range(len(r))
                for j in [[j for j in range(i - i % g, i - i % g + g) if j != i]]
            ]
        ),
    },
    "official_advantages": {
        "loop": official,
        "to-go minus price times turns to go": lambda r, m, g: (
            (to_go(r) - others(r.sum(1) / m.sum(1), g)[:, None] * to_go(m.float())) * m
        ),
    },
    "official_bias": {"closed form": bias, "all pairs": bias_by_listing},
    "grpo_advantages": {
        "loop": grpo,
        "statistics by sums": lambda r, m, g: torch.cat(
            [
                to_go((x - x[e].mean()) / (x[e].std() if (x[e] - x[e].mean()).abs().max() > 1e-5 else torch.inf) * e)
                * e
                for x, e in zip(r.split(g), m.split(g), strict=True)
            ]
        ),
    },
    "gae": {
        "loop": gae,
        "squeezed": lambda r, v, i, gamma, lam: torch.stack(
            [
                torch.zeros(len(v_)).masked_scatter(
                    k > 0,
                    gae(r_[k > 0][None], v_[k > 0][None], torch.ones(1, int((k > 0).sum())), gamma, lam, skip=False)[0],
                )
                for r_, v_, k in zip(r, v, i, strict=True)
            ]
        ),
    },
    "clipped_surrogate": {
        "indexing": ppo,
        "by sign": lambda n, o, a, i, c: (
            -torch.where(a > 0, (n - o).exp().clamp(max=1 + c) * a, (n - o).exp().clamp(min=1 - c) * a)
            .masked_fill(i == 0, 0.0)
            .sum()
            / (i > 0).sum()
        ),
    },
}
