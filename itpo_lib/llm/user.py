"""A user played by a language model, who hides a request and reveals it piece by piece."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from ..dialogue import Message
from ..tasks.base import Reply, User
from .client import ChatModel
from .prompts import fence, harmless, new_marker, prompt, quoted, transcript

TERMINATE = "[[TERMINATE CHAT]]"
MAX_TOKENS = 512


class UserReply(BaseModel):
    """What the simulator writes. It leaves by `done`, or by the token in its own response."""

    model_config = ConfigDict(extra="forbid")
    current_answer: str
    thought: str
    response: str
    done: bool = False

    @model_validator(mode="after")
    def says_something(self) -> UserReply:
        """A turn that goes on needs words."""
        if not self.leaves and not harmless(self.response).strip():
            raise ValueError("response must not be empty while done is false")
        return self

    @property
    def leaves(self) -> bool:
        """Whether the dialogue ends here."""
        return self.done or TERMINATE in self.response

    @property
    def words(self) -> str:
        """The response without the token."""
        return self.response.replace(TERMINATE, "").strip()


class LLMUser(User):
    """Plays the person in `prompts/user_<task>.md` who wants `request` and has said `opening`.

    The model sees the request and the chat as quoted text, never as turns of its own, and only its
    own reply can end the dialogue. A reply that stays invalid raises `DialogueFailed`.
    """

    def __init__(self, model: ChatModel, task: str, request: str, opening: str, seed: int, temperature: float = 1.0):
        self.model, self.task, self.request, self.temperature = model, task, request, temperature
        self.chat: list[Message] = [{"role": "user", "content": opening}]
        self.rng = np.random.default_rng([3, seed])

    def reply(self, text: str) -> Reply:
        return self.start_reply(text)()

    def start_reply(self, text: str) -> Callable[[], Reply]:
        self.chat.append({"role": "assistant", "content": text})
        seed = int(self.rng.integers(2**31))
        pending = self.model.ask(
            self.prompt(), UserReply, temperature=self.temperature, max_tokens=MAX_TOKENS, seed=seed
        )

        def finish() -> Reply:
            said = pending.result()
            self.chat.append({"role": "user", "content": said.words})
            return Reply(said.words, done=said.leaves)

        return finish

    def prompt(self) -> list[Message]:
        """What the model reads before its next reply."""
        marker = new_marker()
        return prompt("user").messages(
            marker=marker,
            person=prompt(f"user_{self.task}").system,
            request=fence("request", quoted(self.request), marker),
            chat=fence("chat", transcript(self.chat), marker),
        )
