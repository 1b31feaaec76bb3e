"""Advantage estimators: unit rewards in, one advantage per assistant token out.

Shapes: B dialogues in groups of G neighbours that share a prompt, K units, T tokens. `mask` (B, K)
marks units that exist and count; a failed dialogue has none. RLOO: arXiv 2402.14740. GRPO on process
rewards: arXiv 2402.03300, section 4.1.3. GAE: arXiv 1506.02438.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .credit import CAN_SHARE, GIVES_SHARES, Credit, reverse_cumsum
from .errors import ItpoError, require, unknown_name

ESTIMATORS = ("rloo", "grpo", "ppo")
BASELINES = ("turn", "official", "outcome", "credit_weighted", "signed")
SHARING = ("outcome", "credit_weighted", "signed")  # baselines that share the outcome out
GRPO_BASELINES = ("turn", *SHARING)
PPO_BASELINES = ("turn", "credit_weighted")
GRPO_SCALES = ("std", "none")


def baselines_for(credit: str) -> tuple[str, ...]:
    """RLOO's baselines that go with a credit method; those that share the outcome out need shares."""
    need = {"outcome": GIVES_SHARES, "credit_weighted": CAN_SHARE, "signed": CAN_SHARE}
    return tuple(name for name in BASELINES if name not in need or credit in need[name])


def check_group(batch: int, group_size: int) -> None:
    """Refuse groups that leave nothing to compare with."""
    require(group_size >= 2, f"a group needs at least 2 samples per prompt to have a baseline, got {group_size}")
    require(batch % group_size == 0, f"{batch} dialogues do not divide into groups of {group_size}")


def leave_one_out(values: Tensor, valid: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Mean of `values` over the OTHER valid samples of the group, and how many there are; shape kept.

    `values` and `valid` are (B, ...). Where no other is valid the mean is 0.
    """
    grouped, counted = values.unflatten(0, (-1, group_size)), valid.float().unflatten(0, (-1, group_size))
    total, count = (grouped * counted).sum(1, keepdim=True), counted.sum(1, keepdim=True)
    others = (count - counted).flatten(0, 1)
    return (total - grouped * counted).flatten(0, 1) / others.clamp(min=1), others


def rloo(
    credit: Credit, scores: Tensor, group_size: int, baseline: str = "credit_weighted", gamma: float = 1.0
) -> Tensor:
    """RLOO advantages (B, K), 0 where there is no unit.

    Baselines: `turn`, return-to-go minus the mean return-to-go of the others that reach unit k (the
    others' whole return where none does); `official`, the released code's per-row mean, subtracted at
    every unit and summed backwards; `outcome`, leave-one-out on `scores` (B,), then spread by the
    credit's shares and summed backwards; `credit_weighted`, K·w_k·(S - b) with no return-to-go;
    `signed`, the same, but where S < b by the credit's blame, so that the worst turns pay.
    """
    check_group(len(credit.rewards), group_size)
    rewards, mask = credit.rewards * credit.mask, credit.mask
    if baseline == "turn":
        returns = reverse_cumsum(rewards, gamma)
        reached, others = leave_one_out(returns, mask, group_size)
        whole, _ = leave_one_out(returns[:, :1], mask[:, :1], group_size)
        return (returns - torch.where(others > 0, reached, whole)) * mask * _has_peers(mask, group_size)
    if baseline == "official":
        means = rewards.sum(1) / mask.sum(1).clamp(min=1)
        others, _ = leave_one_out(means, mask.any(1), group_size)
        return reverse_cumsum((rewards - others[:, None]) * mask, gamma) * mask * _has_peers(mask, group_size)
    if baseline not in BASELINES:
        raise unknown_name("baseline", baseline, BASELINES)
    others, _ = leave_one_out(scores, mask.any(1), group_size)
    return spread_by_shares(credit, (scores - others)[:, None] * _has_peers(mask, group_size), baseline, gamma)


def spread_by_shares(credit: Credit, edge: Tensor, baseline: str, gamma: float = 1.0) -> Tensor:
    """Share out each dialogue's `edge` over others (B, 1), as `outcome`, `credit_weighted` or `signed` do; (B, K)."""
    if credit.shares is None:
        raise ItpoError(
            f"baseline {baseline!r} spreads the outcome by shares, and this credit method gives none; "
            "use baseline 'turn'"
        )
    shares, mask = credit.shares, credit.mask
    if baseline == "signed" and credit.blame is not None:
        shares = torch.where(edge < 0, credit.blame, shares)
    spread = shares * edge * mask
    if baseline in ("credit_weighted", "signed"):
        return spread * mask.sum(1, keepdim=True)
    return reverse_cumsum(spread, gamma) * mask


def _has_peers(mask: Tensor, group_size: int) -> Tensor:
    """(B, 1) float: 1 where another sample of the group counts; a lone survivor learns nothing."""
    valid = mask.any(1)
    return (leave_one_out(valid.float(), valid, group_size)[1] > 0).float()[:, None]


def grpo(credit: Credit, group_size: int, scale: str = "std", gamma: float = 1.0) -> Tensor:
    """GRPO on process rewards, (B, K): normalise over all units of the group, then sum backwards.

    `scale="none"` only centres (Dr. GRPO). A group whose rewards are all equal gets zero advantages.
    """
    check_group(len(credit.rewards), group_size)
    return reverse_cumsum(normalise_groups(credit.rewards, credit.mask, group_size, scale), gamma) * credit.mask


def grpo_outcome(
    credit: Credit,
    scores: Tensor,
    group_size: int,
    baseline: str = "credit_weighted",
    scale: str = "std",
    gamma: float = 1.0,
) -> Tensor:
    """GRPO on outcomes, (B, K): `scores` (B,) normalised within the group, then shared out as RLOO's baselines do.

    With the trajectory share and `outcome` it is GRPO as it is known: every turn gets the dialogue's own score.
    """
    check_group(len(scores), group_size)
    if baseline not in SHARING:
        raise unknown_name("baseline of GRPO", baseline, SHARING)
    edge = normalise_groups(scores[:, None], credit.mask.any(1, keepdim=True), group_size, scale)
    return spread_by_shares(credit, edge, baseline, gamma)


def normalise_groups(values: Tensor, valid: Tensor, group_size: int, scale: str = "std") -> Tensor:
    """Mean 0 over each group's valid values, with `std` also deviation 1; (B, K) -> (B, K), 0 where not valid."""
    if scale not in GRPO_SCALES:
        raise unknown_name("GRPO scale", scale, GRPO_SCALES)
    grouped, counted = (x.unflatten(0, (-1, group_size)) for x in (values * valid, valid.float()))
    count = counted.sum((1, 2), keepdim=True)
    centred = (grouped - grouped.sum((1, 2), keepdim=True) / count.clamp(min=1)) * counted
    if scale == "std":
        std = (centred.square().sum((1, 2), keepdim=True) / (count - 1).clamp(min=1)).sqrt()
        rounding = 1e-6 * grouped.abs().amax((1, 2), keepdim=True).clamp(min=1)
        centred = torch.where(std > rounding, centred / std.clamp(min=1e-6), 0.0)
    return centred.flatten(0, 1)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation over trainable tokens; advantages and value targets, (B, T).

    The tokens of `mask` are squeezed together first: γλ does not decay across the user's words, and
    no value is read off them. The value after the last token is 0.
    """
    order = (~mask).long().argsort(dim=1, stable=True)  # trainable tokens first, in order
    packed_mask = mask.gather(1, order)
    packed_rewards, packed_values = rewards.gather(1, order) * packed_mask, values.gather(1, order) * packed_mask
    following = torch.nn.functional.pad(packed_values[:, 1:], (0, 1))
    errors = (packed_rewards + gamma * following - packed_values) * packed_mask
    packed = reverse_cumsum(errors, gamma * lam)
    advantages = torch.zeros_like(values).scatter(1, order, packed * packed_mask)
    return advantages, (advantages + values) * mask


def credit_weighted_gae(
    whole: Credit, credit: Credit, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """PPO with shares and no return-to-go: K·w_k times the GAE of the outcome; advantages and value targets, (B, T).

    The counterpart of RLOO's `credit_weighted`, with the critic as the baseline b. `whole` is the trajectory
    share of the same dialogues, so the critic learns what the dialogue will bring, not what is left of its shares.
    """
    if credit.shares is None:
        raise ItpoError("credit_weighted_gae spreads the outcome by shares, and this credit method gives none")
    advantages, targets = gae(rewards_on_last_token(whole), values, mask, gamma, lam)
    weights = credit.shares * credit.mask.sum(1, keepdim=True)
    return advantages * spread_to_tokens(weights, credit.unit_ids), targets


def rewards_on_last_token(credit: Credit) -> Tensor:
    """Each unit's reward on the last of its tokens, (B, K) -> (B, T)."""
    ids = credit.unit_ids
    following = torch.nn.functional.pad(ids[:, 1:], (0, 1))
    last = (ids > 0) & (following != ids)
    return spread_to_tokens(credit.rewards * credit.mask, ids) * last


def spread_to_tokens(values: Tensor, unit_ids: Tensor) -> Tensor:
    """Give each token the value of its unit, (B, K) -> (B, T); 0 on tokens of no unit."""
    return torch.nn.functional.pad(values, (1, 0)).gather(1, unit_ids)


def whiten(advantages: Tensor, mask: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the tokens of `mask`, 0 elsewhere; all-equal advantages become 0."""
    count = mask.sum().clamp(min=1)
    centred = (advantages - (advantages * mask).sum() / count) * mask
    std = (centred.square().sum() / count).sqrt()
    rounding = 1e-6 * (advantages * mask).abs().max().clamp(min=1)  # equal numbers differ by this much in fp32
    return torch.where(std > rounding, centred / std.clamp(min=1e-6), 0.0)
