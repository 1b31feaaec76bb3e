"""A dialogue as tokens: append-only, with explicit turn ids, and the right-padded batch of many.

Token in, token out: what the policy sampled is what the policy is trained on. Nothing here renders
or tokenises text a second time, and no mask is ever read off a token's value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypedDict

import torch
from torch import Tensor

from .errors import require


class Message(TypedDict):
    """One utterance in the chat format that Hugging Face tokenizers use."""

    role: str
    content: str


def said_by(role: str, messages: Sequence[Message]) -> list[str]:
    """The texts of one role's messages, in order."""
    return [message["content"] for message in messages if message["role"] == role]


@dataclass
class Dialogue:
    """One conversation between the assistant (the policy) and a user.

    `completion_ids` is everything after the prompt. `turn_ids` runs parallel to it: k >= 1 for a
    token that the policy sampled in its k-th turn, 0 for every token it only read (the user's words,
    the template's glue, an end-of-turn token forced by the budget).
    """

    prompt_ids: list[int]
    messages: list[Message]
    goal_index: int = 0
    split: str = "train"
    user_seed: int = 0
    completion_ids: list[int] = field(default_factory=list)
    turn_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    outcome: float | None = None
    ended: str = ""  # "user", "turn_limit", "token_limit" or "failed"
    failure: str | None = None
    n_turns: int = 0

    def add_assistant(self, ids: list[int], logprobs: list[float], text: str) -> None:
        """Append a sampled turn: its ids as they came out of the policy, and its text for the user."""
        require(len(ids) > 0, "an assistant turn needs at least one token, got none")
        require(len(ids) == len(logprobs), f"{len(ids)} token ids but {len(logprobs)} log-probs in one turn")
        self.n_turns += 1
        self.completion_ids += ids
        self.turn_ids += [self.n_turns] * len(ids)
        self.logprobs += logprobs
        self.messages.append({"role": "assistant", "content": text})

    def add_environment(self, ids: list[int]) -> None:
        """Append tokens that the policy reads but did not write."""
        self.completion_ids += ids
        self.turn_ids += [0] * len(ids)
        self.logprobs += [0.0] * len(ids)

    def add_user(self, ids: list[int], text: str) -> None:
        """Append a user's reply together with the template's glue around it."""
        self.add_environment(ids)
        self.messages.append({"role": "user", "content": text})

    @property
    def assistant_words(self) -> int:
        """Whitespace-separated words that the assistant wrote."""
        return len(" ".join(said_by("assistant", self.messages)).split())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, for transcripts and reports."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Dialogue:
        """The inverse of `to_dict`; an unknown or missing field is an error that names it."""
        known = set(cls.__dataclass_fields__)
        require(set(data) <= known, f"unknown dialogue fields {sorted(set(data) - known)}; known are {sorted(known)}")
        missing = {"prompt_ids", "messages"} - set(data)
        require(not missing, f"a dialogue lacks the fields {sorted(missing)}")
        return cls(**data)


@dataclass
class DialogueBatch:
    """B dialogues as right-padded tensors. L: longest dialogue; T: longest completion.

    `input_ids`, `attention_mask`: (B, L), prompt and completion together.
    `completion_ids`, `turn_ids`, `logprobs`: (B, T), the completion alone, which is TRL's layout.
    `prompt_lengths`, `completion_lengths`: (B,).
    """

    input_ids: Tensor
    prompt_lengths: Tensor
    completion_lengths: Tensor
    completion_ids: Tensor
    turn_ids: Tensor
    logprobs: Tensor

    @property
    def attention_mask(self) -> Tensor:
        """(B, L) bool, from lengths alone."""
        lengths = self.prompt_lengths + self.completion_lengths
        return torch.arange(self.input_ids.shape[1], device=lengths.device) < lengths[:, None]

    @property
    def assistant_mask(self) -> Tensor:
        """(B, T) bool: the tokens that the policy wrote."""
        return self.turn_ids > 0

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def rows(self, index: Tensor | slice) -> DialogueBatch:
        """The same batch with only some rows, cut to their longest dialogue."""
        parts = {name: getattr(self, name)[index] for name in self.__dataclass_fields__}
        t = int(parts["completion_lengths"].max())
        length = int((parts["prompt_lengths"] + parts["completion_lengths"]).max())
        for name in ("completion_ids", "turn_ids", "logprobs"):
            parts[name] = parts[name][:, :t]
        parts["input_ids"] = parts["input_ids"][:, :length]
        return DialogueBatch(**parts)

    def to(self, device: torch.device | str) -> DialogueBatch:
        """A copy on another device."""
        return DialogueBatch(**{name: getattr(self, name).to(device) for name in self.__dataclass_fields__})


def collate(dialogues: list[Dialogue], pad_id: int) -> DialogueBatch:
    """Right-pad dialogues into one batch. `pad_id` only fills; it may equal any other token."""
    require(len(dialogues) > 0, "cannot make a batch of no dialogues")

    def pad(rows: list[list[Any]], fill: float, dtype: torch.dtype) -> Tensor:
        width = max(1, max(map(len, rows)))
        return torch.tensor([row + [fill] * (width - len(row)) for row in rows], dtype=dtype)

    return DialogueBatch(
        input_ids=pad([d.prompt_ids + d.completion_ids for d in dialogues], pad_id, torch.long),
        prompt_lengths=torch.tensor([len(d.prompt_ids) for d in dialogues]),
        completion_lengths=torch.tensor([len(d.completion_ids) for d in dialogues]),
        completion_ids=pad([d.completion_ids for d in dialogues], pad_id, torch.long),
        turn_ids=pad([d.turn_ids for d in dialogues], 0, torch.long),
        logprobs=pad([d.logprobs for d in dialogues], 0.0, torch.float32),
    )
