"""Shared fixtures: the tiny tokenizer and untrained tiny models, on one thread and offline."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("itpo", max_examples=30, deadline=None, derandomize=True)
settings.load_profile("itpo")


@pytest.fixture(scope="session")
def task():
    """Tiny math tutoring at normal difficulty."""
    from itpo_lib.tasks import get_task

    return get_task("math_tutoring")


@pytest.fixture(scope="session")
def tokenizer(task):
    """The word-level tokenizer of the tiny world. Do not change it in a test: build another."""
    from itpo_lib.models import tiny_tokenizer

    return tiny_tokenizer(task.vocabulary())


@pytest.fixture(scope="session")
def chat(tokenizer):
    """The chat format of the tiny tokenizer."""
    from itpo_lib.chat import ChatFormat

    return ChatFormat(tokenizer)


def make_model(tokenizer, seed: int = 0):
    """An untrained Qwen2 with large embeddings: far from uniform, and turns end in every possible way."""
    from itpo_lib.models import tiny_model

    model = tiny_model(tokenizer, seed=seed, hidden=32, layers=2, heads=2)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(6.0)
        model.get_input_embeddings().weight[tokenizer.eos_token_id].mul_(3.0)
    return model


@pytest.fixture(scope="session")
def frozen_model(tokenizer):
    """A model to read from; shared by all tests, so none may train it."""
    return make_model(tokenizer).requires_grad_(False)


@pytest.fixture
def model(tokenizer):
    """A model of the test's own, free to be trained."""
    return make_model(tokenizer)


def layout(rows: list[list[int]], glue: int = 2, extra: int = 0) -> torch.Tensor:
    """Turn ids (B, T) of dialogues given as tokens per turn, with `glue` user tokens after each turn."""
    ids = [[i for k, n in enumerate(row) for i in [k + 1] * n + [0] * glue] for row in rows]
    width = max(1, max(map(len, ids))) + extra
    return torch.tensor([row + [0] * (width - len(row)) for row in ids])


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Normal numbers that depend on the seed alone."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def uniform(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Uniform numbers in [0, 1) that depend on the seed alone."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
