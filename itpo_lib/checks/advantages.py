"""Checks of assignment 06: advantages."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..advantages import gae, grpo, leave_one_out, rloo
from ..credit import Credit, reverse_cumsum, softmax_shares
from ..enumerable import Dialogues, World, expected_gradient
from .core import Case, Check, Draw, on_groups, on_layouts

WORLD = World(max_turns=2)


def _outcomes(seed: int) -> Iterator[Case]:
    """Outcomes (B,) and the group's size."""
    draw = Draw(seed)
    for g in (2, 3, draw.integer(3)):
        yield f"groups of {g}", (draw.uniform(g * draw.integer(2)), g)
    yield "one group", (draw.uniform(3), 3)


_rewards = on_groups(lambda draw, mask, g: (draw.normal(*mask.shape) * mask, mask, g))
_shares = on_groups(lambda draw, m, g: (softmax_shares(draw.normal(*m.shape), m, 1.0), m, draw.uniform(len(m)), g))


def _some_equal(seed: int) -> Iterator[Case]:
    yield from _rewards(seed)
    mask = torch.ones(4, 4) > 0
    yield "groups whose rewards are all equal", (0.9 * mask, mask, 2)  # in float32 their mean is not quite 0.9


def _valued(seed: int) -> Iterator[Case]:
    for gamma, lam in ((1.0, 0.95), (0.9, 0.8), (1.0, 0.0)):
        for special, (ids, rewards, values) in on_layouts(
            lambda draw, ids, k: (ids, draw.normal(*ids.shape) * (ids > 0), draw.normal(*ids.shape) + 2.0 * (ids == 0))
        )(seed):
            yield f"{special}, γ={gamma}, λ={lam}", (rewards, values, ids, gamma, lam)


def _ratios(draw: Draw, ids: Tensor, k: int) -> tuple:
    old = -draw.uniform(*ids.shape)
    return old + 0.4 * draw.normal(*ids.shape), old, draw.normal(*ids.shape), ids, 0.2


def _tables(seed: int) -> Iterator[Case]:
    """All dialogues of the 2-turn world, a policy, and turn rewards r(state, action)."""
    draw, everything = Draw(seed), WORLD.dialogues()
    rewards = everything.turn_rewards(draw.normal(WORLD.n_states, 3).double())
    yield "a uniform policy", (everything, torch.zeros(WORLD.n_states, 3).double(), rewards)
    yield "a random policy", (everything, draw.normal(WORLD.n_states, 3).double(), rewards)


def _credit(rewards: Tensor, mask: Tensor, shares: Tensor | None = None) -> Credit:
    return Credit(rewards, mask, mask.long(), shares)


def _by_turn(baseline: str) -> Callable[..., Tensor]:
    return lambda r, m, g: rloo(_credit(r, m), r.sum(1), g, baseline)


def _by_outcome(baseline: str) -> Callable[..., Tensor]:
    return lambda w, m, r, g: rloo(_credit(w * r[:, None], m, w), r, g, baseline)


def _group(r: Tensor, g: int) -> Tensor:
    """(B,): the mean of each sample's group, itself included."""
    return r.unflatten(0, (-1, g)).mean(1).repeat_interleave(g)


def _others(r: Tensor, g: int) -> Tensor:
    """(B,): the mean of the other samples of the group."""
    return leave_one_out(r, torch.ones_like(r) > 0, g)[0]


def _edge(r: Tensor, g: int) -> Tensor:
    return (r - _others(r, g))[:, None]


def _interleaved(r: Tensor, g: int) -> Tensor:
    turned = r.unflatten(0, (g, -1)).T.flatten()
    return _others(turned, g).unflatten(0, (-1, g)).T.flatten()


def _alone(r: Tensor, m: Tensor, g: int) -> tuple[Tensor, Tensor, Tensor]:
    """(B, K) where nobody else reaches turn k, and two baselines: the group's mean return, and the others' at turn k."""
    others = m.unflatten(0, (-1, g)).sum(1).repeat_interleave(g, 0) - m.long()
    return others == 0, _group(r.sum(1), g)[:, None], leave_one_out(reverse_cumsum(r), m, g)[0]


def _official(r: Tensor, m: Tensor, g: int, means: Tensor) -> Tensor:
    return reverse_cumsum((r - _others(means, g)[:, None]) * m) * m


def _listed_bias(d: Dialogues, logits: Tensor, rewards: Tensor) -> Tensor:
    """By listing all groups of two, not by the closed form."""
    credit = _credit(rewards, d.mask)
    return expected_gradient(d, logits, credit, 2, "official") - expected_gradient(d, logits, credit, 2, None)


def _grpo(r: Tensor, m: Tensor, g: int, added: float = 0.0, correction: int = 1) -> Tensor:
    """GRPO, group by group, with another denominator."""
    rows = []
    for x, real in zip(r.split(g), m.split(g), strict=True):
        std = x[real].std(correction=correction)
        rows.append((x - x[real].mean()) / (std + added) * real if std > 1e-6 else 0 * x)
    return reverse_cumsum(torch.cat(rows)) * m


def _gae(r: Tensor, v: Tensor, ids: Tensor, gamma: float, lam: float) -> Tensor:
    return gae(r, v, ids > 0, gamma, lam)[0]


def _gae_over_all(r: Tensor, v: Tensor, ids: Tensor, gamma: float, lam: float) -> Tensor:
    return gae(r, v, torch.ones_like(ids) > 0, gamma, lam)[0] * (ids > 0)


def _loss(
    new: Tensor, old: Tensor, a: Tensor, ids: Tensor, low: float, high: float, pick: Callable = torch.minimum
) -> Tensor:
    ratio = (new - old).exp()
    return -(pick(ratio * a, ratio.clamp(1 - low, 1 + high) * a) * (ids > 0)).sum() / (ids > 0).sum()


check_leave_one_out = Check(
    "leave-one-out",
    _others,
    _outcomes,
    {
        "the sample's own outcome is in its baseline": _group,
        "there are G - 1 others, you divide by G": lambda r, g: _others(r, g) * (g - 1) / g,
        "only the group shares the prompt; you compare with the whole batch": lambda r, g: (r.sum() - r) / (len(r) - 1),
        "neighbours (0, 1, ... G - 1) form a group; yours are interleaved": _interleaved,
        "you return the advantage; wanted is the baseline": lambda r, g: r - _others(r, g),
        "these are the others' sums; take the mean": lambda r, g: _others(r, g) * (g - 1),
    },
)

check_outcome_advantages = Check(
    "RLOO, outcome",
    _by_outcome("outcome"),
    _shares,
    {
        "turn k gets its own share alone; wanted is the return-to-go": lambda w, m, r, g: w * _edge(r, g),
        "you sum forwards; wanted is from turn k to the end": lambda w, m, r, g: w.cumsum(1) * _edge(r, g) * m,
        "take b off the outcome before it is shared out, not off each return": lambda w, m, r, g: (
            (reverse_cumsum(w) * r[:, None] - _others(r, g)[:, None]) * m
        ),
        "your own outcome is in the baseline": lambda w, m, r, g: reverse_cumsum(w) * (r - _group(r, g))[:, None] * m,
        "there is no baseline": lambda w, m, r, g: reverse_cumsum(w) * r[:, None] * m,
    },
)

check_credit_weighted = Check(
    "RLOO, credit-weighted",
    _by_outcome("credit_weighted"),
    _shares,
    {
        "the factor K is missing": lambda w, m, r, g: w * _edge(r, g),
        "K is the dialogue's own number of turns, not of columns": lambda w, m, r, g: w.shape[1] * w * _edge(r, g),
        "no return-to-go here": lambda w, m, r, g: reverse_cumsum(w) * m * m.sum(1, keepdim=True) * _edge(r, g),
        "your own outcome is in the baseline": lambda w, m, r, g: w * m.sum(1)[:, None] * (r - _group(r, g))[:, None],
        "there is no baseline": lambda w, m, r, g: w * m.sum(1, keepdim=True) * r[:, None],
    },
)

check_turn_advantages = Check(
    "RLOO, turn",
    _by_turn("turn"),
    _rewards,
    {
        "dialogues that never reach turn k count as 0 in its baseline": lambda r, m, g: (
            (reverse_cumsum(r) - leave_one_out(reverse_cumsum(r), torch.ones_like(m), g)[0]) * m
        ),
        "where no other dialogue reaches turn k, compare with their whole returns": lambda r, m, g: (
            (reverse_cumsum(r) - leave_one_out(reverse_cumsum(r), m, g)[0]) * m
        ),
        "where no other dialogue reaches turn k, your own return is in the mean": lambda r, m, g: (
            (reverse_cumsum(r) - torch.where(*_alone(r, m, g))) * m
        ),
        "you compare single turns; wanted is the return from turn k on": lambda r, m, g: (
            (r - leave_one_out(r, m, g)[0]) * m
        ),
        "there is no baseline": lambda r, m, g: reverse_cumsum(r) * m,
    },
)

check_official_advantages = Check(
    "RLOO, official",
    _by_turn("official"),
    _rewards,
    {
        "the baseline comes off every turn BEFORE the sum backwards": lambda r, m, g: (
            (reverse_cumsum(r) - _others(r.sum(1) / m.sum(1), g)[:, None]) * m
        ),
        "a row's mean is over its own turns, not all columns": lambda r, m, g: _official(r, m, g, r.mean(1)),
        "turns that a dialogue does not have are charged, too": lambda r, m, g: (
            reverse_cumsum(r - _others(r.sum(1) / m.sum(1), g)[:, None]) * m
        ),
        "the baseline uses row sums; the released code takes means": lambda r, m, g: _official(r, m, g, r.sum(1)),
        "nothing is summed backwards": lambda r, m, g: (r - _others(r.sum(1) / m.sum(1), g)[:, None]) * m,
    },
)

check_official_bias = Check(
    "bias of the official baseline",
    _listed_bias,
    _tables,
    {
        "the price is the mean reward of ONE turn": lambda d, x, r: (
            -d.expectation(x, r.sum(1)) * d.gradient(x, d.n_turns)
        ),
        "this is the price; what does it do to the gradient?": lambda d, x, r: (
            -d.expectation(x, r.sum(1) / d.n_turns) + 0 * x
        ),
        "this is the true gradient; wanted is what the baseline adds": lambda d, x, r: d.gradient(x, r.sum(1)),
        "this is the biased gradient; wanted is only what the baseline adds": lambda d, x, r: expected_gradient(
            d, x, _credit(r, d.mask), 2, "official"
        ),
        "weigh the dialogues by how likely they are": lambda d, x, r: (
            -(r.sum(1) / d.n_turns).mean() * d.gradient(x, d.n_turns)
        ),
    },
)

check_grpo_advantages = Check(
    "GRPO on turn rewards",
    lambda r, m, g: grpo(_credit(r, m), g),
    _some_equal,
    {
        "nothing is summed backwards": lambda r, m, g: grpo(_credit(r, m), g, gamma=0.0),
        "each group has its own mean and spread; yours are the batch's": lambda r, m, g: grpo(_credit(r, m), len(r)),
        "you only centre: divide by the spread, too": lambda r, m, g: grpo(_credit(r, m), g, "none"),
        "divide by the spread itself: with a constant added, small spreads count less": lambda r, m, g: _grpo(
            r, m, g, 1e-4
        ),
        "the spread is the one with n - 1": lambda r, m, g: _grpo(r, m, g, correction=0),
        "columns without a turn are in mean and spread": lambda r, m, g: grpo(_credit(r, torch.ones_like(m)), g) * m,
    },
)

check_gae = Check(
    "GAE over the assistant's tokens",
    _gae,
    _valued,
    {
        "user tokens are steps to you: γλ decays across them and their values leak in": _gae_over_all,
        "γλ decays across user tokens": lambda r, v, i, gamma, lam: _gae_over_all(r, v * (i > 0), i, gamma, lam),
        "you begin anew with each turn; what comes in later turns counts, too": lambda r, v, i, gamma, lam: sum(
            _gae(r, v, i * (i == k), gamma, lam) for k in range(1, int(i.max()) + 1)
        ),
        "λ is ignored": lambda r, v, i, gamma, lam: _gae(r, v, i, gamma, 1.0),
        "γ is ignored": lambda r, v, i, gamma, lam: _gae(r, v, i, 1.0, lam),
        "these are one-step errors; add them up with the weights γλ": lambda r, v, i, gamma, lam: _gae(
            r, v, i, gamma, 0.0
        ),
        "these are returns: the values are not subtracted": lambda r, v, i, gamma, lam: (
            _gae(r, v, i, gamma, lam) + v * (i > 0)
        ),
    },
)

check_clipped_surrogate = Check(
    "clipped surrogate",
    lambda new, old, a, ids, clip: _loss(new, old, a, ids, clip, clip),
    on_layouts(_ratios),
    {
        "you take the larger of the two; the pessimistic one is the smaller": lambda n, o, a, i, c: _loss(
            n, o, a, i, c, c, torch.maximum
        ),
        "nothing is clipped": lambda n, o, a, i, c: _loss(n, o, a, i, 1.0, torch.inf),
        "only the upper side is clipped": lambda n, o, a, i, c: _loss(n, o, a, i, 1.0, c),
        "the unclipped value is missing": lambda n, o, a, i, c: _loss(n, o, a, i, c, c, lambda plain, clipped: clipped),
        "the ratio is upside down: new over old": lambda n, o, a, i, c: _loss(o, n, a, i, c, c),
        "user tokens contribute": lambda n, o, a, i, c: _loss(n, o, a, i + 1, c, c),
        "divide by the assistant's tokens, not by all": lambda n, o, a, i, c: (
            _loss(n, o, a, i, c, c) * (i > 0).double().mean()
        ),
    },
)
