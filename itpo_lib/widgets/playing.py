"""The play room without a browser: a person as assistant or user, and afterwards the score of each turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..dialogue import Dialogue, Message
from ..errors import require
from ..human import HumanSession
from ..tasks.base import Task, play_scripted
from .inspection import InspectorScene
from .recording import Recording, hidden_facts, log_ratios, token_texts
from .render import Control, Scene, View, render

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..chat import ChatFormat
    from ..prm import ImplicitPRM

Truth = Callable[[Dialogue], Sequence[float]]
ROLE_LABELS = (("assistant", "the assistant"), ("user", "the user"))


class PlayScene(Scene):
    """A dialogue that a person takes part in. Turns are scored at the end, where there is a PRM to do it."""

    title = "Play room"

    def __init__(
        self,
        task: Task,
        model: PreTrainedModel | None = None,
        chat: ChatFormat | None = None,
        prm: ImplicitPRM | None = None,
        frozen: PreTrainedModel | None = None,
        truth: Truth | None = None,
        folder: str | Path = ".",
    ):
        require(prm is None or chat is not None, "to score your words the PRM needs their tokens: pass chat as well")
        self.task, self.model, self.chat, self.prm, self.frozen = task, model, chat, prm, frozen
        self.truth, self.folder, self.note = truth, Path(folder), ""
        self._begin("assistant", 0)

    def _begin(self, role: str, index: int) -> None:
        self.note = ""
        self._scored: InspectorScene | None = None
        self.session = HumanSession(self.task, self.task.goal(index, "validation"), index, role, self.model, self.chat)

    def controls(self, values: Mapping[str, Any]) -> list[Control]:
        over, size = bool(self.session.ended), self.task.size("validation")
        roles = ROLE_LABELS if self.model is not None else ROLE_LABELS[:1]
        return [
            Control("role", "You are", "select", "assistant", roles),
            Control("goal", "Goal number", "number", 0.0, high=float(size or 10_000) - 1),
            Control("new", "New dialogue", "button"),
            Control("text", "Your words", "text", "", disabled=over),
            Control("say", "Say", "button", disabled=over),
            Control("end", "End the dialogue", "button", disabled=over),
            Control("save", "Save transcript", "button"),
            *([Control("tokens", "Show tokens", "checkbox", False)] if self.prm is not None else []),
        ]

    def press(self, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
        self.note = ""
        if name == "new":
            self._begin(values["role"], int(values["goal"]))
        elif name == "say":
            self.session.say(values["text"])
        elif name == "end":
            self.session.end()
        elif name == "save":
            path = self.folder / f"{self.task.name}-{self.session.role}-{self.session.goal.index}.json"
            self.session.save(path)
            self.note = f"Saved as {path.name}. "
        else:
            return super().press(name, values)
        return {"text": ""}

    def view(self, values: Mapping[str, Any]) -> View:
        session = self.session
        hidden = hidden_facts(self.task, Dialogue([], [], session.goal.index, session.goal.split))
        inspector, scored = self.scored() if session.ended and session.n_turns else None, ""
        if inspector is not None:
            scored = inspector.view(inspector.settle({"compare": "itpo", "tokens": values["tokens"]})).html
        html = render(
            "playroom.html", session=session, hidden=hidden, scored=scored, expert=self.expert_play(),
            succeeded=(session.outcome or 0.0) >= self.task.success_threshold,
        )  # fmt: skip
        return View(html, self.note + self.status())

    def scored(self) -> InspectorScene | None:
        """The inspector of the finished dialogue; None without a PRM or without an outcome."""
        if self._scored is None and self.prm is not None and self.chat is not None and self.session.outcome is not None:
            dialogue = self.session.to_dialogue(self.chat)
            known = self.truth is not None and self.session.role == "assistant"  # nobody can replay a person's replies
            recording = Recording(
                [dialogue], [0], log_ratios(self.prm, self.frozen, self.chat, [dialogue])[None],
                [token_texts(self.chat, dialogue)], self.prm.beta, success_threshold=self.task.success_threshold,
                goals=[hidden_facts(self.task, dialogue)],
                truth=[list(self.truth(dialogue))] if known and self.truth is not None else None,
            )  # fmt: skip
            self._scored = InspectorScene(recording)
        return self._scored

    def expert_play(self) -> list[Message]:
        """How the scripted expert plays another goal, as an example; empty where there is none."""
        goal = self.task.goal(self.session.goal.index + 1, "validation")
        expert = self.task.expert(goal, goal.index)
        return play_scripted(self.task, goal, expert, goal.index)[0] if expert is not None else []

    def status(self) -> str:
        """One line: whose turn it is, or how it ended."""
        session, limit = self.session, self.task.limits.max_turns
        if session.failure is not None:
            return f"The dialogue failed: {session.failure}"
        if session.ended:
            return f"Over after {session.n_turns} assistant turns (ended by: {session.ended.replace('_', ' ')}). R = {session.outcome:.2f}"
        place = session.n_turns + (session.role == "assistant")
        return f"Assistant turn {place} of at most {limit}. You are the {session.role}: it is your turn to speak."
