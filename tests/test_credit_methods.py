"""Value model, judge and oracle as credit: their own rules, and all 8 x 3 cells through `ITPOTrainer`."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import layout, make_model, normal

from itpo_lib.advantages import ESTIMATORS
from itpo_lib.config import ITPOConfig
from itpo_lib.credit import CAN_SHARE, CREDITS, GIVES_SHARES, NEEDS_PRM, CreditInputs, assign_credit, unit_firsts
from itpo_lib.errors import DialogueFailed, ItpoError
from itpo_lib.learning import Experience, LearningRule, token_advantages
from itpo_lib.run import quiet_libraries
from itpo_lib.tasks.math_tiny import TinyMathTutoring
from itpo_lib.trainer import ITPOTrainer
from itpo_lib.true_credit import true_values

ROWS = [[2, 1], [3], [], [1, 1, 1]]
OUTCOMES = torch.tensor([0.8, 0.3, 0.9, 1.0])


class EasyMath(TinyMathTutoring):
    """One of two answers is right even for an untrained model, so that outcomes and advantages vary."""

    def outcome(self, goal, messages):
        return float(sum(map(len, (m["content"] for m in messages if m["role"] == "assistant"))) % 2)


def trainer_for(tmp_path, tokenizer, chat, judge=None, task=None, **options) -> ITPOTrainer:
    small = {
        "use_cpu": True, "save_strategy": "no", "disable_tqdm": True, "max_steps": 2, "num_generations": 2,
        "per_device_train_batch_size": 4, "learning_rate": 1e-3, "oracle_samples": 2,
    }  # fmt: skip
    args = ITPOConfig(output_dir=str(tmp_path), **{**small, **options})
    quiet_libraries()
    return ITPOTrainer(make_model(tokenizer), args, task or EasyMath(), chat, judge=judge)


ALWAYS = {
    "success", "outcome", "score", "turns", "words", "outcome_std", "entropy", "kl_to_reference", "sampler_mismatch",
    "failed", "time/rollout", "step_time",
}  # fmt: skip
LOGS = {"value": "value/loss", "judge": "judge/failed", "oracle": "time/oracle"}


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("credit", CREDITS)
def test_every_cell_trains(tmp_path, tokenizer, chat, credit, estimator):
    trainer = trainer_for(tmp_path, tokenizer, chat, credit=credit, estimator=estimator)
    before = [p.clone() for p in trainer.model.parameters()]
    trainer.train()
    assert all(p.isfinite().all() for p in trainer.model.parameters())
    assert any((a - b).abs().max() > 0 for a, b in zip(before, trainer.model.parameters(), strict=True))
    logged = {key for row in trainer.state.log_history for key in row}
    assert logged >= ALWAYS, ALWAYS - logged
    prm = credit in NEEDS_PRM
    present = {"prm/loss": prm, "prm/accuracy": prm, "critic/loss": estimator == "ppo"}
    present |= {name: credit == owner for owner, name in LOGS.items()}
    assert {name: name in logged for name in present} == present


# Their own rules


def inputs(rows=ROWS, **evidence) -> CreditInputs:
    ids = layout(rows)
    return CreditInputs(OUTCOMES[: len(rows)], ids, 3, torch.zeros(ids.shape), **evidence)


@pytest.mark.parametrize("name", ["value", "oracle"])
def test_value_differences_by_hand(name):
    values = torch.tensor([[0.5, 0.6, 7.0], [0.4, 7.0, 7.0], [7.0, 7.0, 7.0], [0.1, 0.9, 0.2]])
    credit = assign_credit(name, inputs(turn_values=values))
    expected = torch.tensor([[0.1, 0.2, 0.0], [-0.1, 0.0, 0.0], [0.0, 0.0, 0.0], [0.8, -0.7, 0.8]])
    assert torch.allclose(credit.rewards, expected, atol=1e-6)
    has_turns = torch.tensor([True, True, False, True])
    assert torch.allclose(credit.rewards.sum(1), (OUTCOMES - values[:, 0]) * has_turns, atol=1e-6)
    assert name not in GIVES_SHARES and name in CAN_SHARE
    for shares, sign in ((credit.shares, 1), (credit.blame, -1)):
        powers = [[math.exp(sign * gain / 0.4) for gain in row] for row in ([0.1, 0.2], [-0.1], [], [0.8, -0.7, 0.8])]
        by_hand = [[power / sum(row) for power in row] + [0.0] * (3 - len(row)) for row in powers]
        assert torch.allclose(shares, torch.tensor(by_hand))


def test_judged_shares_by_hand():
    weights = torch.tensor([[1.0, 3.0, 9.0], [0.2, 9.0, 9.0], [9.0, 9.0, 9.0], [0.0, 2.0, 0.0]])
    credit = assign_credit("judge", inputs(turn_weights=weights))
    expected = torch.tensor([[0.25, 0.75, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert torch.allclose(credit.shares, expected) and torch.allclose(credit.rewards, expected * OUTCOMES[:, None])


@pytest.mark.parametrize(
    "name, lacks", [("value", "turn_values"), ("oracle", "turn_values"), ("judge", "turn_weights")]
)
def test_missing_evidence_is_named(name, lacks):
    with pytest.raises(ItpoError, match=f"'{name}'.*{lacks}"):
        assign_credit(name, inputs())


def test_unit_firsts_equals_a_loop():
    """Turns that touch, that have one token, and none."""
    ids = torch.tensor([[1, 1, 0, 2, 2, 3], [1, 2, 3, 0, 0, 0], [0, 0, 0, 0, 0, 0], [0, 0, 1, 1, 0, 2]])
    values = normal(0, *ids.shape)
    found = unit_firsts(values, ids, 3)
    for i, row in enumerate(ids.tolist()):
        for k in (1, 2, 3):
            assert found[i, k - 1] == (values[i, row.index(k)] if k in row else 0.0)


def learning_example(**evidence) -> Experience:
    """Two dialogues of 2 and 3 turns, one token each."""
    ids = torch.tensor([[1, 2, 0], [1, 2, 3]])
    return Experience(torch.tensor([1.0, 0.0]), torch.ones(2, dtype=torch.bool), ids, torch.zeros(2, 3), **evidence)


def test_true_credit_is_not_summed_again():
    """RLOO: A*_k minus the other's A*_k; GRPO: A*_k centred over the group. Return-to-go would give R - V_{k-1}."""
    exp = learning_example(turn_values=torch.tensor([[0.5, 0.8, 0.0], [0.5, 0.4, 0.2]]))
    credit = torch.tensor([[0.3, 0.2, 0.0], [-0.1, -0.2, -0.2]])
    rloo, _ = token_advantages(LearningRule("oracle", "rloo", "turn", whiten_advantages=False), exp, 2, 3)
    assert torch.allclose(rloo, torch.tensor([[0.4, 0.4, 0.0], [-0.4, -0.4, -0.5]]), atol=1e-6)  # turn 3: no other
    centred = LearningRule("oracle", "grpo", "turn", grpo_scale="none", whiten_advantages=False)
    grpo, _ = token_advantages(centred, exp, 2, 3)
    assert torch.allclose(grpo, (credit - credit.sum() / 5) * (exp.turn_ids > 0), atol=1e-6)


@pytest.mark.parametrize("credit", ["oracle", "value"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_values_can_share_the_outcome_out(credit, estimator):
    """K·w_k times the edge over the others, with w the softmax of V_k - V_{k-1}: Norm-ITPO on other evidence."""
    evidence = {"turn_values": torch.tensor([[0.5, 0.8, 0.0], [0.5, 0.4, 0.2]]), "values": torch.zeros(2, 3)}
    exp = learning_example(**evidence)
    rule = LearningRule(
        credit, estimator, "credit_weighted", grpo_scale="none", gae_lambda=1.0, whiten_advantages=False
    )
    found, _ = token_advantages(rule, exp, 2, 3)
    edges = {"rloo": [1.0, -1.0], "grpo": [0.5, -0.5], "ppo": [1.0, 0.0]}[estimator]
    for row, edge, gains in zip(found, edges, ([0.3, 0.2], [-0.1, -0.2, -0.2]), strict=True):
        weights = torch.tensor(gains).div(0.4).softmax(0) * len(gains)
        assert torch.allclose(row[: len(gains)], weights * edge)


def test_td_errors_of_a_value_model_are_summed_by_gae_over_turns():
    """A_k = Σ_{j>=k} (γλ)^{j-k} TD_j, minus the same of the other; λ = 0 leaves the TD errors, λ = 1 is R - V_{k-1}."""
    exp = learning_example(turn_values=torch.tensor([[0.5, 0.8, 0.0], [0.5, 0.4, 0.2]]))
    errors = [[0.3, 0.2], [-0.1, -0.2, -0.2]]
    for gamma, lam in ((1.0, 0.0), (1.0, 1.0), (0.9, 0.5)):
        rule = LearningRule("value", "rloo", "turn", gamma=gamma, gae_lambda=lam, whiten_advantages=False)
        found, _ = token_advantages(rule, exp, 2, 3)
        sums = [
            [sum((gamma * lam) ** (j - k) * row[j] for j in range(k, len(row))) for k in range(len(row))]
            for row in errors
        ]
        others = [*sums[0], sums[0][0]]  # nobody else has a turn 3: the other's whole return stands in
        assert found[0, :2].tolist() == pytest.approx([sums[0][k] - sums[1][k] for k in range(2)], abs=1e-6)
        assert found[1].tolist() == pytest.approx([sums[1][k] - others[k] for k in range(3)], abs=1e-6)


# What the trainer hands to them


class Steps:
    """Records the `Experience` of each batch, and the newest dialogues."""

    def __init__(self, monkeypatch, trainer):
        self.seen: list[Experience] = []

        def recording(rule, experience, *args, **kwargs):
            self.seen.append(experience)
            self.dialogues = trainer.dialogues
            return token_advantages(rule, experience, *args, **kwargs)

        monkeypatch.setattr("itpo_lib.trainer.token_advantages", recording)


def test_the_oracle_measures_the_policy_at_hand(monkeypatch, tmp_path, tokenizer, chat):
    trainer = trainer_for(tmp_path, tokenizer, chat, credit="oracle", num_iterations=1, learning_rate=0.0)
    steps = Steps(monkeypatch, trainer)
    trainer.train()
    seed = trainer.args.seed * 1_000_003 + 1  # the second batch is played at step 1
    truth = true_values(trainer.model, chat, trainer.task, steps.dialogues, 2, seed=seed)
    assert len(steps.seen) == 2 and truth.values[:, :-1].any()
    assert torch.equal(steps.seen[1].turn_values, truth.values[:, :-1].float())


def test_the_value_model_is_asked_before_it_learns(monkeypatch, tmp_path, tokenizer, chat):
    """Its values at the first token of each turn; it starts at 0 and is trained on outcomes, apart from PPO's critic."""
    trainer = trainer_for(tmp_path, tokenizer, chat, credit="value", estimator="ppo")
    assert trainer.value_model is not trainer.critic
    steps, given, targets, inner = Steps(monkeypatch, trainer), [], [], trainer.value_model.values
    update = trainer.value_model.update

    def values(batch):
        given.append((inner(batch), batch.turn_ids))
        return given[-1][0]

    def updating(batch, old, wanted, valid):
        targets.append((wanted, batch.assistant_mask))
        return update(batch, old, wanted, valid)

    monkeypatch.setattr(trainer.value_model, "values", values)
    monkeypatch.setattr(trainer.value_model, "update", updating)
    trainer.train()
    assert not steps.seen[0].turn_values.any() and steps.seen[1].turn_values.any()
    for experience, (token_values, ids), (wanted, mask) in zip(steps.seen, given, targets, strict=True):
        assert torch.equal(experience.turn_values, unit_firsts(token_values, ids, trainer.task.limits.max_turns))
        assert torch.equal(wanted, experience.outcomes[:, None] * mask)
    assert {s.name for s in trainer._sidecars()} == {"critic", "value"}


class Position:
    """A judge who weighs turn k by k, and gives up on dialogues that start with one word."""

    asked = 0

    def turn_weights(self, goal, messages):
        self.asked += 1
        if self.asked % 4 == 0:
            raise DialogueFailed("no verdict")
        return [1.0 + k for k in range(sum(m["role"] == "assistant" for m in messages))]


def test_the_judge_weighs_and_where_it_fails_nothing_is_learned(monkeypatch, tmp_path, tokenizer, chat):
    trainer = trainer_for(tmp_path, tokenizer, chat, judge=Position(), credit="judge")
    steps = Steps(monkeypatch, trainer)
    trainer.train()
    for experience in steps.seen:
        assert experience.valid.tolist() == [True, True, True, False]
        turns = experience.turn_ids.amax(1)
        for row in range(3):
            n = int(turns[row])
            assert experience.turn_weights[row].tolist() == [
                *range(1, n + 1),
                *[0] * (trainer.task.limits.max_turns - n),
            ]
    assert [row["judge/failed"] for row in trainer.state.log_history if "judge/failed" in row] == [0.25, 0.25]


class Server(Position):
    """A judge that has its calls under way at once."""

    def __init__(self):
        self.begun, self.begun_at_first_fetch = 0, None

    def start_turn_weights(self, goal, messages):
        self.begun += 1

        def fetch():
            self.begun_at_first_fetch = self.begun_at_first_fetch or self.begun
            return [1.0] * sum(m["role"] == "assistant" for m in messages)

        return fetch


def test_a_judge_that_waits_for_a_server_is_asked_all_at_once(tmp_path, tokenizer, chat):
    judge = Server()
    trainer_for(tmp_path, tokenizer, chat, judge=judge, credit="judge").train()
    assert judge.begun_at_first_fetch == 4 and judge.begun == 8


@pytest.mark.parametrize("weights", [[], [1.0] * 9, [-1.0, 2.0, 1.0], [0.0], [float("nan")], [float("inf")]])
def test_weights_that_make_no_sense_are_refused(tmp_path, tokenizer, chat, weights):
    class Odd:
        def turn_weights(self, goal, messages):
            turns = sum(m["role"] == "assistant" for m in messages)
            return weights * turns if len(weights) == 1 else weights

    with pytest.raises(
        ItpoError, match=r"the judge weighs a dialogue of \d turns as .* one finite number >= 0 per turn"
    ):
        trainer_for(tmp_path, tokenizer, chat, judge=Odd(), credit="judge").train()


def test_the_task_is_the_judge_where_none_is_given(monkeypatch, tmp_path, tokenizer, chat):
    trainer = trainer_for(tmp_path, tokenizer, chat, credit="judge")
    steps = Steps(monkeypatch, trainer)
    trainer.train()
    for dialogue, weights in zip(steps.dialogues, steps.seen[-1].turn_weights.tolist(), strict=True):
        goal = trainer.task.goal(dialogue.goal_index)
        assert weights[: dialogue.n_turns] == trainer.task.turn_weights(goal, dialogue.messages)


def test_a_value_model_resumes(tmp_path, tokenizer, chat):
    """One step, saved, and one more equals two steps."""
    options = {"credit": "value", "save_strategy": "steps", "save_steps": 1}
    whole = trainer_for(tmp_path / "a", tokenizer, chat, **options)
    whole.train()
    assert (tmp_path / "a" / "checkpoint-1" / "value.safetensors").exists()
    resumed = trainer_for(tmp_path / "a", tokenizer, chat, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-1"))
    for part in ("model", "value_model"):
        one, other = (getattr(t, part) for t in (whole, resumed))
        one, other = (getattr(m, "model", m) if part == "value_model" else m for m in (one, other))
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    "options, says",
    [
        ({"oracle_samples": 1}, "oracle_samples must be >= 2"),
        ({"credit": "oracle", "baseline": "outcome"}, "'oracle' takes .*signed; got 'outcome', which needs shares"),
        ({"credit": "itpo", "baseline": "signed"}, "'itpo' takes .*official; got 'signed', which needs shares"),
    ],
)
def test_bad_settings_are_refused(tmp_path, options, says):
    with pytest.raises(ItpoError, match=says):
        ITPOConfig(output_dir=str(tmp_path), use_cpu=True, **options)
