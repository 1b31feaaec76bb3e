"""The implicit PRM, the critic, and their state on disk."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import make_model, normal

from itpo_lib.companions import make_critic, make_prm
from itpo_lib.config import ITPOConfig
from itpo_lib.critic import Critic, clipped_error_sum
from itpo_lib.dialogue import collate
from itpo_lib.errors import ItpoError
from itpo_lib.logprobs import token_logprobs
from itpo_lib.prm import ImplicitPRM, prm_accuracy, prm_loss, token_rewards
from itpo_lib.sidecar import Sidecar

OPENING = {"role": "user", "content": "help me please ."}
GOOD = ["how many apples ?", "the answer is 12 plus 5 ."]
BAD = ["what a nice day .", "i like this story ."]


def messages(*said: str) -> list[dict]:
    reply = {"role": "user", "content": "it is 5 of them ."}
    return [OPENING, *(m for text in said for m in ({"role": "assistant", "content": text}, reply))][:-1]


@pytest.fixture
def batch(chat):
    """Two successful and two failed dialogues of unequal length."""
    dialogues = [chat.dialogue(messages(*said)) for said in (GOOD, BAD, GOOD[1:], BAD[:1])]
    return collate(dialogues, chat.pad_id)


OUTCOMES = torch.tensor([1.0, 0.0, 1.0, 0.0])
VALID = torch.ones(4, dtype=torch.bool)


def reference_logprobs(model, batch) -> torch.Tensor:
    with torch.no_grad():
        return token_logprobs(model, batch)


def scores(prm, batch, ref) -> torch.Tensor:
    return prm.rewards(batch, ref).sum(1)


# Losses by hand


def test_token_rewards_by_hand():
    prm, ref = torch.tensor([[-1.0, -3.0]]), torch.tensor([[-2.0, -2.0]])
    assert token_rewards(prm, ref, 0.5).tolist() == [[0.5, -0.5]]
    assert torch.allclose(token_rewards(prm, ref, 0.5, clip=0.2), torch.tensor([[0.2, -0.2]]))


def test_prm_loss_is_binary_cross_entropy_with_soft_labels():
    logits, labels = [0.3, -1.2, 2.0], [1.0, 0.0, 0.25]
    sigmoid = [1 / (1 + math.exp(-x)) for x in logits]
    losses = [-(r * math.log(p) + (1 - r) * math.log(1 - p)) for r, p in zip(labels, sigmoid, strict=True)]
    assert prm_loss(torch.tensor(logits), torch.tensor(labels)).item() == pytest.approx(sum(losses) / 3, abs=1e-6)


def test_prm_accuracy():
    assert prm_accuracy(torch.tensor([1.0, -1.0, 1.0, -1.0]), torch.tensor([1.0, 0.2, 0.0, 0.9])) == 0.5
    assert math.isnan(prm_accuracy(torch.zeros(0), torch.zeros(0)))


# The PRM


def test_scores_are_exactly_zero_before_any_update(model, batch):
    prm = ImplicitPRM.beside(model, beta=0.05, lr=1e-3)
    assert not prm.rewards(batch, reference_logprobs(model, batch)).any()


def test_update_loss_is_the_hand_computed_one(model, batch):
    """log-ratios that differ from 0, soft labels, one row left out."""
    prm = ImplicitPRM.beside(model, beta=0.05, lr=1e-4)
    ref = (reference_logprobs(model, batch) + 0.3 * normal(0, *batch.turn_ids.shape).float()) * batch.assistant_mask
    outcomes, valid = torch.tensor([1.0, 0.3, 0.0, 1.0]), torch.tensor([True, True, True, False])
    before = scores(prm, batch, ref)
    expected = prm_loss(before[:3], outcomes[:3]).item()
    loss, fresh = prm.update(batch, ref, outcomes, valid)
    assert loss == pytest.approx(expected, abs=1e-6)
    assert torch.allclose(fresh, before, atol=1e-5)  # as they were before the step, so that accuracy does not flatter


def test_update_raises_successes_and_lowers_failures(model, batch):
    prm, ref = ImplicitPRM.beside(model, beta=0.05, lr=1e-3), reference_logprobs(model, batch)
    losses = [prm.update(batch, ref, OUTCOMES, VALID)[0] for _ in range(5)]
    after = scores(prm, batch, ref)
    assert (after[OUTCOMES == 1] > 0).all() and (after[OUTCOMES == 0] < 0).all()
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6) and losses[-1] < losses[0]


def test_update_leaves_the_policy_alone(model, batch):
    before = {n: p.clone() for n, p in model.state_dict().items()}
    prm, ref = ImplicitPRM.beside(model, beta=0.05, lr=1e-2), reference_logprobs(model, batch)
    prm.update(batch, ref, OUTCOMES, VALID)
    assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_a_prm_of_a_frozen_policy_trains(frozen_model, batch):
    prm, ref = ImplicitPRM.beside(frozen_model, beta=0.05, lr=1e-3), reference_logprobs(frozen_model, batch)
    prm.update(batch, ref, OUTCOMES, VALID)
    assert scores(prm, batch, ref).any()


def weights(prm) -> list[torch.Tensor]:
    return [p.detach().clone() for p in prm.sidecar.parameters.values()]


def test_invalid_rows_have_no_weight(model, batch, chat):
    """Their outcome may be NaN: the others train as if they were alone."""
    ref = reference_logprobs(model, batch)
    with_failure = ImplicitPRM.beside(model, beta=0.05, lr=1e-3)
    alone = ImplicitPRM.beside(model, beta=0.05, lr=1e-3)
    valid, kept = torch.tensor([True, True, False, True]), torch.tensor([0, 1, 3])
    outcomes = torch.tensor([1.0, 0.0, float("nan"), 0.0])
    loss, _ = with_failure.update(batch, ref, outcomes, valid)
    expected, _ = alone.update(batch.rows(kept), ref[kept], outcomes[kept], valid[kept])
    assert loss == pytest.approx(expected, abs=1e-6)
    ratios = scores(with_failure, batch, ref), scores(alone, batch, ref)
    assert torch.allclose(*ratios, atol=1e-3) and torch.isfinite(ratios[0]).all()


def test_no_valid_row_changes_nothing(model, batch):
    prm, ref = ImplicitPRM.beside(model, beta=0.05, lr=1e-3), reference_logprobs(model, batch)
    before = weights(prm)
    loss, _ = prm.update(batch, ref, torch.full((4,), float("nan")), torch.zeros(4, dtype=torch.bool))
    assert loss == 0.0 and all(map(torch.equal, before, weights(prm)))


def test_user_tokens_contribute_nothing(model, batch, chat):
    """Garbage in the reference's user positions, or in the padding, moves neither scores nor weights."""
    ref = reference_logprobs(model, batch)
    assert not ref[batch.turn_ids == 0].any()
    prm = ImplicitPRM.beside(model, beta=0.05, lr=1e-3)
    prm.update(batch, ref, OUTCOMES, VALID)
    rewards = prm.rewards(batch, ref)
    assert rewards[batch.turn_ids > 0].any() and not rewards[batch.turn_ids == 0].any()
    total = torch.zeros(4)
    for i in range(4):  # one dialogue at a time, without padding, summed over assistant tokens in a loop
        row = batch.rows(slice(i, i + 1))
        with torch.no_grad():
            logprobs = prm.model(row.input_ids).logits[0].log_softmax(-1)
            base = model(row.input_ids).logits[0].log_softmax(-1)
        start = int(row.prompt_lengths[0])
        for t, (token, turn) in enumerate(zip(row.completion_ids[0].tolist(), row.turn_ids[0].tolist(), strict=True)):
            if turn > 0:
                total[i] += 0.05 * (logprobs[start + t - 1, token] - base[start + t - 1, token])
    assert torch.allclose(rewards.sum(1), total, atol=1e-5)


def test_micro_batches_change_neither_training_nor_rewards(model, batch):
    ref = reference_logprobs(model, batch)
    whole, parts = (ImplicitPRM.beside(model, beta=0.05, lr=1e-3, micro_batch=m) for m in (None, 1))
    losses = [prm.update(batch, ref, OUTCOMES, VALID)[0] for prm in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert torch.allclose(whole.rewards(batch, ref), parts.rewards(batch, ref), atol=1e-3)
    parts.model.load_state_dict(whole.model.state_dict())
    assert torch.allclose(whole.rewards(batch, ref), parts.rewards(batch, ref), atol=1e-5)


def test_mini_batches_and_epochs_are_steps(model, batch):
    prm = ImplicitPRM.beside(model, beta=0.05, lr=1e-3, mini_batch=2, epochs=3)
    _, fresh = prm.update(batch, reference_logprobs(model, batch), OUTCOMES, VALID)
    steps = {int(state["step"]) for state in prm.sidecar.optimizer.state.values()}
    assert steps == {6} and fresh.shape == (4,)


def test_beta_must_be_positive(model):
    with pytest.raises(ItpoError, match="prm_beta must be > 0"):
        ImplicitPRM.beside(model, beta=0.0, lr=1e-3)


# State on disk


@pytest.mark.parametrize("kind", ["prm", "critic"])
def test_a_loaded_sidecar_continues_bit_for_bit(tokenizer, batch, tmp_path, kind):
    policy = make_model(tokenizer)
    ref, targets = reference_logprobs(policy, batch), batch.assistant_mask * 0.5

    def fresh():
        return ImplicitPRM.beside(policy, beta=0.05, lr=1e-3) if kind == "prm" else Critic(policy, lr=1e-3)

    def step(worker):
        if kind == "prm":
            worker.update(batch, ref, OUTCOMES, VALID)
        else:
            worker.update(batch, worker.values(batch), targets, VALID)

    first = fresh()
    step(first)
    step(first)
    first.sidecar.save(tmp_path)
    saved = weights(first)
    step(first)
    second = fresh()
    second.sidecar.load(tmp_path)
    assert all(map(torch.equal, saved, weights(second)))
    step(second)
    assert all(map(torch.equal, weights(first), weights(second)))
    assert not all(map(torch.equal, saved, weights(second)))


def test_a_fresh_sidecar_saves_and_loads(model, tmp_path):
    prm = ImplicitPRM.beside(model, beta=0.05, lr=1e-3)
    before = {name: p.detach().clone() for name, p in prm.sidecar.parameters.items()}
    prm.sidecar.save(tmp_path)
    prm.sidecar.load(tmp_path)
    assert all(torch.equal(before[name], p) for name, p in prm.sidecar.parameters.items())


def test_bad_state_files_are_named(model, tmp_path):
    prm = ImplicitPRM.beside(model, beta=0.05, lr=1e-3)
    with pytest.raises(ItpoError, match=r"lacks prm\.safetensors"):
        prm.sidecar.load(tmp_path)
    prm.sidecar.save(tmp_path)
    file = tmp_path / "prm.safetensors"
    whole = file.read_bytes()
    for broken in (b"", b"rubbish", whole[: len(whole) // 2]):
        file.write_bytes(broken)
        with pytest.raises(ItpoError, match=r"corrupt checkpoint.*prm\.safetensors"):
            prm.sidecar.load(tmp_path)


def test_state_of_another_model_is_refused(model, tokenizer, tmp_path):
    from itpo_lib.models import tiny_model

    ImplicitPRM.beside(model, beta=0.05, lr=1e-3).sidecar.save(tmp_path)
    for other in (tiny_model(tokenizer, hidden=64, heads=2), tiny_model(tokenizer, hidden=32, layers=3, heads=2)):
        with pytest.raises(ItpoError, match=r"prm\.safetensors"):
            ImplicitPRM.beside(other, beta=0.05, lr=1e-3).sidecar.load(tmp_path)


def test_sidecars_refuse_what_cannot_train():
    with pytest.raises(ItpoError, match="no parameters"):
        Sidecar("prm", [], 1e-3, 1.0)
    weight = torch.nn.Parameter(torch.ones(2))
    sidecar = Sidecar("prm", [("w", weight)], 1e-3, 1.0)
    with pytest.raises(ItpoError, match=r"prm's gradient is not finite.*lower its lr"):
        sidecar.step((weight * float("nan")).sum())
    assert weight.tolist() == [1.0, 1.0]


def test_gradients_are_clipped_by_norm():
    weight = torch.nn.Parameter(torch.zeros(2))
    sidecar = Sidecar("prm", [("w", weight)], 1e-3, max_grad_norm=1.0)
    assert sidecar.step((weight * torch.tensor([30.0, 40.0])).sum()) == pytest.approx(50.0)
    assert weight.grad.norm().item() == pytest.approx(1.0, abs=1e-4)


# The critic


def test_values_start_at_zero_and_stay_on_assistant_tokens(model, batch):
    critic = Critic(model, lr=1e-3)
    assert not critic.values(batch).any()
    critic.update(batch, torch.zeros(batch.turn_ids.shape), batch.assistant_mask * 0.5, VALID)
    values = critic.values(batch)
    assert values[batch.assistant_mask].all() and not values[~batch.assistant_mask].any()


def test_the_critic_learns_its_targets(model, batch):
    before = {n: p.clone() for n, p in model.state_dict().items()}
    critic = Critic(model, lr=3e-3, clip=10.0, epochs=20)
    targets = OUTCOMES[:, None] * batch.assistant_mask
    values, mask = critic.values(batch), batch.assistant_mask
    first = clipped_error_sum(values, values, targets, mask, 10.0).item() / mask.sum().item()
    last = critic.update(batch, critic.values(batch), targets, VALID)
    assert last < 0.2 * first
    assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())


def test_the_critic_ignores_invalid_rows(model, batch):
    targets = OUTCOMES[:, None] * batch.assistant_mask
    valid, garbage = torch.tensor([True, True, False, True]), targets.clone()
    garbage[2] = 1e6
    critics = [Critic(model, lr=1e-3), Critic(model, lr=1e-3)]
    losses = [c.update(batch, c.values(batch), t, valid) for c, t in zip(critics, (targets, garbage), strict=True)]
    assert losses[0] == losses[1]
    assert torch.equal(critics[0].values(batch), critics[1].values(batch))


def test_clipped_errors_by_hand():
    values, old = torch.tensor([[1.0, 0.1, 5.0]]), torch.tensor([[0.0, 0.0, 0.0]])
    targets, mask = torch.tensor([[2.0, 1.0, 9.0]]), torch.tensor([[True, True, False]])
    # token 1: clipped to 0.2, (0.2 - 2)² = 3.24 beats (1 - 2)² = 1; token 2: inside the clip, (0.1 - 1)² = 0.81
    expected = 0.5 * (3.24 + 0.81)
    assert clipped_error_sum(values, old, targets, mask, 0.2).item() == pytest.approx(expected)
    # moving away from the target is never cheaper for being clipped: (-1 - 2)² = 9, not (-0.2 - 2)² = 4.84
    away = clipped_error_sum(-values, old, targets, torch.tensor([[True, False, False]]), 0.2)
    assert away.item() == pytest.approx(0.5 * 9.0)
    assert clipped_error_sum(values, old, targets, torch.zeros(1, 3, dtype=torch.bool), 0.2).item() == 0.0


def test_settings_reach_the_prm_and_the_critic(tokenizer, tmp_path):
    args = ITPOConfig(
        output_dir=str(tmp_path), use_cpu=True, prm_beta=0.03, prm_learning_rate=0.02, prm_max_grad_norm=3.0,
        prm_mini_batch_size=5, prm_epochs=4, prm_clip=0.7, prm_balanced=True, micro_batch_size=6,
        critic_learning_rate=0.04, critic_clip=0.3, critic_epochs=7,
    )  # fmt: skip
    policy = make_model(tokenizer)
    prm, critic = make_prm(policy, args), make_critic(policy, args, "value", adapters=True)
    assert (prm.beta, prm.mini_batch, prm.epochs, prm.clip, prm.micro_batch, prm.balanced) == (0.03, 5, 4, 0.7, 6, True)
    assert (prm.sidecar.max_grad_norm, prm.sidecar.optimizer.param_groups[0]["lr"]) == (3.0, 0.02)
    assert (critic.clip, critic.epochs, critic.micro_batch, critic.sidecar.name) == (0.3, 7, 6, "value")
    assert critic.sidecar.optimizer.param_groups[0]["lr"] == 0.04
    assert make_critic(policy, args, "critic", adapters=False).micro_batch is None
