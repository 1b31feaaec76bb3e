"""The credit explorer without a browser: four dialogues, from log-ratios to advantages, every step in sight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..advantages import BASELINES, rloo
from ..credit import CreditInputs, assign_credit, reverse_cumsum
from ..prm import token_rewards
from .inspection import BETAS, METHODS, TEMPERATURES, extended
from .render import Control, Scene, View, bars, render, signed

TURNS = (
    ("the answer is 12 minus 3 coins .",),
    ("how many coins are gone ?", "the answer is 12 minus 7 coins ."),
    ("what happens to the coins ?", "how many are gone ?", "the answer is 12 minus 7 coins ."),
    ("hello , nice to meet you .", "what happens to the coins ?", "how many are gone ?", "the answer is 12 minus 7 coins ."),
)  # fmt: skip
NAMES = "ABCD"
EXAMPLES = {
    "asking": ("Asking pays", (0.0, 0.0, 1.0, 1.0), ((-9.0,), (4.0, -6.0), (7.0, 9.0, 3.0), (-2.0, 6.0, 8.0, 3.0))),
    "equal": ("All succeed alike", (1.0,) * 4, tuple((0.0,) * len(turns) for turns in TURNS)),
}
EXPLORED = ("norm_itpo", "itpo", "trajectory", "uniform")
BASELINE_LABELS = {
    "turn": "turn: the others' return from that turn on",
    "official": "official: the others' mean per turn",
    "outcome": "outcome: the others' R, spread by shares",
    "credit_weighted": "credit_weighted: K·w·(R − others' R)",
    "signed": "signed: the same, failures by blame",
}
SUMS_RETURNS = ("turn", "official", "outcome")  # these subtract something from the return


@dataclass(frozen=True)
class Steps:
    """Every stage of the way for B dialogues of up to K turns, all (B, K); `shares` where the method has them.

    `taken` is what the baseline takes off the return, where it works that way.
    """

    mask: Tensor
    implicit: Tensor
    shares: Tensor | None
    rewards: Tensor
    returns: Tensor
    taken: Tensor | None
    advantages: Tensor


def explore(
    log_ratios: Sequence[Sequence[float]],
    outcomes: Sequence[float],
    credit: str = "norm_itpo",
    baseline: str = "turn",
    beta: float = 0.05,
    temperature: float = 0.4,
) -> Steps:
    """All stages of RLOO for one group of dialogues; `log_ratios` holds one sum per turn."""
    width = max(map(len, log_ratios))
    ratios = torch.tensor([[*row, *[0.0] * (width - len(row))] for row in log_ratios])
    turn_ids = torch.tensor([[*range(1, len(row) + 1), *[0] * (width - len(row))] for row in log_ratios])
    scores, implicit = torch.tensor(outcomes), token_rewards(ratios, torch.zeros_like(ratios), beta)
    given = assign_credit(credit, CreditInputs(scores, turn_ids, width, implicit, temperature=temperature))
    returns = reverse_cumsum(given.rewards) * given.mask
    advantages = rloo(given, scores, len(outcomes), baseline)
    taken = returns - advantages if baseline in SUMS_RETURNS else None
    return Steps(given.mask, implicit, given.shares, given.rewards, returns, taken, advantages)


class ExplorerScene(Scene):
    """Four hand-made dialogues of one to four turns, with outcomes and log-ratios that the reader edits."""

    title = "Credit explorer"

    def controls(self, values: Mapping[str, Any]) -> list[Control]:
        controls = [
            Control("credit", "Credit method", "select", "norm_itpo", tuple((m, METHODS[m]) for m in EXPLORED)),
            Control(
                "baseline", "Baseline of RLOO", "select", "turn", tuple((b, BASELINE_LABELS[b]) for b in BASELINES)
            ),
            Control("beta", "β, scale of the log-ratio", "slider", 0.05, extended(BETAS, 0.05)),
            Control("temperature", "η, softmax temperature", "slider", 0.4, extended(TEMPERATURES, 0.4)),
        ]
        _, outcomes, ratios = EXAMPLES["asking"]
        for d, turns in enumerate(TURNS):
            group = f"Dialogue {NAMES[d]}: outcome, then log-ratio of each turn"
            controls.append(Control(f"outcome_{d}", "R", "number", outcomes[d], step=0.25, group=group))
            for k in range(len(turns)):
                name = f"ratio_{d}_{k}"
                controls.append(
                    Control(name, f"turn {k + 1}", "number", ratios[d][k], low=-100.0, high=100.0, group=group)
                )
        return controls + [Control(name, f"Load: {label}", "button") for name, (label, _, _) in EXAMPLES.items()]

    def press(self, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
        if name not in EXAMPLES:
            return super().press(name, values)
        _, outcomes, ratios = EXAMPLES[name]
        changed: dict[str, Any] = {f"outcome_{d}": outcome for d, outcome in enumerate(outcomes)}
        return changed | {f"ratio_{d}_{k}": ratio for d, row in enumerate(ratios) for k, ratio in enumerate(row)}

    def view(self, values: Mapping[str, Any]) -> View:
        ratios = [[values[f"ratio_{d}_{k}"] for k in range(len(turns))] for d, turns in enumerate(TURNS)]
        outcomes = [values[f"outcome_{d}"] for d in range(len(TURNS))]
        steps = explore(ratios, outcomes, values["credit"], values["baseline"], values["beta"], values["temperature"])
        softmax = "wₖ = softmax(Rₖ imp / η)" if values["credit"] == "norm_itpo" else "wₖ, the method's own"
        columns = [
            ("implicit", "Rₖ imp = β · Σ log-ratio", steps.implicit),
            ("share", softmax, steps.shares),
            ("reward", "Rₖ = wₖ · R" if steps.shares is not None else "Rₖ = Rₖ imp", steps.rewards),
            ("return", "Gₖ = Rₖ + Rₖ₊₁ + …", steps.returns),
            ("baseline", "bₖ, from the others", steps.taken),
            ("advantage", "Aₖ = Gₖ − bₖ" if steps.taken is not None else "Aₖ", steps.advantages),
        ]
        kept = [(title, note, column) for title, note, column in columns if column is not None]
        scales = [float(column.abs().max()) for _, _, column in kept]
        dialogues = []
        for d, turns in enumerate(TURNS):
            cells = [bars(column[d, : len(turns)].tolist(), s) for (_, _, column), s in zip(kept, scales, strict=True)]
            told = [signed(ratio, 1) for ratio in ratios[d]]
            dialogues.append(
                {"name": NAMES[d], "outcome": outcomes[d], "turns": list(zip(turns, told, *cells, strict=True))}
            )
        firsts = bars(steps.advantages[:, 0].tolist(), float(steps.advantages.abs().max()))
        html = render("explorer.html", heads=[(t, n) for t, n, _ in kept], dialogues=dialogues, firsts=firsts)
        first = ", ".join(f"{NAMES[d]} {bar.text}" for d, bar in enumerate(firsts))
        return View(html, f"Baseline {values['baseline']}: advantage of the first turn: {first}. Sum of all: {signed(float(steps.advantages.sum()))}")  # fmt: skip
