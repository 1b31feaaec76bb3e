"""Assignment 03: the implicit reward model."""

import torch
import torch.nn.functional as F


def chosen(logits, ids, shift=1):
    b, length = ids.shape
    out = torch.zeros(b, length - 1)
    for i in range(b):
        for t in range(1, length):
            out[i, t - 1] = F.log_softmax(logits[i, t - shift], -1)[ids[i, t]]
    return out


def loss(
    prm, ref, ids, r, beta, detach=True, sign=1.0, mean=False, masked=True, hard=False, stable=True, reduce=torch.mean
):
    ref = ref.detach() if detach else ref
    mask = (ids > 0) if masked else torch.ones_like(ids)
    scores = (sign * beta * (prm - ref) * mask).sum(1)
    if mean:
        scores = scores / mask.sum(1).clamp(min=1)
    target = (r > 0.5).float() if hard else r
    if stable:
        each = scores.clamp(min=0) - scores * target + torch.log1p(torch.exp(-scores.abs()))
    else:
        p = torch.sigmoid(scores)
        each = -(target * p.log() + (1 - target) * (1 - p).log())
    return reduce(each)


def kl(p, q, weights=None):
    p, q = p.log_softmax(-1), q.log_softmax(-1)
    return ((p.exp() if weights is None else weights) * (p - q)).sum(-1)


WRONG = {
    "chosen_logprobs": {
        "no shift | NEXT": lambda x, i: x[:, :-1].log_softmax(-1).gather(2, i[:, :-1].unsqueeze(2)).squeeze(2),
        "own position | already seen": lambda x, i: chosen(x, i, shift=0),
        "raw logits | normalise": lambda x, i: x[:, :-1].gather(2, i[:, 1:].unsqueeze(2)).squeeze(2),
        "probabilities | probabilities": lambda x, i: chosen(x, i).exp(),
        "L columns | L - 1": lambda x, i: x.log_softmax(-1).gather(2, i.unsqueeze(2)).squeeze(2),
        "the likeliest token": lambda x, i: x[:, :-1].log_softmax(-1).amax(-1),
        "normalised over positions": lambda x, i: x[:, :-1].log_softmax(1).gather(2, i[:, 1:].unsqueeze(2)).squeeze(2),
        "surprise | sign": lambda x, i: -chosen(x, i),
    },
    "token_rewards": {
        "reversed | wrong way round": lambda p, q, i, b: b * (q - p) * (i > 0),
        "no mask | user tokens": lambda p, q, i, b: b * (p - q),
        "no β | β": lambda p, q, i, b: (p - q) * (i > 0),
        "divided | divide": lambda p, q, i, b: (p - q) / b * (i > 0),
        "no reference": lambda p, q, i, b: b * p * (i > 0),
        "turn 1 alone": lambda p, q, i, b: b * (p - q) * (i == 1),
        "times the turn id": lambda p, q, i, b: b * (p - q) * i,
        "difference of probabilities": lambda p, q, i, b: b * (p.exp() - q.exp()) * (i > 0),
        "zeros | 0 everywhere": lambda p, q, i, b: torch.zeros_like(p),
    },
    "prm_loss": {
        "no detach | reach the reference": lambda *a: loss(*a, detach=False),
        "PRM detached | never learn": lambda p, *a: loss(p.detach(), *a),
        "token mean | average over tokens": lambda *a: loss(*a, mean=True),
        "hard labels | round": lambda *a: loss(*a, hard=True),
        "user tokens | user tokens": lambda *a: loss(*a, masked=False),
        "reversed": lambda *a: loss(*a, sign=-1.0),
        "sum over dialogues": lambda *a: loss(*a, reduce=torch.sum),
        "a sigmoid, then a logarithm": lambda *a: loss(*a, stable=False),
        "good dialogues alone | half": lambda p, q, i, r, b: (
            -(r * F.logsigmoid((b * (p - q.detach()) * (i > 0)).sum(1))).mean()
        ),
        "squared error": lambda p, q, i, r, b: (
            (((b * (p - q.detach()) * (i > 0)).sum(1)).sigmoid() - r).square().mean()
        ),
        "no β": lambda p, q, i, r, b: loss(p, q, i, r, 1.0),
        "a plain number": lambda *a: loss(*a).item(),
    },
    "exact_kl": {
        "reversed | reference ‖ policy": lambda p, q: kl(q, p),
        "sign | sign": lambda p, q: -kl(p, q),
        "plain mean | often": lambda p, q: (p.log_softmax(-1) - q.log_softmax(-1)).mean(-1),
        "cross-entropy | cross-entropy": lambda p, q: -(p.softmax(-1) * q.log_softmax(-1)).sum(-1),
        "mean over the vocabulary | a mean already": lambda p, q: kl(p, q) / p.shape[1],
        "one number": lambda p, q: kl(p, q).sum(),
        "weighed by the reference": lambda p, q: kl(p, q, q.softmax(-1)),
        "logits as log-probs": lambda p, q: (p.softmax(-1) * (p - q)).sum(-1),
        "softmax over rows": lambda p, q: (p.softmax(0) * (p.log_softmax(0) - q.log_softmax(0))).sum(-1),
        "symmetric": lambda p, q: 0.5 * (kl(p, q) + kl(q, p)),
    },
    "k3": {
        "reversed | wrong way round": lambda p, q: (p - q).exp() - (p - q) - 1,
        "k1 | k1": lambda p, q: p - q,
        "k2 | k2": lambda p, q: (p - q) ** 2 / 2,
        "no -1 | agree": lambda p, q: (q - p).exp() - (q - p),
        "sign of d | linear": lambda p, q: (q - p).exp() + (q - p) - 1,
        "weighed | weighs": lambda p, q: p.exp() * ((q - p).exp() - (q - p) - 1),
        "half reversed": lambda p, q: (p - q).exp() - (q - p) - 1,
        "sign | sign": lambda p, q: -((q - p).exp() - (q - p) - 1),
        "the mean": lambda p, q: ((q - p).exp() - (q - p) - 1).mean(),
    },
}

RIGHT = {
    "chosen_logprobs": {
        "loop": chosen,
        "cross-entropy": lambda x, i: -F.cross_entropy(x[:, :-1].transpose(1, 2), i[:, 1:], reduction="none"),
        "logsumexp": lambda x, i: x[:, :-1].gather(2, i[:, 1:, None]).squeeze(2) - x[:, :-1].logsumexp(-1),
    },
    "token_rewards": {
        "where": lambda p, q, i, b: torch.where(i > 0, b * (p - q), 0.0),
        "masked_fill": lambda p, q, i, b: (b * p - b * q).masked_fill(i == 0, 0.0),
    },
    "prm_loss": {
        "by hand": loss,
        "softplus": lambda p, q, i, r, b: (lambda s: (r * F.softplus(-s) + (1 - r) * F.softplus(s)).mean())(
            (b * (p - q.detach()) * (i > 0)).sum(1)
        ),
        "detach at the end": lambda p, q, i, r, b: F.binary_cross_entropy_with_logits(
            b * torch.where(i > 0, p, 0.0).sum(1) - (b * torch.where(i > 0, q, 0.0).sum(1)).detach(), r
        ),
    },
    "exact_kl": {
        "by hand": kl,
        "kl_div": lambda p, q: F.kl_div(q.log_softmax(-1), p.log_softmax(-1), reduction="none", log_target=True).sum(
            -1
        ),
        "distributions": lambda p, q: torch.distributions.kl_divergence(
            torch.distributions.Categorical(logits=p), torch.distributions.Categorical(logits=q)
        ),
    },
    "k3": {
        "expm1": lambda p, q: torch.expm1(q - p) + p - q,
        "ratio": lambda p, q: torch.exp(q) / torch.exp(p) - 1 - torch.log(torch.exp(q) / torch.exp(p)),
    },
}
