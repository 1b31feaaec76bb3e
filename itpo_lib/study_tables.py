"""What the rows of a study say, as Markdown tables and sentences: for the documents and the notebooks alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .advantages import ESTIMATORS
from .credit import CREDITS
from .evaluate import bootstrap_mean
from .study import area, over_seeds, paired, score, sign_flip_p, steps_to

TITLES = {
    "math_tutoring": "math tutoring",
    "document_writing": "document writing",
    "medical_recommendation": "medical recommendation",
}
Rows = Sequence[dict[str, Any]]
FEW = 4  # seeds below which no verdict is given


def place(row: dict[str, Any]) -> tuple[int, int, int]:
    """Where a row belongs: tasks and estimators in the course's order, then the seed. Not every benchmark names all."""
    task, estimator = row.get("task", "math_tutoring"), row.get("estimator", "rloo")
    return list(TITLES).index(task), ESTIMATORS.index(estimator), row["seed"]


def grouped(rows: Rows, *names: str) -> dict[tuple, list[dict[str, Any]]]:
    """Rows by the values of some fields: in order of `place`, and at one place in the order of the credit methods."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    credits = list(CREDITS)
    for row in sorted(rows, key=lambda row: (*place(row), credits.index(row["credit"]) if "credit" in row else 0)):
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return groups


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the rest numbers."""
    ruler = ["---"] + ["---:"] * (len(header) - 1)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (header, ruler, *lines))


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
            means = [mean_cell([measure(r) for r in runs]) for measure in (score, area)]
            lines.append([f"{TITLES[task]}, {estimator}", credit, str(len(runs)), *means, speed, gap])
    header = ["task, estimator", "credit", "seeds", "final score", "area", "steps to 80%", "minus trajectory (p)"]
    return markdown(header, lines)


def mean_cell(values: Sequence[float]) -> str:
    """A mean over seeds, and their range where there are at least three."""
    return str(over_seeds(values)) if len(values) >= 3 else f"{statistics.mean(values):.3f}"


def common_seeds(rows: Rows, others: Rows) -> set[int]:
    """Seeds that both have run."""
    return {r["seed"] for r in rows} & {r["seed"] for r in others}


def gap_cell(rows: Rows, others: Rows) -> str:
    """A paired difference with its range and p-value; below three common seeds the difference alone."""
    gap, p = paired(rows, others)
    if len(common_seeds(rows, others)) < 3:
        return f"{gap.mean:+.3f}"
    return f"{gap.mean:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}] ({p:.2f})"


def settings_table(rows: Rows) -> str:
    """What was run: steps, seeds of each estimator and settings, per credit."""
    lines = []
    for (difficulty, credit), runs in grouped(rows, "difficulty", "credit").items():
        estimators = grouped(runs, "estimator").items()
        seeds = "; ".join(f"{name} {seed_ranges([r['seed'] for r in found])}" for (name,), found in estimators)
        settings = "; ".join(dict.fromkeys(named_options(r["options"]) for r in runs))
        lines.append([credit, difficulty, str(runs[0]["steps"]), seeds, settings])
    return markdown(["credit", "difficulty", "steps", "seeds", "settings"], lines)


def seed_ranges(seeds: Sequence[int]) -> str:
    """Ascending seeds in short: 0 1 2 5 is "0–2 5"."""
    parts: list[list[int]] = []
    for seed in seeds:
        if parts and seed == parts[-1][-1] + 1:
            parts[-1].append(seed)
        else:
            parts.append([seed])
    return " ".join(str(part[0]) if len(part) == 1 else f"{part[0]}–{part[-1]}" for part in parts)


def named_options(options: dict[str, Any]) -> str:
    """Settings as words; the number of steps has a place of its own."""
    return ", ".join(f"{name} {value}" for name, value in options.items() if name != "max_steps") or "nothing"


def verdicts(rows: Rows, credit: str = "norm_itpo") -> str:
    """One sentence per estimator and other method: is `credit` better than it on the same seeds of this task?"""
    if not any(r["credit"] == credit for r in rows):
        return f"The rows hold no run of {credit} yet."
    sentences = []
    for (estimator,), cell in grouped(rows, "estimator").items():
        methods = {name: runs for (name,), runs in grouped(cell, "credit").items()}
        ours = methods.pop(credit, [])
        sentences += [f"- {estimator}: {verdict(ours, runs)}" for runs in methods.values() if common_seeds(ours, runs)]
    return "\n".join(sentences) or f"No other method has run on the seeds of {credit} yet."


def verdict(rows: Rows, others: Rows) -> str:
    """Who is ahead on the common seeds, and whether that may be called a difference (`told_apart`).

    All of n seeds agree by chance alone in 2^(1-n) of cases, so the sentence says so.
    """
    (gap, p), name, other = paired(rows, others), rows[0]["credit"], others[0]["credit"]
    signs, word = seed_signs(rows, others), "higher" if gap.mean > 0 else "lower"
    n, ahead = len(signs), signs.count(1)
    reach = f", from {gap.low:+.3f} to {gap.high:+.3f}" if n > 1 else ""
    numbers = f"{name} minus {other} {gap.mean:+.3f}{reach}, ahead on {ahead} of {n}"
    if n < FEW:
        return f"{numbers}: **too few seeds to tell**"
    if abs(sum(signs)) == n:
        return f"{numbers}: **{word} on every seed** (by chance, once in {2 ** (n - 1)})"
    return f"{numbers} (p = {p:.2f}): **{word if told_apart(rows, others) else 'not told apart'}**"


def told_apart(rows: Rows, others: Rows) -> int:
    """1 where `rows` may be called better than `others`, -1 where worse, 0 where neither.

    They may if all of at least `FEW` common seeds say the same, or if the sign-flip p-value is at most 0.05.
    """
    signs, (gap, p) = seed_signs(rows, others), paired(rows, others)
    clear = len(signs) >= FEW and (abs(sum(signs)) == len(signs) or p <= 0.05)
    return int(np.sign(gap.mean)) if clear else 0


def seed_signs(rows: Rows, others: Rows) -> list[int]:
    """Per common seed: 1 where `rows` score higher than `others`, -1 where lower, 0 where equal."""
    theirs = {r["seed"]: score(r) for r in others}
    return [int(np.sign(score(r) - theirs[r["seed"]])) for r in rows if r["seed"] in theirs]


def standing_table(rows: Rows, credit: str = "norm_itpo") -> str:
    """Where `credit` stands in each cell: the methods that are told apart from it, and its rank by the mean.

    The oracle is compared, but not ranked: it looks at the truth.
    """
    lines = []
    for (task, estimator), cell in grouped(rows, "task", "estimator").items():
        methods = {name: runs for (name,), runs in grouped(cell, "credit").items()}
        ours = methods.get(credit)
        if ours is None:
            continue
        means = {name: statistics.mean(map(score, runs)) for name, runs in methods.items()}
        rivals = [mean for name, mean in means.items() if name != "oracle"]
        rank = 1 + sum(mean > means[credit] for mean in rivals)
        others = [name for name in sorted(methods, key=lambda name: -means[name]) if name != credit]
        sides = {name: told_apart(methods[name], ours) for name in others if common_seeds(methods[name], ours)}
        named = [", ".join(name for name in sides if sides[name] == side) or "none" for side in (1, 0, -1)]
        standing = [f"{means[credit]:.3f}", f"{rank} of {len(rivals)}", *named]
        lines.append([f"{TITLES[task]}, {estimator}", str(len(ours)), *standing])
    header = ["task, estimator", "seeds", credit, "rank by mean", "better than it", "not told apart", "worse than it"]
    return markdown(header, lines)


def pooled_table(rows: Rows, credit: str = "trajectory") -> str:
    """Every method against `credit` over all cells: mean differences of pairs on one task, estimator and seed.

    Estimators on one task and seed start alike and err alike, so each counts only through their mean: the interval is
    a bootstrap over pairs of task and seed, and the p-value flips their signs.
    """
    plain = {place(r): r for r in rows if r["credit"] == credit}
    lines = []
    for (name,), runs in grouped(rows, "credit").items():
        pairs = [(r, plain[place(r)]) for r in runs if place(r) in plain]
        if name != credit and pairs:
            gaps = [score(run) - score(other) for run, other in pairs]
            ahead = f"{sum(gap > 0 for gap in gaps)} of {len(gaps)}"
            worst = f"{min(map(score, runs)):.3f}"
            measured = [cluster_cell(pairs, measure) for measure in (score, area)]
            lines.append((statistics.mean(gaps), [name, measured[0], ahead, measured[1], worst]))
    lines.sort(key=lambda line: -line[0])
    own = [[credit, "", "", "", f"{min(map(score, plain.values())):.3f}"]] if plain else []
    header = ["credit", f"minus {credit} (p)", "ahead", "the same, area (p)", "worst run"]
    return markdown(header, [line for _, line in lines] + own)


def cluster_cell(pairs: Sequence[tuple[dict, dict]], measure: Callable[[dict], float]) -> str:
    """A mean difference of pairs of runs, with its bootstrap interval and p-value over pairs of task and seed."""
    clusters: dict[tuple[str, int], list[float]] = {}
    for run, other in pairs:
        clusters.setdefault((run["task"], run["seed"]), []).append(measure(run) - measure(other))
    found = bootstrap_mean([statistics.mean(gaps) for gaps in clusters.values()])
    p = sign_flip_p([statistics.mean(gaps) for gaps in clusters.values()])
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}] ({p:.3f})"
