"""The turn-reward inspector without a browser: which turn of a dialogue gets the credit, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..advantages import spread_to_tokens
from ..credit import SOFTMAX_MODES, CreditInputs, assign_credit, unit_sums
from ..prm import token_rewards
from .charts import Line, line_chart
from .recording import Recording
from .render import Bar, Control, Scene, View, bars, render, signed

METHODS = {
    "norm_itpo": "Norm-ITPO",
    "itpo": "ITPO",
    "prime": "PRIME",
    "trajectory": "Trajectory share",
    "uniform": "Uniform shares",
}
ONE_OUTCOME = frozenset({"norm_itpo", "trajectory", "uniform"})  # their rewards add up to R
BETAS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
TEMPERATURES = (0.05, 0.1, 0.2, 0.4, 1.0, 2.0, 4.0)
FILTERS = {
    "all": "all",
    "successes": "successes",
    "failures": "failures",
    "longest": "longest first",
    "disagreement": "most at odds with the truth first",
}
KEPT_TABLES = 8  # credit tables that stay in memory, one per combination of settings


def turn_rewards(
    recording: Recording, state: int, method: str, beta: float, temperature: float, softmax: str = "sum"
) -> np.ndarray:
    """The turn rewards that `method` gives at one recorded state of the PRM, (B, K).

    Where a method rewards single tokens (PRIME), a turn shows the sum of its tokens.
    """
    ratios, turn_ids = torch.from_numpy(recording.log_ratios[state]), recording.turn_ids
    rewards = token_rewards(ratios, torch.zeros_like(ratios), beta)
    inputs = CreditInputs(
        recording.outcomes, turn_ids, recording.n_turns, rewards, temperature=temperature, softmax=softmax
    )
    credit = assign_credit(method, inputs)
    if credit.unit_ids is turn_ids:
        return credit.rewards.numpy()
    return unit_sums(spread_to_tokens(credit.rewards, credit.unit_ids), turn_ids, recording.n_turns).numpy()


def disagreement(values: np.ndarray, truth: np.ndarray) -> float:
    """Share of turn pairs that two credits order differently, in [0, 1]; a tie in `values` alone is half wrong."""
    first, second = np.triu_indices(len(truth), 1)
    true_order, order = np.sign(truth[first] - truth[second]), np.sign(values[first] - values[second])
    counted = true_order != 0
    return float((np.abs(order - true_order)[counted] / 2).mean()) if counted.any() else 0.0


@dataclass(frozen=True)
class Column:
    """One credit's rewards of a dialogue's turns; `scale` fills a bar."""

    title: str
    rewards: list[float]
    scale: float

    @property
    def bars(self) -> list[Bar]:
        """The rewards as bars."""
        return bars(self.rewards, self.scale)

    @property
    def sum(self) -> str:
        """What the rewards add up to."""
        return signed(sum(self.rewards))

    @property
    def verdict(self) -> str:
        """Which turn gets most, in words."""
        most = max(self.rewards)
        if min(self.rewards) == most:
            return f"{self.title} rewards all turns alike, {signed(most)}"
        return f"{self.title} rewards turn {self.rewards.index(most) + 1} most, {signed(most)}"


def extended(choices: tuple[float, ...], value: float) -> tuple[tuple[float, str], ...]:
    """Slider options with the recording's own value among them."""
    return tuple((c, f"{c:g}") for c in sorted({*choices, value}))


class InspectorScene(Scene):
    """A dialogue with each turn's reward, under the credit method and settings of the reader's choice."""

    title = "Turn inspector"

    def __init__(self, recording: Recording):
        self.recording = recording
        self._tables: dict[tuple[Any, ...], np.ndarray] = {}

    def controls(self, values: Mapping[str, Any]) -> list[Control]:
        r = self.recording
        filters = tuple((k, label) for k, label in FILTERS.items() if k != "disagreement" or r.truth is not None)
        picked = self.picked(str(values.get("show", "all")), str(values.get("credit", "norm_itpo")))
        steps = tuple((i, str(step)) for i, step in enumerate(r.steps))
        return [
            Control("credit", "Credit method", "select", "norm_itpo", tuple(METHODS.items())),
            Control("compare", "Compare with", "select", "", (("", "nothing"), *METHODS.items())),
            Control("show", "Dialogues", "select", "all", filters),
            Control("dialogue", "Dialogue", "select", picked[0] if picked else "",
                    tuple((i, self.caption(i)) for i in picked) or (("", "none is like that"),), lenient=True),
            Control("state", "PRM at training step", "slider", len(steps) - 1, steps),
            Control("beta", "β, scale of the log-ratio", "slider", r.beta, extended(BETAS, r.beta)),
            Control("temperature", "η, softmax temperature", "slider", r.temperature, extended(TEMPERATURES, r.temperature)),
            Control("softmax", "Softmax over", "select", "sum",
                    tuple(zip(SOFTMAX_MODES, ("turn sums (paper)", "scaled means (released code)"), strict=True))),
            Control("tokens", "Show tokens", "checkbox", False),
        ]  # fmt: skip

    def caption(self, index: int) -> str:
        """A dialogue's line in the picker."""
        dialogue = self.recording.dialogues[index]
        turns = "1 turn" if dialogue.n_turns == 1 else f"{dialogue.n_turns} turns"
        return f"{index + 1}: {turns}, R = {dialogue.outcome:.2f}"

    def succeeded(self, index: int) -> bool:
        """Whether the outcome reaches the task's threshold."""
        return (self.recording.dialogues[index].outcome or 0.0) >= self.recording.success_threshold

    def picked(self, which: str, method: str) -> list[int]:
        """The dialogues that a filter leaves, in its order.

        Disagreement is judged at the last step with the recording's own β and η: an order that changed
        while one drags a slider would be no help.
        """
        r = self.recording
        everything = list(range(len(r.dialogues)))
        if which == "longest":
            return sorted(everything, key=lambda i: -r.dialogues[i].n_turns)
        if which == "disagreement" and r.truth is not None:
            table = self.table(method, r.beta, r.temperature, "sum")[-1]
            return sorted(everything, key=lambda i: -disagreement(table[i, : len(r.truth[i])], np.array(r.truth[i])))  # type: ignore[index]
        wanted = {"successes": (True,), "failures": (False,)}.get(which, (True, False))
        return [i for i in everything if self.succeeded(i) in wanted]

    def table(self, method: str, beta: float, temperature: float, softmax: str) -> np.ndarray:
        """Turn rewards at all recorded states, (S, B, K); computed once per combination of settings."""
        key = (method, beta, temperature, softmax)
        if key not in self._tables:
            while len(self._tables) >= KEPT_TABLES:
                self._tables.pop(next(iter(self._tables)))
            states = range(len(self.recording.steps))
            self._tables[key] = np.stack([turn_rewards(self.recording, s, *key) for s in states])
        return self._tables[key]

    def view(self, values: Mapping[str, Any]) -> View:
        r, index, state = self.recording, values["dialogue"], values["state"]
        if index == "":
            return View(render("note.html", text="No dialogue of this recording is like that."), "no dialogue to show")
        dialogue, n = r.dialogues[index], r.dialogues[index].n_turns
        columns, histories = [], []
        for method in dict.fromkeys(m for m in (values["credit"], values["compare"]) if m):
            past = self.table(method, values["beta"], values["temperature"], values["softmax"])[:, index, :n]
            columns.append(
                Column(METHODS[method], past[state].tolist(), 1.0 if method in ONE_OUTCOME else np.abs(past).max())
            )
            lines = [Line(f"turn {k + 1}", r.steps, past[:, k].tolist()) for k in range(n)]
            histories.append(line_chart(f"{METHODS[method]}: reward of each turn", lines, marker=r.steps[state]))
        status = f"Dialogue {index + 1}, PRM at step {r.steps[state]}: {columns[0].verdict}"
        if r.truth is not None:
            columns.append(Column("True credit", r.truth[index], max(map(abs, r.truth[index]))))
        tokens = self.token_rows(index, state) if values["tokens"] else None
        if tokens is not None:
            histories.append(self.token_history(index, state))
        html = render(
            "inspector.html", number=index + 1, total=len(r.dialogues), dialogue=dialogue,
            succeeded=self.succeeded(index), step=r.steps[state], columns=columns, tokens=tokens,
            goal=r.goals[index] if r.goals else {}, histories=histories if len(r.steps) > 1 else [],
        )  # fmt: skip
        return View(html, status)

    def token_rows(self, index: int, state: int) -> list[list[tuple[str, Bar]]]:
        """Per turn, its tokens with their log-ratios; the scale is the largest of all training steps."""
        r, ids = self.recording, self.recording.dialogues[index].turn_ids
        ratios = r.log_ratios[:, index, : len(ids)]
        drawn = bars(ratios[state].tolist(), float(np.abs(ratios).max()))
        turns: list[list[tuple[str, Bar]]] = [[] for _ in range(r.dialogues[index].n_turns)]
        for turn, text, bar in zip(ids, r.tokens[index], drawn, strict=True):
            if turn:
                turns[turn - 1].append((text, bar))
        return turns

    def token_history(self, index: int, state: int) -> str:
        """All tokens of the dialogue over training, a line each in its turn's style; the turn's first has the label."""
        r, ids = self.recording, self.recording.dialogues[index].turn_ids
        lines = []
        for t, turn in enumerate(ids):
            if turn:
                label = f"turn {turn}" if ids.index(turn) == t else ""
                lines.append(Line(label, r.steps, r.log_ratios[:, index, t].tolist(), style=turn - 1))
        return line_chart("Log-ratio of each token", lines, marker=r.steps[state])
