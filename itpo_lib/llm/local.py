"""A transformers model of this process as a chat model."""

from __future__ import annotations

import asyncio

import numpy as np
import torch
from transformers import PreTrainedModel

from ..chat import ChatFormat
from ..generation import CachedGenerator
from .client import BadReply, ChatModel, Exchange


class LocalModel(ChatModel):
    """A transformers model in this process, one call at a time. The same seed gives the same reply."""

    def __init__(self, model: PreTrainedModel, chat: ChatFormat, *, retries: int = 2):
        name = str(model.config.name_or_path or type(model).__name__)
        super().__init__(name, concurrency=1, retries=retries, deadline=600.0, backoff=0.0)
        self.model, self.chat = model, chat

    async def reply(self, exchange: Exchange) -> str:
        return await asyncio.to_thread(self._generate, exchange)

    def _generate(self, exchange: Exchange) -> str:
        ids = self.chat.prompt_ids(exchange.asked(in_words=True))
        room = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if room is not None and len(ids) + exchange.max_tokens > room:
            reason = f"{len(ids)} prompt tokens and max_tokens={exchange.max_tokens} exceed {room} positions"
            raise BadReply("bad_request", reason, retry=False)
        uniforms = torch.tensor(np.random.default_rng(exchange.seed).random((1, exchange.max_tokens)))
        sampler = CachedGenerator(self.model, self.chat.control_ids, exchange.temperature)
        return self.chat.text(sampler.generate([0], [ids], uniforms)[0].ids)
