"""Asking models for JSON: 1,000 calls to a server that misbehaves, and every rule of the client by itself."""

from __future__ import annotations

import asyncio
import copy
import json
import re
import time
from collections import Counter
from concurrent.futures import wait

import numpy as np
import pytest
from fake_server import FAULTS, FakeServer
from pydantic import BaseModel, ConfigDict, Field

from itpo_lib.errors import DialogueFailed, ItpoError
from itpo_lib.llm import LocalModel, OpenAIModel
from itpo_lib.llm.client import BadReply, parse_reply, response_format

KINDS = {"hang": "timeout", "429": "rate_limit", "500": "server_error", "half_json": "invalid", "half_body": "invalid",
         "wrong_type": "invalid", "huge": "oversized", "closed": "connection", "cut": "connection",
         "empty": "invalid"}  # fmt: skip


class Note(BaseModel):
    """What the tests ask for."""

    model_config = ConfigDict(extra="forbid")
    thought: str
    number: int
    choice: int = Field(0, ge=0, le=1)


def asking(number: int) -> list[dict]:
    return [{"role": "user", "content": f"What is call {number}?"}]


def number_of(request: dict) -> int:
    return int(re.search(r"call (\d+)", request["messages"][-1]["content"])[1])


def echo(request: dict) -> str:
    return json.dumps({"thought": "easy", "number": number_of(request), "choice": 1})


class Plan:
    """Which exchange of which call goes wrong, and how; the same for the same seed."""

    def __init__(self, calls: int, retries: int, seed: int = 0):
        rng = np.random.default_rng(seed)
        quick = [fault for fault in FAULTS if fault != "hang"]
        self.faults = []
        for _ in range(calls):
            n = rng.choice(retries + 2, p=[0.5, 0.25, 0.15, 0.1]) if retries == 2 else 0
            self.faults.append([str(rng.choice(quick)) for _ in range(n)])
        for call in rng.choice(calls, 16, replace=False):
            self.faults[call] = ["hang", *self.faults[call]][: retries + 1]
        self.seen = Counter()

    def __call__(self, request: dict) -> str | None:
        call = number_of(request)
        self.seen[call] += 1
        planned = self.faults[call]
        return planned[self.seen[call] - 1] if self.seen[call] <= len(planned) else None


@pytest.mark.slow
def test_a_thousand_calls_to_a_faulty_server_are_all_accounted_for():
    plan = Plan(1000, retries=2)
    with FakeServer(echo, plan) as server:
        model = OpenAIModel(server.url, "m", concurrency=48, timeout=8.0, deadline=60.0, retries=2, backoff=0.001)
        futures = [model.ask(asking(i), Note, seed=i) for i in range(1000)]
        done, waiting = wait(futures, timeout=120)
    assert not waiting and len(done) == 1000
    failed = {i for i, future in enumerate(futures) if future.exception() is not None}
    assert failed == {i for i, faults in enumerate(plan.faults) if len(faults) > 2} and 50 < len(failed) < 200
    assert all(isinstance(futures[i].exception(), DialogueFailed) for i in failed)
    assert all(futures[i].result().number == i for i in range(1000) if i not in failed)
    counters, expected = model.counters, Counter()
    for fault, n in server.injected.items():
        expected[KINDS[fault]] += n
    assert counters.failures == expected and set(server.injected) == set(FAULTS)
    assert (counters.calls, counters.ok, counters.failed) == (1000, server.served, len(failed))
    assert counters.ok + counters.failures.total() == len(server.requests) == 1000 + counters.retries
    assert server.most_at_once <= 48


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_stays_ends_in_dialogue_failed(fault):
    with FakeServer(echo, lambda request: fault) as server:
        model = OpenAIModel(server.url, "m", retries=1, timeout=0.5 if fault == "hang" else 10, backoff=0.001)
        with pytest.raises(DialogueFailed, match=f"m at http.*{KINDS[fault]} 2x") as caught:
            model.ask(asking(1), Note).result(30)
        assert len(str(caught.value)) < 500  # nothing of a long reply comes along
        assert fault != "huge" or "more than 1000000 bytes" in str(caught.value)  # and it was not read to its end
        assert model.counters.failures == {KINDS[fault]: 2} and server.injected == {fault: 2}


def test_the_deadline_bounds_a_call_with_all_its_retries():
    with FakeServer(echo, lambda request: "hang") as server:
        model = OpenAIModel(server.url, "m", retries=100, timeout=0.2, deadline=0.5, backoff=0.001)
        with pytest.raises(DialogueFailed):
            model.ask(asking(1), Note).result(30)
        assert 2 <= server.injected["hang"] <= 4


def test_retry_after_is_honoured():
    faults, times = ["429"], []

    def fault(request):
        times.append(time.monotonic())
        return faults.pop() if faults else None

    with FakeServer(echo, fault) as server:
        server.retry_after = "1"
        assert OpenAIModel(server.url, "m", backoff=0.0).ask(asking(7), Note).result(30).number == 7
    assert times[1] - times[0] >= 1.0


def test_a_wait_beyond_the_deadline_is_not_waited_for():
    with FakeServer(echo, lambda request: "429") as server:
        server.retry_after = "3600"
        with pytest.raises(DialogueFailed, match="rate_limit 1x"):
            OpenAIModel(server.url, "m").ask(asking(7), Note).result(30)


@pytest.mark.parametrize("status, kind", [("401", "refused"), ("404", "refused"), ("403", "refused")])
def test_what_no_retry_can_mend_is_not_retried(status, kind):
    with FakeServer(echo, lambda request: status) as server:
        model = OpenAIModel(server.url, "m", retries=5)
        with pytest.raises(DialogueFailed, match=f"{kind} 1x.*HTTP {status}"):
            model.ask(asking(7), Note).result(30)
        assert len(server.requests) == 1


def test_a_server_without_schemas_is_asked_in_words_from_then_on():
    with FakeServer(echo, takes_schema=False) as server:
        model = OpenAIModel(server.url, "m", retries=0)
        numbers = [model.ask(asking(i), Note).result(30).number for i in range(3)]
    assert numbers == [0, 1, 2] and model.structured is False
    assert model.counters.failures == {"schema_refused": 1} and model.counters.retries == 1
    assert ["response_format" in request for request in server.requests] == [True, False, False, False]
    assert '"number"' in server.requests[1]["messages"][-1]["content"]


def test_a_bad_request_does_not_cost_the_schema_once_it_worked():
    with FakeServer(echo, lambda request: "400" if number_of(request) == 1 else None) as server:
        model = OpenAIModel(server.url, "m")
        model.ask(asking(0), Note).result(30)
        with pytest.raises(DialogueFailed, match="bad_request 1x"):
            model.ask(asking(1), Note).result(30)
        model.ask(asking(2), Note).result(30)
    assert all("response_format" in request for request in server.requests) and model.structured


def test_what_is_sent():
    with FakeServer(echo) as server:
        OpenAIModel(server.url, "m").ask(asking(3), Note, temperature=0.0, max_tokens=77, seed=5).result(30)
    (request,) = server.requests
    schema = request.pop("response_format")["json_schema"]
    assert request == {"model": "m", "messages": asking(3), "temperature": 0.0, "max_tokens": 77, "seed": 5}
    assert schema["strict"] and schema["schema"]["required"] == ["thought", "number", "choice"]
    assert "default" not in schema["schema"]["properties"]["choice"] and not schema["schema"]["additionalProperties"]


def test_a_retry_says_what_was_wrong_and_draws_another_seed():
    faults = ["wrong_type"]
    with FakeServer(echo, lambda request: faults.pop() if faults else None) as server:
        OpenAIModel(server.url, "m", backoff=0.0).ask(asking(3), Note, seed=5).result(30)
    first, second = server.requests
    asked = second["messages"][-1]["content"]
    assert "Input should be a valid string" in asked and asked.count('"properties"') == 1
    assert len(second["messages"]) == len(first["messages"]) and (first["seed"], second["seed"]) == (5, 6)


def test_it_works_where_an_event_loop_runs_already():
    async def cell() -> int:  # as in a notebook
        return model.ask(asking(4), Note).result(30).number

    with FakeServer(echo) as server:
        model = OpenAIModel(server.url, "m")
        assert asyncio.run(cell()) == 4


def test_a_dead_port_is_a_counted_failure():
    with FakeServer(echo) as server:
        url = server.url
    model = OpenAIModel(url, "m", retries=1, backoff=0.001)
    with pytest.raises(DialogueFailed, match="connection 2x"):
        model.ask(asking(0), Note).result(30)


def test_copies_share_the_model():
    model = OpenAIModel("http://127.0.0.1:1/v1", "m")
    assert copy.deepcopy({"user": model})["user"] is model


@pytest.mark.parametrize(
    "change, says",
    [
        ({"base_url": "127.0.0.1:8000"}, "base_url must start with http"),
        ({"concurrency": 0}, "concurrency must be >= 1, got 0"),
        ({"retries": -1}, "retries must be >= 0"),
        ({"timeout": 0}, "timeout must be > 0"),
        ({"deadline": 0}, "deadline must be > 0 seconds, got 0"),
    ],
)
def test_bad_settings_are_refused(change, says):
    with pytest.raises(ItpoError, match=says):
        OpenAIModel(**{"base_url": "http://127.0.0.1:1/v1", "model": "m", **change})


GOOD = {"thought": "t", "number": 3, "choice": 1}


@pytest.mark.parametrize("text", [json.dumps(GOOD), f"\n {json.dumps(GOOD)} ", f"```json\n{json.dumps(GOOD)}\n```"])
def test_whole_replies_are_read(text):
    assert parse_reply(text, Note, 512) == Note(**GOOD)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3",
        "null",
        "[]",
        "{}",
        f"Here you are: {json.dumps(GOOD)}",
        f"{json.dumps(GOOD)} I hope this helps.",
        f"{json.dumps(GOOD)}\n{json.dumps(GOOD)}",
        f"[{json.dumps(GOOD)}]",
        f"So:\n```json\n{json.dumps(GOOD)}\n```",
        f"```json\n{json.dumps(GOOD)}\n```\nDone.",
        json.dumps(GOOD)[:-1],
        json.dumps(GOOD | {"number": "3"}),
        json.dumps(GOOD | {"number": 3.5}),
        json.dumps(GOOD | {"number": True}),
        json.dumps(GOOD | {"choice": True}),
        json.dumps(GOOD | {"choice": 1.0}),
        json.dumps(GOOD | {"choice": 2}),
        json.dumps(GOOD | {"thought": None}),
        json.dumps(GOOD | {"more": 1}),
        '{"thought": "\\ud800", "number": 3, "choice": 1}',
        "[" * 100_000,
    ],
)
def test_other_replies_are_not(text):
    with pytest.raises(BadReply) as caught:
        parse_reply(text, Note, 100_000)
    assert caught.value.kind == "invalid" and caught.value.retry


def test_a_reply_far_beyond_its_tokens_is_oversized():
    with pytest.raises(BadReply, match="oversized"):
        parse_reply(json.dumps(GOOD | {"thought": "x" * 2000}), Note, 100)


# In this process


@pytest.fixture(scope="module")
def byte_chat():
    """A tokenizer that spells every text, with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from itpo_lib.chat import ChatFormat

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|system|>", "<|user|>", "<|assistant|>"],
    )
    tokenizer.chat_template = (
        "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    return ChatFormat(tokenizer)


def byte_model(chat):
    from itpo_lib.models import tiny_model

    return tiny_model(chat.tokenizer, hidden=16, layers=1, heads=2)


def test_a_local_models_reply_is_validated(byte_chat, monkeypatch):
    """The sampler is replaced: no model this small writes JSON."""
    said, prompts = ["nonsense", json.dumps(GOOD)], []

    class Sampler:
        def __init__(self, model, stop_ids, temperature):
            pass

        def generate(self, rows, new_ids, uniforms):
            from itpo_lib.generation import SampledTurn

            prompts.append((byte_chat.tokenizer.decode(new_ids[0]), uniforms))
            ids = [*byte_chat.plain_ids(said.pop(0)), byte_chat.end_of_turn_id]
            return [SampledTurn(ids, [0.0] * len(ids), True)]

    monkeypatch.setattr("itpo_lib.llm.local.CachedGenerator", Sampler)
    model = LocalModel(byte_model(byte_chat), byte_chat)
    assert model.ask(asking(0), Note, max_tokens=100, seed=1).result(60) == Note(**GOOD)
    assert model.counters.failures == {"invalid": 1} and model.counters.ok == 1
    (first, draws), (second, others) = prompts
    assert '"number"' in first and "could not be used" in second and (draws != others).any()


def test_a_local_model_samples_from_its_seed_and_fails_honestly(byte_chat):
    model = LocalModel(byte_model(byte_chat), byte_chat, retries=1)
    with pytest.raises(DialogueFailed, match="invalid 2x"):
        model.ask(asking(0), Note, max_tokens=8).result(60)
    with pytest.raises(DialogueFailed, match=r"bad_request 1x.*exceed 1024 positions"):
        model.ask(asking(0), Note, max_tokens=1000).result(60)
    assert model.counters.calls == model.counters.failed == 2
    from itpo_lib.llm.client import Exchange

    texts = [model._generate(Exchange(asking(0), Note, 1.0, 20, seed, 9.0, "")) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_the_schema_of_a_reply_names_every_field():
    assert set(response_format(Note)["json_schema"]["schema"]["properties"]) == {"thought", "number", "choice"}
