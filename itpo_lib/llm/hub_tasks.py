"""The three tasks at hub scale: the paper's data, with a language model as user and as judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import ClassVar

from ..dialogue import Message
from ..errors import require, unknown_name
from ..tasks.base import Goal, Limits, Task, User
from ..tasks.bleu import word_bleu
from ..tasks.hub_data import Case, load_cases
from .client import ChatModel
from .judge import DocumentVerdict, LLMJudge, MathVerdict, MedicalVerdict
from .prompts import prompt
from .server import OpenAIModel
from .user import LLMUser

SPLITS = ("train", "validation", "test")


class HubTask(Task):
    """What the three share. `user` and `judge` are models, or `user_url` and `user_model` name a server's.

    The judge is the user's model unless it has a `judge_url` or `judge_model` of its own. `source`
    is a local file with the data set's columns; without it the data come from the Hugging Face hub.
    The user talks at temperature 1 in training and 0 in evaluation.
    """

    scale = "hub"
    judge_tokens: ClassVar[int] = 1024

    def __init__(
        self,
        user: ChatModel | None = None,
        judge: ChatModel | None = None,
        *,
        user_url: str = "",
        user_model: str = "",
        judge_url: str = "",
        judge_model: str = "",
        source: str | None = None,
        concurrency: int = 32,
        timeout: float = 120.0,
    ):
        own_judge = judge_url or judge_model
        self.user_model = user or self.connect(user_url, user_model, concurrency, timeout)
        if judge is None and own_judge:
            judge = self.connect(judge_url or user_url, judge_model or user_model, concurrency, timeout)
        self.judge = LLMJudge(judge or self.user_model, max_tokens=self.judge_tokens)
        self.source = source
        self.system_prompt = prompt("assistant").messages(task=prompt(f"assistant_{self.name}").system)[0]["content"]

    def connect(self, url: str, model: str, concurrency: int, timeout: float) -> ChatModel:
        """The model behind a server, or an error that says what is missing."""
        missing = [name for name, value in (("user_url", url), ("user_model", model)) if not value]
        require(
            not missing,
            f"task {self.name!r} (hub) talks to a language model and lacks {' and '.join(missing)}; start a server with "
            "`itpo serve-user --model NAME`, then pass --task-option user_url=http://127.0.0.1:8000/v1 "
            "--task-option user_model=NAME",
        )
        return OpenAIModel(url, model, concurrency=concurrency, timeout=timeout)

    @cached_property
    def cases(self) -> dict[str, list[Case]]:
        """The data, read when they are first needed."""
        return load_cases(self.name, self.source)

    def size(self, split: str) -> int:
        if split not in SPLITS:
            raise unknown_name("split", split, SPLITS)
        return len(self.cases[split])

    def goal(self, index: int, split: str = "train") -> Goal:
        size = self.size(split)
        require(size > 0, f"task {self.name!r} (hub) has no cases in split {split!r}")
        case = self.cases[split][index % size]
        return Goal(index, split, case.opening, {"request": case.request}, case.truth, case.data)

    def user(self, goal: Goal, seed: int) -> User:
        temperature = 1.0 if goal.split == "train" else 0.0
        return LLMUser(self.user_model, self.name, goal.hidden["request"], goal.opening, seed, temperature)

    def outcome(self, goal: Goal, messages: Sequence[Message]) -> float:
        return self.start_outcome(goal, messages)()

    def turn_weights(self, goal: Goal, messages: Sequence[Message]) -> list[float]:
        return self.judge.turn_weights(goal, messages)

    def start_turn_weights(self, goal: Goal, messages: Sequence[Message]) -> Callable[[], list[float]]:
        """As `turn_weights`; all dialogues of a batch are weighed side by side."""
        return self.judge.start_turn_weights(goal, messages)


class HubMathTutoring(HubTask):
    """Problems of the MATH kind; the outcome is whether the final answer is right."""

    name, outcome_name = "math_tutoring", "accuracy"
    limits = Limits(max_turns=5, max_turn_tokens=1024, max_tokens=4096)

    def start_outcome(self, goal: Goal, messages: Sequence[Message]) -> Callable[[], float]:
        verdict = self.judge.start(
            self.name, MathVerdict, messages, problem=goal.hidden["request"], solution=goal.answer
        )
        return lambda: float(verdict().accuracy)


class HubDocumentWriting(HubTask):
    """Articles; the outcome is the word-level BLEU of the assistant's document.

    The judge sees neither the reference nor the user's words, so it can take the document from
    nowhere but the assistant's turns.
    """

    name, outcome_name = "document_writing", "BLEU"
    success_threshold = 0.5
    judge_tokens = 4096
    limits = Limits(max_turns=5, max_turn_tokens=1024, max_tokens=3072)

    def start_outcome(self, goal: Goal, messages: Sequence[Message]) -> Callable[[], float]:
        own = [message for message in messages if message["role"] == "assistant"]
        verdict = self.judge.start(self.name, DocumentVerdict, own)
        return lambda: word_bleu(verdict().document, goal.answer)


class HubMedicalRecommendation(HubTask):
    """Patients; the outcome is the points for diagnosis and recommendation, out of ten."""

    name, outcome_name = "medical_recommendation", "rubric"
    success_threshold = 0.8
    limits = Limits(max_turns=6, max_turn_tokens=340, max_tokens=2048)

    def start_outcome(self, goal: Goal, messages: Sequence[Message]) -> Callable[[], float]:
        verdict = self.judge.start(self.name, MedicalVerdict, messages, reference=goal.answer)
        return lambda: (verdict().diagnosis + verdict().recommendation) / 10
