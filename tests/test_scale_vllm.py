"""vLLM as the sampler, against a stand-in for the engine. vLLM itself runs in benchmarks/vllm_cpu.py and vllm_server_cpu.py."""

from __future__ import annotations

import threading

import pytest
import torch
from conftest import make_model

from itpo_lib.errors import ItpoError
from itpo_lib.generation import CachedGenerator
from itpo_lib.rollout import Episode, play, split_rows
from itpo_lib.run import RunSettings, build_trainer
from itpo_lib.vllm_generation import VLLMBackend, VLLMGenerator


class FakeEngine:
    """TRL's `VLLMGeneration` as far as it is used: it reads each prompt from the start, with random numbers of its own."""

    def __init__(self, model, temperature=1.0, max_completion_length=64, **settings):
        self.model, self.temperature, self.max_completion_length = model, temperature, max_completion_length
        self.generation_kwargs, self.calls, self.syncs = {"seed": 1}, [], 0
        self.random = torch.Generator().manual_seed(0)

    def sync_weights(self):
        self.syncs += 1

    def generate(self, prompts, images, num_generations, profiler=None):
        assert images is None and num_generations == 1 and all(prompts)
        self.calls.append([list(ids) for ids in prompts])
        self.seen = (self.temperature, self.max_completion_length, dict(self.generation_kwargs))
        stop = frozenset(self.generation_kwargs["stop_token_ids"])
        uniforms = torch.rand(len(prompts), self.max_completion_length, generator=self.random, dtype=torch.float64)
        turns = CachedGenerator(self.model, stop, self.temperature).generate(
            list(range(len(prompts))), prompts, uniforms
        )
        return prompts, [t.ids for t in turns], [[[p] for p in t.logprobs] for t in turns], None


def episodes(task, n):
    return [Episode(task.goal(i), seed=i) for i in range(n)]


def test_dialogues_through_an_engine_are_whole(task, chat, frozen_model):
    """Each call sends the dialogue so far, token for token, and takes ids and log-probs as they are."""
    engine = FakeEngine(frozen_model)
    backend = VLLMBackend(engine, accelerator=None, collective=False)
    dialogues = play(frozen_model, chat, task, episodes(task, 6), temperature=0.7, generator=backend)
    backend.finish()
    assert len(engine.calls) == max(d.n_turns for d in dialogues) > 1
    for turn, prompts in enumerate(engine.calls, start=1):
        going_on = [d for d in dialogues if d.n_turns >= turn]
        assert len(prompts) == len(going_on)
        for prompt, dialogue in zip(prompts, going_on, strict=True):
            start = dialogue.turn_ids.index(turn)
            assert prompt == dialogue.prompt_ids + dialogue.completion_ids[:start]
    assert engine.seen == (0.7, task.limits.max_turn_tokens, {"seed": 1, "stop_token_ids": sorted(chat.control_ids)})
    assert (engine.temperature, engine.max_completion_length, engine.generation_kwargs) == (1.0, 64, {"seed": 1})
    for dialogue in dialogues:
        with torch.no_grad():
            ids = torch.tensor([dialogue.prompt_ids + dialogue.completion_ids])
            logprobs = (frozen_model(ids).logits[0] / 0.7).log_softmax(-1)
        start = len(dialogue.prompt_ids)
        for t, (token, turn) in enumerate(zip(dialogue.completion_ids, dialogue.turn_ids, strict=True)):
            if turn:
                assert dialogue.logprobs[t] == pytest.approx(logprobs[start + t - 1, token].item(), abs=1e-4)


def test_a_turn_without_a_stop_token_was_cut(task, chat, frozen_model):
    engine = FakeEngine(frozen_model)
    generator = VLLMGenerator(engine, frozenset({10**6}), 1.0, lambda n: [n])
    turns = generator.generate([0], [[5, 6, 7]], torch.rand(1, 3))
    assert not turns[0].closed and len(turns[0].ids) == 3


@pytest.mark.parametrize(
    "ids, logprobs, says",
    [([], [], "0 tokens"), ([5], [], "0 log-probs"), ([5], [[None]], "no log-prob")],
)
def test_an_engine_that_gives_nothing_is_named(frozen_model, ids, logprobs, says):
    engine = FakeEngine(frozen_model)
    engine.generate = lambda *args, **kwargs: (None, [ids], [logprobs], None)
    with pytest.raises(ItpoError, match=says):
        VLLMGenerator(engine, frozenset({3}), 1.0, lambda n: [n]).generate([0], [[5]], torch.rand(1, 3))
    assert engine.generation_kwargs == {"seed": 1}  # put back after a failure too


class SharedCounts:
    """Two processes that gather a number: each waits for the other, as a collective call does."""

    def __init__(self):
        self.barrier, self.values = threading.Barrier(2, timeout=60), [0, 0]

    def of(self, rank):
        def counts(own):
            self.values[rank] = own
            self.barrier.wait()
            found = list(self.values)
            self.barrier.wait()
            return found

        return counts


class SharedAccelerator:
    """As much of accelerate as gathers one number of each process."""

    device = "cpu"

    def __init__(self, counts):
        self.counts = counts

    def gather(self, own):
        return torch.tensor(self.counts(own.item()))


@pytest.mark.parametrize("waves", [1, 2, 3])
def test_processes_that_share_an_engine_make_equal_calls(tokenizer, task, chat, waves):
    """One has two dialogues, the other five: numbers and sizes of calls agree, and nobody waits for ever.

    Waves do not disturb that: the processes' waves end at different times, and there may be more of them in one.
    """
    shared, played, engines, errors = SharedCounts(), {}, {}, []

    def process(rank, rows):
        try:
            engines[rank] = FakeEngine(make_model(tokenizer, seed=rank).requires_grad_(False))
            backend = VLLMBackend(engines[rank], SharedAccelerator(shared.of(rank)), collective=True)
            model = engines[rank].model
            played[rank] = play(model, chat, task, episodes(task, rows), generator=backend, waves=waves)
            backend.finish()
        except BaseException as error:
            errors.append(error)
            shared.barrier.abort()

    threads = [threading.Thread(target=process, args=(rank, rows)) for rank, rows in ((0, 2), (1, 5))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not errors, errors
    assert [len(played[rank]) for rank in (0, 1)] == [2, 5]
    sizes = [[len(prompts) for prompts in engines[rank].calls] for rank in (0, 1)]
    assert sizes[0] == sizes[1] and sizes[0][0] == -(-5 // waves)
    parts = {rank: split_rows(len(played[rank]), waves) for rank in (0, 1)}
    own = [sum(max(played[rank][row].n_turns for row in part) for part in parts[rank]) for rank in (0, 1)]
    assert len(sizes[0]) == max(own)


def test_the_trainer_plays_through_the_engine(tmp_path, monkeypatch):
    """TRL makes the engine and brings it the new weights; old log-probs come from the policy, ratios are per token."""
    from trl.trainer import grpo_trainer

    made = []

    def engine(**settings):
        made.append(FakeEngine(**{k: settings[k] for k in ("model", "temperature", "max_completion_length")}))
        return made[0]

    monkeypatch.setattr(grpo_trainer, "VLLMGeneration", engine)
    options = {"max_steps": 2, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "num_generations": 4,
               "num_iterations": 1, "learning_rate": 1e-2, "save_strategy": "no", "use_vllm": True}  # fmt: skip
    trainer = build_trainer(RunSettings(out=str(tmp_path), device="cpu", options=options))
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train()
    assert len(made) == 1 and made[0].syncs == 2 and made[0].calls
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    assert trainer.args.vllm_importance_sampling_mode == "token_truncate"
    history = [row for row in trainer.state.log_history if "outcome" in row]
    assert len(history) == 2 and all(row["sampler_mismatch"] < 1e-4 for row in history)
    ratios = [v for row in history for k, v in row.items() if k.startswith("sampling/importance_sampling_ratio")]
    assert ratios and all(v == pytest.approx(1.0, abs=1e-3) for v in ratios)
