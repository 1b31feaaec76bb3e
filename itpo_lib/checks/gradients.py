"""Checks of assignment 02: policy gradients, and the true credit of a turn by Monte Carlo."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..credit import reverse_cumsum
from .core import Case, Check, Draw

Play = Callable[[Sequence[str], int], Tensor]
TURNS = ("which colour ?", "how many ?", "hello .", "so the answer is 7 .")


def _rewards(seed: int) -> Iterator[Case]:
    draw = Draw(seed)
    yield "nothing is discounted", (draw.normal(2, draw.integer(2)), 1.0)
    yield "a discount below 1", (draw.normal(draw.integer(1), draw.integer(3)), 0.5)
    yield "discount 0: only the turn's own reward counts", (draw.normal(2, 3), 0.0)


def _actions(seed: int) -> Iterator[Case]:
    draw = Draw(seed)
    n, a = draw.integer(2), draw.integer(3)
    yield "random logits", (draw.normal(n, a), torch.arange(n) % a)
    yield "a nearly certain policy", (8.0 * draw.normal(n, a), torch.arange(n) % a)


def _bandit(seed: int) -> Iterator[Case]:
    draw = Draw(seed)
    a = draw.integer(3)
    yield "a random policy", (draw.normal(a), draw.normal(a))
    yield "all rewards far above 0", (draw.normal(a), 10.0 + draw.uniform(a))
    yield "all rewards equal", (draw.normal(a), torch.full((a,), 2.0))


def _samples(seed: int) -> Iterator[Case]:
    draw = Draw(seed)
    yield "a few numbers", (3.0 + draw.normal(draw.integer(3) + 2),)
    yield "outcomes of 0 and 1", ((draw.uniform(20) > 0.3).float(),)
    yield "two samples", (draw.normal(2),)


def _plays(seed: int) -> Iterator[Case]:
    draw = Draw(seed)
    table = draw.uniform(8, 600).double()

    def play(prefix: Sequence[str], n: int) -> Tensor:
        if tuple(prefix) != TURNS[: len(prefix)]:
            raise ValueError("a prefix is the first turns of the dialogue, in order")
        return (table[len(prefix), :n] < 0.1 + 0.2 * len(prefix)).double()

    for k in (1, draw.integer(2, 3), 4):
        yield f"turn {k} of 4", (play, list(TURNS), k, 50 * draw.integer(2, 8))


def _score(logits: Tensor, a: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(a, logits.shape[-1]) - logits.softmax(-1)


def _gradient(logits: Tensor, r: Tensor) -> Tensor:
    return logits.softmax(-1) * (r - (logits.softmax(-1) * r).sum())


def _mean_se(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.mean(), x.std() / len(x) ** 0.5


def _gain(play: Play, before: Sequence[str], after: Sequence[str], n: int) -> tuple[Tensor, Tensor]:
    (low, low_se), (high, high_se) = _mean_se(play(before, n)), _mean_se(play(after, n))
    return high - low, (low_se**2 + high_se**2).sqrt()


check_returns_to_go = Check(
    "returns-to-go",
    reverse_cumsum,
    _rewards,
    {
        "you sum forwards; turn k counts what follows it": lambda r, g: r.cumsum(1),
        "off by one turn: a turn's return includes its own reward": lambda r, g: reverse_cumsum(r, g) - r,
        "the discount is ignored": lambda r, g: reverse_cumsum(r),
        "you discount from the dialogue's start; a turn's own reward counts in full": lambda r, g: reverse_cumsum(
            r * g ** torch.arange(r.shape[1])
        ),
        "you divide by a power of γ, which is 0 for γ = 0": lambda r, g: (
            reverse_cumsum(r * g ** torch.arange(r.shape[1])) / g ** torch.arange(r.shape[1])
        ),
        "every turn gets the whole return": lambda r, g: r.sum(1, keepdim=True).expand(r.shape),
    },
)

check_score_function = Check(
    "score function",
    _score,
    _actions,
    {
        "the other actions' logits matter too: their probability falls": lambda x, a: _score(x, a) + x.softmax(-1),
        "this is the gradient of π, not of log π": lambda x, a: _score(x, a) * x.softmax(-1).gather(1, a[:, None]),
        "these are log-probabilities; wanted is their gradient": lambda x, a: x.log_softmax(-1),
    },
)

check_exact_gradient = Check(
    "exact gradient",
    _gradient,
    _bandit,
    {
        "weigh each action by how often the policy takes it": lambda x, r: r - (x.softmax(-1) * r).sum(),
        "each action counts alike; an expectation weighs it by its probability": lambda x, r: (
            r - x.softmax(-1) * r.sum()
        ),
        "a gain for one logit is a loss for the others: the entries add up to 0": lambda x, r: x.softmax(-1) * r,
        "compare with the policy's own mean reward, not the plain one": lambda x, r: x.softmax(-1) * (r - r.mean()),
    },
)

check_mean_and_se = Check(
    "mean and standard error",
    _mean_se,
    _samples,
    {
        "the second number is the spread of single samples, not of their mean": lambda x: (x.mean(), x.std()),
        "you divide by n where n - 1 is meant: the mean was fitted to the same samples": lambda x: (
            x.mean(),
            x.std(correction=0) / len(x) ** 0.5,
        ),
        "the second number is a variance": lambda x: (x.mean(), x.var() / len(x)),
        "you divide by n; the error falls more slowly than that": lambda x: (x.mean(), x.std() / len(x)),
    },
)

check_turn_credit = Check(
    "true credit of a turn",
    lambda play, t, k, n: _gain(play, t[: k - 1], t[:k], n),
    _plays,
    {
        "the sign of the credit is reversed": lambda play, t, k, n: _gain(play, t[:k], t[: k - 1], n),
        "off by one turn: turns count from 1, so turn k is t[k - 1]": lambda play, t, k, n: _gain(
            play, t[:k], t[: k + 1], n
        ),
        "compared with the dialogue's start: that is the credit of turns 1 to k": lambda play, t, k, n: _gain(
            play, [], t[:k], n
        ),
        "this is the value after turn k; its credit is what the turn changed": lambda play, t, k, n: _mean_se(
            play(t[:k], n)
        ),
        "two independent errors do not simply add up": lambda play, t, k, n: (
            _gain(play, t[: k - 1], t[:k], n)[0],
            _mean_se(play(t[:k], n))[1] + _mean_se(play(t[: k - 1], n))[1],
        ),
        "your plays before and after are not pairs: add the two variances": lambda play, t, k, n: _mean_se(
            play(t[:k], n) - play(t[: k - 1], n)
        ),
        "the error holds only one of the two means": lambda play, t, k, n: (
            _gain(play, t[: k - 1], t[:k], n)[0],
            _mean_se(play(t[:k], n))[1],
        ),
    },
)
