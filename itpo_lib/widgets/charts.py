"""Small line charts as SVG: labelled at the line's end, told apart by dashes as well as by colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .render import render

LEFT, RIGHT, TOP, BOTTOM = 44, 84, 20, 34
DASHES = ("", "7 3", "2 3", "9 3 2 3")
COLOURS = 6  # CSS classes c0 to c5
LABEL_GAP = 13.0
Limits = tuple[float | None, float | None]  # where an axis begins and ends; None: where the data does


@dataclass(frozen=True)
class Line:
    """Points (n,) joined by a line, or drawn as `dots`. `style` picks colour and dashes (default: its place)."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    dots: bool = False
    style: int | None = None


@dataclass(frozen=True)
class Axis:
    """Where numbers from `low` to `high` lie between the pixels `start` and `end`."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def around(cls, values: np.ndarray, limits: Limits, start: float, end: float) -> Axis:
        """The axis that just holds `values`; a limit that is given takes their place."""
        low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
        low, high = (low if limits[0] is None else limits[0]), (high if limits[1] is None else limits[1])
        return cls(low, high if high > low else low + 1.0, start, end)

    def at(self, value: float) -> str:
        """The pixel of a number."""
        return f"{self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start):.1f}"

    def ticks(self, n: int, integer: bool = False) -> list[tuple[str, str]]:
        """About `n` round numbers: (pixel, text)."""
        from matplotlib.ticker import MaxNLocator

        slack = 1e-9 * (self.high - self.low)
        marks = MaxNLocator(n, integer=integer).tick_values(self.low, self.high)
        inside = [mark for mark in marks if self.low - slack <= mark <= self.high + slack]
        return [(self.at(mark), f"{mark:.6g}".replace("-", "−")) for mark in inside]


def spread_labels(heights: Sequence[float], low: float, high: float) -> list[float]:
    """Move label heights apart until neighbours are `LABEL_GAP` apart, between `low` and `high` while there is room."""
    order = np.argsort(heights, kind="stable")
    placed = np.array(heights, dtype=float)[order]
    steps = LABEL_GAP * np.arange(len(placed))
    placed = np.maximum.accumulate(np.maximum(placed, low) - steps) + steps  # push down past the neighbour above
    placed = np.minimum(placed, high - steps[::-1])  # and back up from the floor
    result = np.empty(len(placed))
    result[order] = placed
    return [float(height) for height in result]


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    marker: float | None = None,
    level: tuple[str, float] | None = None,
    x_limits: Limits = (None, None),
    y_limits: Limits = (None, None),
    width: int = 460,
    height: int = 200,
) -> str:
    """An SVG figure. `marker` is a vertical line at one x; `level`, a labelled horizontal one."""
    levels = [] if level is None else [level[1]]
    floor, right = height - BOTTOM, width - RIGHT
    x = Axis.around(np.array([v for line in lines for v in line.xs]), x_limits, LEFT, right)
    y = Axis.around(np.array([v for line in lines for v in line.ys] + levels), y_limits, floor, TOP)
    named = [line for line in lines if line.label and len(line.ys)]
    heights = spread_labels([float(y.at(line.ys[-1])) for line in named], TOP, floor)
    labels = {id(line): f"{place:.1f}" for line, place in zip(named, heights, strict=True)}
    return render(
        "chart.svg",
        title=title,
        ends=", ".join(f"{line.label} {line.ys[-1]:.2f}" for line in named),
        size=(width, height),
        box={"left": LEFT, "right": right, "top": TOP, "floor": floor},
        lines=[_drawn(line, place, x, y, labels.get(id(line))) for place, line in enumerate(lines)],
        x_ticks=x.ticks(5, integer=True),
        y_ticks=y.ticks(4),
        zero=y.at(0) if y.low < 0 < y.high else None,
        marker=None if marker is None else x.at(marker),
        level=None if level is None else (level[0], y.at(level[1])),
    )


def _drawn(line: Line, place: int, x: Axis, y: Axis, label_y: str | None) -> dict:
    """What the template needs to know of one line. Dots are strokes without length: one element for all of them."""
    style = place if line.style is None else line.style
    points = [f"{x.at(a)} {y.at(b)}" for a, b in zip(line.xs, line.ys, strict=True)]
    return {
        "label": line.label,
        "label_y": label_y,
        "end": points[-1] if points else "",
        "path": "".join(f"M{p}h0" for p in points) if line.dots else "M" + "L".join(points),
        "kind": "dots" if line.dots else "line",
        "style": style % COLOURS,
        "dash": "" if line.dots else DASHES[style % len(DASHES)],
    }
