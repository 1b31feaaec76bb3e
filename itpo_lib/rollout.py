"""Playing whole dialogues: the policy and the users take turns until each dialogue ends.

The dialogues are played in waves. A wave generates one turn of all its dialogues and asks their users; while these
think, the other waves generate. A dialogue has random numbers of its own, so the waves do not change what is said:
the sampled tokens are the same, and log-probs agree up to the rounding of another batch size.

Each wave has a generator, and so a key-value cache, of its own. Together the caches hold as many rows as the one of a
single wave would, and all of them stay in memory until their waves are over.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from .chat import ChatFormat
from .dialogue import Dialogue
from .errors import DialogueFailed, ItpoError, require
from .generation import CachedGenerator, SampledTurn, TurnGenerator
from .tasks.base import Goal, Limits, Reply, Task, User


@dataclass(frozen=True)
class Episode:
    """One dialogue to play: a goal, and the seed of the user's and the sampler's randomness."""

    goal: Goal
    seed: int


GeneratorFactory = Callable[[PreTrainedModel, frozenset[int], float], TurnGenerator]


def play(
    model: PreTrainedModel,
    chat: ChatFormat,
    task: Task,
    episodes: Sequence[Episode],
    *,
    temperature: float = 1.0,
    limits: Limits | None = None,
    generator: GeneratorFactory = CachedGenerator,
    waves: int = 1,
) -> list[Dialogue]:
    """Play all episodes side by side and give each its outcome; the result keeps their order.

    With two `waves` or more, some users think while the policy speaks to others. It pays where users wait for a
    server. A user or a judge that fails (`DialogueFailed`) ends its dialogue alone, with `failure` set and
    no outcome.
    """
    require(len(episodes) > 0, "no episodes to play")
    dialogues, users = open_dialogues(chat, task, episodes)
    return continue_from(
        model,
        chat,
        task,
        episodes,
        dialogues,
        users,
        temperature=temperature,
        limits=limits,
        generator=generator,
        waves=waves,
    )


def continue_from(
    model: PreTrainedModel,
    chat: ChatFormat,
    task: Task,
    episodes: Sequence[Episode],
    dialogues: list[Dialogue],
    users: Sequence[User],
    *,
    temperature: float = 1.0,
    limits: Limits | None = None,
    generator: GeneratorFactory = CachedGenerator,
    waves: int = 1,
) -> list[Dialogue]:
    """Play dialogues on to their ends, in place, from wherever they stand; the assistant is next.

    `users` are as they were after the last message. An episode's seed is the sampler's from here on.
    """
    require(temperature >= 0.0, f"temperature must be >= 0, got {temperature}")
    require(waves >= 1, f"waves must be >= 1, got {waves}")
    limits = limits or task.limits
    check_context_length(model, dialogues, limits)
    streams = [np.random.default_rng([2, episode.seed]) for episode in episodes]

    def wave(rows: list[int]) -> Iterator[bool]:
        """Play `rows` to their ends; yields whenever their users have been asked."""
        sampler = generator(model, chat.control_ids, temperature)
        new_ids = [dialogues[row].prompt_ids + dialogues[row].completion_ids for row in rows]
        while rows:
            uniforms = torch.tensor(np.stack([streams[row].random(limits.max_turn_tokens) for row in rows]))
            turns = sampler.generate(rows, new_ids, uniforms)
            for row, turn in zip(rows, turns, strict=True):
                dialogues[row].add_assistant(turn.ids, turn.logprobs, chat.text(turn.ids))
            pending = [start_reply(task, episodes[row], users[row], dialogues[row]) for row in rows]
            yield True
            rows, new_ids = continue_dialogues(chat, dialogues, rows, turns, finish_all(pending), limits)

    take_turns([wave(rows) for rows in split_rows(len(dialogues), waves)])
    judge_all(task, episodes, dialogues)
    return dialogues


def split_rows(n: int, waves: int) -> list[list[int]]:
    """Rows 0 to n-1 in at most `waves` runs of nearly equal length; neighbours often share a prompt, and stay together."""
    return [part.tolist() for part in np.array_split(np.arange(n), min(waves, n))]


def take_turns(waves: list[Iterator[bool]]) -> None:
    """Let each wave go on until it yields, one after the other, until all are over."""
    while waves:
        waves = [wave for wave in waves if next(wave, False)]


def open_dialogues(chat: ChatFormat, task: Task, episodes: Sequence[Episode]) -> tuple[list[Dialogue], list[User]]:
    """Each episode's dialogue up to the assistant's first token, and its user."""
    dialogues, users = [], []
    for episode in episodes:
        goal = episode.goal
        with blame(task, goal.index, goal.split, episode.seed):
            messages = task.opening_messages(goal)
            users.append(task.user(goal, episode.seed))
        dialogues.append(Dialogue(chat.prompt_ids(messages), messages, goal.index, goal.split, episode.seed))
    return dialogues, users


@contextlib.contextmanager
def blame(task: Task, index: int, split: str, seed: int | None = None) -> Iterator[None]:
    """What a task's own code raises: say for which goal and user. The library's own errors pass."""
    try:
        yield
    except (ItpoError, DialogueFailed, torch.OutOfMemoryError):
        raise
    except Exception as error:
        user = "" if seed is None else f", user seed {seed}"
        raise ItpoError(
            f"task {task.name!r} ({task.scale}), goal {index} of {split!r}{user}: {type(error).__name__}: {error}"
        ) from error


def start_reply(task: Task, episode: Episode, user: User, dialogue: Dialogue) -> Callable[[], Reply]:
    """Begin to ask a user; the result waits for the reply and checks that it is one."""
    where = task, episode.goal.index, episode.goal.split, episode.seed
    with blame(*where):
        pending = user.start_reply(dialogue.messages[-1]["content"])

    def finish() -> Reply:
        with blame(*where):
            reply = pending()
            good = isinstance(reply, Reply) and isinstance(reply.text, str) and bool(reply.text or reply.done)
            if not good:
                raise TypeError(f"the user answered {reply!r}; return Reply(text) with a text, or Reply('', done=True)")
        return reply

    return finish


def finish_all(pending: Sequence[Callable[[], Reply]]) -> list[Reply | DialogueFailed]:
    """Wait for every user's answer; a failure takes the place of its answer."""
    replies: list[Reply | DialogueFailed] = []
    for finish in pending:
        try:
            replies.append(finish())
        except DialogueFailed as failure:
            replies.append(failure)
    return replies


def continue_dialogues(
    chat: ChatFormat,
    dialogues: list[Dialogue],
    rows: list[int],
    turns: list[SampledTurn],
    replies: list[Reply | DialogueFailed],
    limits: Limits,
) -> tuple[list[int], list[list[int]]]:
    """Append the users' replies; returns the rows that go on and the ids that each reads next."""
    next_rows, next_ids = [], []
    for row, turn, reply in zip(rows, turns, replies, strict=True):
        dialogue = dialogues[row]
        if not turn.closed:  # cut by the budget: closed by force, outside the assistant mask
            dialogue.add_environment([chat.end_of_turn_id])
        elif turn.ids[-1] != chat.end_of_turn_id:  # another control token: it stays, and ends the turn
            dialogue.add_environment([chat.end_of_turn_id])
        forced = dialogue.turn_ids[-1] == 0
        if isinstance(reply, DialogueFailed):
            dialogue.ended, dialogue.failure = "failed", str(reply)
        elif reply.done:
            dialogue.ended = "user"
        elif dialogue.n_turns >= limits.max_turns:
            dialogue.ended = "turn_limit"
        else:
            ids = chat.user_ids(reply.text)
            if len(dialogue.completion_ids) + len(ids) + limits.max_turn_tokens + 1 > limits.max_tokens:
                dialogue.ended = "token_limit"
                continue
            dialogue.add_user(ids, reply.text)
            next_rows.append(row)
            next_ids.append([chat.end_of_turn_id] * forced + ids)
    return next_rows, next_ids


def judge_all(task: Task, episodes: Sequence[Episode], dialogues: Sequence[Dialogue]) -> None:
    """Set the outcomes; a judge that fails marks its dialogue as failed."""
    pending = []
    for episode, dialogue in zip(episodes, dialogues, strict=True):
        if dialogue.failure is None:
            with blame(task, episode.goal.index, episode.goal.split, episode.seed):
                pending.append((episode, dialogue, task.start_outcome(episode.goal, dialogue.messages)))
    for episode, dialogue, finish in pending:
        try:
            with blame(task, episode.goal.index, episode.goal.split, episode.seed):
                dialogue.outcome = task.check_outcome(episode.goal, finish())
        except DialogueFailed as failure:
            dialogue.ended, dialogue.failure = "failed", str(failure)


def check_context_length(model: PreTrainedModel, dialogues: list[Dialogue], limits: Limits) -> None:
    """Refuse budgets that the model's positions cannot hold, before any token is sampled."""
    room = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max(len(d.prompt_ids) for d in dialogues)
    require(
        room is None or longest + limits.max_tokens <= room,
        f"the longest prompt ({longest} tokens) plus max_tokens={limits.max_tokens} exceeds the model's {room} "
        "positions; lower max_tokens or shorten the prompts",
    )
