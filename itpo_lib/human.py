"""A person in the dialogue: as the assistant of a simulated user, or as the user of a policy.

A session moves on by one `say` at a time, so a notebook widget can drive it as well as the terminal.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .dialogue import Dialogue, said_by
from .errors import DialogueFailed, ItpoError, require, type_names, unknown_name
from .tasks.base import Goal, Reply, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .chat import ChatFormat

ROLES = ("assistant", "user")
NONE = type(None)
SAVED: dict[str, tuple[type, ...]] = {
    "task": (str,), "scale": (str,), "goal": (int,), "split": (str,), "seed": (int,), "role": (str,),
    "messages": (list,), "ended": (str,), "failure": (str, NONE), "outcome": (int, float, NONE), "sampled": (dict, NONE),
}  # fmt: skip


class HumanSession:
    """One dialogue about `goal`. `role` is the person's; as the user they talk to the policy `model` with `chat`.

    `messages`: what was said so far. `ended`: why the dialogue is over, "" until then. `outcome`: known
    from then on, unless a user or judge failed (`failure`). `sampled`: the tokens, where a policy speaks.
    """

    def __init__(
        self,
        task: Task,
        goal: Goal,
        seed: int = 0,
        role: str = "assistant",
        model: PreTrainedModel | None = None,
        chat: ChatFormat | None = None,
        temperature: float = 1.0,
    ):
        if role not in ROLES:
            raise unknown_name("role", role, ROLES)
        self.task, self.goal, self.seed, self.role = task, goal, seed, role
        self.messages = task.opening_messages(goal)
        self.ended = ""
        self.failure: str | None = None
        self.outcome: float | None = None
        self.sampled: Dialogue | None = None
        self._user = task.user(goal, seed) if role == "assistant" else None
        self._policy: PolicySpeaker | None = None
        if role == "user":
            require(model is not None and chat is not None, "as the user you talk to a policy: pass model and chat")
            self._policy = PolicySpeaker(model, chat, task, goal, seed, temperature)  # type: ignore[arg-type]
            self.sampled, self.messages = self._policy.dialogue, self._policy.dialogue.messages
            self._policy_turn()

    @property
    def n_turns(self) -> int:
        """Assistant turns so far."""
        return len(said_by("assistant", self.messages))

    def say(self, text: str) -> Reply:
        """The person's words; returns what the other side says to them. `done` means that the dialogue is over."""
        require(self._user is not None or self._policy is not None, "a loaded session cannot go on; start another one")
        require(not self.ended, f"this dialogue is over ({self.ended}); start another one")
        require(text.strip() != "", "say something, or end the dialogue with end()")
        if self._policy is not None:
            return self._policy_turn() if self._policy.hear(text) else self._finish(self._policy.dialogue.ended)
        self.messages.append({"role": "assistant", "content": text})
        try:
            reply = self._user.reply(text)  # type: ignore[union-attr]
        except DialogueFailed as failure:
            return self._finish("failed", str(failure))
        if reply.done or self.n_turns >= self.task.limits.max_turns:
            return self._finish("user" if reply.done else "turn_limit")
        self.messages.append({"role": "user", "content": reply.text})
        return reply

    def end(self) -> None:
        """The person has had enough, or got what they wanted."""
        if not self.ended:
            self._finish("user" if self.role == "user" else "assistant")

    def reveal(self) -> dict[str, Any]:
        """The hidden goal and the right answer; the assistant has to wait for the end."""
        require(bool(self.ended) or self.role == "user", "the goal stays hidden until the dialogue is over")
        return {"hidden": dict(self.goal.hidden), "answer": self.goal.answer}

    def to_dialogue(self, chat: ChatFormat) -> Dialogue:
        """The dialogue as tokens, for example for `score_turns`: a policy's own, or a person's words encoded."""
        require(self.n_turns > 0, "nothing to encode: the assistant has not said anything yet")
        if self.sampled is None:
            dialogue = chat.dialogue(self.messages)
        else:
            dialogue = replace(self.sampled)
            same = dialogue.prompt_ids == chat.prompt_ids(self.task.opening_messages(self.goal))
            require(same, "these turns were sampled with another tokenizer: pass the chat format of their policy")
        dialogue.goal_index, dialogue.split, dialogue.user_seed = self.goal.index, self.goal.split, self.seed
        dialogue.outcome, dialogue.ended, dialogue.failure = self.outcome, self.ended, self.failure
        return dialogue

    def save(self, path: Path | str) -> None:
        """Write the session as JSON."""
        saved = {
            "task": self.task.name, "scale": self.task.scale, "goal": self.goal.index, "split": self.goal.split,
            "seed": self.seed, "role": self.role, "messages": self.messages, "ended": self.ended,
            "failure": self.failure, "outcome": self.outcome, "sampled": self.sampled and self.sampled.to_dict(),
        }  # fmt: skip
        Path(path).write_text(json.dumps(saved, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path | str, task: Task) -> HumanSession:
        """A saved session of `task`, to be read and scored; it cannot go on."""
        try:
            data = json.loads(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise ItpoError(f"{path} is no saved session: {error}") from error
        for name, kinds in SAVED.items():
            held = isinstance(data, dict) and name in data
            require(held, f"{path} is no saved session: it lacks {name!r}")
            fits = isinstance(data[name], kinds)
            require(fits, f"{path}, {name!r}: expected {type_names(kinds)}, got {data[name]!r:.60}")
        if data["role"] not in ROLES:
            raise unknown_name("role", data["role"], ROLES)
        for message in data["messages"]:
            right = isinstance(message, dict) and [*message] == ["role", "content"]
            require(right, f"{path}: expected a message with role and content, got {message!r:.60}")
        own = (data["task"], data["scale"])
        require(own == (task.name, task.scale), f"{path} is a session of {own}, not of {(task.name, task.scale)}")
        session = cls(task, task.goal(data["goal"], data["split"]), data["seed"])
        require(
            data["messages"][: len(session.messages)] == session.messages,
            f"{path} opens in another way than goal {data['goal']}: make the task with the options of that session",
        )
        session._user = None
        session.role, session.messages, session.outcome = data["role"], data["messages"], data["outcome"]
        session.ended, session.failure = data["ended"], data["failure"]
        session.sampled = Dialogue.from_dict(data["sampled"]) if data["sampled"] else None
        return session

    def _policy_turn(self) -> Reply:
        """Let the policy speak; after its last turn the dialogue is over."""
        said = self._policy.speak()  # type: ignore[union-attr]
        if self.n_turns >= self.task.limits.max_turns:
            self._finish("turn_limit")
        return Reply(said, done=bool(self.ended))

    def _finish(self, reason: str, failure: str | None = None) -> Reply:
        """Close the dialogue and judge it."""
        self.ended, self.failure = reason, failure
        if self._policy is not None:
            self._policy.close()
        if failure is None:
            try:
                self.outcome = self.task.checked_outcome(self.goal, self.messages)
            except DialogueFailed as error:
                self.ended, self.failure = "failed", str(error)
        return Reply("", done=True)


class PolicySpeaker:
    """A policy that speaks one turn at a time, token for token as in a rollout."""

    def __init__(self, model: PreTrainedModel, chat: ChatFormat, task: Task, goal: Goal, seed: int, temperature: float):
        from .generation import CachedGenerator
        from .rollout import check_context_length

        messages = task.opening_messages(goal)
        self.dialogue = Dialogue(chat.prompt_ids(messages), messages, goal.index, goal.split, seed)
        check_context_length(model, [self.dialogue], task.limits)
        self.chat, self.limits, self.rng = chat, task.limits, np.random.default_rng([2, seed])
        self.sampler = CachedGenerator(model, chat.control_ids, temperature)
        self.unread = self.dialogue.prompt_ids

    def speak(self) -> str:
        """Sample the next turn."""
        import torch

        uniforms = torch.tensor(self.rng.random((1, self.limits.max_turn_tokens)))
        self.turn = self.sampler.generate([0], [self.unread], uniforms)[0]
        said = self.chat.text(self.turn.ids)
        self.dialogue.add_assistant(self.turn.ids, self.turn.logprobs, said)
        return said

    def hear(self, text: str) -> bool:
        """Take the user's reply; False if there is no room for another turn."""
        return self._take(Reply(text))

    def close(self) -> None:
        """Close the last turn, which may lack its end."""
        if not self.dialogue.ended:
            self._take(Reply("", done=True))

    def _take(self, reply: Reply) -> bool:
        from .rollout import continue_dialogues

        _, unread = continue_dialogues(self.chat, [self.dialogue], [0], [self.turn], [reply], self.limits)
        self.unread = unread[0] if unread else []
        return bool(unread)
