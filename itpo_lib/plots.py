"""One style for every figure: large labels, colour-blind safe colours, a marker beside each colour."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito
STYLE: dict[Any, Any] = {
    "figure.figsize": (9, 3.4),
    "figure.dpi": 110,
    "font.size": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 2,
}


def smooth(values: Sequence[float], window: int = 5) -> np.ndarray:
    """Trailing mean over at most `window` values; same length."""
    data = np.asarray(values, dtype=float)
    return np.array([data[max(0, i - window + 1) : i + 1].mean() for i in range(len(data))])


def learning_curves(metrics: Sequence[dict[str, Any]], ceiling: float | None = None) -> Figure:
    """Success, turns and entropy over the steps of one run; dots are batches, lines their trailing mean."""
    panels = (("success", "success rate"), ("turns", "assistant turns"), ("entropy", "entropy (nats per token)"))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 3, layout="constrained")
        for axis, (key, label), colour in zip(axes, panels, COLOURS, strict=False):
            rows = [(row["step"], row[key]) for row in metrics if row.get(key) is not None]
            if rows:
                steps, values = zip(*rows, strict=True)
                axis.plot(steps, values, ".", color=colour, alpha=0.35)
                axis.plot(steps, smooth(values), color=colour)
            axis.set(xlabel="training step", title=label)
        axes[0].set_ylim(0, 1.05)
        axes[1].set_ylim(bottom=0)
        axes[2].set_ylim(bottom=0)
        if ceiling is not None:
            axes[0].axhline(ceiling, color="black", linestyle="--", linewidth=1, label=f"ceiling {ceiling:.2f}")
            axes[0].legend(loc="lower right")
    return figure


def station_map(stations: Sequence[tuple[str, str]], back: str = "") -> Figure:
    """Boxes in a row with arrows between them: (name, what leaves it) each; `back` labels the way round again."""
    arrow = {"arrowstyle": "-|>", "color": "black", "linewidth": 1.5}
    box = {"boxstyle": "round,pad=0.5", "facecolor": "white", "edgecolor": COLOURS[0], "linewidth": 2}
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(1.75 * len(stations), 2.4), layout="constrained")
        axis.set(xlim=(-0.55, len(stations) - 0.45), ylim=(-1.5, 1.3))
        axis.axis("off")
        for place, (name, leaves) in enumerate(stations):
            axis.text(place, 0, name, ha="center", va="center", bbox=box)
            axis.text(place, -0.62, leaves, ha="center", va="top", fontsize=11)
            if place:
                axis.annotate("", (place - 0.42, 0), (place - 0.58, 0), arrowprops=arrow)
        if back:
            middle, last, corner = (len(stations) - 1) / 2, len(stations) - 1, "angle,angleA={},angleB={},rad=12"
            up = {**arrow, "arrowstyle": "-", "shrinkB": 0, "connectionstyle": corner.format(90, 0)}
            down = {**arrow, "shrinkA": 0, "shrinkB": 14, "connectionstyle": corner.format(0, 90)}
            axis.annotate("", (middle, 0.95), (last, 0.25), arrowprops=up)
            axis.annotate("", (0, 0.1), (middle, 0.95), arrowprops=down)
            blank = {"facecolor": "white", "edgecolor": "none"}
            axis.text(middle, 0.95, back, ha="center", va="center", fontsize=11, bbox=blank)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG and close the figure."""
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)
