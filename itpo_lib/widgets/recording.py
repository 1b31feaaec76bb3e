"""A recording: fixed dialogues, and what the PRM said of their tokens at several training steps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
import torch
from transformers import PreTrainedModel, TrainerCallback

from ..chat import ChatFormat
from ..dialogue import Dialogue, collate
from ..errors import ItpoError, require
from ..logprobs import token_logprobs
from ..prm import ImplicitPRM, reference

if TYPE_CHECKING:
    from ..tasks.base import Task
    from ..trainer import ITPOTrainer


@dataclass(frozen=True)
class Recording:
    """B dialogues under S states of one PRM. T: longest completion; K: most turns.

    `log_ratios` (S, B, T) is log π_φ - log π_ref of each assistant token, 0 elsewhere; `steps` (S,) are
    the training steps. `tokens` are the texts of each completion's tokens. `goals` says what the users
    hide, `truth` the true credit of each turn, where they are known.
    """

    dialogues: list[Dialogue]
    steps: list[int]
    log_ratios: np.ndarray
    tokens: list[list[str]]
    beta: float = 0.05
    temperature: float = 0.4
    success_threshold: float = 1.0
    goals: list[dict[str, str]] = field(default_factory=list)
    truth: list[list[float]] | None = None

    def __post_init__(self) -> None:
        n, width = len(self.dialogues), max((len(d.completion_ids) for d in self.dialogues), default=0)
        require(n > 0, "a recording needs at least one dialogue, got none")
        require(len(self.steps) > 0, "a recording needs at least one training step, got none")
        require(self.log_ratios.shape == (len(self.steps), n, width),
                f"log_ratios must have the shape (steps, dialogues, tokens) = {(len(self.steps), n, width)}, got {self.log_ratios.shape}")  # fmt: skip
        require(bool(np.isfinite(self.log_ratios).all()), "log_ratios must be finite numbers")
        require(not self.goals or len(self.goals) == n, f"{n} dialogues but {len(self.goals)} goals")
        check_finished(self.dialogues)
        for i, (dialogue, texts) in enumerate(zip(self.dialogues, self.tokens, strict=True)):
            require(len(texts) == len(dialogue.completion_ids), f"dialogue {i}: tokens and ids differ in number")
        if self.truth is not None:
            turns, given = [d.n_turns for d in self.dialogues], [len(row) for row in self.truth]
            require(turns == given, f"truth needs one number per assistant turn: {turns} turns, got {given} numbers")

    @property
    def outcomes(self) -> torch.Tensor:
        """(B,) float."""
        return torch.tensor([float(d.outcome or 0.0) for d in self.dialogues])

    @cached_property
    def turn_ids(self) -> torch.Tensor:
        """(B, T) long."""
        return collate(self.dialogues, 0).turn_ids

    @property
    def n_turns(self) -> int:
        """K."""
        return max(d.n_turns for d in self.dialogues)

    def save(self, path: str | Path) -> Path:
        """Write one .npz file: numbers and JSON, no pickle. Log-ratios are kept as 16-bit floats."""
        rest = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "log_ratios"}
        rest["dialogues"] = [d.to_dict() for d in self.dialogues]
        path = Path(path)
        with path.open("wb") as file:
            np.savez_compressed(file, log_ratios=self.log_ratios.astype(np.float16), rest=np.array(json.dumps(rest)))
        return path

    @classmethod
    def load(cls, path: str | Path) -> Recording:
        """The inverse of `save`, up to 16-bit rounding."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                rest, log_ratios = json.loads(str(arrays["rest"])), arrays["log_ratios"].astype(np.float32)
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise ItpoError(f"{Path(path).name} is no recording: {error}") from error
        rest["dialogues"] = [Dialogue.from_dict(data) for data in rest["dialogues"]]
        return cls(log_ratios=log_ratios, **rest)

    @classmethod
    def sample(cls) -> Recording:
        """The recording that ships with the package: the tiny math tutor (benchmarks/sample_recording.py)."""
        with as_file(files("itpo_lib.widgets").joinpath("sample.npz")) as path:
            return cls.load(path)


def check_finished(dialogues: Sequence[Dialogue]) -> None:
    """Refuse dialogues that cannot be shown with a reward for each turn."""
    for i, dialogue in enumerate(dialogues):
        require(dialogue.outcome is not None, f"dialogue {i} has no outcome (it failed): leave it out")
        require(dialogue.n_turns > 0, f"dialogue {i} has no assistant turn: leave it out")


def log_ratios(
    prm: ImplicitPRM, frozen: PreTrainedModel | None, chat: ChatFormat, dialogues: Sequence[Dialogue]
) -> np.ndarray:
    """log π_φ - log π_ref of every assistant token, (B, T). `frozen` is π_ref (None: adapters off)."""
    batch = collate(list(dialogues), chat.pad_id).to(prm.model.device)
    with torch.no_grad(), reference(prm.model, frozen) as ref:
        ref_logprobs = token_logprobs(ref, batch, micro_batch=prm.micro_batch)
    return (prm.logprobs(batch) - ref_logprobs).float().cpu().numpy()


class PRMRecorder(TrainerCallback):
    """Scores the same dialogues again every few steps while a trainer runs; `recording()` is the result."""

    def __init__(self, dialogues: Sequence[Dialogue], every: int = 4):
        require(every >= 1, f"every must be at least 1 step, got {every}")
        require(len(dialogues) > 0, "no dialogues to record")
        self.dialogues, self.every = list(dialogues), every
        check_finished(self.dialogues)
        self.steps: list[int] = []
        self.frames: list[np.ndarray] = []
        self.trainer: ITPOTrainer | None = None

    def attach(self, trainer: ITPOTrainer) -> None:
        """Tell the recorder whose PRM to listen to."""
        require(trainer.prm is not None, f"credit {trainer.args.credit!r} trains no PRM: there is nothing to record")
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._take(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every == 0:
            self._take(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._take(state.global_step)

    def _take(self, step: int) -> None:
        trainer = self.trainer
        if trainer is None or trainer.prm is None:
            raise ItpoError("the recorder was never attached: call record_inspection(trainer, ...) instead")
        if step not in self.steps:
            self.steps.append(step)
            self.frames.append(log_ratios(trainer.prm, trainer.frozen, trainer.chat, self.dialogues))

    def recording(self, truth: list[list[float]] | None = None) -> Recording:
        """What was recorded so far; `truth`, the true credit of each dialogue's turns, where known."""
        trainer = self.trainer
        require(trainer is not None and len(self.steps) > 0, "nothing is recorded yet: train first")
        assert trainer is not None
        return Recording(
            self.dialogues, list(self.steps), np.stack(self.frames),
            [token_texts(trainer.chat, d) for d in self.dialogues],
            trainer.args.prm_beta, trainer.args.credit_temperature, trainer.task.success_threshold,
            [hidden_facts(trainer.task, d) for d in self.dialogues], truth,
        )  # fmt: skip


def record_inspection(trainer: ITPOTrainer, dialogues: Sequence[Dialogue], every: int = 4) -> PRMRecorder:
    """Make a trainer record its PRM's opinion of `dialogues`; call it before `trainer.train()`."""
    recorder = PRMRecorder(dialogues, every)
    recorder.attach(trainer)
    trainer.add_callback(recorder)
    return recorder


def token_texts(chat: ChatFormat, dialogue: Dialogue) -> list[str]:
    """The text of each completion token, control tokens included."""
    return [str(chat.tokenizer.decode([i])) for i in dialogue.completion_ids]


def hidden_facts(task: Task, dialogue: Dialogue) -> dict[str, str]:
    """What the user of a dialogue hides, and the right answer."""
    goal = task.goal(dialogue.goal_index, dialogue.split)
    return {**goal.hidden, "right answer": goal.answer}
