"""The true credit of a turn, measured by playing the rest of the dialogue again and again.

    V_k  = E[R | the dialogue up to the user's reply to turn k]      V_0: before the first turn, V_K = R
    A*_k = V_k - V_{k-1}                                             Σ_k A*_k = R - V_0

A simulated user can be rebuilt and cloned at every boundary between turns, so the expectation is a
mean over M continuations of the current policy. From the boundary on the user's noise is fresh: the
recorded noise is one draw, and V is the mean over all. Continuation m of a goal begins with the same
sampler's and user's noise at every boundary (common random numbers), which takes noise out of A*_k.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .chat import ChatFormat
from .dialogue import Dialogue
from .errors import ItpoError, require
from .generation import CachedGenerator
from .rollout import Episode, GeneratorFactory, continue_from
from .tasks.base import Goal, Task, User

ABOVE_PLAYED = 1 << 64  # seeds of continuations are larger than those of any played dialogue


@dataclass(frozen=True)
class TrueCredit:
    """What B dialogues of up to K turns were worth at each boundary.

    `samples` (B, K+1, M): the outcome of continuation m from boundary k, the recorded outcome at a
    dialogue's end; NaN where the continuation's user failed, 0 beyond the end. `mask` (B, K): turns
    that exist; a failed dialogue has none. `informative` (B, K): the reply disclosed a hidden fact.
    """

    samples: Tensor
    mask: Tensor
    informative: Tensor

    @property
    def values(self) -> Tensor:
        """V_0 to V_K, (B, K+1)."""
        return self.samples.nanmean(-1)

    @property
    def value_errors(self) -> Tensor:
        """Standard errors of `values`, (B, K+1)."""
        return standard_error(self.samples)

    @property
    def credit(self) -> Tensor:
        """A*_k = V_k - V_{k-1}, (B, K)."""
        return self.values.diff(dim=1) * self.mask

    @property
    def credit_errors(self) -> Tensor:
        """Standard errors of `credit` from the paired differences, (B, K)."""
        return standard_error(self.samples.diff(dim=1)) * self.mask

    @property
    def pivotal(self) -> Tensor:
        """(B, K) bool: the first informative turn of each dialogue."""
        return self.informative & (self.informative.cumsum(1) == 1)


def standard_error(samples: Tensor) -> Tensor:
    """Of the mean over the last axis; NaN marks what is missing."""
    count = (~samples.isnan()).sum(-1)
    squares = (samples - samples.nanmean(-1, keepdim=True)).square().nansum(-1)
    return (squares / (count - 1).clamp(min=1) / count).sqrt()


@dataclass(frozen=True)
class Boundary:
    """A place to go on from: the dialogue so far, and the user as they stood there."""

    goal: Goal
    dialogue: Dialogue
    user: User

    @cached_property
    def key(self) -> tuple:
        """Equal for boundaries with the same future: same goal, same tokens, same user up to noise."""
        user = self.user.clone()
        user.reseed([0])
        try:
            state = pickle.dumps(user)
        except (TypeError, AttributeError, pickle.PicklingError) as error:
            raise ItpoError(f"{type(user).__name__} cannot be rebuilt: true credit needs a scripted user") from error
        tokens = tuple(self.dialogue.prompt_ids + self.dialogue.completion_ids)
        return self.goal.split, self.goal.index, tokens, state

    def begin(self, seed: int) -> tuple[Episode, Dialogue, User]:
        """What one continuation needs: an episode, a dialogue of its own, and a user with fresh noise."""
        user = self.user.clone()
        user.reseed([3, seed])
        return Episode(self.goal, seed), cut(self.dialogue, self.dialogue.n_turns), user


def cut(dialogue: Dialogue, turns: int) -> Dialogue:
    """A copy of a dialogue up to the user's reply to its first `turns` turns."""
    starts = [i for i, message in enumerate(dialogue.messages) if message["role"] == "assistant"]
    starts.append(len(dialogue.messages))
    end = dialogue.turn_ids.index(turns + 1) if turns + 1 in dialogue.turn_ids else len(dialogue.turn_ids)
    return replace(
        dialogue,
        messages=dialogue.messages[: starts[turns]],
        completion_ids=dialogue.completion_ids[:end],
        turn_ids=dialogue.turn_ids[:end],
        logprobs=dialogue.logprobs[:end],
        outcome=None,
        ended="",
        n_turns=turns,
    )


def boundaries(task: Task, dialogue: Dialogue) -> list[Boundary]:
    """The places before each assistant turn; the user is rebuilt by hearing the recorded turns again."""
    goal = task.goal(dialogue.goal_index, dialogue.split)
    user, found, messages = task.user(goal, dialogue.user_seed), [], dialogue.messages
    for k in range(dialogue.n_turns):
        prefix = cut(dialogue, k)
        found.append(Boundary(goal, prefix, user.clone()))
        if k + 1 < dialogue.n_turns:
            turn, recorded = (message["content"] for message in messages[len(prefix.messages) :][:2])
            reply = user.reply(turn)
            require(
                not reply.done and reply.text == recorded,
                f"the user of goal {goal.index} ({goal.split}) and seed {dialogue.user_seed} answers turn {k + 1} with "
                f"{reply.text!r}, but {recorded!r} is recorded: was the task made with the same options?",
            )
    return found


def noise_seed(seed: int, goal: Goal, m: int) -> int:
    """The seed of continuation `m` from any boundary of any dialogue about `goal`."""
    return ABOVE_PLAYED + (seed * 1_000_003 + goal.index) * 65_536 + m


def true_values(
    model: PreTrainedModel,
    chat: ChatFormat,
    task: Task,
    dialogues: Sequence[Dialogue],
    m: int = 64,
    *,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 512,
    generator: GeneratorFactory = CachedGenerator,
) -> TrueCredit:
    """Value every boundary of finished dialogues by `m` continuations of `model` from each.

    Boundaries with the same future (such as the openings of a group) are played once. `batch_size`
    bounds how many continuations are played side by side.
    """
    require(m >= 2, f"m must be >= 2 continuations (one has no standard error), got {m}")

    def play_on(starts: Sequence[Boundary]) -> list[list[float]]:
        begun = [start.begin(noise_seed(seed, start.goal, i)) for start in starts for i in range(m)]
        episodes, prefixes, users = (list(part) for part in zip(*begun, strict=True))
        played = continue_from(
            model, chat, task, episodes, prefixes, users, temperature=temperature, generator=generator
        )
        outcomes = [float("nan") if d.outcome is None else d.outcome for d in played]
        return [outcomes[i : i + m] for i in range(0, len(outcomes), m)]

    finished = {row: boundaries(task, d) for row, d in enumerate(dialogues) if d.outcome is not None}
    distinct = list({start.key: start for starts in finished.values() for start in starts}.values())
    distinct.sort(key=lambda start: len(start.dialogue.completion_ids))  # like lengths together: little padding
    per_batch, outcomes_from = max(1, batch_size // m), dict[tuple, list[float]]()
    for i in range(0, len(distinct), per_batch):
        batch = distinct[i : i + per_batch]
        outcomes_from |= {start.key: outcomes for start, outcomes in zip(batch, play_on(batch), strict=True)}
    turns = task.limits.max_turns
    samples = torch.zeros(len(dialogues), turns + 1, m, dtype=torch.float64)
    mask, informative = torch.zeros(2, len(dialogues), turns, dtype=torch.bool)
    for row, starts in finished.items():
        k, dialogue = len(starts), dialogues[row]
        samples[row, :k] = torch.tensor([outcomes_from[start.key] for start in starts], dtype=torch.float64)
        samples[row, k], mask[row, :k] = float(dialogue.outcome or 0.0), True
        informative[row, :k] = torch.tensor(task.informative_turns(starts[0].goal, dialogue.messages))
    require(not samples.nanmean(-1).isnan().any(), f"all {m} continuations from one boundary failed")
    return TrueCredit(samples, mask, informative)
