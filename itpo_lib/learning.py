"""From outcomes to token advantages in one pure function: credit, then estimator, then whitening."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import advantages as adv
from .credit import GIVES_SHARES, Credit, CreditInputs, assign_credit, unit_lengths, unit_sums
from .errors import ItpoError, unknown_name


@dataclass(frozen=True)
class LearningRule:
    """How outcomes become advantages; the names are those of `ITPOConfig`."""

    credit: str = "norm_itpo"
    estimator: str = "rloo"
    baseline: str = "credit_weighted"
    grpo_scale: str = "std"
    credit_temperature: float = 0.4
    softmax_mode: str = "sum"
    gamma: float = 1.0
    gae_lambda: float = 0.95
    length_penalty: float = 0.0
    whiten_advantages: bool = True


@dataclass(frozen=True)
class Experience:
    """One batch of finished dialogues, all processes together, groups side by side.

    `outcomes`, `valid`: (B,); `turn_values`, `turn_weights`: (B, K), for the credits that read them; the
    rest (B, T). `penalties` are subtracted per token (KL in the reward), `values` are the PPO critic's.
    """

    outcomes: Tensor
    valid: Tensor
    turn_ids: Tensor
    token_rewards: Tensor
    penalties: Tensor | None = None
    values: Tensor | None = None
    turn_values: Tensor | None = None
    turn_weights: Tensor | None = None


def credit_of(rule: LearningRule, exp: Experience, n_turns: int, seed: int = 0) -> Credit:
    """Credit with failed dialogues masked out and the price of length and KL charged to each unit."""
    outcomes = torch.where(exp.valid, exp.outcomes, 0.0)
    evidence = CreditInputs(
        outcomes,
        exp.turn_ids,
        n_turns,
        exp.token_rewards,
        temperature=rule.credit_temperature,
        softmax=rule.softmax_mode,
        seed=seed,
        turn_values=exp.turn_values,
        turn_weights=exp.turn_weights,
    )
    credit = assign_credit(rule.credit, evidence)
    n_units = credit.mask.shape[1]
    prices = rule.length_penalty * unit_lengths(credit.unit_ids, n_units)
    if exp.penalties is not None:
        prices = prices + unit_sums(exp.penalties, credit.unit_ids, n_units)
    return replace(credit, rewards=credit.rewards - prices, mask=credit.mask & exp.valid[:, None])


def scores_of(rule: LearningRule, exp: Experience) -> Tensor:
    """S = R - λ·N (and minus the KL price, where it is in the reward), (B,)."""
    prices = rule.length_penalty * (exp.turn_ids > 0).float()
    if exp.penalties is not None:
        prices = prices + exp.penalties
    return torch.where(exp.valid, exp.outcomes, 0.0) - prices.sum(1)


def turn_credit(rule: LearningRule, exp: Experience, n_turns: int, seed: int = 0) -> Tensor:
    """What the method thinks of each turn, (B, K), to be ranked within a dialogue.

    Shares where it gives some, else the rewards inside the turn. The trajectory share does not tell
    turns apart: 0. Nor does the outcome that PRIME adds at the end: only its token rewards count.
    """
    credit = credit_of(rule, exp, n_turns, seed)
    if rule.credit == "trajectory":
        return torch.zeros_like(credit.rewards)
    if rule.credit == "prime":
        return unit_sums(exp.token_rewards, exp.turn_ids, n_turns) * exp.valid[:, None]
    if rule.credit in GIVES_SHARES and credit.shares is not None:
        return credit.shares
    return unit_sums(adv.rewards_on_last_token(credit), exp.turn_ids, n_turns)


def discount(rule: LearningRule) -> float:
    """How much each later unit counts in a unit's return under RLOO and GRPO: γ.

    For TD errors of a value model it is γλ, GAE over turns. True credit is an advantage as it stands:
    its sum over the turns to come is R - V_{k-1}, which is the outcome again.
    """
    return {"value": rule.gamma * rule.gae_lambda, "oracle": 0.0}.get(rule.credit, rule.gamma)


def token_advantages(
    rule: LearningRule, exp: Experience, group_size: int, n_turns: int, seed: int = 0
) -> tuple[Tensor, Tensor | None]:
    """Advantages (B, T), and for PPO the critic's targets (B, T)."""
    credit, mask = credit_of(rule, exp, n_turns, seed), (exp.turn_ids > 0) & exp.valid[:, None]
    targets, gamma = None, discount(rule)
    if rule.estimator == "ppo":
        if exp.values is None:
            raise ItpoError("estimator 'ppo' needs the critic's values")
        if rule.baseline == "credit_weighted":
            whole = credit_of(replace(rule, credit="trajectory"), exp, n_turns)
            tokens, targets = adv.credit_weighted_gae(whole, credit, exp.values, mask, rule.gamma, rule.gae_lambda)
        else:
            rewards = adv.rewards_on_last_token(credit)
            tokens, targets = adv.gae(rewards, exp.values, mask, rule.gamma, rule.gae_lambda)
    elif rule.estimator == "grpo":
        if rule.baseline == "turn":
            units = adv.grpo(credit, group_size, rule.grpo_scale, gamma)
        else:
            scores = scores_of(rule, exp)
            units = adv.grpo_outcome(credit, scores, group_size, rule.baseline, rule.grpo_scale, gamma)
        tokens = adv.spread_to_tokens(units, credit.unit_ids)
    elif rule.estimator == "rloo":
        units = adv.rloo(credit, scores_of(rule, exp), group_size, rule.baseline, gamma)
        tokens = adv.spread_to_tokens(units, credit.unit_ids)
    else:
        raise unknown_name("estimator", rule.estimator, adv.ESTIMATORS)
    return (adv.whiten(tokens, mask) if rule.whiten_advantages else tokens * mask), targets
