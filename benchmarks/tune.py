"""Settings for each credit method by one rule, before any comparison is run.

    python benchmarks/tune.py --jobs 2

Rule: every method gets four candidates (a learning rate, and its own knob where it has one), played on tiny math
tutoring with RLOO, the study's budget and the tuning seed 100, which the study does not use; the highest final score wins and is used for
every task and estimator. Rows go to benchmarks/results/tuning.jsonl, the winners to benchmarks/results/settings.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from pathlib import Path

from study import BUDGET
from timing import print_table
from tqdm import tqdm

from itpo_lib.credit import CREDITS
from itpo_lib.study import Cell, run_study, score

RESULTS = Path(__file__).parent / "results"
TUNING_SEEDS = (100,)  # more are better: one run of the tutor differs from the next by about 0.01
OWN_KNOBS = {
    "norm_itpo": ("credit_temperature", (0.4, 2.0)),
    "itpo": ("prm_beta", (0.05, 0.3)),
    "prime": ("prm_beta", (0.05, 0.3)),
    "value": ("critic_learning_rate", (3e-4, 1e-3)),
}


def candidates(credit: str) -> list[dict]:
    """Four settings to try."""
    if credit not in OWN_KNOBS:
        return [{"learning_rate": rate} for rate in (3e-4, 5e-4, 1e-3, 2e-3)]
    name, values = OWN_KNOBS[credit]
    return [{"learning_rate": rate, name: value} for rate, value in itertools.product((5e-4, 1e-3), values)]


def main() -> None:
    """Run what is missing, choose, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1)
    choice = parser.parse_args()
    cells = [
        Cell("math_tutoring", credit, seed=seed, options={**BUDGET, **options})
        for seed, credit in itertools.product(TUNING_SEEDS, CREDITS)
        for options in candidates(credit)
    ]
    rows = list(
        tqdm(run_study(cells, RESULTS / "tuning.jsonl", choice.jobs), total=len(cells), desc="tuning", unit="run")
    )
    lines, winners = [], {}
    for credit in CREDITS:
        means = []
        for options in candidates(credit):
            scores = [score(row) for row in rows if row["credit"] == credit and row["options"] == {**BUDGET, **options}]
            means.append(statistics.mean(scores))
            lines.append({"credit": credit, "settings": json.dumps(options), "score": means[-1], "runs": len(scores)})
        winners[credit] = candidates(credit)[means.index(max(means))]
    (RESULTS / "settings.json").write_text(json.dumps(winners, indent=1) + "\n")
    print_table("Tuning", lines)


if __name__ == "__main__":
    main()
