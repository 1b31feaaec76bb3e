"""Checks of assignment 03: the implicit process reward model, and the direction of a KL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from .core import Case, Check, Draw, on_layouts, run


def _texts(seed: int) -> Iterator[Case]:
    draw = Draw(seed)
    b, length, v = draw.integer(1), draw.integer(2) + 1, draw.integer(3) + 2
    yield "random logits", (2.0 * draw.normal(b, length, v), (v * draw.uniform(b, length)).long())
    yield "logits far from 0", (60.0 + draw.normal(2, 3, 4), torch.tensor([[0, 3, 1], [2, 2, 0]]))


def _ratios(draw: Draw, ids: Tensor, k: int) -> tuple:
    return -draw.uniform(*ids.shape), -draw.uniform(*ids.shape), ids, draw.integer(1) / 10


def _losses(draw: Draw, ids: Tensor, k: int) -> tuple:
    prm, ref, ids, beta = _ratios(draw, ids, k)
    return prm, ref - 900.0 * (k == 1), ids, draw.uniform(len(ids)), beta


def _policies(seed: int) -> Iterator[Case]:
    draw = Draw(seed)
    n, v = draw.integer(2), draw.integer(3)
    yield "two random policies", (draw.normal(n, v), draw.normal(n, v))
    yield "the same policy twice", (draw.normal(2, v),) * 2
    yield "two policies far apart", (6.0 * draw.normal(n, v), 6.0 * draw.normal(n, v))


def _loss_and_gradients(answer: Callable[..., Any], prm: Tensor, ref: Tensor, *rest: Any) -> tuple:
    """The loss, and what reaches the PRM and the reference when it is minimised."""

    def measure(prm: Tensor, ref: Tensor, *rest: Any) -> tuple:
        leaves = [prm.clone().requires_grad_(True), ref.clone().requires_grad_(True)]
        loss, found = answer(*leaves, *rest), [None, None]
        if isinstance(loss, Tensor) and loss.requires_grad and loss.numel() == 1:
            found = torch.autograd.grad(loss, leaves, allow_unused=True)  # type: ignore[assignment]
        value = loss.detach() if isinstance(loss, Tensor) else loss
        return value, *(torch.zeros_like(prm) if g is None else g for g in found)

    return run(measure, prm, ref, *rest)


def _chosen(logprobs: Tensor, ids: Tensor) -> Tensor:
    return logprobs.gather(-1, ids[..., None])[..., 0]


def _scores(prm: Tensor, ref: Tensor, ids: Tensor, beta: float) -> Tensor:
    return (beta * (prm - ref) * (ids > 0)).sum(1)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return (p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum(-1)


check_chosen_logprobs = Check(
    "log-probs of the chosen tokens",
    lambda x, ids: _chosen(x[:, :-1].log_softmax(-1), ids[:, 1:]),
    _texts,
    {
        "off by one: position t predicts the NEXT token": lambda x, ids: _chosen(x.log_softmax(-1), ids)[:, :-1],
        "off by one: a position has already seen its own token": lambda x, ids: _chosen(x.log_softmax(-1), ids)[:, 1:],
        "these are raw logits: normalise over the vocabulary": lambda x, ids: _chosen(x[:, :-1], ids[:, 1:]),
        "these are probabilities": lambda x, ids: _chosen(x[:, :-1].softmax(-1), ids[:, 1:]),
        "nothing predicts the first token: wanted are L - 1 columns": lambda x, ids: _chosen(x.log_softmax(-1), ids),
    },
)

check_token_rewards = Check(
    "token rewards",
    lambda prm, ref, ids, beta: beta * (prm - ref) * (ids > 0),
    on_layouts(_ratios),
    {
        "the log-ratio is the wrong way round": lambda prm, ref, ids, beta: beta * (ref - prm) * (ids > 0),
        "user tokens contribute": lambda prm, ref, ids, beta: beta * (prm - ref),
        "β is missing": lambda prm, ref, ids, beta: (prm - ref) * (ids > 0),
        "you divide by β": lambda prm, ref, ids, beta: (prm - ref) * (ids > 0) / beta,
        "a ratio of probabilities; wanted is its logarithm": lambda prm, ref, ids, b: b * (prm - ref).exp() * (ids > 0),
    },
)

check_prm_loss = Check(
    "the PRM's loss",
    lambda prm, ref, ids, r, beta: bce(_scores(prm, ref.detach(), ids, beta), r),
    on_layouts(_losses),
    {
        "gradients reach the reference: it must stay as it is": lambda prm, ref, ids, r, beta: bce(
            _scores(prm, ref, ids, beta), r
        ),
        "no gradient reaches the PRM: it would never learn": lambda prm, ref, ids, r, beta: bce(
            _scores(prm, ref, ids, beta), r
        ).detach(),
        "you average over tokens; a dialogue's score is a sum": lambda prm, ref, ids, r, beta: bce(
            _scores(prm, ref.detach(), ids, beta) / (ids > 0).sum(1).clamp(min=1), r
        ),
        "you round the outcomes; the labels are soft": lambda prm, ref, ids, r, beta: bce(
            _scores(prm, ref.detach(), ids, beta), (r > 0.5).to(r.dtype)
        ),
        "user tokens contribute": lambda prm, ref, ids, r, beta: bce(_scores(prm, ref.detach(), ids + 1, beta), r),
        "bad dialogues teach nothing: their half of the cross-entropy is missing": lambda prm, ref, ids, r, beta: (
            -(r * torch.nn.functional.logsigmoid(_scores(prm, ref.detach(), ids, beta))).mean()
        ),
    },
    probe=_loss_and_gradients,
)

check_exact_kl = Check(
    "exact KL",
    _kl,
    _policies,
    {
        "this is KL(reference ‖ policy): average over the policy's own tokens": lambda p, q: _kl(q, p),
        "weigh each token by how often the policy says it": lambda p, q: (p.log_softmax(-1) - q.log_softmax(-1)).mean(
            -1
        ),
        "the weights make a mean already: sum over the vocabulary": lambda p, q: _kl(p, q) / p.shape[-1],
        "this is the cross-entropy: the policy's own entropy is missing": lambda p, q: (
            -(p.softmax(-1) * q.log_softmax(-1)).sum(-1)
        ),
    },
)

check_k3 = Check(
    "k3",
    lambda p, q: (q - p).exp() - (q - p) - 1.0,
    lambda seed: [(special, (p.log_softmax(-1), q.log_softmax(-1))) for special, (p, q) in _policies(seed)],
    {
        "the log-ratio is the wrong way round: samples of the policy do not average to the KL": lambda p, q: (
            (p - q).exp() - (p - q) - 1
        ),
        "this is k1: right on average, but negative at times": lambda p, q: p - q,
        "this is k2: never negative, but wrong on average": lambda p, q: 0.5 * (p - q).square(),
        "where the two agree the estimate has to be 0": lambda p, q: (q - p).exp() - (q - p),
        "the sign of the linear term is reversed": lambda p, q: (q - p).exp() + (q - p) - 1.0,
        "sampling already weighs by the policy": lambda p, q: p.exp() * ((q - p).exp() - (q - p) - 1.0),
    },
)
