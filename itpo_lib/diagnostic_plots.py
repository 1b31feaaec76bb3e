"""Figures for the credit lab, in the style of `plots.py`: a marker or a number stands beside each colour."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from .credit import CREDITS
from .diagnostics import COLLAPSE_SIGNALS, Agreement, Calibration, GradientRow, LengthEffect, collapse_steps
from .plots import COLOURS, STYLE, smooth

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo")
GREY = "#666666"
BELOW: dict[str, Any] = {"loc": "outside lower center", "fontsize": 11}


def look(i: int) -> dict[str, Any]:
    """Colour, marker and line of the i-th method: no two of the first 49 look alike."""
    n, again = len(COLOURS), i // len(COLOURS)
    return {"color": COLOURS[i % n], "marker": MARKERS[(i + again) % n], "linestyle": "--" if again % 2 else "-"}


def looks(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The look of each name. A credit method has one of its own, the same in every figure."""
    known = list(CREDITS)
    return {name: look(known.index(name) if name in known else i) for i, name in enumerate(names)}


def true_credit_figure(
    values: Sequence[float],
    value_errors: Sequence[float],
    credits: Mapping[str, Sequence[float]],
    labels: Sequence[str] | None = None,
) -> Figure:
    """One dialogue: V_0 to V_K with 95% intervals, and the K turns as each method credits them, side by side.

    `credits` maps a name to K numbers; `labels` names the turns (default: 1 to K).
    """
    n = len(values) - 1
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, layout="constrained", width_ratios=(2, 3))
        interval = 1.96 * np.asarray(value_errors)
        left.errorbar(range(n + 1), values, interval, color=COLOURS[0], marker="o", capsize=4)
        left.set(xlabel="after turn", title="expected outcome V", xticks=range(n + 1), ylim=(-0.05, 1.05))
        width = 0.8 / len(credits)
        for i, ((name, turns), colour) in enumerate(zip(credits.items(), COLOURS, strict=False)):
            places = np.arange(n) + (i - (len(credits) - 1) / 2) * width
            right.bar(places, turns, width, color=colour, hatch=HATCHES[i], edgecolor="white", label=name)
        right.axhline(0, color="black", linewidth=0.8)
        right.set_xticks(range(n), labels or [f"turn {k + 1}" for k in range(n)], fontsize=10)
        right.set_title("credit of each turn")
        figure.legend(ncols=len(credits), **BELOW)
    return figure


def over_training(panels: Mapping[str, Mapping[str, Sequence[float]]], steps: Sequence[int]) -> Figure:
    """One panel per title, one line per label: rank correlations, slopes, R² over training."""
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    looks: dict[str, dict[str, Any]] = {
        name: {"color": COLOURS[i % 7], "marker": MARKERS[i % 7]} for i, name in enumerate(names)
    }
    with plt.rc_context({**STYLE, "figure.figsize": (9, 3.8)}):
        figure, axes = plt.subplots(1, len(panels), layout="constrained", squeeze=False)
        for axis, (title, lines) in zip(axes[0], panels.items(), strict=True):
            for name, values in lines.items():
                axis.plot(steps, values, markersize=5, **looks[name])
            axis.set(xlabel="training step", title=title)
        handles = [plt.Line2D([], [], label=name, **looks[name]) for name in names]
        figure.legend(handles=handles, ncols=min(4, len(names)), **BELOW)
    return figure


def agreement_figure(methods: Mapping[str, Sequence[Agreement]], steps: Sequence[int] | Sequence[str]) -> Figure:
    """Best-turn and worst-turn agreement over training; dotted, with the same sign, chance on the same dialogues.

    `steps` are training steps, or names of the parts of training.
    """
    with plt.rc_context({**STYLE, "figure.figsize": (9, 3.8)}):
        figure, axes = plt.subplots(1, 2, layout="constrained", sharey=True)
        for axis, side in zip(axes, ("best", "worst"), strict=True):
            for name, drawn in looks(methods).items():
                found = [getattr(row, side) for row in methods[name]]
                chance = [getattr(row, f"{side}_by_chance") for row in methods[name]]
                axis.plot(steps, found, markersize=5, label=name, **drawn)
                axis.plot(steps, chance, markersize=3, **{**drawn, "linestyle": ":", "linewidth": 1.2})
            label = "part of training" if steps and isinstance(steps[0], str) else "training step"
            axis.set(xlabel=label, title=f"names a truly {side} turn", ylim=(0, 1.05))
        axes[0].plot([], [], color=GREY, linestyle=":", label="by chance")
        figure.legend(handles=axes[0].get_legend_handles_labels()[0], ncols=min(4, len(methods) + 1), **BELOW)
    return figure


def calibration_figure(found: Calibration) -> Figure:
    """Reliability curve: the diagonal is a PRM that means what it says; the numbers below count dialogues."""
    with plt.rc_context({**STYLE, "figure.figsize": (5, 4)}):
        figure, axis = plt.subplots(layout="constrained")
        axis.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1)
        axis.plot(found.predicted, found.observed, color=COLOURS[0], marker="o")
        for x, count in zip(found.predicted, found.count, strict=True):
            axis.text(x, -0.1, str(count), ha="center", fontsize=10, color=GREY)
        axis.set(xlabel="success that the PRM predicts", ylabel="success seen", xlim=(0, 1), ylim=(-0.13, 1.05))
        axis.set_title(f"calibration error {found.error:.3f}")
    return figure


def length_figure(effects: Mapping[str, LengthEffect], quantity: str) -> Figure:
    """A quantity by number of turns with 95% intervals; the slope of each line is in the legend."""
    with plt.rc_context({**STYLE, "figure.figsize": (6, 4.6)}):
        figure, axis = plt.subplots(layout="constrained")
        for (name, effect), colour, marker in zip(effects.items(), COLOURS, MARKERS, strict=False):
            label = f"{name}: {effect.fit.slope:+.3f} per turn"
            interval = 1.96 * np.nan_to_num(effect.error)
            axis.errorbar(effect.turns, effect.mean, interval, color=colour, marker=marker, capsize=3, label=label)
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set(xlabel="assistant turns of the dialogue", ylabel=quantity)
        axis.locator_params(axis="x", integer=True)
        figure.legend(**BELOW)
    return figure


def gradient_figure(rows: Sequence[GradientRow]) -> Figure:
    """Bias and noise of each estimator in units of |g|; the axes are linear up to 1 and logarithmic beyond."""
    names = [f"{row.credit}, {row.baseline or 'no baseline'}" for row in rows]
    order = list(dict.fromkeys(row.credit for row in rows))
    colours = [COLOURS[order.index(row.credit) % len(COLOURS)] for row in rows]
    with plt.rc_context({**STYLE, "figure.figsize": (9, 1.2 + 0.3 * len(rows)), "axes.grid.axis": "x"}):
        figure, axes = plt.subplots(1, 2, layout="constrained", sharey=True)
        for axis, key in zip(axes, ("bias", "noise"), strict=True):
            bars = axis.barh(names, [getattr(row, key) for row in rows], color=colours)
            axis.bar_label(bars, fmt="%.2f", fontsize=9, padding=3)
            axis.set_xscale("symlog", linthresh=1)
            axis.margins(x=0.2, y=0.02)
        axes[0].set(title="bias: |E[ĝ] − g| / |g|")
        axes[1].set(title="noise of one group: √Var[ĝ] / |g|")
        axes[0].invert_yaxis()
    return figure


def collapse_figure(metrics: Sequence[Mapping[str, Any]], signals: Sequence[str] = COLLAPSE_SIGNALS) -> Figure:
    """The warning signals of one run; a vertical line marks where one fell to half of where it began."""
    falls = collapse_steps(metrics, signals)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(signals), layout="constrained", squeeze=False)
        for axis, signal, colour in zip(axes[0], signals, COLOURS, strict=False):
            rows = [(row["step"], row[signal]) for row in metrics if row.get(signal) is not None]
            if rows:
                steps, values = zip(*rows, strict=True)
                axis.plot(steps, values, ".", color=colour, alpha=0.35)
                axis.plot(steps, smooth(values), color=colour)
            if falls[signal] is not None:
                axis.axvline(falls[signal], color=GREY, linestyle="--", linewidth=1.5)
                axis.text(
                    falls[signal], 0.97, f" fell at {falls[signal]}", va="top", transform=axis.get_xaxis_transform()
                )
            axis.set(xlabel="training step", title=signal.replace("_", " "))
            axis.set_ylim(bottom=0)
    return figure
