"""Builds every table and figure of the study from the committed rows, byte for byte the same each time.

    python benchmarks/figures.py            # write them        (make figures)
    python benchmarks/figures.py --check    # say what differs from the rows, and exit with 1 if anything does

Tables go between `<!-- rows: NAME -->` and `<!-- end -->` in README.md and docs/study.md; figures to
docs/pictures/. Text in the figures stays text, so they do not depend on the fonts of the machine.
"""

from __future__ import annotations

import argparse
import io
import itertools
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from itpo_lib.diagnostic_plots import BELOW, GREY, MARKERS
from itpo_lib.evaluate import bootstrap_mean
from itpo_lib.plots import COLOURS, STYLE, smooth
from itpo_lib.study import area, paired, read_rows, score, steps_to, wins

ROOT = Path(__file__).parents[1]
RESULTS, PICTURES = ROOT / "benchmarks" / "results", ROOT / "docs" / "pictures"
PAGES = (ROOT / "README.md", ROOT / "docs" / "study.md")
BLOCK = re.compile(r"(<!-- rows: (\w+) -->\n).*?(<!-- end -->)", re.S)
TITLES = {
    "math_tutoring": "math tutoring",
    "document_writing": "document writing",
    "medical_recommendation": "medical recommendation",
}
Rows = Sequence[dict[str, Any]]


def grouped(rows: Rows, *names: str) -> dict[tuple, list[dict[str, Any]]]:
    """Rows by the values of some fields, in order of first appearance, seeds ascending."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda r: r["seed"]):
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return groups


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the rest numbers."""
    ruler = ["---"] + ["---:"] * (len(header) - 1)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (header, ruler, *lines))


# Tables


def bar_table(rows: Rows) -> str:
    """Does Norm-ITPO with RLOO reach 0.95 of the ceiling on every seed?"""
    lines = []
    for (task,), runs in grouped(rows, "task").items():
        scores, seconds = [score(r) for r in runs], [r["cpu_seconds"] for r in runs]
        success = f"{runs[0]['success_before']:.2f} to {statistics.mean(r['success'] for r in runs):.2f}"
        start = f"{statistics.mean(r['before'] / r['ceiling'] for r in runs):.2f}"
        greedy = " ".join(f"{r['after_greedy'] / r['ceiling']:.3f}" for r in runs)
        ends, limit = " ".join(f"{s:.3f}" for s in scores), f"{runs[0]['ceiling']:.3f}"
        lines.append([TITLES[task], start, ends, greedy, success, limit, f"{min(seconds):.0f} to {max(seconds):.0f}"])
    return markdown(
        ["tiny task", "start", "end, one number a seed", "end, greedy", "success", "ceiling", "CPU s"], lines
    )


def tuning_table(rows: Rows) -> str:
    """All candidates of the tuning, the chosen one marked."""
    lines = []
    for (credit,), runs in grouped(rows, "credit").items():
        tried: dict[str, list[float]] = {}
        for row in runs:
            name = ", ".join(f"{key} {value:g}" for key, value in row["options"].items())
            tried.setdefault(name, []).append(score(row))
        best = max(tried, key=lambda name: statistics.mean(tried[name]))
        lines += [
            [credit, f"**{name}**" if name == best else name, " ".join(f"{s:.3f}" for s in scores)]
            for name, scores in tried.items()
        ]
    return markdown(["credit", "settings", "score, one number a seed"], lines)


def score_table(rows: Rows) -> str:
    """Final score, area and speed of each method, and its paired difference to the trajectory share."""
    lines = []
    for (task, estimator), cell in grouped(rows, "task", "estimator").items():
        methods = {credit: runs for (credit,), runs in grouped(cell, "credit").items()}
        plain = methods.get("trajectory", [])
        for credit, runs in sorted(methods.items(), key=lambda item: -statistics.mean(map(score, item[1]))):
            reached = [steps_to(r) for r in runs]
            speed = f"{statistics.median(reached):.0f}" if np.isfinite(statistics.median(reached)) else "never"
            gap = "" if credit == "trajectory" or not common_seeds(runs, plain) else gap_cell(runs, plain)
            means = [str(bootstrap_mean([measure(r) for r in runs])) for measure in (score, area)]
            lines.append([f"{TITLES[task]}, {estimator}", credit, str(len(runs)), *means, speed, gap])
    header = ["task, estimator", "credit", "seeds", "final score", "area", "steps to 80%", "minus trajectory (p)"]
    return markdown(header, lines)


def common_seeds(rows: Rows, others: Rows) -> set[int]:
    """Seeds that both have run."""
    return {r["seed"] for r in rows} & {r["seed"] for r in others}


def gap_cell(rows: Rows, others: Rows) -> str:
    """A paired difference with its interval and p-value."""
    gap, p = paired(rows, others)
    return f"{gap.mean:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}] ({p:.2f})"


def win_table(rows: Rows) -> str:
    """How often the method of the row beats that of the column: same task, estimator and seed."""
    credits = sorted({r["credit"] for r in rows})
    found: dict[tuple[str, str], list[float]] = {}
    for cell in grouped(rows, "task", "estimator").values():
        methods = {credit: runs for (credit,), runs in grouped(cell, "credit").items()}
        for pair, share in wins(methods).items():
            found.setdefault(pair, []).append(share)
    cells = [[a, *(f"{np.mean(found[a, b]):.2f}" if (a, b) in found else "" for b in credits)] for a in credits]
    return markdown(["wins against", *credits], cells)


def truth_table(rows: Rows) -> str:
    """Agreement of each method's credit with the true credit, early, midway and late."""
    lines = []
    for (task, credit), runs in grouped([r for r in rows if r["truth"]], "task", "credit").items():
        for step, probes in probes_by_step(runs).items():
            means = {n: np.nanmean([p[n] for p in probes]) for n in probes[0]}
            sides = [f"{means[s]:.2f} ({means[f'{s}_by_chance']:.2f})" for s in ("best", "worst")]
            lines.append([TITLES[task], credit, str(step), *sides, f"{means['tau']:+.2f}"])
    return markdown(["task", "credit", "step", "best turn (chance)", "worst turn (chance)", "τ within"], lines)


def probes_by_step(runs: Rows) -> dict[int, list[dict[str, float]]]:
    """All seeds' probes of one method, by training step."""
    found: dict[int, list[dict[str, float]]] = {}
    for probe in itertools.chain.from_iterable(r["truth"] for r in runs):
        found.setdefault(probe["step"], []).append(probe)
    return dict(sorted(found.items()))


# Figures


def score_figure(rows: Rows) -> Figure:
    """Final scores, one panel per task: every seed a dot, mean and 95% interval beside it."""
    tasks = {task: cell for (task,), cell in grouped(rows, "task").items()}
    credits = sorted({r["credit"] for r in rows})
    estimators = sorted({r["estimator"] for r in rows})
    with plt.rc_context({**STYLE, "figure.figsize": (10, 1.6 + 0.5 * len(credits))}):
        figure, axes = plt.subplots(1, len(tasks), layout="constrained", sharey=True, squeeze=False)
        for axis, (task, cell) in zip(axes[0], tasks.items(), strict=True):
            for i, estimator in enumerate(estimators):
                for y, credit in enumerate(credits):
                    scores = [score(r) for r in cell if (r["credit"], r["estimator"]) == (credit, estimator)]
                    if scores:
                        place, mean = y + 0.25 * (i - (len(estimators) - 1) / 2), bootstrap_mean(scores)
                        axis.plot(scores, [place] * len(scores), ".", color=COLOURS[i], alpha=0.4)
                        axis.plot([mean.low, mean.high], [place, place], color=COLOURS[i])
                        axis.plot(mean.mean, place, MARKERS[i], color=COLOURS[i], label=estimator)
            axis.set(title=TITLES[task], xlabel="share of the ceiling", yticks=range(len(credits)))
            axis.set_yticklabels(credits)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        figure.legend(unique.values(), unique.keys(), ncols=len(unique), **BELOW)
    return figure


def curve_figure(rows: Rows) -> Figure:
    """Learning curves with RLOO: the mean over seeds, smoothed over three batches, and the range of the seeds."""
    tasks = {task: cell for (task,), cell in grouped([r for r in rows if r["estimator"] == "rloo"], "task").items()}
    credits = sorted({r["credit"] for r in rows})
    looks = {credit: (COLOURS[i % 7], MARKERS[i % 7]) for i, credit in enumerate(credits)}
    with plt.rc_context({**STYLE, "figure.figsize": (10, 4)}):
        figure, axes = plt.subplots(1, len(tasks), layout="constrained", sharey=True, squeeze=False)
        for axis, (task, cell) in zip(axes[0], tasks.items(), strict=True):
            for (credit,), runs in grouped(cell, "credit").items():
                lines = np.array([smooth(r["curve"]["outcome"], 3) / r["ceiling"] for r in runs])
                steps, (colour, marker) = runs[0]["curve"]["step"], looks[credit]
                axis.fill_between(steps, lines.min(0), lines.max(0), color=colour, alpha=0.12, linewidth=0)
                axis.plot(steps, lines.mean(0), color=colour, marker=marker, markevery=8, markersize=5, label=credit)
            axis.axhline(1, color=GREY, linestyle="--", linewidth=1)
            axis.set(title=TITLES[task], xlabel="training step", ylim=(0, 1.05))
        axes[0, 0].set_ylabel("outcome / ceiling")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), ncols=4, **BELOW)
    return figure


def svg(figure: Figure) -> str:
    """An SVG that is the same on every machine."""
    buffer = io.StringIO()
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "itpo"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


# Writing


def products() -> dict[Path, str]:
    """Every file that is built, with its contents; files whose rows do not exist yet are left as they are."""
    bar, tuning, study = (read_rows(RESULTS / f"{name}.jsonl") for name in ("bar", "tuning", "study"))
    tables = {"bar": bar_table(bar)} if bar else {}
    built: dict[Path, str] = {}
    if tuning:
        tables["tuning"] = tuning_table(tuning)
    if study:
        tables |= {"scores": score_table(study), "wins": win_table(study), "truth": truth_table(study)}
        built = {
            PICTURES / "study_scores.svg": svg(score_figure(study)),
            PICTURES / "study_curves.svg": svg(curve_figure(study)),
        }
    fill = lambda match: f"{match[1]}{tables[match[2]]}{match[3]}" if match[2] in tables else match[0]  # noqa: E731
    return {**built, **{page: BLOCK.sub(fill, page.read_text()) for page in PAGES if page.exists()}}


def main() -> None:
    """Write or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        stale = [p for p, text in products().items() if not p.exists() or p.read_text() != text]
        sys.exit("differs from the rows: " + ", ".join(p.name for p in stale) if stale else 0)
    for path, text in products().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
