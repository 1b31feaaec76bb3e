"""Sampling assistant turns from a model: one key-value cache continued across turns.

Randomness is one uniform number per sampled token, drawn from a stream of the dialogue's own. So a
dialogue depends on its own seed alone, not on what else is in the batch, and two generators that
compute the same probabilities play the same dialogues.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from .errors import require
from .logprobs import backbone, lm_logits


@dataclass
class SampledTurn:
    """One turn as sampled. `closed` is False when the budget cut it before a control token."""

    ids: list[int]
    logprobs: list[float]
    closed: bool


class TurnGenerator(Protocol):
    """What a rollout needs from a sampler; one instance plays one batch of dialogues."""

    def generate(self, rows: list[int], new_ids: list[list[int]], uniforms: Tensor) -> list[SampledTurn]:
        """Append `new_ids` to the contexts of `rows` and sample one turn for each.

        `rows` never gains members: a row that is left out has finished. `uniforms`: (rows, budget).
        """


def sample(logits: Tensor, uniforms: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Tokens (B,) by inverse CDF and their exact log-probs (B,). `temperature` 0 is greedy, log-probs at 1."""
    logprobs = (logits / (temperature or 1.0)).log_softmax(-1)
    if temperature == 0.0:
        tokens = logprobs.argmax(-1)
    else:
        cdf = logprobs.double().exp().cumsum(-1)
        tokens = (cdf < uniforms[:, None] * cdf[:, -1:]).sum(-1)
    return tokens, logprobs.gather(-1, tokens[:, None])[:, 0]


class RoomyLayer(DynamicLayer):
    """A cache layer with room to spare: appending copies the new columns, not all that came before."""

    ROOM = 128  # spare columns of a fresh buffer
    _views: tuple[Tensor, Tensor] | None = None
    _buffers: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        used, columns = self.get_seq_length(), self.get_seq_length() + key_states.shape[-2]
        if self._buffers is None or self._views is None or self.keys is not self._views[0]:  # rows were dropped
            self._buffers = None
        if self._buffers is None or columns > self._buffers[0].shape[-2]:
            self._buffers = (self._room(key_states, self.keys, used), self._room(value_states, self.values, used))
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., used:columns, :] = states
        self.keys, self.values = (buffer[..., :columns, :] for buffer in self._buffers)
        self._views = (self.keys, self.values)
        return self.keys, self.values

    def _room(self, states: Tensor, old: Tensor | None, used: int) -> Tensor:
        batch, heads, new, width = states.shape
        buffer = states.new_empty(batch, heads, used + new + self.ROOM, width)
        if old is not None and used:
            buffer[..., :used, :] = old
        return buffer


class CachedGenerator:
    """Continues one key-value cache across turns; finished dialogues leave the batch."""

    def __init__(self, model: PreTrainedModel, stop_ids: frozenset[int], temperature: float = 1.0):
        self.model, self.temperature = model, temperature
        self.stop = torch.tensor(sorted(stop_ids), device=model.device)
        self.cache = DynamicCache(config=model.config)
        self.cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in self.cache.layers]
        windows = [getattr(layer, "sliding_window", None) for layer in self.cache.layers]
        self.window = min((window for window in windows if window is not None), default=None)
        self.rows: list[int] = []
        self.mask = torch.zeros(0, 0, dtype=torch.bool, device=model.device)  # (rows, columns) of the cache
        self.pending: list[list[int]] = []  # sampled last, not yet in the cache

    @torch.no_grad()
    def generate(self, rows: list[int], new_ids: list[list[int]], uniforms: Tensor) -> list[SampledTurn]:
        if self.rows:
            self._keep(rows)
            states = self._read([last + new for last, new in zip(self.pending, new_ids, strict=True)])
        else:
            states = self._open(new_ids)
        self.rows = list(rows)
        return self._decode(states, uniforms.to(self.mask.device))

    def _open(self, contexts: list[list[int]]) -> Tensor:
        """Read each distinct context once; rows that open alike get copies of its cache."""
        distinct: dict[tuple[int, ...], int] = {}
        copies = [distinct.setdefault(tuple(ids), len(distinct)) for ids in contexts]
        self.mask = self.mask.new_zeros(len(distinct), 0)
        states = self._read([list(ids) for ids in distinct])
        if len(distinct) < len(contexts):
            states = states[self._select(copies)]
        return states

    def _read(self, feed: list[list[int]]) -> Tensor:
        """Append ids to every row of the cache; the hidden state after each row's last, (rows, H)."""
        width = max(map(len, feed))
        ids = torch.tensor([f + [0] * (width - len(f)) for f in feed], device=self.mask.device)
        lengths = torch.tensor(list(map(len, feed)), device=self.mask.device)
        live = torch.arange(width, device=lengths.device) < lengths[:, None]
        return self._forward(ids, live)[torch.arange(len(feed), device=lengths.device), lengths - 1]

    def _decode(self, states: Tensor, uniforms: Tensor) -> list[SampledTurn]:
        """Token by token until every row has stopped or the budget is spent."""
        tokens, logprobs, alive = [], [], [torch.ones(len(states), dtype=torch.bool, device=states.device)]
        for step in range(uniforms.shape[1]):
            token, logprob = sample(lm_logits(self.model, states), uniforms[:, step], self.temperature)
            tokens.append(token)
            logprobs.append(logprob)
            alive.append(alive[-1] & ~torch.isin(token, self.stop))
            if step + 1 == uniforms.shape[1] or not alive[-1].any():
                break
            states = self._forward(token[:, None], alive[-1][:, None])[:, 0]
        kept = torch.stack(alive[:-1], 1)  # (rows, steps): a stop token is kept, what follows is not
        all_ids, all_logprobs = torch.stack(tokens, 1).tolist(), torch.stack(logprobs, 1).tolist()
        turns = [
            SampledTurn(all_ids[i][:n], all_logprobs[i][:n], closed=not open_)
            for i, (n, open_) in enumerate(zip(kept.sum(1).tolist(), alive[-1].tolist(), strict=True))
        ]
        self.pending = [turn.ids[-1:] for turn in turns]
        return turns

    def _forward(self, ids: Tensor, live: Tensor) -> Tensor:
        """Feed columns (rows, W); `live` marks real tokens. Holes stay masked for ever."""
        before = self.mask.sum(1, keepdim=True)
        self.mask = torch.cat([self.mask, live], 1)
        require(
            self.window is None or self.mask.shape[1] <= self.window,
            f"{self.model.config.model_type} attends to a sliding window of {self.window} tokens, and these dialogues "
            "are longer; shorten prompts and limits, or use a model without a window",
        )
        positions = (before + live.cumsum(1) - 1).clamp(min=0)
        return backbone(self.model)(
            input_ids=ids,
            attention_mask=self._attention(ids.shape[1]),
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state

    def _attention(self, width: int) -> Tensor:
        """The 4-D causal mask for SDPA (saves the model from building one), else the 2-D padding mask."""
        if self.model.config._attn_implementation != "sdpa":
            return self.mask.long()
        columns = self.mask.shape[1]
        causal = torch.ones(width, columns, dtype=torch.bool, device=self.mask.device).tril(columns - width)
        return (self.mask[:, None, None, :] & causal) | torch.eye(
            width, columns, dtype=torch.bool, device=causal.device
        ).roll(columns - width, 1)  # a padded query attends to itself: no row of the softmax is empty

    def _keep(self, rows: list[int]) -> None:
        """Drop the rows that finished."""
        if rows != self.rows:
            kept = [self.rows.index(row) for row in rows]
            self._select(kept)
            self.pending = [self.pending[i] for i in kept]

    def _select(self, places: list[int]) -> Tensor:
        """Make the rows at `places` the rows of the cache; a place may come more than once."""
        index = torch.tensor(places, device=self.mask.device)
        self.cache.batch_select_indices(index)
        self.mask = self.mask[index]
        return index
