"""Assignment 05: normalised turn rewards."""

import math

import torch


def softmax(s, m, t, late=False, unmasked=False, empty_nan=False, stable=True, axis=1):
    s = s / t
    if stable:
        s = s - torch.where(m, s, -1e30).amax(axis, keepdim=True) * m.any(axis, keepdim=True)
    e = s.exp() * (torch.ones_like(m) if unmasked or late else m)
    total = e.sum(axis, keepdim=True)
    w = e / (total if empty_nan else total.clamp(min=1e-30))
    return w * m if late else w


def norm(s, m, r, t):
    return softmax(s, m, t) * r.unsqueeze(1)


def error(r, m, o, reduce=max, size=abs):
    found = []
    for row, exists, outcome in zip(r.tolist(), m.tolist(), o.tolist(), strict=True):
        found.append(size(sum(x for x, e in zip(row, exists, strict=True) if e) - outcome))
    return reduce(found)


WRONG = {
    "softmax_shares": {
        "no mask | take a part": lambda s, m, t: torch.softmax(s / t, 1),
        "masked late | too late": lambda s, m, t: softmax(s, m, t, late=True),
        "no η | η": lambda s, m, t: softmax(s, m, 1.0),
        "times η | multiply": lambda s, m, t: softmax(s * t, m, 1.0),
        "softmin | worst turn": lambda s, m, t: softmax(-s, m, t),
        "over the batch": lambda s, m, t: softmax(s, m, t, axis=0),
        "NaN for an empty row | division by 0": lambda s, m, t: softmax(s, m, t, empty_nan=True),
        "overflow | inf": lambda s, m, t: softmax(s, m, t, stable=False),
        "sums over their total": lambda s, m, t: s * m / (s * m).sum(1, keepdim=True).clamp(min=1e-9),
        "uniform": lambda s, m, t: m / m.sum(1, keepdim=True).clamp(min=1),
        "the best turn takes all": lambda s, m, t: (
            (s.masked_fill(~m, -1e9) == s.masked_fill(~m, -1e9).amax(1, keepdim=True)) * m
        ),
        "log-softmax": lambda s, m, t: softmax(s, m, t).clamp(min=1e-9).log(),
    },
    "norm_rewards": {
        "shares alone | shares of 1": lambda s, m, r, t: softmax(s, m, t),
        "no η | η": lambda s, m, r, t: norm(s, m, r, 1.0),
        "the whole outcome | whole outcome": lambda s, m, r, t: m * r[:, None],
        "even | PRM says": lambda s, m, r, t: m * r[:, None] / m.sum(1, keepdim=True).clamp(min=1),
        "K times | K times": lambda s, m, r, t: norm(s, m, r, t) * m.sum(1, keepdim=True),
        "ITPO": lambda s, m, r, t: s,
        "plus R": lambda s, m, r, t: softmax(s, m, t) + r[:, None] * m,
        "softmax of R times the sums": lambda s, m, r, t: softmax(s * r[:, None], m, t),
        "sign | sign": lambda s, m, r, t: -norm(s, m, r, t),
    },
    "conservation_error": {
        "signed | too small": lambda *a: error(*a, size=float),
        "mean | average": lambda *a: error(*a, reduce=lambda x: sum(x) / len(x)),
        "sum": lambda *a: error(*a, reduce=sum),
        "cancels | cancel": lambda r, m, o: ((r * m).sum() - o.sum()).abs(),
        "no mask | without a turn": lambda r, m, o: (r.sum(1) - o).abs().max(),
        "one per dialogue | one error per dialogue": lambda r, m, o: ((r * m).sum(1) - o).abs(),
        "smallest": lambda *a: error(*a, reduce=min),
        "zero | 0 everywhere": lambda r, m, o: 0.0,
        "the first dialogue": lambda r, m, o: ((r * m).sum(1) - o).abs()[0],
        "a test": lambda r, m, o: torch.allclose((r * m).sum(1), o, atol=1e-4),
    },
    "temperature_for_share": {
        "upside down | upside down": lambda g, s: math.log(s / (1 - s)) / g,
        "log of the share | 1 - s": lambda g, s: -g / math.log(s),
        "sign | sign": lambda g, s: g / math.log((1 - s) / s),
        "log10 | natural": lambda g, s: g / math.log10(s / (1 - s)),
        "no logarithm | exponent": lambda g, s: g * (1 - s) / s,
        "hard-coded": lambda g, s: 0.182,
        "the share of e^gap": lambda g, s: math.exp(g) / s,
        "gap times": lambda g, s: g * math.log(s / (1 - s)),
    },
    "batch_mate": {
        "zeros | 0.2": lambda r, i: torch.zeros_like(r),
        "the same dialogue | 0.2": lambda r, i: r.clone(),
        "too small | 0.2": lambda r, i: 0.1 * (i > 0),
        "user tokens | assistant tokens only": lambda r, i: torch.full_like(r, 1000.0),
        "one number | for each token": lambda r, i: 1000.0,
        "per turn | for each token": lambda r, i: torch.tensor([1000.0, 1000.0]),
        "infinite | finite": lambda r, i: torch.full_like(r, torch.inf) * (i > 0),
        "cancels out | 0.2": lambda r, i: (i == 1) * 1e-3,
    },
}

RIGHT = {
    "softmax_shares": {
        "by hand": softmax,
        "row by row": lambda s, m, t: torch.stack(
            [torch.zeros_like(row).masked_scatter(e, torch.softmax(row[e] / t, 0)) for row, e in zip(s, m, strict=True)]
        ),
        "large negative": lambda s, m, t: torch.softmax(torch.where(m, s / t, -1e30), 1) * m,
    },
    "norm_rewards": {
        "by hand": norm,
        "einsum": lambda s, m, r, t: torch.einsum("bk,b->bk", softmax(s, m, t), r),
    },
    "conservation_error": {
        "loop": error,
        "inf norm": lambda r, m, o: torch.linalg.vector_norm(torch.where(m, r, 0.0).sum(1) - o, ord=torch.inf),
    },
    "temperature_for_share": {
        "difference of logs": lambda g, s: g / (math.log(s) - math.log(1 - s)),
        "logit": lambda g, s: g / torch.logit(torch.tensor(s, dtype=torch.float64)),
    },
    "batch_mate": {
        "huge and negative": lambda r, i: -1e6 * (i > 0),
        "only the first token": lambda r, i: torch.cat([torch.tensor([50.0]), torch.zeros(len(r) - 1)]),
        "a list": lambda r, i: [20.0 * (k > 0) for k in i.tolist()],
    },
}
