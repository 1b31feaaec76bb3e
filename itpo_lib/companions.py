"""The models that train beside the policy: how a run's settings make them, and what they do with a fresh batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .credit import unit_firsts
from .critic import Critic
from .prm import ImplicitPRM, prm_accuracy
from .replay import Judged, Replay, joined

if TYPE_CHECKING:
    from .config import ITPOConfig


def make_prm(policy: PreTrainedModel, args: ITPOConfig) -> ImplicitPRM:
    """The PRM of a run, which starts from the policy's weights."""
    return ImplicitPRM.beside(
        policy,
        beta=args.prm_beta,
        lr=args.prm_learning_rate,
        max_grad_norm=args.prm_max_grad_norm,
        mini_batch=args.prm_mini_batch_size,
        epochs=args.prm_epochs,
        clip=args.prm_clip,
        micro_batch=args.micro_batch_size,
        balanced=args.prm_balanced,
    )


def make_critic(policy: PreTrainedModel, args: ITPOConfig, name: str, adapters: bool) -> Critic:
    """PPO's critic learns the returns of whatever credit; the value model of credit "value" learns outcomes."""
    micro_batch = args.micro_batch_size if adapters else None  # full copies: as results were published
    return Critic(
        policy,
        args.critic_learning_rate,
        clip=args.critic_clip,
        epochs=args.critic_epochs,
        name=name,
        micro_batch=micro_batch,
    )


def prm_lesson(
    prm: ImplicitPRM, replay: Replay | None, fresh: Judged, order: str, seed: int
) -> tuple[Tensor, dict[str, float]]:
    """The PRM's token rewards (B, T), scored before or after it learns; its loss, and its accuracy on unseen ones."""
    rewards = prm.rewards(fresh.batch, fresh.ref_logprobs) if order == "score_then_update" else None
    lesson = with_older(fresh, replay, seed)
    with torch.enable_grad():
        loss, scores = prm.update(lesson.batch, lesson.ref_logprobs, lesson.outcomes, lesson.valid)
    if rewards is None:
        rewards = prm.rewards(fresh.batch, fresh.ref_logprobs)
    accuracy = prm_accuracy(scores[: len(fresh)][fresh.valid], fresh.outcomes[fresh.valid])
    return rewards, {"prm/loss": loss, "prm/accuracy": accuracy}


def with_older(fresh: Judged, replay: Replay | None, seed: int) -> Judged:
    """The fresh dialogues, and as many older ones where there is a replay (which now keeps the fresh ones)."""
    if replay is None:
        return fresh
    older = replay.draw(len(fresh), seed=seed)
    replay.add(fresh)
    return fresh if older is None else joined(fresh, older)


def value_lesson(value_model: Critic, fresh: Judged, n_turns: int) -> tuple[Tensor, dict[str, float]]:
    """What the value model gave for the dialogue before each turn, (B, K), and its loss when it then learned."""
    batch = fresh.batch
    values = value_model.values(batch)
    targets = fresh.outcomes.nan_to_num(0.0)[:, None] * batch.assistant_mask
    with torch.enable_grad():
        loss = value_model.update(batch, values, targets, fresh.valid)
    return unit_firsts(values, batch.turn_ids, n_turns), {"value/loss": loss}
