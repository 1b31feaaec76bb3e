"""One style for every figure: large labels, colour-blind safe colours, a marker beside each colour."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
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
    import matplotlib.pyplot as plt

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


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG and close the figure."""
    import matplotlib.pyplot as plt

    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)
