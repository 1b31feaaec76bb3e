"""The PRM or the rule: which of Norm-ITPO's two parts holds it back in the harder worlds?

    python benchmarks/evidence.py --seeds 3 --probes 3 15 27 39 --rules "PRM, sharp shares" "PRM, as advantages"
    python benchmarks/evidence.py --seeds 3 --rules "PRM, shares and blame"
    python benchmarks/evidence.py --seeds 2 --rules "truth, sharp shares" "truth, shares and blame"

Norm-ITPO makes advantages of what its PRM says by sharing out the outcome. Here evidence and rule are exchanged one by
one, at difficulty `stress`, RLOO, with the settings that benchmarks/tune.py chose. Rules without options of their own
are the study's: `benchmarks/study.py --tuned --difficulty stress` runs them. Rows of the others go to
benchmarks/results/stress_rules.jsonl; docs/study.md has the table and the figure (`make figures`).
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
from pathlib import Path
from typing import Any

from study import BUDGET, seed_range
from timing import print_table
from tqdm import tqdm

from itpo_lib.study import Cell, area, run_study, score
from itpo_lib.study_tables import TITLES

RESULTS = Path(__file__).parent / "results"
SHARP: dict[str, Any] = {"credit_temperature": 0.4}
RULES: dict[str, tuple[str, dict[str, Any]]] = {  # whose evidence, and the rule: credit, and what sets it apart
    "outcome alone": ("trajectory", {}),
    "PRM, flat shares": ("norm_itpo", {}),
    "PRM, sharp shares": ("norm_itpo", SHARP),
    "PRM, shares and blame": ("norm_itpo", {**SHARP, "baseline": "signed"}),
    "PRM, rewards summed": ("itpo", {}),
    "PRM, as advantages": ("itpo", {"gamma": 0.0}),
    "truth, sharp shares": ("oracle", {**SHARP, "baseline": "credit_weighted"}),
    "truth, shares and blame": ("oracle", {**SHARP, "baseline": "signed"}),
    "truth, as advantages": ("oracle", {}),
}


@functools.cache
def tuned() -> dict[str, dict[str, Any]]:
    """The settings of each credit method that benchmarks/tune.py chose."""
    return json.loads((RESULTS / "settings.json").read_text())


def settings_of(rule: str) -> tuple[str, dict[str, Any]]:
    """A rule's credit and all its options: the study's budget, the tuned settings, and what sets it apart."""
    credit, options = RULES[rule]
    return credit, {**BUDGET, **tuned()[credit], **options}


def rule_of(row: dict[str, Any]) -> str:
    """The rule that a row belongs to; empty where it is none of these."""
    return next((rule for rule in RULES if settings_of(rule) == (row["credit"], row["options"])), "")


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rules", nargs="+", choices=RULES, default=[r for r, (_, options) in RULES.items() if options]
    )
    parser.add_argument("--seeds", type=seed_range, default=range(2), help="2 (the first two) or 5-9")
    parser.add_argument("--probes", type=int, nargs="*", default=[], help="steps at which credit meets the truth")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "stress_rules.jsonl")
    choice = parser.parse_args()
    cells = [
        Cell(task, credit, seed=seed, difficulty="stress", options=options, probes=tuple(choice.probes))
        for seed in choice.seeds
        for credit, options in map(settings_of, choice.rules)
        for task in TITLES
    ]
    rows = list(tqdm(run_study(cells, choice.out, choice.jobs), total=len(cells), desc="evidence", unit="run"))
    lines = [
        {
            "rule": rule,
            "task": TITLES[task],
            "end / ceiling": " ".join(f"{score(r):.3f}" for r in runs),
            "area": statistics.mean(map(area, runs)),
        }
        for rule in choice.rules
        for task in TITLES
        if (runs := [r for r in rows if r["task"] == task and rule_of(r) == rule])
    ]
    print_table("Evidence and rule, harder worlds", lines)


if __name__ == "__main__":
    main()
