"""Assignment 02: policy gradients and the true credit of a turn."""

import math

import numpy as np
import torch


def returns(r, gamma, own=True, forward=False):
    b, k = r.shape
    out = torch.zeros(b, k)
    for i in range(k):
        for j in range(k):
            if (j <= i if forward else j >= i) and (own or j != i):
                out[:, i] += gamma ** abs(j - i) * r[:, j]
    return out


def score_by_autograd(logits, actions):
    x = logits.clone().requires_grad_(True)
    x.log_softmax(-1).gather(1, actions[:, None]).sum().backward()
    return x.grad


def gradient_by_autograd(logits, rewards):
    x = logits.clone().requires_grad_(True)
    return torch.autograd.grad((x.softmax(-1) * rewards).sum(), x)[0]


def gradient_by_sampling(logits, rewards):
    a = torch.multinomial(logits.softmax(-1), 1000, replacement=True)
    one_hot = torch.nn.functional.one_hot(a, len(logits))
    return ((one_hot - logits.softmax(-1)) * rewards[a][:, None]).mean(0)


def mean_se(x):
    x = x.tolist()
    mean = sum(x) / len(x)
    return mean, math.sqrt(sum((v - mean) ** 2 for v in x) / (len(x) - 1) / len(x))


def credit(play, t, k, n, before=-1, after=0, error="both", n_before=None):
    one, two = play(t[: max(0, k + before)], n_before or n), play(t[: k + after], n)
    se = {
        "both": (one.var() / len(one) + two.var() / len(two)).sqrt(),
        "one": (two.var() / len(two)).sqrt(),
        "sum": (one.var() / len(one)).sqrt() + (two.var() / len(two)).sqrt(),
        "spread": (one.var() + two.var()).sqrt(),
        "pooled": torch.cat([one, two]).std() / math.sqrt(2 * n),
    }
    return two.mean() - one.mean(), se[error]


WRONG = {
    "returns_to_go": {
        "forwards | forwards": lambda r, g: r.cumsum(1),
        "forwards with discount": lambda r, g: returns(r, g, forward=True),
        "without its own | own reward": lambda r, g: returns(r, g, own=False),
        "no discount | ignored": lambda r, g: returns(r, 1.0),
        "whole return | whole return": lambda r, g: r.sum(1, keepdim=True).expand_as(r),
        "discounted from the start | from the dialogue's start": lambda r, g: (
            (r * g ** torch.arange(r.shape[1])).flip(1).cumsum(1).flip(1)
        ),
        "over the batch": lambda r, g: returns(r.T, g).T,
        "identity": lambda r, g: r,
        "sign | sign": lambda r, g: -returns(r, g),
    },
    "score_function": {
        "one-hot alone | other actions": lambda x, a: torch.nn.functional.one_hot(a, x.shape[1]).float(),
        "sign | sign": lambda x, a: -score_by_autograd(x, a),
        "gradient of π | not of log": lambda x, a: (
            score_by_autograd(x, a) * x.softmax(1)[torch.arange(len(a)), a][:, None]
        ),
        "log-probs | log-probabilities": lambda x, a: x.log_softmax(1),
        "softmax over the batch": lambda x, a: torch.nn.functional.one_hot(a, x.shape[1]) - x.softmax(0),
        "minus logits": lambda x, a: torch.nn.functional.one_hot(a, x.shape[1]) - x,
        "summed over the batch": lambda x, a: score_by_autograd(x, a).sum(0),
        "constant 0 | 0 everywhere": lambda x, a: torch.zeros_like(x),
    },
    "exact_gradient": {
        "no weights | takes it": lambda x, r: r - (x.softmax(0) * r).sum(),
        "nothing subtracted | add up to 0": lambda x, r: x.softmax(0) * r,
        "plain mean | own mean": lambda x, r: x.softmax(0) * (r - r.mean()),
        "sign | sign": lambda x, r: -gradient_by_autograd(x, r),
        "a plain sum over actions | counts alike": lambda x, r: sum(
            r[a] * (torch.eye(len(x))[a] - x.softmax(0)) for a in range(len(x))
        ),
        "sampled": gradient_by_sampling,
        "log-probs as weights": lambda x, r: x.log_softmax(0) * (r - (x.softmax(0) * r).sum()),
        "the value": lambda x, r: (x.softmax(0) * r).sum(),
    },
    "mean_and_se": {
        "spread | single samples": lambda x: (x.mean(), x.std()),
        "n for n - 1 | n - 1": lambda x: (x.mean(), x.numpy().std() / math.sqrt(len(x))),
        "variance | variance": lambda x: (x.mean(), x.var() / len(x)),
        "divides by n | more slowly": lambda x: (x.mean(), x.std() / len(x)),
        "sum for mean": lambda x: (x.sum(), x.std() / len(x) ** 0.5),
        "median": lambda x: (x.median(), x.std() / len(x) ** 0.5),
        "twice the error": lambda x: (x.mean(), 2 * x.std() / len(x) ** 0.5),
        "the mean alone": lambda x: x.mean(),
        "n - 1 twice": lambda x: (x.mean(), x.std() / math.sqrt(len(x) - 1)),
    },
    "turn_credit": {
        "sign | sign": lambda p, t, k, n: (-credit(p, t, k, n)[0], credit(p, t, k, n)[1]),
        "off by one | off by one": lambda p, t, k, n: credit(p, t, k, n, before=0, after=1),
        "from the start | start": lambda p, t, k, n: credit(p, t, k, n, before=-k),
        "value after | value after": lambda p, t, k, n: (p(t[:k], n).mean(), p(t[:k], n).std() / n**0.5),
        "errors added | add up": lambda p, t, k, n: credit(p, t, k, n, error="sum"),
        "error of one mean | one of the two": lambda p, t, k, n: credit(p, t, k, n, error="one"),
        "error of single plays": lambda p, t, k, n: credit(p, t, k, n, error="spread"),
        "pooled error": lambda p, t, k, n: credit(p, t, k, n, error="pooled"),
        "fewer plays than asked": lambda p, t, k, n: credit(p, t, k, n // 2),
        "hands over one turn | ValueError": lambda p, t, k, n: (p([t[k - 1]], n).mean(), 0.0),
    },
}

RIGHT = {
    "returns_to_go": {
        "two loops": returns,
        "matrix": lambda r, g: (
            r @ torch.tril(torch.tensor([[g ** max(i - j, 0) for j in range(r.shape[1])] for i in range(r.shape[1])]))
        ),
        "numpy": lambda r, g: np.stack(
            [sum(g ** (j - k) * r[:, j].numpy() for j in range(k, r.shape[1])) for k in range(r.shape[1])], 1
        ),
    },
    "score_function": {
        "autograd": score_by_autograd,
        "eye": lambda x, a: torch.eye(x.shape[1])[a] - x.exp() / x.exp().sum(1, keepdim=True),
    },
    "exact_gradient": {
        "autograd": gradient_by_autograd,
        "sum over actions": lambda x, r: sum(
            x.softmax(0)[a] * r[a] * (torch.eye(len(x))[a] - x.softmax(0)) for a in range(len(x))
        ),
    },
    "mean_and_se": {"by hand": mean_se, "root of var / n": lambda x: [x.mean(), (x.var() / len(x)) ** 0.5]},
    "turn_credit": {
        "variances": credit,
        "hypot": lambda p, t, k, n: (
            (p(t[:k], n).mean() - p(t[: k - 1], n).mean()).item(),
            math.hypot(*(float(p(x, n).std()) / n**0.5 for x in (t[:k], t[: k - 1]))),
        ),
    },
}
