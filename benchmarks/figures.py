"""Builds every table and figure of the study from the committed rows, byte for byte the same each time.

    python benchmarks/figures.py            # write them        (make figures)
    python benchmarks/figures.py --check    # say what differs from the rows, and exit with 1 if anything does

Tables go between `<!-- rows: NAME -->` and `<!-- end -->` in README.md, docs/study.md and docs/tasks/; figures to
docs/pictures/. Text in the figures stays text, so they do not depend on the fonts of the machine.
"""

from __future__ import annotations

import argparse
import io
import itertools
import re
import statistics
import sys
from pathlib import Path

import length_pull
import matplotlib.pyplot as plt
import numpy as np
from evidence import RULES, rule_of
from matplotlib.figure import Figure
from offline_prm import KINDS, of_kind
from text_learning import base_of
from variants import VARIANTS, variant_of

from itpo_lib.credit import CREDITS
from itpo_lib.diagnostic_plots import look
from itpo_lib.evaluate import Estimate, paired_gain
from itpo_lib.plots import STYLE, smooth
from itpo_lib.study import agreement_by_phase, area, read_rows, score, wins
from itpo_lib.study_plots import curve_figure, probe_figure, score_figure
from itpo_lib.study_tables import (
    TITLES,
    Rows,
    common_seeds,
    gap_cell,
    grouped,
    markdown,
    mean_cell,
    pooled_table,
    score_table,
    standing_table,
)

ROOT = Path(__file__).parents[1]
RESULTS, PICTURES = ROOT / "benchmarks" / "results", ROOT / "docs" / "pictures"
PAGES = (ROOT / "README.md", ROOT / "docs" / "study.md", *sorted((ROOT / "docs" / "tasks").glob("*.md")))
BLOCK = re.compile(r"(<!-- rows: (\w+) -->\n).*?(<!-- end -->)", re.S)

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


def truth_table(groups: dict[str, Rows]) -> str:
    """Agreement of each named group's credit with the true credit of failures, early, midway and late."""
    lines = []
    for name, runs in groups.items():
        for phase, found in agreement_by_phase(runs).items():
            sides = [f"{found[s]:.2f} ({found[f'{s}_by_chance']:.2f})" for s in ("best", "worst")]
            sides += [f"{found['last_is_worst']:.2f}", f"{found['tau']:+.2f}"]
            lines.append([name, str(len(runs)), phase, str(found["dialogues"]), *sides])
    header = ["credit", "seeds", "part of training", "failures", "best turn (chance)", "worst turn (chance)"]
    return markdown([*header, "blaming the last", "τ within"], lines)


def probed_methods(rows: Rows) -> dict[str, Rows]:
    """The study's runs with probes, by task and credit."""
    groups = grouped([r for r in rows if r["truth"]], "task", "credit")
    return {f"{TITLES[task]}, {credit}": runs for (task, credit), runs in groups.items()}


def probed_variants(rows: Rows) -> dict[str, Rows]:
    """The variants' runs with probes, by name."""
    groups = {name: [r for r in rows if variant_of(r) == name and r["truth"]] for name in VARIANTS}
    return {name: runs for name, runs in groups.items() if runs and name not in ("trajectory share", "raw ITPO")}


def variants_table(rows: Rows) -> str:
    """Baselines and ways to train the PRM, in the order of benchmarks/variants.py."""
    named = {name: [r for r in rows if variant_of(r) == name] for name in VARIANTS}
    lines = [
        [name, " ".join(f"{score(r):.3f}" for r in runs), *map(mean_cell, measured)]
        for name, runs in named.items()
        if runs
        for measured in [([area(r) for r in runs], [r["turns"] for r in runs])]
    ]
    return markdown(["variant", "end, one number a seed", "area", "turns at the end"], lines)


def textbook_table(rows: Rows, textbook: Rows) -> str:
    """GRPO and PPO with a sum over later turns (`textbook`, cells of three seeds), beside the study's cells without it."""
    lines = []
    cells = grouped(textbook, "estimator", "task", "credit")
    order = [cell for cell in itertools.product(("grpo", "ppo"), TITLES, CREDITS) if len(cells.get(cell, ())) >= 3]
    for cell in order:
        summed = cells[cell]
        ours = [r for r in rows if (r["estimator"], r["task"], r["credit"]) == cell]
        for name, runs in (("turn", summed), ("auto", sorted(ours, key=lambda r: r["seed"]))):
            ends = " ".join(f"{score(r):.3f}" for r in runs)
            measured = (
                [mean_cell([score(r) for r in runs]), mean_cell([r["turns"] for r in runs])] if runs else ["", ""]
            )
            lines.append([f"{cell[0]}, {TITLES[cell[1]]}, {cell[2]}", f"`{name}`", ends, *measured])
    header = ["estimator, task, credit", "baseline", "end, one number a seed", "mean", "turns at the end"]
    return markdown(header, lines)


def rules_table(rows: Rows) -> str:
    """The harder worlds: the PRM's or the true evidence, as shares or as it stands, against the outcome alone."""
    lines = []
    for (task,), cell in grouped(rows, "task").items():
        runs_of = {name: [r for r in cell if rule_of(r) == name] for name in RULES}
        plain = runs_of["outcome alone"]
        for name, runs in runs_of.items():
            if runs:
                gap = "" if runs is plain or not common_seeds(runs, plain) else gap_cell(runs, plain)
                ends = " ".join(f"{score(r):.3f}" for r in runs)
                lines.append([f"{TITLES[task]}: {name}", ends, mean_cell([area(r) for r in runs]), gap])
    return markdown(["task, rule", "end, one number a seed", "area", "minus the outcome alone (p)"], lines)


STAGES = {  # of benchmarks/text_learning.py
    "as_it_comes": "as it comes",
    "warm_start": "warm start",
    "informed": "warm start, nothing hidden",
    "norm_itpo": "Norm-ITPO with RLOO",
}


def text_tables(rows: Rows) -> dict[str, str]:
    """SmolLM2 at text scale, a table for each task: what each stage of learning reached."""
    tables = {}
    for (task,), cell in grouped(rows, "task").items():
        lines = []
        for row in sorted(cell, key=lambda r: (r["steps"], list(STAGES).index(r["stage"]), r["seed"])):
            means = [Estimate(**row["evaluation"][name]) for name in ("outcome", "success", "turns")]
            base = base_of(row, cell)
            gain = "" if base is None else str(paired_gain(base["outcomes"], row["outcomes"]))
            seconds = f"{row['cpu_seconds']:.0f}" if "cpu_seconds" in row else ""
            name = STAGES[row["stage"]] + (
                f", {row['rl_steps']} steps at {row['rl_rate']:g}" if "rl_steps" in row else ""
            )
            lines.append([name, str(row["steps"]), *map(str, means), gain, seconds])
        outcome = cell[0]["evaluation"]["outcome_name"]
        header = ["SmolLM2-135M", "warm start's steps", outcome, "success", "turns", "gain", "CPU s, training"]
        tables[f"text_{task}"] = markdown(header, lines)
    return tables


# Figures


def length_figure(rows: Rows) -> Figure:
    """Turns over training under each baseline, and of raw ITPO: mean over seeds, with the range of the seeds."""
    shown = [name for name in VARIANTS if name.startswith("baseline") or name in ("trajectory share", "raw ITPO")]
    with plt.rc_context({**STYLE, "figure.figsize": (9, 4.2)}):
        figure, axis = plt.subplots(layout="constrained")
        for i, name in enumerate(shown):
            lines = np.array([smooth(r["curve"]["turns"], 3) for r in rows if variant_of(r) == name])
            if len(lines):
                steps = next(r["curve"]["step"] for r in rows if variant_of(r) == name)
                axis.fill_between(steps, lines.min(0), lines.max(0), color=look(i)["color"], alpha=0.12, linewidth=0)
                axis.plot(steps, lines.mean(0), label=name, markevery=4, markersize=5, **look(i))
        axis.set(xlabel="training step", ylabel="assistant turns", ylim=(0, 6.2))
        axis.axhline(6, color="grey", linestyle="--", linewidth=1)
        figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper")
    return figure


def pull_figure(rows: Rows) -> Figure:
    """What each rule would have paid for asking once more, on the batches of one run: mean and range of the seeds."""
    with plt.rc_context({**STYLE, "figure.figsize": (9, 4.2)}):
        figure, axis = plt.subplots(layout="constrained")
        for i, name in enumerate((*length_pull.RULES, length_pull.TRUTH)):
            known = [r for r in rows if name in r["pull"]]
            lines = np.array([[r["pull"][name] for r in runs] for runs in grouped(known, "seed").values()])
            steps, window = sorted({r["step"] for r in known}), 1 if name == length_pull.TRUTH else 3
            lines = np.array([smooth(line, window) for line in lines])
            axis.fill_between(steps, lines.min(0), lines.max(0), color=look(i)["color"], alpha=0.12, linewidth=0)
            axis.plot(
                steps,
                lines.mean(0),
                label=name,
                markevery=1 if name == length_pull.TRUTH else 4,
                markersize=5,
                **look(i),
            )
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set(xlabel="training step", ylabel="advantage of asking\nminus that of answering")
        figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper")
    return figure


def rules_figure(rows: Rows) -> Figure:
    """The harder worlds: every run a dot, the mean a sign with its number; colour and sign say whose evidence it was."""
    names = [name for name in RULES if any(rule_of(r) == name for r in rows)]
    whose = [name.split()[0] for name in names]
    with plt.rc_context({**STYLE, "figure.figsize": (10, 1.2 + 0.42 * len(names))}):
        figure, axes = plt.subplots(1, len(TITLES), layout="constrained", sharey=True)
        for axis, (task, title) in zip(axes, TITLES.items(), strict=True):
            for y, name in enumerate(names):
                ends = [score(r) for r in rows if r["task"] == task and rule_of(r) == name]
                if ends:
                    drawn = look(sorted(set(whose)).index(whose[y]))
                    axis.plot(ends, [y] * len(ends), ".", color=drawn["color"], alpha=0.5)
                    axis.plot(statistics.mean(ends), y, drawn["marker"], color=drawn["color"])
                    axis.text(1.02, y, f"{statistics.mean(ends):.2f}", va="center", fontsize=9)
            axis.set(
                title=title, xlabel="share of the ceiling", xlim=(0, 1.18), xticks=[0, 0.5, 1], yticks=range(len(names))
            )
            axis.set_yticklabels(names)
            axis.grid(axis="x", alpha=0.3)
        axes[0].invert_yaxis()
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
    names = ("bar", "tuning", "study", "variants", "length_pull")
    bar, tuning, study, variants, pulls = (read_rows(RESULTS / f"{name}.jsonl") for name in names)
    tables = {"bar": bar_table(bar)} if bar else {}
    tables |= text_tables(read_rows(RESULTS / "text_learning.jsonl"))
    built: dict[Path, str] = {}
    if tuning:
        tables["tuning"] = tuning_table(tuning)
    if study:
        tables |= {"scores": score_table(study), "wins": win_table(study), "truth": truth_table(probed_methods(study))}
        tables |= {"standing": standing_table(study), "pooled": pooled_table(study)}
        tables["pooled_norm_itpo"] = pooled_table(study, "norm_itpo")
        slower = read_rows(RESULTS / "trajectory_5e-4.jsonl")
        tables["equal_rate"] = pooled_table([r for r in study if r["credit"] != "trajectory"] + slower)
        tables["textbook"] = textbook_table(study, read_rows(RESULTS / "return_to_go.jsonl"))
        built = {
            PICTURES / "study_scores.svg": svg(score_figure(study)),
            PICTURES / "study_curves.svg": svg(curve_figure(study)),
        }
        mathematics = [r for r in study if r["task"] == "math_tutoring" and r["truth"]]
        if mathematics:
            built[PICTURES / "study_truth.svg"] = svg(probe_figure(mathematics))
    if variants:
        tables["variants"] = variants_table(variants)
        tables["truth_variants"] = truth_table(probed_variants(variants))
        built[PICTURES / "study_lengths.svg"] = svg(length_figure(variants))
    stress = read_rows(RESULTS / "stress.jsonl")
    if stress:
        rules = read_rows(RESULTS / "stress_rules.jsonl")
        tables |= {"stress": score_table(stress), "stress_rules": rules_table([*stress, *rules])}
        slower = read_rows(RESULTS / "stress_5e-4.jsonl")
        tables["stress_equal_rate"] = score_table([r for r in stress if r["credit"] != "trajectory"] + slower)
        built[PICTURES / "study_rules.svg"] = svg(rules_figure([*stress, *rules]))
        probed = {name: [r for r in rules if rule_of(r) == name and r["truth"]] for name in RULES}
        tables["truth_stress"] = truth_table({name: runs for name, runs in probed.items() if runs})
    offline = read_rows(RESULTS / "offline_prm.jsonl")
    if offline:
        tables["offline"] = truth_table({f"{kind} PRM": of_kind(offline, kind) for kind in KINDS})
    if pulls:
        built[PICTURES / "study_pull.svg"] = svg(pull_figure(pulls))
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
