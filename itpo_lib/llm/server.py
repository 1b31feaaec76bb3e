"""A chat model behind any server that speaks OpenAI's protocol: vLLM, `transformers serve`, or a provider's."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from pydantic import BaseModel, ValidationError

from ..errors import ItpoError, require
from .client import BadReply, ChatModel, Exchange, response_format

API_KEY = "ITPO_API_KEY"  # an environment variable, since a run's settings are written into its folder
MAX_BYTES = 1_000_000  # of one HTTP reply


class OpenAIModel(ChatModel):
    """A model behind any OpenAI-compatible server. `timeout` bounds one exchange, in seconds.

    The key is read from the environment variable ITPO_API_KEY unless given; most local servers want
    none. Replies follow a JSON schema where the server accepts one. A server that refuses
    (`schema_refused` in the counters) gets the schema in words from then on.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key: str | None = None,
        *,
        concurrency: int = 32,
        timeout: float = 60.0,
        retries: int = 4,
        deadline: float | None = None,
        backoff: float = 0.5,
    ):
        try:
            from openai import AsyncOpenAI
        except ImportError as error:
            raise ItpoError("a model behind a server needs the openai client: pip install 'itpo-lib[llm]'") from error
        require(
            base_url.startswith(("http://", "https://")),
            f"base_url must start with http:// or https://, as in http://127.0.0.1:8000/v1, got {base_url!r}",
        )
        require(timeout > 0, f"timeout must be > 0 seconds, got {timeout}")
        deadline = 3 * timeout if deadline is None else deadline
        super().__init__(f"{model} at {base_url}", concurrency, retries, deadline, backoff)
        self.model, self.timeout = model, timeout
        self.structured: bool | None = None  # whether the server takes a schema; None: not known yet
        key = api_key or os.environ.get(API_KEY, "none")
        self._client = AsyncOpenAI(base_url=base_url, api_key=key, timeout=timeout, max_retries=0)

    async def reply(self, exchange: Exchange) -> str:
        with_schema = self.structured is not False
        request: dict[str, Any] = {
            "model": self.model,
            "messages": exchange.asked(in_words=not with_schema),
            "temperature": exchange.temperature,
            "max_tokens": exchange.max_tokens,
            "seed": exchange.seed,
        }
        if with_schema:
            request["response_format"] = response_format(exchange.schema)
        try:
            body = await self._send(request, min(self.timeout, exchange.seconds))
        except BadReply as reply:
            if with_schema and not self.structured and reply.kind == "bad_request":
                self.structured = False
                raise BadReply("schema_refused", str(reply), wait=0.0) from reply
            raise
        if with_schema:
            self.structured = True
        return completion_text(body)

    async def _send(self, request: dict[str, Any], seconds: float) -> bytes:
        """One HTTP exchange; the body of a successful reply, never more than `MAX_BYTES` of it."""
        import openai

        body = bytearray()
        try:
            async with (
                asyncio.timeout(seconds),
                self._client.chat.completions.with_streaming_response.create(**request) as response,
            ):
                async for chunk in response.iter_bytes():
                    body += chunk
                    if len(body) > MAX_BYTES:
                        raise BadReply("oversized", f"more than {MAX_BYTES} bytes")
        except (TimeoutError, openai.APITimeoutError) as error:
            raise BadReply("timeout", f"no reply within {seconds:.1f} seconds") from error
        except openai.APIStatusError as error:
            raise refusal(error.status_code, error.response.headers.get("retry-after")) from error
        except BadReply:
            raise
        except Exception as error:  # whatever the transport raises; which library that is depends on openai's version
            raise BadReply("connection", f"{type(error).__name__}: {str(error)[:200]}") from error
        return bytes(body)


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message


class _Completion(BaseModel):
    choices: list[_Choice]


def completion_text(body: bytes) -> str:
    """The text inside the body of a chat completion."""
    try:
        choices = _Completion.model_validate_json(body).choices
    except ValidationError as error:
        raise BadReply("invalid", "the server's reply is no chat completion") from error
    if not choices or not (choices[0].message.content or "").strip():
        raise BadReply("invalid", "the reply is empty")
    return str(choices[0].message.content)


def refusal(status: int, retry_after: str | None) -> BadReply:
    """What an HTTP error means for the call."""
    if status == 429:
        return BadReply("rate_limit", "HTTP 429", wait=seconds_to_wait(retry_after))
    if status >= 500 or status == 408:
        return BadReply("server_error", f"HTTP {status}", wait=seconds_to_wait(retry_after))
    kind = "bad_request" if status in (400, 422) else "refused"
    return BadReply(kind, f"HTTP {status}", retry=False)


def seconds_to_wait(retry_after: str | None) -> float | None:
    """A Retry-After header, where it is a number of seconds."""
    try:
        return None if retry_after is None else max(0.0, float(retry_after))
    except ValueError:
        return None
