"""The study: credit methods under each estimator, over seeds. Rows to benchmarks/results/, a table to the screen.

    python benchmarks/study.py --tuned --estimators rloo grpo ppo --seeds 0-4 --probes 3 23 45 --jobs 2

`--tuned` takes each method's settings as benchmarks/tune.py chose them, and the budget of the study: 48 steps. Each
run is a fresh process with one thread. Finished runs are skipped, so Ctrl-C and the same command go on.
`make figures` builds the tables and figures of docs/study.md from the committed rows.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path

from timing import print_table
from tqdm import tqdm

from itpo_lib.credit import CREDITS
from itpo_lib.study import grid, run_study, score

BUDGET = {"max_steps": 48}  # of every run of the study and of the tuning
TASKS = ("math_tutoring", "document_writing", "medical_recommendation")


def seed_range(text: str) -> range:
    """ "3" is the first three seeds, "5-9" the seeds from 5 to 9."""
    first, dash, last = text.partition("-")
    return range(int(first), int(last) + 1) if dash else range(int(first))


def summary(rows: list[dict]) -> list[dict]:
    """One line per task, difficulty, credit and estimator."""
    groups: dict[tuple, list[dict]] = {}
    for row in sorted(rows, key=lambda r: r["seed"]):
        groups.setdefault((row["task"], row["difficulty"], row["credit"], row["estimator"]), []).append(row)
    return [
        {
            "case": ", ".join(case),
            "seeds": len(runs),
            "start / ceiling": statistics.mean(r["before"] / r["ceiling"] for r in runs),
            "end / ceiling": " ".join(f"{score(r):.3f}" for r in runs),
            "worst": min(score(r) for r in runs),
            "success": f"{runs[0]['success_before']:.2f} to {statistics.mean(r['success'] for r in runs):.2f}",
            "turns": statistics.mean(r["turns"] for r in runs),
            "CPU s": " ".join(f"{r['cpu_seconds']:.0f}" for r in runs),
        }
        for case, runs in sorted(groups.items())
    ]


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--difficulty", default="normal")
    parser.add_argument("--credits", nargs="+", default=list(CREDITS))
    parser.add_argument("--estimators", nargs="+", default=["rloo"])
    parser.add_argument("--seeds", type=seed_range, default=range(5), help="5 (the first five) or 5-9")
    parser.add_argument(
        "--probes", type=int, nargs="*", default=[], help="steps at which credit is compared with truth"
    )
    parser.add_argument("--tuned", action="store_true", help="the settings that benchmarks/tune.py chose")
    parser.add_argument("--options", type=json.loads, default={}, help="fields of ITPOConfig, as JSON")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; 1 for honest CPU seconds")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/study.jsonl"))
    choice = parser.parse_args()
    common = {"difficulty": choice.difficulty, "options": choice.options, "probes": tuple(choice.probes)}
    cells = grid(choice.tasks, choice.credits, choice.estimators, choice.seeds, **common)
    if choice.tuned:
        settings = json.loads((Path(__file__).parent / "results" / "settings.json").read_text())
        cells = [replace(cell, options={**BUDGET, **settings[cell.credit], **cell.options}) for cell in cells]
    rows = list(tqdm(run_study(cells, choice.out, choice.jobs), total=len(cells), desc="study", unit="run"))
    print_table(f"Runs of {choice.out.name}", summary(rows))


if __name__ == "__main__":
    main()
