"""What the PRM thinks of finished dialogues, turn by turn: for reports, widgets and transcripts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from .chat import ChatFormat
from .credit import softmax_shares, unit_lengths, unit_sums
from .dialogue import Dialogue, collate, said_by
from .logprobs import token_logprobs
from .prm import ImplicitPRM, reference


@dataclass(frozen=True)
class ScoredTurn:
    """One assistant turn: its words, R_k^imp, and its Norm-ITPO share of the outcome."""

    text: str
    implicit_reward: float
    share: float


def score_turns(
    prm: ImplicitPRM,
    frozen: PreTrainedModel | None,
    chat: ChatFormat,
    dialogues: Sequence[Dialogue],
    temperature: float = 0.4,
) -> list[list[ScoredTurn]]:
    """Implicit turn rewards and shares of each dialogue's turns. `frozen` is π_ref (None: adapters off)."""
    batch = collate(list(dialogues), chat.pad_id).to(prm.model.device)
    with torch.no_grad(), reference(prm.model, frozen) as ref:
        ref_logprobs = token_logprobs(ref, batch)
    n_turns = max(d.n_turns for d in dialogues)
    sums = unit_sums(prm.rewards(batch, ref_logprobs), batch.turn_ids, n_turns)
    shares = softmax_shares(sums, unit_lengths(batch.turn_ids, n_turns) > 0, temperature)
    scored = []
    for dialogue, row_sums, row_shares in zip(dialogues, sums.tolist(), shares.tolist(), strict=True):
        texts = said_by("assistant", dialogue.messages)
        scored.append([ScoredTurn(t, s, w) for t, s, w in zip(texts, row_sums, row_shares, strict=False)])
    return scored
