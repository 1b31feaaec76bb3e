"""What a run is judged by: numbers of one batch of dialogues."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from transformers import PreTrainedModel

from .dialogue import Dialogue, DialogueBatch, said_by
from .learning import Experience
from .logprobs import token_logprobs

PROBE_ROWS = 4  # dialogues on which the sampler's log-probs are compared with the trainer's


def outcome_metrics(everything: Experience, threshold: float, length_penalty: float) -> dict[str, float]:
    """Outcomes and lengths, all processes together; `threshold` is the outcome that counts as a success."""
    metrics, outcomes = {}, everything.outcomes[everything.valid]
    tokens = (everything.turn_ids > 0).sum(1).float()[everything.valid]
    if len(outcomes):
        metrics["success"] = float((outcomes >= threshold).float().mean())
        metrics["outcome"] = float(outcomes.mean())
        metrics["outcome_std"] = float(outcomes.std(correction=0))
        metrics["score"] = float((outcomes - length_penalty * tokens).mean())
    return {**metrics, "turns": float(everything.turn_ids.amax(1).float().mean())}


def speech_metrics(dialogues: Sequence[Dialogue]) -> dict[str, float]:
    """Words, and how varied the questions are where somebody asked something."""
    metrics = {"words": sum(d.assistant_words for d in dialogues) / len(dialogues)}
    asked = [text for d in dialogues for text in said_by("assistant", d.messages)[:-1]]
    return {**metrics, "distinct_questions": len(set(asked)) / len(asked)} if asked else metrics


def policy_metrics(
    policy: PreTrainedModel, batch: DialogueBatch, log_ratio: Tensor, temperature: float
) -> dict[str, float]:
    """Distance to the reference by `log_ratio` (B, T), and of the sampler's log-probs to the trainer's."""
    ratio, own = -log_ratio[batch.assistant_mask], batch.assistant_mask.sum().clamp(min=1)
    probe = batch.rows(slice(0, PROBE_ROWS))
    gap = (token_logprobs(policy, probe, temperature) - probe.logprobs).abs()
    return {"kl_to_reference": float((ratio.exp() - ratio - 1).sum() / own), "sampler_mismatch": float(gap.max())}
