"""Playing dialogues: the cache against the slow oracle, forced ends of turns, budgets and failures."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import make_model
from oracle import ReprefillGenerator

from itpo_lib.dialogue import Dialogue, collate
from itpo_lib.errors import DialogueFailed, ItpoError
from itpo_lib.generation import CachedGenerator, RoomyLayer, SampledTurn, sample
from itpo_lib.logprobs import lm_logits, token_logprobs
from itpo_lib.rollout import Episode, check_context_length, play
from itpo_lib.tasks import Goal, Limits, Reply, Task, User

TIGHT = Limits(max_turns=4, max_turn_tokens=8, max_tokens=120)


class FixedUser(User):
    """Says `data["says"]` until `data["patience"]` turns are over; fails where `data["fails"]`."""

    def __init__(self, goal: Goal):
        self.goal, self.heard = goal, []

    def reply(self, text: str) -> Reply:
        self.heard.append(text)
        if self.goal.data.get("fails") == len(self.heard):
            raise DialogueFailed("the simulator timed out")
        return Reply(self.goal.data.get("says", "it is 5"), done=len(self.heard) >= self.goal.data.get("patience", 99))


class FixedTask(Task):
    """A world whose goals say how the user behaves and what the judge answers."""

    name, scale, limits = "fixed", "test", TIGHT

    def __init__(self, *goals: dict):
        self.goals = goals

    def goal(self, index: int, split: str = "train") -> Goal:
        return Goal(index, split, "help me please .", {}, "", self.goals[index])

    def user(self, goal: Goal, seed: int) -> User:
        return FixedUser(goal)

    def outcome(self, goal: Goal, messages) -> float:
        judged = goal.data.get("outcome", 0.5)
        if isinstance(judged, Exception):
            raise judged
        return judged

    def episodes(self) -> list[Episode]:
        return [Episode(self.goal(i), i) for i in range(len(self.goals))]


MIXED = FixedTask(*({"patience": 1 + i % 4, "says": "so " + "it is 5 of them . " * (i % 3)} for i in range(9)))


class Script:
    """A generator that plays given turns and writes down what it was fed."""

    def __init__(self, *turns: list[SampledTurn]):
        self.turns, self.contexts, self.calls = turns, [[] for _ in turns], []

    def __call__(self, model, stop_ids, temperature):
        return self

    def generate(self, rows, new_ids, uniforms):
        self.calls.append(list(rows))
        played = []
        for row, ids in zip(rows, new_ids, strict=True):
            turn = self.turns[row][sum(row in call for call in self.calls) - 1]
            self.contexts[row] += ids + turn.ids
            played.append(turn)
        return played


def turn(ids: list[int], closed: bool = True) -> SampledTurn:
    return SampledTurn(ids, [-0.5] * len(ids), closed)


def goals(task, n: int) -> list[Episode]:
    return [Episode(task.goal(i), seed=i) for i in range(n)]


def gpt2(tokenizer, attention: str):
    """A model with learned absolute positions, which notices every wrong position id."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=512,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    config._attn_implementation = attention
    model = GPT2LMHeadModel(config).eval().requires_grad_(False)
    with torch.no_grad():
        model.transformer.wte.weight.mul_(10.0)
        model.transformer.wpe.weight.mul_(30.0)
    return model


@pytest.fixture(scope="module", params=["qwen2-sdpa", "qwen2-eager", "gpt2-sdpa", "gpt2-eager"])
def any_model(request, tokenizer):
    """Rotary and learned positions, with the library's 4-D mask (sdpa) and with the model's own (eager)."""
    family, attention = request.param.split("-")
    if family == "gpt2":
        return gpt2(tokenizer, attention)
    model = make_model(tokenizer).requires_grad_(False)
    model.config._attn_implementation = attention
    return model


# Cache, oracle and training kernel agree


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_cached_equals_reprefill_equals_training_logprobs(any_model, chat, temperature):
    """Same dialogues for the same seeds, and the same log-probs in all three ways of computing them."""
    plays = [
        play(any_model, chat, MIXED, MIXED.episodes(), temperature=temperature, generator=generator)
        for generator in (CachedGenerator, ReprefillGenerator)
    ]
    for cached, slow in zip(*plays, strict=True):
        assert cached.prompt_ids + cached.completion_ids == slow.prompt_ids + slow.completion_ids
        assert cached.turn_ids == slow.turn_ids and cached.messages == slow.messages
        assert np.allclose(cached.logprobs, slow.logprobs, atol=1e-4)
    batch = collate(plays[0], chat.pad_id)
    assert torch.allclose(token_logprobs(any_model, batch, temperature), batch.logprobs, atol=1e-4)
    # the case is worth something only if dialogues end at different times and turns in different ways
    assert {d.n_turns for d in plays[0]} == {1, 2, 3, 4}
    lengths = {d.turn_ids.count(k) for d in plays[0] for k in range(1, d.n_turns + 1)}
    assert len(lengths) > 2 and TIGHT.max_turn_tokens in lengths  # some turns were cut, some ended by themselves


def test_attention_implementations_differ_in_the_mask_they_get(tokenizer):
    """Guards the fixture above: if both took one path, half of it would test nothing."""
    masks = []
    for attention in ("sdpa", "eager"):
        generator = CachedGenerator(gpt2(tokenizer, attention), frozenset({0}))
        generator.generate([0], [[1, 2, 3]], torch.full((1, 2), 0.5))
        masks.append(generator._attention(1).dim())
    assert masks == [4, 2]


def test_a_dialogue_does_not_depend_on_its_batch(any_model, chat):
    episodes = MIXED.episodes()
    together = play(any_model, chat, MIXED, episodes)
    for episode, expected in zip(episodes, together, strict=True):
        (alone,) = play(any_model, chat, MIXED, [episode])
        assert alone.completion_ids == expected.completion_ids and alone.turn_ids == expected.turn_ids
        assert np.allclose(alone.logprobs, expected.logprobs, atol=1e-4)
    backwards = play(any_model, chat, MIXED, episodes[::-1])[::-1]
    assert [d.completion_ids for d in backwards] == [d.completion_ids for d in together]


def test_seeds_decide(frozen_model, chat, task):
    one, two, other = (play(frozen_model, chat, task, [Episode(task.goal(0), seed)])[0] for seed in (1, 1, 2))
    assert one == two and one.completion_ids != other.completion_ids


def test_temperature_zero_is_greedy(frozen_model, chat, task):
    dialogues = play(frozen_model, chat, task, goals(task, 4), temperature=0.0)
    for d in dialogues:
        ids = torch.tensor([d.prompt_ids + d.completion_ids])
        best = frozen_model(ids).logits[0].argmax(-1)
        for t, turn_id in enumerate(d.turn_ids):
            if turn_id > 0:
                assert best[len(d.prompt_ids) + t - 1] == d.completion_ids[t]
    batch = collate(dialogues, chat.pad_id)
    assert torch.allclose(token_logprobs(frozen_model, batch), batch.logprobs, atol=1e-4)  # log-probs at T = 1


def test_bf16_runs(tokenizer, chat, task):
    model = make_model(tokenizer).to(torch.bfloat16)
    dialogues = play(model, chat, task, goals(task, 6))
    batch = collate(dialogues, chat.pad_id)
    logprobs = token_logprobs(model, batch)
    assert logprobs.dtype == torch.float32
    assert (logprobs - batch.logprobs).abs().max() < 0.5 and (logprobs - batch.logprobs).abs().mean() < 0.03


def test_adapters_play_with_their_own_weights(model, chat, task):
    """A PEFT policy samples from the adapted model, not from the base below it."""
    from peft import LoraConfig, get_peft_model

    base = play(model, chat, task, goals(task, 2))
    policy = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)).eval()
    adapted = play(policy, chat, task, goals(task, 2))
    assert [d.completion_ids for d in adapted] != [d.completion_ids for d in base]
    batch = collate(adapted, chat.pad_id)
    with torch.no_grad():
        assert torch.allclose(token_logprobs(policy, batch), batch.logprobs, atol=1e-4)
        with policy.disable_adapter():
            assert not torch.allclose(token_logprobs(policy, batch), batch.logprobs, atol=1e-2)


@pytest.mark.parametrize("window", [None, 8, 200])
def test_sliding_windows_are_right_or_refused(tokenizer, chat, window):
    """A window smaller than the batch would crop the cache, and count its holes as tokens."""
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(2)
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        sliding_window=window,
    )
    model = MistralForCausalLM(config).eval().requires_grad_(False)
    model.get_input_embeddings().weight.mul_(10.0)
    if window == 8:
        with pytest.raises(ItpoError, match="sliding window of 8 tokens"):
            play(model, chat, MIXED, MIXED.episodes())
        return
    batch = collate(play(model, chat, MIXED, MIXED.episodes()), chat.pad_id)
    assert torch.allclose(token_logprobs(model, batch), batch.logprobs, atol=1e-4)


# The training kernel


@pytest.mark.parametrize("micro_batch", [1, 2, 4, 100])
def test_micro_batches_change_nothing(any_model, chat, micro_batch):
    batch = collate(play(any_model, chat, MIXED, MIXED.episodes()), chat.pad_id)
    whole = token_logprobs(any_model, batch)
    assert torch.allclose(token_logprobs(any_model, batch, micro_batch=micro_batch), whole, atol=1e-5)
    assert not whole[batch.turn_ids == 0].any() and (whole[batch.turn_ids > 0] < 0).all()


def test_token_logprobs_equal_the_models_own_logits(any_model, chat):
    for d in play(any_model, chat, MIXED, MIXED.episodes()[:4]):
        logprobs = any_model(torch.tensor([d.prompt_ids + d.completion_ids])).logits[0].log_softmax(-1)
        found = token_logprobs(any_model, collate([d], chat.pad_id))[0]
        for t, turn_id in enumerate(d.turn_ids):
            expected = logprobs[len(d.prompt_ids) + t - 1, d.completion_ids[t]].item() if turn_id else 0.0
            assert found[t].item() == pytest.approx(expected, abs=1e-4)


def test_logprobs_have_gradients_and_micro_batches_keep_them(model, chat, task):
    batch = collate(play(model, chat, task, goals(task, 4)), chat.pad_id)
    grads = []
    for micro_batch in (None, 2):
        model.zero_grad()
        token_logprobs(model, batch, micro_batch=micro_batch).sum().backward()
        grads.append(model.get_input_embeddings().weight.grad.clone())
    assert grads[0].any() and torch.allclose(*grads, atol=1e-4, rtol=1e-3)


# Sampling


def test_sampling_follows_the_probabilities():
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0])
    u = torch.arange(0, 1, 1e-4, dtype=torch.float64) + 5e-5
    for temperature in (1.0, 0.5):
        tokens, logprobs = sample(logits.expand(len(u), -1), u, temperature)
        expected = (logits / temperature).softmax(-1)
        assert torch.allclose(torch.bincount(tokens, minlength=4) / len(u), expected, atol=2e-4)
        assert torch.allclose(logprobs, expected.log()[tokens], atol=1e-6)


def test_sampling_survives_the_ends_of_the_interval():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(3, -1)
    tokens, logprobs = sample(logits, torch.tensor([1e-12, 0.5 + 1e-9, 1.0 - 2**-53], dtype=torch.float64), 1.0)
    assert tokens.tolist() == [1, 3, 3] and torch.isfinite(logprobs).all()


# Forced ends of turns, with a scripted policy


def test_token_in_token_out(frozen_model, chat):
    """What the sampler has in its context is the dialogue, token by token, and nothing was re-tokenised."""
    end, odd = chat.end_of_turn_id, chat.plain_ids("apples ?")
    script = Script([turn([*odd, end]), turn(odd, closed=False), turn([end])])
    (d,) = play(frozen_model, chat, task := FixedTask({"patience": 3}), task.episodes(), generator=script)
    assert script.contexts[0] == d.prompt_ids + d.completion_ids
    assert d.completion_ids == [*odd, end, *chat.user_ids("it is 5"), *odd, end, *chat.user_ids("it is 5"), end]
    n = len(chat.user_ids("it is 5"))
    assert d.turn_ids == [1] * 3 + [0] * n + [2, 2, 0] + [0] * n + [3]
    assert d.n_turns == 3 and d.ended == "user" and d.outcome == 0.5
    assert [m["content"] for m in d.messages] == ["help me please .", "apples ?", "it is 5", "apples ?", "it is 5", ""]


def test_a_cut_turn_is_closed_outside_the_assistant_mask(frozen_model, chat):
    ids = chat.plain_ids("the answer is")
    task = FixedTask({"patience": 1})
    (d,) = play(frozen_model, chat, task, task.episodes(), generator=Script([turn(ids, closed=False)]))
    assert d.completion_ids == [*ids, chat.end_of_turn_id]
    assert d.turn_ids == [1, 1, 1, 0] and d.logprobs[-1] == 0.0


def test_another_control_token_ends_the_turn_and_is_closed(frozen_model, chat, tokenizer):
    """The policy tries to speak for the user: the token stays (it was sampled), the turn ends there."""
    forged = tokenizer.convert_tokens_to_ids("<|user|>")
    ids = [*chat.plain_ids("apples ?"), forged]
    script = Script([turn(ids), turn([chat.end_of_turn_id])])
    (d,) = play(frozen_model, chat, task := FixedTask({"patience": 2}), task.episodes(), generator=script)
    assert d.completion_ids[:4] == [*ids, chat.end_of_turn_id] and d.turn_ids[:4] == [1, 1, 1, 0]
    assert d.messages[1]["content"] == "apples ?"
    assert script.contexts[0] == d.prompt_ids + d.completion_ids


def test_real_generators_stop_at_any_control_token(any_model, chat, task):
    """No control token is ever inside a turn; a turn without one at its end spent its whole budget."""
    dialogues = play(any_model, chat, task, goals(task, 10))
    for d in dialogues:
        for k in range(1, d.n_turns + 1):
            where = [t for t, turn_id in enumerate(d.turn_ids) if turn_id == k]
            assert where == list(range(where[0], where[-1] + 1))
            ids = [d.completion_ids[t] for t in where]
            assert not chat.control_ids.intersection(ids[:-1])
            assert ids[-1] in chat.control_ids or len(ids) == task.limits.max_turn_tokens
            if ids[-1] != chat.end_of_turn_id:
                assert d.completion_ids[where[-1] + 1] == chat.end_of_turn_id and d.turn_ids[where[-1] + 1] == 0


def test_finished_dialogues_leave_the_batch(frozen_model, chat):
    end = [turn([chat.end_of_turn_id])] * 4
    script = Script(end, end, end)
    task = FixedTask({"patience": 1}, {"patience": 3}, {"patience": 2})
    dialogues = play(frozen_model, chat, task, task.episodes(), generator=script)
    assert script.calls == [[0, 1, 2], [1, 2], [1]]
    assert [d.n_turns for d in dialogues] == [1, 3, 2] and [d.goal_index for d in dialogues] == [0, 1, 2]


# Budgets


def test_the_turn_limit_keeps_the_last_assistant_turn(frozen_model, chat):
    """The released code generated it, then dropped it."""
    task = FixedTask({})
    (d,) = play(frozen_model, chat, task, task.episodes(), generator=Script([turn([chat.end_of_turn_id])] * 4))
    assert d.ended == "turn_limit" and d.n_turns == 4 and d.turn_ids[-1] == 4
    assert d.messages[-1]["role"] == "assistant"


def test_the_token_limit_ends_a_dialogue_before_it_overflows(frozen_model, chat):
    long = "it is 5 of them . " * 4
    task = FixedTask({"says": long}, {"says": "it is 5"})
    limits = Limits(max_turns=4, max_turn_tokens=8, max_tokens=60)
    script = Script(*[[turn([*chat.plain_ids("apples ?"), chat.end_of_turn_id])] * 4] * 2)
    one, two = play(frozen_model, chat, task, task.episodes(), limits=limits, generator=script)
    assert one.ended == "token_limit" and one.n_turns == 2 and one.messages[-1]["role"] == "assistant"
    assert one.outcome is not None  # judged as it stands
    assert two.ended == "turn_limit"


@pytest.mark.parametrize("max_tokens", [9, 20, 37, 60])
def test_max_tokens_is_never_exceeded(frozen_model, chat, task, max_tokens):
    limits = Limits(max_turns=6, max_turn_tokens=8, max_tokens=max_tokens)
    for d in play(frozen_model, chat, task, goals(task, 8), limits=limits):
        assert len(d.completion_ids) <= max_tokens


@pytest.mark.parametrize("field", ["max_turns", "max_turn_tokens", "max_tokens"])
@pytest.mark.parametrize("value", [0, -1, 1.5])
def test_bad_limits_are_refused(field, value):
    good = {"max_turns": 2, "max_turn_tokens": 4, "max_tokens": 40}
    with pytest.raises(ItpoError, match=rf"{field} must be an integer >= 1, got {value}"):
        Limits(**{**good, field: value})


def test_a_turn_must_fit_into_the_dialogue():
    with pytest.raises(ItpoError, match="max_tokens"):
        Limits(max_turns=2, max_turn_tokens=20, max_tokens=20)


def test_bad_calls_are_refused(frozen_model, chat, task):
    with pytest.raises(ItpoError, match="no episodes"):
        play(frozen_model, chat, task, [])
    with pytest.raises(ItpoError, match="temperature must be >= 0"):
        play(frozen_model, chat, task, goals(task, 1), temperature=-1.0)
    with pytest.raises(ItpoError, match="1024 positions"):
        play(frozen_model, chat, task, goals(task, 1), limits=Limits(2, 8, 1024))


# Failures


def test_a_failing_user_ends_its_own_dialogue_only(frozen_model, chat):
    task = FixedTask({"patience": 3}, {"fails": 2}, {"patience": 3})
    healthy = FixedTask({"patience": 3}, {"patience": 3}, {"patience": 3})
    dialogues = play(frozen_model, chat, task, task.episodes())
    expected = play(frozen_model, chat, healthy, healthy.episodes())
    failed = dialogues[1]
    assert failed.ended == "failed" and failed.failure == "the simulator timed out"
    assert failed.outcome is None and failed.n_turns == 2 and failed.messages[-1]["role"] == "assistant"
    assert dialogues[0] == expected[0] and dialogues[2] == expected[2]


def test_a_failing_judge_marks_its_own_dialogue_only(frozen_model, chat):
    task = FixedTask({"patience": 1}, {"patience": 1, "outcome": DialogueFailed("no verdict")})
    good, bad = play(frozen_model, chat, task, task.episodes())
    assert good.outcome == 0.5 and good.failure is None
    assert bad.outcome is None and bad.failure == "no verdict" and bad.ended == "failed"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.2, -0.1, "1", None])
def test_an_outcome_that_is_no_number_in_the_unit_interval_is_an_error(frozen_model, chat, value):
    task = FixedTask({"patience": 1, "outcome": value})
    with pytest.raises(ItpoError, match=r"'fixed' .*returned the outcome .* for goal 0 .*\[0, 1\]"):
        play(frozen_model, chat, task, task.episodes())


@pytest.mark.parametrize(
    "reply, says",
    [
        (lambda self, text: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda self, text: None, r"answered None; return Reply\(text\)"),
        (lambda self, text: "hello", "answered 'hello'"),
        (lambda self, text: Reply(None), "text=None"),
        (lambda self, text: Reply(""), "text=''"),
    ],
)
def test_bugs_in_a_user_name_the_dialogue(frozen_model, chat, monkeypatch, reply, says):
    task = FixedTask({})
    monkeypatch.setattr(FixedUser, "reply", reply)
    with pytest.raises(ItpoError, match=rf"'fixed' \(test\), goal 0 of 'train', user seed 7: .*{says}") as caught:
        play(frozen_model, chat, task, [Episode(task.goal(0), 7)])
    assert isinstance(caught.value.__cause__, ZeroDivisionError | TypeError)


@pytest.mark.parametrize("method", ["user", "opening_messages", "start_outcome", "outcome"])
def test_bugs_in_a_task_name_the_dialogue(frozen_model, chat, monkeypatch, method):
    task = FixedTask({"patience": 1})
    monkeypatch.setattr(FixedTask, method, lambda *args: {}["gone"])
    with pytest.raises(ItpoError, match="goal 0 of 'train', user seed 0: KeyError: 'gone'"):
        play(frozen_model, chat, task, task.episodes())


def test_a_failed_dialogue_still_makes_a_batch(frozen_model, chat):
    task = FixedTask({"fails": 1}, {"patience": 2})
    dialogues = play(frozen_model, chat, task, task.episodes())
    assert all(isinstance(d, Dialogue) for d in dialogues)
    batch = collate(dialogues, chat.pad_id)
    assert torch.allclose(token_logprobs(frozen_model, batch), batch.logprobs, atol=1e-4)


def test_the_longest_prompt_of_a_batch_counts(frozen_model):
    dialogues = [Dialogue([1] * n, []) for n in (500, 10)]
    check_context_length(frozen_model, dialogues, Limits(2, 8, 524))
    with pytest.raises(ItpoError, match=r"longest prompt \(500 tokens\)"):
        check_context_length(frozen_model, dialogues, Limits(2, 8, 525))


def test_a_soft_cap_bounds_the_logits():
    config = SimpleNamespace(final_logit_softcapping=2.0)
    model = SimpleNamespace(
        get_output_embeddings=lambda: torch.nn.Identity(), config=SimpleNamespace(get_text_config=lambda: config)
    )
    states = torch.tensor([-8.0, 0.5, 3.0])
    assert lm_logits(model, states).tolist() == pytest.approx([2 * math.tanh(x / 2) for x in states.tolist()])
    config.final_logit_softcapping = None
    assert torch.equal(lm_logits(model, states), states)


def test_a_cache_layer_keeps_its_buffer_while_there_is_room():
    layer, states = RoomyLayer(), torch.arange(12.0).view(1, 1, 6, 2)
    layer.update(states[..., :4, :], -states[..., :4, :])
    buffer = layer._buffers[0]
    for column in (4, 5):
        keys, values = layer.update(states[..., column : column + 1, :], -states[..., column : column + 1, :])
    assert layer._buffers[0] is buffer
    assert torch.equal(keys, states) and torch.equal(values, -states)
