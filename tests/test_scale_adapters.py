"""One base, four roles: the critic as an adapter, gradient checkpointing and micro-batches with adapters, exact resume."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from conftest import make_model, normal

from itpo_lib.critic import Critic
from itpo_lib.dialogue import collate
from itpo_lib.errors import ItpoError
from itpo_lib.logprobs import token_logprobs
from itpo_lib.prm import ImplicitPRM, reference
from itpo_lib.run import RunSettings, build_trainer, train

OPENING = {"role": "user", "content": "help me please ."}
REPLY = {"role": "user", "content": "it is 5 of them ."}
SAID = [
    ["how many apples ?", "the answer is 12 plus 5 ."],
    ["what a nice day .", "i like this story ."],
    ["the answer is 5 ."],
]
OUTCOMES = torch.tensor([1.0, 0.0, 1.0])
VALID = torch.ones(3, dtype=torch.bool)


@pytest.fixture
def batch(chat):
    dialogues = []
    for texts in SAID:
        turns = [m for text in texts for m in ({"role": "assistant", "content": text}, REPLY)][:-1]
        dialogues.append(chat.dialogue([OPENING, *turns]))
    return collate(dialogues, chat.pad_id)


def adapt(model, move: bool = True):
    """A LoRA policy whose adapter already differs from the base, as in the middle of training."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    policy = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"])).eval()
    with torch.no_grad():
        for name, p in policy.named_parameters():
            if "lora_B" in name and move:
                p.add_(0.05 * normal(1, *p.shape).float())
    return policy


@pytest.fixture
def policy(model):
    return adapt(model)


def logprobs(model, batch):
    with torch.no_grad():
        return token_logprobs(model, batch)


def others(policy, role: str) -> dict[str, tuple[torch.Tensor, bool]]:
    """All parameters but one role's: values, and whether they train."""
    return {n: (p.detach().clone(), p.requires_grad) for n, p in policy.named_parameters() if f".{role}." not in n}


def weights(part) -> list[torch.Tensor]:
    return [p.detach().clone() for p in part.sidecar.parameters.values()]


def targets(batch) -> torch.Tensor:
    return OUTCOMES[:, None] * batch.assistant_mask


# Roles as adapters

ROLES = ["prm", "critic", "value"]


def beside(policy, role: str) -> ImplicitPRM | Critic:
    return ImplicitPRM.beside(policy, beta=0.05, lr=1e-2) if role == "prm" else Critic(policy, lr=1e-2, name=role)


def base_logprobs(policy, batch) -> torch.Tensor:
    with torch.no_grad(), reference(policy, None) as base:
        return token_logprobs(base, batch)


def opinion(part, batch) -> torch.Tensor:
    """What a role has to say: token rewards, or values."""
    if isinstance(part, ImplicitPRM):
        return part.rewards(batch, base_logprobs(part.model, batch))
    return part.values(batch)


def learn(part, batch, factor: float = 1.0) -> None:
    """One update of a role, on numbers times `factor`."""
    if isinstance(part, ImplicitPRM):
        part.update(batch, factor * base_logprobs(part.model, batch), OUTCOMES, VALID)
    else:
        part.update(batch, part.values(batch), factor * targets(batch), VALID)


@pytest.mark.parametrize("role", ROLES)
def test_an_adapter_trains_only_itself(policy, batch, role):
    before, said = others(policy, role), logprobs(policy, batch)
    part = beside(policy, role)
    body, shared = [n for n in part.sidecar.parameters if not n.startswith("head.")], set(map(id, policy.parameters()))
    assert body and all(f".{role}." in n and id(part.sidecar.parameters[n]) in shared for n in body)
    assert not opinion(part, batch).any()  # it starts at the base, or the head at 0: exactly 0
    own = weights(part)
    learn(part, batch)
    learn(part, batch)  # at first the head and the B matrices were 0, and so were the others' gradients
    assert all(not torch.equal(a, b) for a, b in zip(own, weights(part), strict=True))
    after = others(policy, role)
    assert before.keys() == after.keys()
    for parameter in before:
        assert torch.equal(before[parameter][0], after[parameter][0]), parameter
        assert before[parameter][1] == after[parameter][1], parameter
    assert policy.active_adapter == "default"
    trainable = [n for n, p in policy.named_parameters() if p.requires_grad]
    assert trainable and all(".default." in n for n in trainable)
    assert torch.equal(logprobs(policy, batch), said)


@pytest.mark.parametrize("role", ROLES)
def test_an_adapter_leaves_the_policys_gradients(policy, batch, role):
    token_logprobs(policy, batch).sum().backward()
    expected = {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad()
    learn(beside(policy, role), batch)
    assert all(p.grad is None for n, p in policy.named_parameters() if f".{role}." not in n)
    token_logprobs(policy, batch).sum().backward()
    found = {n: p.grad for n, p in policy.named_parameters() if p.grad is not None and f".{role}." not in n}
    assert expected.keys() == found.keys() and all(".default." in n for n in found)
    assert all(torch.equal(expected[n], found[n]) for n in found)


@pytest.mark.parametrize("role", ROLES)
def test_a_failure_inside_a_role_gives_the_policy_back(policy, batch, role):
    part = beside(policy, role)
    with pytest.raises(ItpoError, match=f"{role}'s gradient is not finite"):
        learn(part, batch, factor=float("nan"))
    assert policy.active_adapter == "default"


@pytest.mark.parametrize("role", ROLES)
def test_adapter_state_continues_bit_for_bit(policy, batch, tmp_path, role):
    again = copy.deepcopy(policy)
    first, second = beside(policy, role), beside(again, role)
    learn(first, batch)
    first.sidecar.save(tmp_path)
    learn(first, batch)
    second.sidecar.load(tmp_path)
    learn(second, batch)
    assert all(map(torch.equal, weights(first), weights(second)))


def test_reference_of_an_adapter_policy_is_its_base(tokenizer, policy, batch):
    base = make_model(tokenizer)
    assert torch.allclose(base_logprobs(policy, batch), logprobs(base, batch), atol=1e-6)
    assert not torch.allclose(base_logprobs(policy, batch), logprobs(policy, batch), atol=1e-3)  # and it is back
    with reference(policy, base) as frozen:
        assert frozen is base


def test_a_value_is_the_base_plus_the_critics_adapter(policy, batch, tokenizer):
    """The policy's adapter, which has moved, must not leak into values."""
    critics = [Critic(p, lr=1e-2) for p in (policy, adapt(make_model(tokenizer), move=False))]
    for critic in critics:
        torch.manual_seed(1)
        torch.nn.init.normal_(critic.model.head.weight)
    assert torch.equal(critics[0].values(batch), critics[1].values(batch)) and critics[0].values(batch).any()


def test_the_critic_adapter_learns_its_targets(policy, batch):
    critic = Critic(policy, lr=3e-2, clip=10.0, epochs=30)
    first = 0.5 * (targets(batch).square().sum() / batch.assistant_mask.sum()).item()
    assert critic.update(batch, critic.values(batch), targets(batch), VALID) < 0.2 * first


def test_micro_batches_of_the_critic_are_the_whole_batch(model, batch):
    """In float64: the same values, the same loss and the same step, with a row that does not count."""
    whole, parts = (Critic(copy.deepcopy(model).double(), lr=1e-3, epochs=1, micro_batch=m) for m in (None, 1))
    valid = torch.tensor([True, False, True])
    for critic in (whole, parts):
        critic.model.double()
        torch.nn.init.constant_(critic.model.head.weight, 0.1)
    old = whole.values(batch)
    torch.testing.assert_close(old, parts.values(batch))
    losses = [c.update(batch, old, targets(batch).double(), valid) for c in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-9)
    grads = [[p.grad for p in c.sidecar.parameters.values()] for c in (whole, parts)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-5)


def test_micro_batches_never_hold_two_graphs(model, batch):
    """Each part's backward pass comes before the next part's forward pass."""
    critic, events = Critic(model, lr=1e-3, epochs=1, micro_batch=1), []
    forward = critic.model.forward

    def recorded(rows):
        events.append("forward")
        values = forward(rows)
        values.register_hook(lambda grad: events.append("backward"))
        return values

    critic.model.forward = recorded
    critic.update(batch, torch.zeros(batch.turn_ids.shape), targets(batch), VALID)
    assert events == ["forward", "backward"] * 3


def test_micro_batches_of_an_adapter_prm_are_the_whole_batch(policy, batch):
    """In float64: the same loss, the same scores before the step, the same gradients; one graph at a time."""
    policy.double()
    whole, parts = (ImplicitPRM.beside(copy.deepcopy(policy), beta=0.05, lr=1e-3, micro_batch=m) for m in (None, 1))
    outcomes, valid = OUTCOMES.double(), torch.tensor([True, False, True])
    for prm in (whole, parts):
        for i, p in enumerate(prm.sidecar.parameters.values()):
            with torch.no_grad():
                p.copy_(0.1 * normal(i, *p.shape))
    ref, events, score = logprobs(policy, batch), [], parts._scores

    def recorded(*args):
        events.append("forward")
        found = score(*args)
        found.register_hook(lambda grad: events.append("backward"))
        return found

    parts._scores = recorded
    (loss, scores), (same_loss, same_scores) = (prm.update(batch, ref, outcomes, valid) for prm in (whole, parts))
    assert events == ["forward", "backward"] * 3
    assert loss == pytest.approx(same_loss, abs=1e-9)
    torch.testing.assert_close(scores, same_scores)
    grads = [[p.grad for p in prm.sidecar.parameters.values()] for prm in (whole, parts)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-5)


def test_four_roles_share_one_base(policy, batch):
    """Policy, PRM, critic and reference: each keeps its own numbers while the others train."""
    base = sum(p.numel() for n, p in policy.named_parameters() if "lora" not in n)
    prm, critic = ImplicitPRM.beside(policy, beta=0.05, lr=1e-2), Critic(policy, lr=1e-2)
    assert sum(p.numel() for n, p in policy.named_parameters() if "lora" not in n) == base
    ref_logprobs = base_logprobs(policy, batch)
    said, values = logprobs(policy, batch), critic.values(batch)
    prm.update(batch, ref_logprobs, OUTCOMES, VALID)
    assert torch.equal(critic.values(batch), values)
    rewards = prm.rewards(batch, ref_logprobs)
    critic.update(batch, values, targets(batch), VALID)
    assert torch.equal(prm.rewards(batch, ref_logprobs), rewards) and rewards.any()
    assert torch.equal(logprobs(policy, batch), said)
    assert torch.equal(base_logprobs(policy, batch), ref_logprobs)


# Memory savers


def test_checkpointing_with_adapters_changes_no_gradient(policy, batch):
    """Recomputed layers must see the role's adapter, not the policy's: float64 gradients of PRM and critic."""
    plain = copy.deepcopy(policy).double()
    saving = copy.deepcopy(policy).double()
    saving.train()  # layers recompute in training mode only; there is no dropout
    saving.gradient_checkpointing_enable()
    saving.enable_input_require_grads()
    found = []
    for model in (plain, saving):
        prm, critic = ImplicitPRM.beside(model, beta=0.05, lr=1e-3), Critic(model, lr=1e-3, epochs=1)
        critic.model.head.double()
        for part in (prm, critic):
            for i, p in enumerate(part.sidecar.parameters.values()):
                with torch.no_grad():
                    p.copy_(0.1 * normal(i, *p.shape))
        prm.update(batch, logprobs(model, batch), OUTCOMES, VALID)
        critic.update(batch, torch.zeros(batch.turn_ids.shape), targets(batch), VALID)
        token_logprobs(model, batch).sum().backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for role in ("prm", "critic", "default"):
        assert any(f".{role}." in n and g.any() for n, g in found[1].items())
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name])


def settings(tmp_path, name="run", lora=True, task_options=None, **options):
    small = {
        "max_steps": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_generations": 4,
        "num_iterations": 1, "learning_rate": 1e-2, "prm_learning_rate": 1e-2, "critic_learning_rate": 1e-2,
        "micro_batch_size": 4, "lr_scheduler_type": "constant", "save_strategy": "no",
    }  # fmt: skip
    return RunSettings(
        out=str(tmp_path / name), device="cpu", lora=lora, eval_dialogues=4, options={**small, **options}
    )


@pytest.mark.parametrize(
    "options", [{"estimator": "ppo"}, {"credit": "value"}, {"estimator": "ppo", "credit": "value"}]
)
def test_ppo_and_the_value_model_train_as_adapters(tmp_path, options):
    trainer = build_trainer(settings(tmp_path, **options))
    base = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if "lora" not in n}
    trainer.train()
    roles = [part.sidecar.name for part in (trainer.critic, trainer.value_model) if part is not None]
    assert len(roles) == len(options)
    for role in [*roles, "default"]:
        moved = [p for n, p in trainer.model.named_parameters() if "lora_B" in n and f".{role}." in n]
        assert moved and all(p.isfinite().all() and p.any() for p in moved), role
    assert all(torch.equal(base[n], p) for n, p in trainer.model.named_parameters() if n in base)
    history = [row for row in trainer.state.log_history if "outcome" in row]
    assert all(row["sampler_mismatch"] < 1e-4 for row in history)


def test_gradient_checkpointing_and_bf16_base_run_a_whole_step(tmp_path):
    """bf16 weights below, fp32 adapters and log-softmax above; the cache of the rollout survives checkpointing."""
    trainer = build_trainer(settings(tmp_path, gradient_checkpointing=True, bf16=True, estimator="ppo"))
    kinds = {n: p.dtype for n, p in trainer.model.named_parameters()}
    assert {d for n, d in kinds.items() if "lora" not in n} == {torch.bfloat16}
    assert {d for n, d in kinds.items() if "lora" in n} == {torch.float32}
    trainer.train()
    with torch.no_grad():
        batch = collate(trainer.dialogues, trainer.chat.pad_id)
        assert token_logprobs(trainer.model, batch).dtype == torch.float32
    history = [row for row in trainer.state.log_history if "outcome" in row]
    assert len(history) == 2 and all(row["sampler_mismatch"] < 0.3 for row in history)  # bf16 has 8 bits
    assert all(p.isfinite().all() for p in trainer.model.parameters())


def test_a_lora_run_with_a_critic_resumes_exactly(tmp_path):
    curves = {}
    for name in ("whole", "cut"):
        run = settings(tmp_path, name, max_steps=4, save_strategy="steps", save_steps=2, estimator="ppo")
        if name == "cut":
            run.options["max_steps"] = 2
            train(run)
            run.options["max_steps"] = 4
        result = train(run, resume=name == "cut")
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        timed = ("time/", "step_time", "runtime", "per_second", "epoch")
        curves[name] = [{k: v for k, v in row.items() if not any(t in k for t in timed)} for row in rows]
        curves[f"{name} weights"] = {n: p.detach().clone() for n, p in result.trainer.model.named_parameters()}
    assert curves["cut"] == curves["whole"]
    ours, theirs = curves["cut weights"], curves["whole weights"]
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)
