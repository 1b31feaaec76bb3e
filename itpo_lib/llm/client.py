"""What it means to ask a language model for JSON: retries, time limits, validation, and counting.

Every call ends in a validated instance or in `DialogueFailed`, within a bounded time, and every bad
reply on the way is counted by kind.
"""

from __future__ import annotations

import asyncio
import functools
import json
import random
import re
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ..dialogue import Message
from ..errors import DialogueFailed, require

Answer = TypeVar("Answer", bound=BaseModel)

CHARACTERS_PER_TOKEN = 16  # a reply longer than this times max_tokens ignored the limit
CODE_FENCE = re.compile(r"\s*```(?:json)?\s*\n(.*)\n\s*```\s*", re.S)


@dataclass
class Counters:
    """What a model was asked and how it went: calls = ok + failed, exchanges = ok + all failures."""

    calls: int = 0
    ok: int = 0
    failed: int = 0
    retries: int = 0
    failures: Counter[str] = field(default_factory=Counter)


@dataclass
class Exchange:
    """One request for one reply."""

    messages: list[Message]
    schema: type[BaseModel]
    temperature: float
    max_tokens: int
    seed: int
    seconds: float  # what is left of the call's time
    complaint: str  # what was wrong with the reply before, if it could be read at all

    def asked(self, in_words: bool) -> list[Message]:
        """The messages, and under the last one the complaint and (always after a complaint) the schema.

        Not as messages of their own: two of one role in a row upset some templates. After a complaint
        even a greedy model can do otherwise, and a server that silently ignores schemas is found out.
        """
        notes = [f"Your last reply could not be used ({self.complaint})."] if self.complaint else []
        if in_words or notes:
            schema = json.dumps(response_format(self.schema)["json_schema"]["schema"])
            notes.append(f"Reply with one JSON object and nothing else. Its JSON schema: {schema}")
        last = self.messages[-1]
        return [*self.messages[:-1], {"role": last["role"], "content": "\n\n".join([last["content"], *notes])}]


class BadReply(Exception):
    """An exchange that gave nothing usable. `wait`: what the server asks for, in seconds."""

    def __init__(self, kind: str, reason: str, retry: bool = True, wait: float | None = None):
        super().__init__(f"{kind}: {reason}")
        self.kind, self.retry, self.wait = kind, retry, wait


class ChatModel(ABC):
    """A language model that is asked for JSON of a given shape. Copies of its users share it.

    `concurrency` bounds the calls under way, `deadline` the seconds of one call with all its
    retries, counted from its first exchange. Between exchanges it waits `backoff` seconds, doubled
    each time, with jitter, or as long as the server asks.
    """

    def __init__(self, name: str, concurrency: int, retries: int, deadline: float, backoff: float):
        require(concurrency >= 1, f"concurrency must be >= 1, got {concurrency}")
        require(retries >= 0, f"retries must be >= 0, got {retries}")
        require(deadline > 0, f"deadline must be > 0 seconds, got {deadline}")
        self.name, self.retries, self.deadline, self.backoff = name, retries, deadline, backoff
        self.counters = Counters()
        self._slots = asyncio.Semaphore(concurrency)

    @abstractmethod
    async def reply(self, exchange: Exchange) -> str:
        """The text of one reply, or `BadReply`."""

    def ask(
        self,
        messages: Sequence[Message],
        schema: type[Answer],
        *,
        temperature: float = 1.0,
        max_tokens: int = 512,
        seed: int = 0,
    ) -> Future[Answer]:
        """Start a call at once; the future gives an instance of `schema` or raises `DialogueFailed`."""
        call = self._call(list(messages), schema, temperature, max_tokens, seed)
        return asyncio.run_coroutine_threadsafe(call, background_loop())

    def __deepcopy__(self, memo: dict) -> ChatModel:
        return self

    async def _call(
        self, messages: list[Message], schema: type[Answer], temperature: float, max_tokens: int, seed: int
    ) -> Answer:
        self.counters.calls += 1
        async with self._slots:
            give_up, allowed = time.monotonic() + self.deadline, self.retries
            bad: list[BadReply] = []
            while True:
                left = give_up - time.monotonic()
                complaint = str(bad[-1]) if bad and bad[-1].kind == "invalid" else ""
                exchange = Exchange(messages, schema, temperature, max_tokens, seed + len(bad), left, complaint)
                try:
                    text = await self.reply(exchange)
                    answer = parse_reply(text, schema, max_tokens)
                    self.counters.ok += 1
                    return answer
                except BadReply as reply:
                    bad.append(reply)
                    self.counters.failures[reply.kind] += 1
                allowed += bad[-1].kind == "schema_refused"  # happens once; the next exchange does without
                pause = bad[-1].wait
                if pause is None:
                    pause = self.backoff * 2 ** (len(bad) - 1) * random.uniform(0.5, 1.5)
                if len(bad) > allowed or not bad[-1].retry or time.monotonic() + pause >= give_up:
                    break
                await asyncio.sleep(pause)
                self.counters.retries += 1
            self.counters.failed += 1
        kinds = ", ".join(f"{kind} {n}x" for kind, n in Counter(reply.kind for reply in bad).items())
        raise DialogueFailed(f"{self.name} gave no valid reply ({kinds}); the last one: {bad[-1]}")


@functools.cache
def background_loop() -> asyncio.AbstractEventLoop:
    """The one event loop that all calls share, in a thread of its own: a notebook's loop is taken."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="itpo-llm", daemon=True).start()
    return loop


def parse_reply(text: str, schema: type[Answer], max_tokens: int) -> Answer:
    """The instance that a whole reply spells out. JSON in the midst of other words does not count."""
    if len(text) > CHARACTERS_PER_TOKEN * max_tokens:
        raise BadReply("oversized", f"{len(text)} characters where max_tokens={max_tokens}")
    fenced = CODE_FENCE.fullmatch(text)
    try:
        return schema.model_validate_json(fenced[1] if fenced else text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "reply"
        raise BadReply("invalid", f"{where}: {first['msg']}") from error


@functools.lru_cache(maxsize=64)
def response_format(schema: type[BaseModel]) -> dict[str, Any]:
    """A pydantic type as the `response_format` of a chat completion; every field is asked for."""
    described = schema.model_json_schema()
    for entry in described["properties"].values():
        entry.pop("default", None)  # strict schemas know no defaults
    described |= {"required": list(described["properties"]), "additionalProperties": False}
    return {"type": "json_schema", "json_schema": {"name": schema.__name__, "schema": described, "strict": True}}
