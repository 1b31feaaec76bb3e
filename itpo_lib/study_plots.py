"""Figures of a study over seeds, in the style of `plots.py`: for the documents and the notebooks alike."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

import numpy as np

from .diagnostic_plots import BELOW, GREY, MARKERS, agreement_figure, looks
from .diagnostics import Agreement
from .errors import require
from .plots import COLOURS, STYLE, smooth
from .study import PHASES, agreement_by_phase, over_seeds, score
from .study_tables import TITLES, Rows, grouped

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def score_figure(rows: Rows) -> Figure:
    """Final scores, one panel per task: every seed a dot, mean and range beside it."""
    import matplotlib.pyplot as plt

    tasks = {task: cell for (task,), cell in grouped(rows, "task").items()}
    if not tasks:
        return no_rows()
    credits, estimators = ([value for (value,) in grouped(rows, name)] for name in ("credit", "estimator"))
    with plt.rc_context({**STYLE, "figure.figsize": (10, 1.6 + 0.5 * len(credits))}):
        figure, axes = plt.subplots(1, len(tasks), layout="constrained", sharey=True, squeeze=False)
        for axis, (task, cell) in zip(axes[0], tasks.items(), strict=True):
            for i, estimator in enumerate(estimators):
                for y, credit in enumerate(credits):
                    scores = [score(r) for r in cell if (r["credit"], r["estimator"]) == (credit, estimator)]
                    if scores:
                        place, mean = y + 0.25 * (i - (len(estimators) - 1) / 2), over_seeds(scores)
                        axis.plot(scores, [place] * len(scores), ".", color=COLOURS[i], alpha=0.4)
                        axis.plot([mean.low, mean.high], [place, place], color=COLOURS[i])
                        axis.plot(mean.mean, place, MARKERS[i], color=COLOURS[i], label=estimator)
            axis.set(title=TITLES[task], xlabel="share of the ceiling", yticks=range(len(credits)))
            axis.set_yticklabels(credits)
        axes[0, 0].invert_yaxis()  # the first method on top
        handles, labels = axes[0, 0].get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        figure.legend(unique.values(), unique.keys(), ncols=len(unique), **BELOW)
    return figure


def curve_figure(rows: Rows) -> Figure:
    """Learning curves with RLOO: the mean over seeds, smoothed over three batches, and the range of the seeds."""
    import matplotlib.pyplot as plt

    tasks = {task: cell for (task,), cell in grouped([r for r in rows if r["estimator"] == "rloo"], "task").items()}
    if not tasks:
        return no_rows()
    drawn = looks(r["credit"] for r in rows)
    with plt.rc_context({**STYLE, "figure.figsize": (10, 4)}):
        figure, axes = plt.subplots(1, len(tasks), layout="constrained", sharey=True, squeeze=False)
        for axis, (task, cell) in zip(axes[0], tasks.items(), strict=True):
            for (credit,), runs in grouped(cell, "credit").items():
                lines = np.array([smooth(r["curve"]["outcome"], 3) / r["ceiling"] for r in runs])
                steps, band = runs[0]["curve"]["step"], {"color": drawn[credit]["color"], "alpha": 0.12}
                axis.fill_between(steps, lines.min(0), lines.max(0), linewidth=0, **band)
                axis.plot(steps, lines.mean(0), markevery=8, markersize=5, label=credit, **drawn[credit])
            axis.axhline(1, color=GREY, linestyle="--", linewidth=1)
            axis.set(title=TITLES[task], xlabel="training step", ylim=(0, 1.05))
        axes[0, 0].set_ylabel("outcome / ceiling")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), ncols=4, **BELOW)
    return figure


def no_rows() -> Figure:
    """What stands in for a figure while a study has not come to its runs."""
    import matplotlib.pyplot as plt

    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(10, 1))
        axis.text(0.5, 0.5, "no runs yet", ha="center", va="center")
        axis.set_axis_off()
    return figure


def probe_figure(rows: Rows) -> Figure:
    """How often each method's credit names a truly best or worst turn of a failure, by third of training (RLOO)."""
    probed = [r for r in rows if r["truth"] and r["estimator"] == "rloo"]
    require(bool(probed), "no row compares its credit with the truth: run the study with --probes")
    found = {credit: agreement_by_phase(runs) for (credit,), runs in grouped(probed, "credit").items()}
    phases = [phase for phase in PHASES if all(phase in measured for measured in found.values())]
    names = [field.name for field in fields(Agreement)]
    methods = {
        credit: [Agreement(**{name: measured[phase][name] for name in names}) for phase in phases]  # type: ignore[arg-type]
        for credit, measured in found.items()
    }
    return agreement_figure(methods, phases)
