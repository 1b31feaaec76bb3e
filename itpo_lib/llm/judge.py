"""A judge that is a language model. Its verdict is read from its own reply alone, and bears the call's marker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Len
from pydantic import BaseModel, ConfigDict, Field, create_model, field_validator

from ..dialogue import Message, said_by
from ..errors import require
from ..tasks.base import Goal
from .client import ChatModel
from .prompts import fence, new_marker, prompt, quoted, transcript

Weights = list[Annotated[float, Field(ge=0, allow_inf_nan=False)]]


class Verdict(BaseModel):
    """What every judgement has: the reason first, so that it can guide the rest."""

    model_config = ConfigDict(extra="forbid")
    thought: str


class MathVerdict(Verdict):
    """Whether the assistant's final answer is right."""

    accuracy: int = Field(ge=0, le=1)  # a Literal would take true for 1


class DocumentVerdict(Verdict):
    """The assistant's document as it stands at the end; empty if it wrote none."""

    document: str


class MedicalVerdict(Verdict):
    """Points for the diagnosis and for the recommendation."""

    diagnosis: int = Field(ge=0, le=5)
    recommendation: int = Field(ge=0, le=5)


class TurnVerdict(Verdict):
    """How much each assistant turn did for the outcome."""

    weights: Weights

    @field_validator("weights")
    @classmethod
    def some_weight(cls, weights: list[float]) -> list[float]:
        """Shares need something to share."""
        if not sum(weights) > 0:
            raise ValueError("at least one weight must be positive")
        return weights


V = TypeVar("V", bound=Verdict)


class LLMJudge:
    """Reads a finished dialogue as quoted text and returns a verdict of a given type.

    Each call draws a marker, which the verdict has to repeat: JSON that the judge copies out of the
    conversation cannot pass for a verdict.
    """

    def __init__(self, model: ChatModel, max_tokens: int = 1024):
        self.model, self.max_tokens = model, max_tokens

    def start(
        self,
        question: str,
        verdict: type[V],
        messages: Sequence[Message],
        fields: dict[str, Any] | None = None,
        **material: str,
    ) -> Callable[[], V]:
        """Ask the question in `prompts/judge_<question>.md`; the result waits for the verdict.

        `material` is quoted into the prompt. `fields` narrows fields of the verdict for this call.
        """
        marker = new_marker()
        own_fields: dict[str, Any] = {"marker": (Literal[marker], ...), **(fields or {})}
        form = create_model(verdict.__name__, __base__=verdict, **own_fields)
        pending = self.model.ask(
            prompt(f"judge_{question}").messages(
                rules=prompt("judge").messages(marker=marker)[0]["content"],
                conversation=fence("conversation", transcript(messages), marker),
                **{name: fence(name, quoted(text), marker) for name, text in material.items()},
            ),
            form,
            temperature=0.0,
            max_tokens=self.max_tokens,
        )
        return pending.result

    def turn_weights(self, goal: Goal, messages: Sequence[Message]) -> list[float]:
        """The credit baseline: each assistant turn's share of the outcome; the shares sum to 1."""
        return self.start_turn_weights(goal, messages)()

    def start_turn_weights(self, goal: Goal, messages: Sequence[Message]) -> Callable[[], list[float]]:
        """As `turn_weights`, but many can be under way at once."""
        n = len(said_by("assistant", messages))
        require(n >= 1, "a dialogue without assistant turns has no turns to weigh")
        pending = self.start(
            "turn_weights",
            TurnVerdict,
            messages,
            {"weights": (Annotated[Weights, Len(n, n)], ...)},
            request="\n".join([goal.opening, *goal.hidden.values()]),
            truth=goal.answer,
        )

        def shares() -> list[float]:
            weights = pending().weights
            return [weight / sum(weights) for weight in weights]

        return shares
