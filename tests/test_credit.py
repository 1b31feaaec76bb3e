"""Credit methods: what they must conserve, and what must not matter to them."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from conftest import layout, normal, uniform
from hypothesis import given
from hypothesis import strategies as st

from itpo_lib.credit import (
    CREDITS,
    NEEDS_PRM,
    CreditInputs,
    assign_credit,
    last_unit,
    official_softmax_shares,
    reverse_cumsum,
    softmax_shares,
    token_units,
    uniform_shares,
    unit_lengths,
    unit_sums,
)
from itpo_lib.errors import ItpoError

SHARING = ("trajectory", "uniform", "norm_itpo", "judge")
ROWS = [[3, 1, 4], [2], [], [1, 1], [5, 2, 1, 3]]
dialogues = st.lists(st.lists(st.integers(1, 4), max_size=4), min_size=1, max_size=6)
seeds = st.integers(0, 2**16)


def inputs_of(
    rows: list[list[int]], seed: int = 0, extra_tokens: int = 0, extra_turns: int = 0, **changes
) -> CreditInputs:
    """Random outcomes and token rewards; extra padding leaves the values of real tokens as they are."""
    plain = layout(rows)
    rewards = normal(seed, *plain.shape) * (plain > 0)
    turn_ids = torch.nn.functional.pad(plain, (0, extra_tokens))
    rewards = torch.nn.functional.pad(rewards, (0, extra_tokens))
    n_turns = max(1, max(map(len, rows)))
    evidence = {
        "turn_values": uniform(seed + 2, len(rows), n_turns),
        "turn_weights": uniform(seed + 3, len(rows), n_turns),
    }
    evidence = {name: torch.nn.functional.pad(part, (0, extra_turns)) for name, part in evidence.items()}
    return CreditInputs(uniform(seed + 1, len(rows)), turn_ids, n_turns + extra_turns, rewards, **evidence, **changes)


# Sums over units


@given(dialogues, seeds)
def test_unit_sums_equal_a_loop(rows, seed):
    inputs = inputs_of(rows, seed)
    sums = unit_sums(inputs.token_rewards, inputs.turn_ids, inputs.n_turns)
    lengths = unit_lengths(inputs.turn_ids, inputs.n_turns)
    for i, row in enumerate(rows):
        for k in range(inputs.n_turns):
            tokens = [
                v
                for v, t in zip(inputs.token_rewards[i].tolist(), inputs.turn_ids[i].tolist(), strict=True)
                if t == k + 1
            ]
            assert sums[i, k].item() == pytest.approx(math.fsum(tokens), abs=1e-12)
            assert lengths[i, k] == (row[k] if k < len(row) else 0)


def test_tokens_of_the_user_never_count():
    turn_ids = torch.tensor([[1, 0, 0, 2]])
    values = torch.tensor([[1.0, 100.0, float("nan"), 2.0]])
    assert unit_sums(values, turn_ids, 2).tolist() == [[1.0, 2.0]]


def test_adjacent_turns_stay_apart():
    """Two turns without a user token between them: ids tell them apart, mask edges could not."""
    assert unit_sums(torch.ones(1, 5), torch.tensor([[1, 1, 2, 2, 2]]), 2).tolist() == [[2.0, 3.0]]


def test_last_unit():
    mask = torch.tensor([[True, True, False], [True, True, True], [False, False, False], [True, False, False]])
    assert last_unit(mask).tolist() == [[0, 1, 0], [0, 0, 1], [0, 0, 0], [1, 0, 0]]


def test_token_units_number_the_assistants_tokens():
    assert token_units(torch.tensor([[1, 1, 0, 2, 0]])).tolist() == [[1, 2, 0, 3, 0]]


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.0])
def test_reverse_cumsum_equals_a_loop(gamma):
    values = normal(0, 3, 6)
    expected = [[sum(gamma ** (j - k) * row[j] for j in range(k, 6)) for k in range(6)] for row in values.tolist()]
    assert torch.allclose(reverse_cumsum(values, gamma), torch.tensor(expected, dtype=torch.float64))


# What every method conserves


@pytest.mark.parametrize("name", SHARING)
@given(rows=dialogues, seed=seeds)
def test_shares_sum_to_the_outcome(name, rows, seed):
    credit = assign_credit(name, inputs := inputs_of(rows, seed))
    has_turns = inputs.mask.any(1)
    assert torch.allclose(credit.rewards.sum(1), inputs.outcomes * has_turns, atol=1e-6)
    assert credit.shares is not None and (credit.shares >= 0).all()
    assert not credit.shares[~credit.mask].any()


@pytest.mark.parametrize("name", CREDITS)
@given(rows=dialogues, seed=seeds, extra_tokens=st.integers(0, 5), extra_turns=st.integers(0, 3))
def test_padding_changes_nothing(name, rows, seed, extra_tokens, extra_turns):
    plain = assign_credit(name, inputs_of(rows, seed))
    padded = assign_credit(name, inputs_of(rows, seed, extra_tokens, extra_turns))
    k = plain.rewards.shape[1]
    assert torch.allclose(padded.rewards[:, :k], plain.rewards, atol=1e-12)
    assert torch.equal(padded.mask[:, :k], plain.mask)
    assert not padded.rewards[:, k:].any() and not padded.mask[:, k:].any()


@pytest.mark.parametrize("name", [name for name in CREDITS if name != "uniform"])  # uniform draws by position
@given(rows=dialogues, seed=seeds, data=st.data())
def test_order_of_dialogues_does_not_matter(name, rows, seed, data):
    order = torch.tensor(data.draw(st.permutations(range(len(rows)))))
    inputs = inputs_of(rows, seed)
    moved = dataclasses.replace(
        inputs,
        outcomes=inputs.outcomes[order],
        turn_ids=inputs.turn_ids[order],
        token_rewards=inputs.token_rewards[order],
        turn_values=inputs.turn_values[order],
        turn_weights=inputs.turn_weights[order],
    )
    assert torch.allclose(assign_credit(name, moved).rewards, assign_credit(name, inputs).rewards[order], atol=1e-12)


@pytest.mark.parametrize("softmax", ["sum", "official"])
@pytest.mark.parametrize("name", CREDITS)
def test_no_nan_for_odd_rows(name, softmax):
    """Rows with no turn and with one; all rewards equal; nothing at all."""
    for rows in (ROWS, [[]], [[1]], [[], []]):
        inputs = inputs_of(rows, softmax=softmax)
        for rewards in (inputs.token_rewards, torch.zeros_like(inputs.token_rewards)):
            credit = assign_credit(name, dataclasses.replace(inputs, token_rewards=rewards))
            assert torch.isfinite(credit.rewards).all()
            assert not credit.rewards[~credit.mask].any()


@pytest.mark.parametrize("name", SHARING)
def test_a_single_turn_gets_everything(name):
    inputs = inputs_of([[4], [2]])
    assert torch.allclose(assign_credit(name, inputs).rewards[:, 0], inputs.outcomes, atol=1e-6)


def test_needs_prm_lists_the_methods_that_read_token_rewards():
    inputs = inputs_of(ROWS)
    other = dataclasses.replace(inputs, token_rewards=inputs.token_rewards + 1.5 * (inputs.turn_ids == 1))
    for name in CREDITS:
        changed = not torch.equal(assign_credit(name, inputs).rewards, assign_credit(name, other).rewards)
        assert changed == (name in NEEDS_PRM)


# Each method's own rule


def test_trajectory_pays_at_the_end():
    inputs = inputs_of([[1, 2], [3]])
    r = inputs.outcomes.tolist()
    assert assign_credit("trajectory", inputs).rewards.tolist() == [[0.0, r[0]], [r[1], 0.0]]


def test_uniform_shares_are_dirichlet():
    """Dirichlet(1) over K turns has mean 1/K and variance (K - 1) / (K²(K + 1)); the seed decides the draw."""
    mask = torch.ones(20_000, 3, dtype=torch.bool)
    shares = uniform_shares(mask, seed=3)
    assert torch.equal(shares, uniform_shares(mask, seed=3))
    assert not torch.equal(shares, uniform_shares(mask, seed=4))
    assert torch.allclose(shares.mean(0), torch.full((3,), 1 / 3), atol=0.01)
    assert torch.allclose(shares.var(0), torch.full((3,), 2 / 36), atol=0.003)


def test_prime_rewards_tokens_and_pays_the_outcome_on_the_last():
    turn_ids = torch.tensor([[1, 1, 0, 2, 0]])
    rewards = torch.tensor([[0.1, 0.2, 9.0, 0.3, 9.0]])
    credit = assign_credit("prime", CreditInputs(torch.tensor([0.5]), turn_ids, 2, rewards))
    assert credit.rewards.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3 + 0.5])
    assert credit.unit_ids.tolist() == [[1, 2, 0, 3, 0]] and credit.shares is None


def test_itpo_is_the_turn_sum():
    turn_ids = torch.tensor([[1, 1, 0, 2, 0]])
    rewards = torch.tensor([[0.1, 0.2, 9.0, 0.3, 9.0]])
    credit = assign_credit("itpo", CreditInputs(torch.tensor([0.5]), turn_ids, 2, rewards))
    assert credit.rewards.flatten().tolist() == pytest.approx([0.3, 0.3])


@given(dialogues, seeds, st.sampled_from([0.1, 0.4, 3.0]))
def test_norm_itpo_equals_a_loop(rows, seed, temperature):
    inputs = inputs_of(rows, seed, temperature=temperature)
    credit = assign_credit("norm_itpo", inputs)
    sums = unit_sums(inputs.token_rewards, inputs.turn_ids, inputs.n_turns).tolist()
    for i, row in enumerate(rows):
        weights = [math.exp(s / temperature) for s in sums[i][: len(row)]]
        for k, weight in enumerate(weights):
            expected = weight / sum(weights) * inputs.outcomes[i].item()
            assert credit.rewards[i, k].item() == pytest.approx(expected, abs=1e-9)


def test_norm_itpo_does_not_see_a_shift_of_all_turns():
    """Only differences between turns count: the PRM's level cannot drift into the reward."""
    inputs = inputs_of([[2, 2, 2]])
    shifted = dataclasses.replace(inputs, token_rewards=inputs.token_rewards + 7.0 * (inputs.turn_ids > 0))
    assert torch.allclose(assign_credit("norm_itpo", inputs).rewards, assign_credit("norm_itpo", shifted).rewards)


def test_temperature_runs_from_the_best_turn_to_even_shares():
    sums, mask = torch.tensor([[0.1, 0.5, -0.3]]), torch.ones(1, 3, dtype=torch.bool)
    assert torch.allclose(softmax_shares(sums, mask, 1e-3), torch.tensor([[0.0, 1.0, 0.0]]))
    assert torch.allclose(softmax_shares(sums, mask, 1e3), torch.full((1, 3), 1 / 3), atol=1e-3)
    with pytest.raises(ItpoError, match="temperature"):
        softmax_shares(sums, mask, 0.0)


def test_softmax_survives_huge_rewards():
    shares = softmax_shares(torch.tensor([[1e6, -1e6, 1e6]]), torch.ones(1, 3, dtype=torch.bool), 0.01)
    assert torch.allclose(shares, torch.tensor([[0.5, 0.0, 0.5]]))


# The released code's softmax


def official(inputs: CreditInputs) -> torch.Tensor:
    return official_softmax_shares(inputs.token_rewards, inputs.turn_ids, inputs.mask, inputs.temperature)


def test_official_softmax_by_hand():
    turn_ids = torch.tensor([[1, 1, 0, 2], [1, 1, 1, 0]])
    rewards = torch.tensor([[0.2, 0.4, 0.0, -0.1], [-0.1, -0.1, -0.6, 0.0]], dtype=torch.float64)
    scale, mean_length = 0.8, 6 / 3  # largest |return-to-go| is row 2's -0.8; 6 tokens in 3 turns
    scores = [0.3 / scale * mean_length / 0.4, -0.1 / scale * mean_length / 0.4]
    expected = math.exp(scores[0]) / (math.exp(scores[0]) + math.exp(scores[1]))
    shares = official(CreditInputs(torch.ones(2), turn_ids, 2, rewards))
    assert shares[0, 0].item() == pytest.approx(expected, abs=1e-6)
    assert shares[1].tolist() == [1.0, 0.0]


def test_official_softmax_depends_on_the_rest_of_the_batch_and_sum_does_not():
    alone, together = inputs_of([[3, 1, 4]]), inputs_of([[3, 1, 4], [4, 4, 4]])
    together = dataclasses.replace(together, token_rewards=together.token_rewards.clone())
    width = alone.turn_ids.shape[1]
    together.token_rewards[0] = 0.0
    together.token_rewards[0, :width] = alone.token_rewards[0]
    together.token_rewards[1] *= 20.0
    for softmax, same in (("sum", True), ("official", False)):
        first = assign_credit("norm_itpo", dataclasses.replace(alone, softmax=softmax)).shares[0]
        again = assign_credit("norm_itpo", dataclasses.replace(together, softmax=softmax)).shares[0]
        assert torch.allclose(first, again, atol=1e-9) == same


# Names


def test_unknown_names_list_the_choices():
    with pytest.raises(ItpoError, match=r"norm_itpo.*Did you mean 'norm_itpo'"):
        assign_credit("norm-itpo", inputs_of(ROWS))
    with pytest.raises(ItpoError, match="official, sum"):
        assign_credit("norm_itpo", inputs_of(ROWS, softmax="mean"))
    for name in CREDITS:
        with pytest.raises(ItpoError, match=name):
            assign_credit("nothing", inputs_of(ROWS))
