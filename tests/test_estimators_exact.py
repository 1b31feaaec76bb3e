"""The bias of every estimator as an exact number: expectations over all groups of an enumerable world."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from itpo_lib.advantages import BASELINES, rloo
from itpo_lib.credit import Credit, CreditInputs, assign_credit, reverse_cumsum
from itpo_lib.enumerable import ANSWER, N_ACTIONS, World, bias, expected_gradient, named_credit
from itpo_lib.errors import ItpoError

WORLD = World(max_turns=3)
ALL = WORLD.dialogues()
SEEDS = range(3)


def random_table(seed: int, *last: int) -> torch.Tensor:
    """(S, A, ...) normal numbers; seed 0 gives zeros, so that a uniform policy is among the cases."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(WORLD.n_states, N_ACTIONS, *last, generator=generator, dtype=torch.float64) * min(seed, 1)


def log_ratios(seed: int) -> torch.Tensor:
    """A fixed PRM's token log-ratios, (S, A, longest utterance)."""
    return 0.3 * random_table(seed + 100, max(WORLD.lengths))


def table_credit(dialogues, table: torch.Tensor) -> Credit:
    """Credit with turn rewards r(s, a): the case in which return-to-go is the whole truth."""
    rewards, mask = dialogues.turn_rewards(table), dialogues.mask
    return Credit(rewards, mask, mask.long().cumsum(1) * mask)


def gradient_without_baseline(logits: torch.Tensor, credit: Credit, dialogues=ALL) -> torch.Tensor:
    """E[Σ_k G_k ∇log π_k], (S, A), written without anything from the library's estimators."""
    returns = torch.stack([credit.rewards[:, k:].sum(1) for k in range(credit.rewards.shape[1])], 1) * credit.mask
    weights = dialogues.probabilities(logits)[:, None] * returns
    return (weights[..., None, None] * dialogues.scores(logits)).sum((0, 1))


# The world itself


def test_the_world_lists_every_dialogue_once():
    """1 answer at turn 1; 4 at turn 2 (two questions, told or not); 12 at turn 3, and 24 that never answer."""
    assert [int((ALL.n_turns == k).sum()) for k in (1, 2, 3)] == [1, 4, 36]
    assert int((ALL.outcomes == 1.0).sum()) == 2 + 8  # the fact is known: 2 of the 4, 8 of the 12
    assert int((ALL.outcomes == 0.0).sum()) == 24


@pytest.mark.parametrize("seed", SEEDS)
def test_probabilities_sum_to_one(seed):
    assert ALL.probabilities(random_table(seed)).sum().item() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_score_function_equals_autograd(seed):
    logits = random_table(seed).requires_grad_(True)
    scores = ALL.scores(logits.detach())
    for n in range(0, 41, 8):
        for k in range(int(ALL.n_turns[n])):
            expected = torch.autograd.grad(ALL.turn_logprobs(logits)[n, k], logits)[0]
            assert torch.allclose(scores[n, k], expected, atol=1e-12)
    assert not scores[~ALL.mask].any()


@pytest.mark.parametrize("seed", SEEDS)
def test_policy_gradient_theorem(seed):
    """Autograd of the sum, the score function with R, and Σ_s d(s) Σ_a π(a|s) Q(s,a) ∇log π agree."""
    logits = random_table(seed)
    exact = ALL.gradient(logits, ALL.outcomes)
    weights = ALL.probabilities(logits) * ALL.outcomes
    assert torch.allclose((weights[:, None, None, None] * ALL.scores(logits)).sum((0, 1)), exact, atol=1e-12)
    q = ALL.action_values(logits, ALL.outcomes)
    weights = ALL.probabilities(logits)[:, None] * q[ALL.states, ALL.actions]
    assert torch.allclose(torch.einsum("nk,nksa->sa", weights, ALL.scores(logits)), exact, atol=1e-12)


def test_value_of_a_policy_known_by_hand():
    """Ask well once, then answer: E[R] = 0.8·1 + 0.2·0.25."""
    logits = torch.full((WORLD.n_states, N_ACTIONS), -60.0, dtype=torch.float64)
    logits[WORLD.state(0, False), 0] = 60.0
    logits[2:, ANSWER] = 60.0
    assert ALL.expectation(logits, ALL.outcomes).item() == pytest.approx(0.8 + 0.2 * 0.25, abs=1e-9)
    assert ALL.expectation(logits, ALL.n_turns).item() == pytest.approx(2.0, abs=1e-9)
    assert ALL.action_values(logits, ALL.outcomes)[WORLD.state(0, False), ANSWER].item() == pytest.approx(0.25)


def test_too_many_groups_are_refused():
    with pytest.raises(ItpoError, match="too many"):
        expected_gradient(ALL, random_table(0), named_credit(ALL, "trajectory"), group_size=6)


# Unbiased where they should be


@pytest.mark.parametrize("group_size", [2, 3])
@pytest.mark.parametrize("seed", SEEDS)
def test_turn_baseline_is_unbiased_for_state_action_rewards(seed, group_size):
    """Dialogues of 1 to 3 turns: where no other sample reaches turn k the fallback is taken, and must not bias."""
    logits, table = random_table(seed), random_table(seed + 50)
    exact = ALL.gradient(logits, ALL.turn_rewards(table).sum(1))
    found = expected_gradient(ALL, logits, table_credit(ALL, table), group_size, "turn")
    assert torch.allclose(found, exact, atol=1e-10)


def test_turn_baseline_is_unbiased_in_a_world_of_four_turns():
    world = World(max_turns=4)
    dialogues, generator = world.dialogues(), torch.Generator().manual_seed(5)
    logits, table = torch.randn(2, world.n_states, N_ACTIONS, generator=generator, dtype=torch.float64)
    exact = dialogues.gradient(logits, dialogues.turn_rewards(table).sum(1))
    found = expected_gradient(dialogues, logits, table_credit(dialogues, table), 2, "turn")
    assert torch.allclose(found, exact, atol=1e-10)


@pytest.mark.parametrize("seed", SEEDS)
def test_itpo_rewards_are_state_action_rewards(seed):
    """ITPO with a fixed PRM optimises E[Σ_k R_k^imp], without bias under `turn`."""
    logits, credit = random_table(seed), named_credit(ALL, "itpo", log_ratios(seed))
    exact = ALL.gradient(logits, credit.rewards.sum(1))
    assert torch.allclose(expected_gradient(ALL, logits, credit, 2, "turn"), exact, atol=1e-10)


@pytest.mark.parametrize("group_size", [2, 3])
@pytest.mark.parametrize("baseline", ["turn", "outcome"])
@pytest.mark.parametrize("seed", SEEDS)
def test_trajectory_share_is_unbiased(seed, baseline, group_size):
    logits = random_table(seed)
    found = expected_gradient(ALL, logits, named_credit(ALL, "trajectory"), group_size, baseline)
    assert torch.allclose(found, ALL.gradient(logits, ALL.outcomes), atol=1e-10)


# Biased, by how much, and why


@pytest.mark.parametrize("credit_name", ["table", "trajectory", "norm_itpo"])
@pytest.mark.parametrize("seed", SEEDS)
def test_official_baseline_charges_a_price_per_turn(seed, credit_name):
    """In closed form: E[ĝ_official] = E[ĝ_none] - b̄·∇E[K], with b̄ = E[mean turn reward] and K the turn count."""
    logits, table = random_table(seed), random_table(seed + 50)
    ratios = log_ratios(seed)
    credit = table_credit(ALL, table) if credit_name == "table" else named_credit(ALL, credit_name, ratios)
    price = ALL.expectation(logits, (credit.rewards * credit.mask).sum(1) / ALL.n_turns)
    expected = gradient_without_baseline(logits, credit) - price * ALL.gradient(logits, ALL.n_turns)
    assert torch.allclose(expected_gradient(ALL, logits, credit, 2, "official"), expected, atol=1e-10)


def test_official_baseline_is_biased():
    print("\nofficial baseline, bias |ĝ - g| / |g| and cosine:")
    sizes = {}
    for seed in SEEDS:
        logits, table = random_table(seed), random_table(seed + 50)
        cases = {
            "r(s, a)": (table_credit(ALL, table), ALL.turn_rewards(table).sum(1)),
            "trajectory share": (named_credit(ALL, "trajectory"), ALL.outcomes),
        }
        for name, (credit, objective) in cases.items():
            size, cosine = bias(expected_gradient(ALL, logits, credit, 2, "official"), ALL.gradient(logits, objective))
            sizes[name, seed] = size
            print(f"  {name:18} policy {seed}: {size:6.1%}  cos {cosine:.3f}")
    assert max(sizes["r(s, a)", seed] for seed in SEEDS) > 0.5
    assert all(sizes["trajectory share", seed] > 0.2 for seed in SEEDS)


@pytest.mark.parametrize("seed", SEEDS)
def test_official_baseline_is_unbiased_when_all_dialogues_are_equally_long(seed):
    """The price per turn is harmless where nobody can choose the number of turns."""
    logits, table = random_table(seed), random_table(seed + 50)
    logits[:4, ANSWER] = -80.0  # nobody answers before the last turn
    exact = ALL.gradient(logits, ALL.turn_rewards(table).sum(1))
    found = expected_gradient(ALL, logits, table_credit(ALL, table), 2, "official")
    assert torch.allclose(found, exact, atol=1e-10)


def test_norm_itpo_biases_table():
    """Shares look back on the whole dialogue, so no baseline makes Norm-ITPO an exact gradient of E[R]."""
    print("\nNorm-ITPO, expected gradient against ∇E[R]; turns: cosine between the bias and ∇E[number of turns]")
    print(f"  {'policy':8}{'baseline':18}{'|ĝ-g|/|g|':>10}{'cos(ĝ,g)':>10}{'turns':>8}")
    for seed in SEEDS:
        logits = random_table(seed)
        exact, longer = ALL.gradient(logits, ALL.outcomes), ALL.gradient(logits, ALL.n_turns)
        for baseline in (None, *BASELINES):
            found = expected_gradient(ALL, logits, named_credit(ALL, "norm_itpo", log_ratios(seed)), 2, baseline)
            size, cosine = bias(found, exact)
            pull = bias(found - exact, longer)[1]
            print(f"  {seed:<8}{baseline or 'none':18}{size:10.3f}{cosine:10.3f}{pull:8.2f}")
            assert torch.isfinite(found).all()
            assert size > 0.05  # all of them are biased; `official` can even point away from ∇E[R]


@pytest.mark.parametrize("group_size", [2, 3])
@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_provable_for_norm_itpo(seed, group_size):
    logits, credit = random_table(seed), named_credit(ALL, "norm_itpo", log_ratios(seed))
    mean = ALL.expectation(logits, ALL.outcomes)
    exact, none = ALL.gradient(logits, ALL.outcomes), gradient_without_baseline(logits, credit)
    turn = expected_gradient(ALL, logits, credit, group_size, "turn")
    outcome = expected_gradient(ALL, logits, credit, group_size, "outcome")
    weighted = expected_gradient(ALL, logits, credit, group_size, "credit_weighted")
    # (1) The turn baseline adds no bias of its own to that of the shares.
    assert torch.allclose(turn, none, atol=1e-10)
    # (2) The whole outcome is still to come at turn 1, so its row is exact.
    assert torch.allclose(turn[0], exact[0], atol=1e-10)
    assert torch.allclose(outcome[0], exact[0], atol=1e-10)
    # (3) `outcome` is REINFORCE on the rewards w_k·(R - E[R]); `credit_weighted` on K·w_k·(R - E[R]) without returns.
    assert credit.shares is not None
    centred = dataclasses.replace(credit, rewards=credit.shares * (ALL.outcomes - mean)[:, None])
    assert torch.allclose(outcome, gradient_without_baseline(logits, centred), atol=1e-10)
    per_turn = centred.rewards * ALL.n_turns[:, None] * ALL.probabilities(logits)[:, None]
    assert torch.allclose(weighted, torch.einsum("nk,nksa->sa", per_turn, ALL.scores(logits)), atol=1e-10)


def test_expected_gradient_without_baseline_is_reinforce():
    logits, credit = random_table(1), named_credit(ALL, "norm_itpo", log_ratios(1))
    found = expected_gradient(ALL, logits, credit, baseline=None)
    assert torch.allclose(found, gradient_without_baseline(logits, credit), atol=1e-12)


def test_uniform_credit_is_biased_too():
    """Any split of R is: it is the split by the whole dialogue, not the PRM, that costs exactness."""
    logits = random_table(1)
    size, _ = bias(
        expected_gradient(ALL, logits, named_credit(ALL, "uniform"), 2, "turn"), ALL.gradient(logits, ALL.outcomes)
    )
    assert size > 0.05


# One example by hand


def four_equal_dialogues() -> Credit:
    """Outcome 1 split evenly over 1, 2, 3 and 4 turns."""
    lengths = torch.tensor([1, 2, 3, 4])
    mask = torch.arange(4) < lengths[:, None]
    shares = mask.double() / lengths[:, None]
    return Credit(shares, mask, mask.long().cumsum(1) * mask, shares)


def test_official_baseline_punishes_asking():
    """Four dialogues that all succeed: the longer one is pushed down, though nothing distinguishes their outcomes."""
    first = rloo(four_equal_dialogues(), torch.ones(4, dtype=torch.float64), 4, "official")[:, 0]
    assert first.tolist() == pytest.approx([0.64, -0.06, -0.75, -1.44], abs=0.006)


@pytest.mark.parametrize("baseline", ["turn", "outcome", "credit_weighted", "signed"])
def test_other_baselines_do_not_at_the_first_turn(baseline):
    advantages = rloo(four_equal_dialogues(), torch.ones(4, dtype=torch.float64), 4, baseline)
    assert torch.allclose(advantages[:, 0], torch.zeros(4, dtype=torch.float64), atol=1e-12)


def test_turn_baseline_falls_back_to_the_whole_return_of_the_others():
    """Only the longest dialogue reaches turn 4: its G_4 = 1/4 is compared with the others' return 1."""
    advantages = rloo(four_equal_dialogues(), torch.ones(4), 4, "turn")
    assert advantages[3, 3].item() == pytest.approx(0.25 - 1.0)
    assert advantages[2, 2].item() == pytest.approx(1 / 3 - 1 / 2)  # turn 3: dialogue 4 has 2/4 still to come


def test_library_returns_equal_the_plain_sum():
    values = torch.randn(3, 5, dtype=torch.float64)
    expected = torch.stack([values[:, k:].sum(1) for k in range(5)], 1)
    assert torch.allclose(reverse_cumsum(values), expected)


def test_enumerated_credit_is_the_librarys():
    """`named_credit` shapes the world's tokens and lets `assign_credit` decide."""
    ratios = log_ratios(2)
    turn_ids, rewards = ALL.tokens(ratios)
    direct = assign_credit("norm_itpo", CreditInputs(ALL.outcomes, turn_ids, 3, rewards, 0.4))
    assert torch.equal(direct.rewards, named_credit(ALL, "norm_itpo", ratios).rewards)
    assert torch.equal(direct.mask, ALL.mask)
    n = 20
    k = int(ALL.n_turns[n]) - 1
    length = WORLD.lengths[int(ALL.actions[n, k])]
    assert int((turn_ids[n] == k + 1).sum()) == length
    total = ratios[ALL.states[n, k], ALL.actions[n, k], :length].sum()
    assert rewards[n][turn_ids[n] == k + 1].sum().item() == pytest.approx(total.item())
