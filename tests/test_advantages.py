"""Advantage estimators against slow loops, and what must not matter to them."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from conftest import layout, normal, uniform
from hypothesis import given
from hypothesis import strategies as st

from itpo_lib.advantages import (
    BASELINES,
    gae,
    grpo,
    grpo_outcome,
    leave_one_out,
    rewards_on_last_token,
    rloo,
    spread_to_tokens,
    whiten,
)
from itpo_lib.credit import Credit, softmax_shares, unit_lengths
from itpo_lib.errors import ItpoError
from itpo_lib.learning import Experience, LearningRule, credit_of, scores_of, token_advantages

G = 3
group_rows = st.lists(st.lists(st.integers(0, 4), min_size=G, max_size=G), min_size=1, max_size=3)  # turns per dialogue
seeds = st.integers(0, 2**16)


def credit_for(turns: list[int], seed: int = 0, extra: int = 0) -> tuple[Credit, torch.Tensor]:
    """Shares of random outcomes over `turns[i]` turns, and the outcomes; one token per turn."""
    k = max(1, max(turns))
    mask = torch.arange(k) < torch.tensor(turns)[:, None]
    outcomes = uniform(seed, len(turns)) * mask.any(1)
    sums = normal(seed + 1, len(turns), k)
    shares, blame = softmax_shares(sums, mask, 1.0), softmax_shares(-sums, mask, 1.0)
    pad = lambda x: torch.nn.functional.pad(x, (0, extra))  # noqa: E731
    ids = mask * torch.arange(1, k + 1)
    return Credit(pad(shares * outcomes[:, None]), pad(mask), pad(ids), pad(shares), pad(blame)), outcomes


def reordered(credit: Credit, order: torch.Tensor) -> Credit:
    parts = {f.name: getattr(credit, f.name) for f in dataclasses.fields(credit)}
    return Credit(**{name: None if part is None else part[order] for name, part in parts.items()})


def flat(groups: list[list[int]]) -> list[int]:
    return [n for group in groups for n in group]


def slow_rloo(credit: Credit, scores: torch.Tensor, baseline: str) -> torch.Tensor:
    """The baselines as the method's text states them, sample by sample."""
    result = torch.zeros_like(credit.rewards)
    counts = credit.mask.sum(1).tolist()
    rewards = [row[:n] for row, n in zip(credit.rewards.tolist(), counts, strict=True)]
    mean = lambda xs: sum(xs) / len(xs)  # noqa: E731
    for i, n in enumerate(counts):
        others = [j for j in range(i - i % G, i - i % G + G) if j != i and counts[j] > 0]
        for k in range(n if others else 0):
            if baseline == "turn":
                reach = [j for j in others if counts[j] > k]
                b = mean([sum(rewards[j][k:]) for j in reach]) if reach else mean([sum(rewards[j]) for j in others])
                result[i, k] = sum(rewards[i][k:]) - b
            elif baseline == "official":
                b = mean([mean(rewards[j]) for j in others])
                result[i, k] = sum(r - b for r in rewards[i][k:])
            else:
                advantage = scores[i] - mean([scores[j] for j in others])
                if baseline == "outcome":
                    result[i, k] = advantage * credit.shares[i, k:n].sum()
                else:
                    weights = credit.blame if baseline == "signed" and advantage < 0 else credit.shares
                    result[i, k] = n * weights[i, k] * advantage
    return result


# RLOO


@pytest.mark.parametrize("baseline", BASELINES)
@given(groups=group_rows, seed=seeds)
def test_rloo_equals_a_loop(baseline, groups, seed):
    credit, scores = credit_for(flat(groups), seed)
    assert torch.allclose(rloo(credit, scores, G, baseline), slow_rloo(credit, scores, baseline), atol=1e-10)


@pytest.mark.parametrize("name", [*BASELINES, "grpo"])
@given(groups=group_rows, seed=seeds, data=st.data())
def test_order_in_and_of_groups_does_not_matter(name, groups, seed, data):
    credit, scores = credit_for(flat(groups), seed)
    moved = [
        g * G + i for g in data.draw(st.permutations(range(len(groups)))) for i in data.draw(st.permutations(range(G)))
    ]
    order = torch.tensor(moved)
    estimate = lambda c, s: grpo(c, G) if name == "grpo" else rloo(c, s, G, name)  # noqa: E731
    assert torch.allclose(estimate(reordered(credit, order), scores[order]), estimate(credit, scores)[order], atol=1e-9)


@pytest.mark.parametrize("name", [*BASELINES, "grpo"])
@given(groups=group_rows, seed=seeds, extra=st.integers(1, 3))
def test_padding_changes_nothing(name, groups, seed, extra):
    (credit, scores), (padded, _) = credit_for(flat(groups), seed), credit_for(flat(groups), seed, extra)
    estimate = lambda c: grpo(c, G) if name == "grpo" else rloo(c, scores, G, name)  # noqa: E731
    assert torch.allclose(estimate(padded)[:, :-extra], estimate(credit), atol=1e-12)
    assert not estimate(padded)[:, -extra:].any()


@pytest.mark.parametrize("name", [*BASELINES, "grpo"])
def test_groups_do_not_see_each_other(name):
    credit, scores = credit_for([2, 1, 3, 4, 1, 2])
    other = dataclasses.replace(credit, rewards=credit.rewards.clone(), shares=credit.shares.clone())
    other.rewards[3:] *= 5.0
    estimate = lambda c, s: grpo(c, G) if name == "grpo" else rloo(c, s, G, name)  # noqa: E731
    changed = torch.cat([scores[:3], 5.0 * scores[3:]])
    assert torch.equal(estimate(credit, scores)[:3], estimate(other, changed)[:3])
    assert not torch.equal(estimate(credit, scores)[3:], estimate(other, changed)[3:])


@pytest.mark.parametrize("baseline", BASELINES)
def test_failed_rows_neither_learn_nor_teach(baseline):
    """The other samples of the group get what they would get in a group without the failed one."""
    credit, scores = credit_for([2, 1, 3])
    failed = dataclasses.replace(credit, mask=credit.mask & torch.tensor([[True], [False], [True]]))
    found = rloo(failed, scores, G, baseline)
    pair = torch.tensor([0, 2])
    assert torch.allclose(found[pair], rloo(reordered(credit, pair), scores[pair], 2, baseline))
    assert not found[1].any()


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("alive", [[], [1]])
def test_groups_with_nobody_to_compare_learn_nothing(baseline, alive):
    credit, scores = credit_for([2, 1, 3])
    valid = torch.tensor([[i in alive] for i in range(3)])
    failed = dataclasses.replace(credit, mask=credit.mask & valid)
    assert rloo(failed, scores, G, baseline).tolist() == torch.zeros(3, 3).tolist()


@pytest.mark.parametrize("baseline", ["outcome", "credit_weighted", "signed"])
def test_equal_outcomes_cancel_exactly(baseline):
    credit, _ = credit_for([2, 1, 3])
    assert not rloo(credit, torch.full((3,), 1.0), G, baseline).any()


@given(st.floats(-1, 1, width=32), st.integers(2, 16))
def test_equal_rewards_give_zero_after_whitening(value, size):
    """In fp32 the mean of equal numbers can miss them by one rounding; whitening must not blow that up to 1."""
    mask = torch.ones(size, 1, dtype=torch.bool)
    credit = Credit(torch.full((size, 1), value), mask, mask.long(), mask.float())
    for baseline in BASELINES:
        advantages = rloo(credit, credit.rewards[:, 0], size, baseline)
        assert not whiten(advantages, mask).any()
    assert not whiten(grpo(credit, size), mask).any()


def test_signed_is_credit_weighted_where_a_credit_knows_no_blame():
    credit, scores = credit_for([2, 1, 3])
    credit = dataclasses.replace(credit, blame=None)
    assert torch.equal(rloo(credit, scores, G, "signed"), rloo(credit, scores, G, "credit_weighted"))


def test_credit_without_shares_refuses_baselines_that_spread():
    credit = dataclasses.replace(credit_for([2, 1, 3])[0], shares=None)
    for baseline in ("outcome", "credit_weighted", "signed"):
        with pytest.raises(ItpoError, match="use baseline 'turn'"):
            rloo(credit, torch.ones(3), G, baseline)
    for baseline in ("turn", "official"):
        assert torch.isfinite(rloo(credit, torch.ones(3), G, baseline)).all()


def test_bad_names_and_groups_are_refused():
    credit, scores = credit_for([2, 1, 3])
    with pytest.raises(ItpoError, match=r"credit_weighted, .*outcome, .*turn.*Did you mean 'turn'"):
        rloo(credit, scores, G, "turns")
    with pytest.raises(ItpoError, match="none, std"):
        grpo(credit, G, "var")
    for estimator in (lambda g: rloo(credit, scores, g, "turn"), lambda g: grpo(credit, g)):
        with pytest.raises(ItpoError, match="at least 2"):
            estimator(1)
        with pytest.raises(ItpoError, match="do not divide into groups of 2"):
            estimator(2)


def test_gamma_discounts_the_returns():
    credit, scores = credit_for([3, 3, 3])
    rewards = credit.rewards[:, 0] + 0.5 * credit.rewards[:, 1] + 0.25 * credit.rewards[:, 2]
    found = rloo(credit, scores, G, "turn", gamma=0.5)
    assert torch.allclose(found[:, 0], rewards - (rewards.sum() - rewards) / 2)


def test_leave_one_out_by_hand():
    means, others = leave_one_out(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([True, True, False]), 3)
    assert means.tolist() == [2.0, 1.0, 1.5] and others.tolist() == [1.0, 1.0, 2.0]


# GRPO


@pytest.mark.parametrize("scale", ["std", "none"])
@given(groups=group_rows, seed=seeds)
def test_grpo_equals_a_loop(scale, groups, seed):
    credit, _ = credit_for(flat(groups), seed)
    found, counts = grpo(credit, G, scale), flat(groups)
    for g in range(0, len(counts), G):
        rows = [credit.rewards[i, : counts[i]] for i in range(g, g + G)]
        pooled = torch.cat(rows)
        std = pooled.std() if len(pooled) > 1 and pooled.std() > 1e-6 else torch.tensor(torch.inf)
        for i, row in zip(range(g, g + G), rows, strict=True):
            z = (row - pooled.mean()) / (1.0 if scale == "none" else std)
            expected = torch.tensor([z[k:].sum() for k in range(len(row))], dtype=torch.float64)
            assert torch.allclose(found[i, : counts[i]], expected, atol=1e-9)


@pytest.mark.parametrize("value", [0.0, 0.7, 6.53, -1234.5])
def test_grpo_of_equal_rewards_is_zero(value):
    mask = torch.ones(7, 2, dtype=torch.bool)
    assert not grpo(Credit(torch.full((7, 2), value), mask, mask.long()), 7).any()


def test_grpo_leaves_failed_rows_out_of_mean_and_std():
    credit, _ = credit_for([2, 1, 3])
    failed = dataclasses.replace(credit, mask=credit.mask & torch.tensor([[True], [False], [True]]))
    pair = torch.tensor([0, 2])
    assert torch.allclose(grpo(failed, G)[pair], grpo(reordered(credit, pair), 2))
    assert not grpo(failed, G)[1].any()


# GAE


def slow_gae(rewards, values, mask, gamma, lam):
    """Per row: drop the user's tokens, run the recursion backwards, put the results back."""
    advantages = torch.zeros_like(values)
    for i in range(len(mask)):
        where = [t for t in range(mask.shape[1]) if mask[i, t]]
        running = 0.0
        for n in reversed(range(len(where))):
            following = values[i, where[n + 1]].item() if n + 1 < len(where) else 0.0
            error = rewards[i, where[n]].item() + gamma * following - values[i, where[n]].item()
            running = error + gamma * lam * running
            advantages[i, where[n]] = running
    return advantages


token_masks = st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=1, max_size=4)


@given(token_masks, seeds, st.sampled_from([1.0, 0.9]), st.sampled_from([0.0, 0.95, 1.0]))
def test_gae_equals_a_loop(rows, seed, gamma, lam):
    mask = torch.tensor(rows)
    rewards, values = normal(seed, *mask.shape), normal(seed + 1, *mask.shape)
    advantages, targets = gae(rewards, values, mask, gamma, lam)
    assert torch.allclose(advantages, slow_gae(rewards, values, mask, gamma, lam), atol=1e-10)
    assert torch.allclose(targets, (advantages + values) * mask, atol=1e-10)


@given(token_masks, seeds)
def test_gae_closed_forms(rows, seed):
    mask = torch.tensor(rows)
    rewards, values = normal(seed, *mask.shape), normal(seed + 1, *mask.shape)
    monte_carlo, targets = gae(rewards, values, mask, 1.0, 1.0)
    returns = (rewards * mask).flip(1).cumsum(1).flip(1)
    assert torch.allclose(monte_carlo, (returns - values) * mask, atol=1e-10)  # λ = 1: return minus value
    assert torch.allclose(targets, returns * mask, atol=1e-10)
    one_step, _ = gae(rewards, values, mask, 1.0, 0.0)
    for i in range(len(mask)):
        v, r = values[i][mask[i]], rewards[i][mask[i]]
        expected = r + torch.cat([v[1:], v.new_zeros(1)])[: len(v)] - v  # λ = 0: the TD error
        assert torch.allclose(one_step[i][mask[i]], expected, atol=1e-10)


@given(seeds)
def test_gae_does_not_see_the_users_tokens(seed):
    """More user tokens, other values on them: the assistant's advantages stay."""
    few, many = layout([[3, 2], [1, 4]], glue=1), layout([[3, 2], [1, 4]], glue=5)
    rewards, values = normal(seed, 10), normal(seed + 1, 10)
    results = []
    for ids, noise in ((few, 0.0), (many, 100.0)):
        r = torch.full(ids.shape, noise, dtype=torch.float64).masked_scatter(ids > 0, rewards)
        v = torch.full(ids.shape, noise, dtype=torch.float64).masked_scatter(ids > 0, values)
        results.append(gae(r, v, ids > 0, 0.9, 0.9)[0][ids > 0])
    assert torch.allclose(*results)


# From units to tokens


def test_spread_to_tokens():
    ids = torch.tensor([[1, 1, 0, 2, 0], [1, 0, 0, 0, 0]])
    values = torch.tensor([[5.0, 7.0], [3.0, 9.0]])
    assert spread_to_tokens(values, ids).tolist() == [[5, 5, 0, 7, 0], [3, 0, 0, 0, 0]]


@given(st.lists(st.lists(st.integers(1, 4), max_size=4), min_size=1, max_size=4), st.integers(0, 2), seeds)
def test_rewards_on_last_token(rows, glue, seed):
    """Each turn's reward appears once, on its last token, also for turns that touch."""
    ids = layout(rows, glue)
    k = max(1, max(map(len, rows)))
    mask = unit_lengths(ids, k) > 0
    rewards = normal(seed, len(rows), k) * mask
    found = rewards_on_last_token(Credit(rewards, mask, ids))
    for i, row in enumerate(rows):
        for turn in range(len(row)):
            last = max(t for t in range(ids.shape[1]) if ids[i, t] == turn + 1)
            assert found[i, last] == rewards[i, turn]
        assert int((found[i] != 0).sum()) == len(row)


@given(seeds, st.floats(0.01, 100))
def test_whiten(seed, scale):
    mask = uniform(seed, 4, 9) > 0.4
    white = whiten(scale * normal(seed + 1, 4, 9) + 3.0, mask)
    assert white[mask].mean().item() == pytest.approx(0.0, abs=1e-9)
    assert white[mask].var(correction=0).item() == pytest.approx(1.0, abs=1e-6)
    assert not white[~mask].any()


@pytest.mark.parametrize("value", [0.0, 0.1, 1.0, 0.3, -7.7, 1234.5])
@pytest.mark.parametrize("tokens", [0, 1, 7, 1000])
def test_whiten_of_equal_advantages_is_zero(value, tokens):
    mask = torch.zeros(2, 1000, dtype=torch.bool)
    mask[0, :tokens] = True
    assert not whiten(torch.full((2, 1000), value) * mask, mask).any()


# The whole chain


def experience(seed: int = 0, turns=([2, 1], [3], [], [1, 1, 1], [4], [2]), **changes) -> Experience:
    turn_ids = layout(list(turns))
    fields = {
        "outcomes": uniform(seed, len(turns), dtype=torch.float32),
        "valid": torch.ones(len(turns), dtype=torch.bool),
        "turn_ids": turn_ids,
        "token_rewards": 0.1 * normal(seed, *turn_ids.shape, dtype=torch.float32) * (turn_ids > 0),
        "values": normal(seed + 2, *turn_ids.shape, dtype=torch.float32),
    }
    return Experience(**{**fields, **changes})


RULES = [
    LearningRule(credit, estimator, baseline)
    for credit in ("trajectory", "uniform", "prime", "itpo", "norm_itpo")
    for estimator, baseline in (
        ("rloo", "turn"),
        ("rloo", "official"),
        ("rloo", "outcome"),
        ("rloo", "credit_weighted"),
        ("rloo", "signed"),
        ("grpo", "turn"),
        ("grpo", "outcome"),
        ("grpo", "credit_weighted"),
        ("grpo", "signed"),
        ("ppo", "turn"),
        ("ppo", "credit_weighted"),
    )
    if credit not in ("prime", "itpo") or baseline in ("turn", "official")
]
rule_names = [f"{r.credit}-{r.estimator}-{r.baseline}" for r in RULES]


@pytest.mark.parametrize("rule", RULES, ids=rule_names)
def test_every_rule_gives_finite_white_advantages_on_assistant_tokens_only(rule):
    exp = experience()
    advantages, targets = token_advantages(rule, exp, G, 3)
    assert advantages.shape == exp.turn_ids.shape and torch.isfinite(advantages).all()
    assert not advantages[exp.turn_ids == 0].any()
    assert advantages[exp.turn_ids > 0].mean().item() == pytest.approx(0.0, abs=1e-5)
    assert advantages[exp.turn_ids > 0].std(correction=0).item() == pytest.approx(1.0, abs=1e-4)
    assert (targets is not None) == (rule.estimator == "ppo")


@pytest.mark.parametrize("rule", RULES, ids=rule_names)
def test_a_failed_dialogue_leaves_no_trace(rule):
    """Not even with NaN as its outcome and another text: nothing of it reaches the others."""
    valid = torch.tensor([True, False, True, True, True, True])
    exp = experience(valid=valid)
    outcomes, rewards = exp.outcomes.clone(), exp.token_rewards.clone()
    outcomes[1], rewards[1] = float("nan"), 9.0 * (exp.turn_ids[1] > 0)
    one, _ = token_advantages(rule, exp, G, 3)
    two, _ = token_advantages(rule, dataclasses.replace(exp, outcomes=outcomes, token_rewards=rewards), G, 3)
    assert torch.equal(one, two) and not one[1].any()
    assert torch.isfinite(one).all() and one.any()


@pytest.mark.parametrize("rule", RULES, ids=rule_names)
def test_all_failed_is_all_zero(rule):
    exp = experience(valid=torch.zeros(6, dtype=torch.bool), outcomes=torch.full((6,), float("nan")))
    advantages, _ = token_advantages(rule, exp, G, 3)
    assert advantages.tolist() == torch.zeros_like(advantages).tolist()


@pytest.mark.parametrize("rule", RULES, ids=rule_names)
def test_extra_padding_leaves_token_advantages_alone(rule):
    exp = experience()
    pad = lambda x: torch.nn.functional.pad(x, (0, 4))  # noqa: E731
    wide = dataclasses.replace(
        exp, turn_ids=pad(exp.turn_ids), token_rewards=pad(exp.token_rewards), values=pad(exp.values)
    )
    one, _ = token_advantages(rule, exp, G, 3)
    two, _ = token_advantages(rule, wide, G, 5)
    assert torch.allclose(two[:, : one.shape[1]], one, atol=1e-5) and not two[:, one.shape[1] :].any()


@pytest.mark.parametrize("rule", [r for r in RULES if r.credit != "uniform"], ids=lambda r: f"{r.credit}-{r.baseline}")
def test_order_of_dialogues_leaves_token_advantages_alone(rule):
    exp, order = experience(), torch.tensor([5, 3, 4, 1, 2, 0])
    moved = Experience(
        exp.outcomes[order], exp.valid[order], exp.turn_ids[order], exp.token_rewards[order], None, exp.values[order]
    )
    one, _ = token_advantages(rule, exp, G, 3)
    two, _ = token_advantages(rule, moved, G, 3)
    assert torch.allclose(two, one[order], atol=1e-5)


def test_length_and_kl_are_charged_to_the_turn_that_spends_them():
    exp = experience()
    penalties = 0.01 * uniform(3, *exp.turn_ids.shape, dtype=torch.float32)
    exp = dataclasses.replace(exp, penalties=penalties * (exp.turn_ids > 0))
    free, priced = LearningRule(), LearningRule(length_penalty=0.05)
    without = credit_of(free, dataclasses.replace(exp, penalties=None), 3)
    charged = credit_of(priced, exp, 3)
    cost = without.rewards - charged.rewards
    assert cost[0, 0].item() == pytest.approx(0.05 * 2 + penalties[0, :2].sum().item(), abs=1e-6)
    assert cost[1, 0].item() == pytest.approx(0.05 * 3 + penalties[1, :3].sum().item(), abs=1e-6)
    # Σ_k R_k = S, the score that is reported, for every method that shares R
    has_turns = charged.mask.any(1)
    assert torch.allclose(charged.rewards.sum(1)[has_turns], scores_of(priced, exp)[has_turns], atol=1e-6)


def test_without_whitening_the_chain_is_the_estimator():
    exp, rule = experience(), LearningRule("norm_itpo", "rloo", "outcome", whiten_advantages=False)
    credit = credit_of(rule, exp, 3)
    expected = spread_to_tokens(rloo(credit, exp.outcomes, G, "outcome"), exp.turn_ids)
    assert torch.equal(token_advantages(rule, exp, G, 3)[0], expected)


def test_ppo_targets_are_advantage_plus_value():
    exp, rule = experience(), LearningRule("trajectory", "ppo", "turn", gae_lambda=1.0, whiten_advantages=False)
    advantages, targets = token_advantages(rule, exp, G, 3)
    mask = exp.turn_ids > 0
    assert torch.allclose(targets[mask], exp.outcomes[:, None].expand_as(mask)[mask], atol=1e-5)
    assert torch.allclose(advantages[mask], (targets - exp.values)[mask], atol=1e-5)


def test_grpo_with_the_trajectory_share_gives_every_turn_the_normalised_outcome():
    exp, rule = experience(), LearningRule("trajectory", "grpo", "outcome", whiten_advantages=False)
    advantages, _ = token_advantages(rule, exp, G, 3)
    for first in range(0, len(exp.outcomes), G):
        rows = [r for r in range(first, first + G) if exp.turn_ids[r].any()]
        scores = exp.outcomes[rows].double()
        expected = (scores - scores.mean()) / scores.std()
        for row, score in zip(rows, expected.tolist(), strict=True):
            mine = advantages[row][exp.turn_ids[row] > 0]
            assert mine.tolist() == pytest.approx([score] * len(mine), abs=1e-5)


@pytest.mark.parametrize("baseline", ["outcome", "credit_weighted", "signed"])
def test_grpo_shares_out_as_rloo_does_up_to_the_groups_scale(baseline):
    """Centred only, the group's mean leaves (G-1)/G of the edge over the others: a factor of the whole group."""
    turns = ([2, 1], [3], [1], [1, 1, 1], [4], [2])
    exp = experience(turns=turns)
    credit = credit_of(LearningRule("norm_itpo"), exp, 3)
    centred = grpo_outcome(credit, exp.outcomes, G, baseline, "none")
    assert torch.allclose(centred * G / (G - 1), rloo(credit, exp.outcomes, G, baseline), atol=1e-6)


@pytest.mark.parametrize("estimator", ["rloo", "grpo"])
def test_the_discount_reaches_the_sum_of_baseline_outcome(estimator):
    """A_k = edge · Σ_{j>=k} γ^{j-k} w_j, by hand on a dialogue of three turns."""
    exp, rule = experience(), LearningRule("norm_itpo", estimator, "outcome", gamma=0.5, whiten_advantages=False)
    found = token_advantages(rule, exp, G, 3)[0][3][exp.turn_ids[3] > 0]
    w = credit_of(rule, exp, 3).shares[3].tolist()
    ahead = [w[0] + 0.5 * w[1] + 0.25 * w[2], w[1] + 0.5 * w[2], w[2]]
    edge = found[2].item() / w[2]
    assert edge != 0 and found.tolist() == pytest.approx([edge * sum_ for sum_ in ahead], abs=1e-5)


@pytest.mark.parametrize("baseline", ["outcome", "credit_weighted", "signed"])
def test_grpo_normalises_the_score_with_its_prices(baseline):
    exp, rule = experience(), LearningRule("norm_itpo", "grpo", baseline, length_penalty=0.1, whiten_advantages=False)
    credit = credit_of(rule, exp, 3)
    expected = spread_to_tokens(grpo_outcome(credit, scores_of(rule, exp), G, baseline), exp.turn_ids)
    found = token_advantages(rule, exp, G, 3)[0]
    assert torch.equal(found, expected) and found.any()
    assert not torch.allclose(found, spread_to_tokens(grpo_outcome(credit, exp.outcomes, G, baseline), exp.turn_ids))


def test_ppo_with_equal_shares_and_no_return_to_go_is_plain_ppo_on_the_outcome():
    """K·w_k = 1 everywhere: nothing is left of the credit, and the critic's targets never knew it."""
    exp = experience()
    exp = dataclasses.replace(exp, token_rewards=torch.zeros_like(exp.token_rewards))
    rules = (
        LearningRule(credit, "ppo", baseline, whiten_advantages=False)
        for credit, baseline in (("trajectory", "turn"), ("norm_itpo", "credit_weighted"))
    )
    (plain, plain_targets), (weighted, targets) = (token_advantages(rule, exp, G, 3) for rule in rules)
    assert torch.allclose(weighted, plain, atol=1e-6) and torch.equal(targets, plain_targets)


def test_ppo_credit_weighted_scales_each_turn_by_its_share():
    """λ = 1: A_t = K·w_k·(R − V_t), worked out by hand for every token."""
    exp = experience()
    rule = LearningRule("norm_itpo", "ppo", "credit_weighted", gae_lambda=1.0, whiten_advantages=False)
    advantages, targets = token_advantages(rule, exp, G, 3)
    shares = credit_of(rule, exp, 3).shares
    for row, ids in enumerate(exp.turn_ids.tolist()):
        for token, turn in enumerate(ids):
            if turn:
                edge = exp.outcomes[row] - exp.values[row, token]
                expected = max(ids) * shares[row, turn - 1] * edge
                assert advantages[row, token].item() == pytest.approx(expected.item(), abs=1e-5)
                assert targets[row, token].item() == pytest.approx(exp.outcomes[row].item(), abs=1e-5)


def test_rules_that_make_no_sense_are_refused():
    with pytest.raises(ItpoError, match="needs the critic's values"):
        token_advantages(LearningRule(estimator="ppo"), experience(values=None), G, 3)
    with pytest.raises(ItpoError, match="gives none"):
        token_advantages(LearningRule("itpo", "ppo", "credit_weighted"), experience(), G, 3)
    with pytest.raises(ItpoError, match="grpo, ppo, rloo"):
        token_advantages(LearningRule(estimator="rlo"), experience(), G, 3)
    with pytest.raises(ItpoError, match="unknown credit"):
        token_advantages(LearningRule(credit="nothing"), experience(), G, 3)
