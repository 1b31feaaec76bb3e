"""Variants of Norm-ITPO with sharp shares, and raw ITPO: which baseline, which way to train the PRM?

    python benchmarks/variants.py --jobs 2

Tiny math tutoring, RLOO, the study's budget, η = 0.4 as in the paper's scripts. The learning rate is the one that
benchmarks/tune.py chose for norm_itpo. Rows go to benchmarks/results/variants.jsonl; the tables and figures of
docs/study.md are built from them by `make figures`. Seeds 0 to 2 are not those of the tuning.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from study import BUDGET, seed_range
from timing import print_table
from tqdm import tqdm

from itpo_lib.study import Cell, area, run_study, score

RESULTS = Path(__file__).parent / "results"
SHARP = {"credit_temperature": 0.4}
BASELINES = {f"baseline {name}": ("norm_itpo", {**SHARP, "baseline": name}) for name in (
    "credit_weighted", "outcome", "signed", "turn", "official",
)}  # fmt: skip
IMPROVEMENTS = {
    "replay": ("norm_itpo", {**SHARP, "prm_replay": 1024}),
    "balanced": ("norm_itpo", {**SHARP, "prm_balanced": True}),
    "replay, balanced": ("norm_itpo", {**SHARP, "prm_replay": 1024, "prm_balanced": True}),
    "replay, balanced, signed": (
        "norm_itpo",
        {**SHARP, "prm_replay": 1024, "prm_balanced": True, "baseline": "signed"},
    ),
    "prefix values": ("value", {}),
}
OTHERS = {"trajectory share": ("trajectory", {}), "raw ITPO": ("itpo", {})}
VARIANTS = {**OTHERS, **BASELINES, **IMPROVEMENTS}


def variant_of(row: dict) -> str:
    """The name of the variant that a row belongs to; empty where it is none of today's."""
    shown = {k: v for k, v in row["options"].items() if k not in ("max_steps", "learning_rate")}
    named = [name for name, (credit, options) in VARIANTS.items() if (credit, options) == (row["credit"], shown)]
    return named[0] if named else ""


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=seed_range, default=range(3), help="3 (the first three) or 5-9")
    parser.add_argument("--probes", type=int, nargs="*", default=[], help="steps at which credit meets the truth")
    parser.add_argument("--jobs", type=int, default=1)
    choice = parser.parse_args()
    rate = json.loads((RESULTS / "settings.json").read_text())["norm_itpo"]["learning_rate"]
    common = {**BUDGET, "learning_rate": rate}
    cells = [
        Cell("math_tutoring", credit, seed=seed, options={**common, **options}, probes=tuple(choice.probes))
        for seed in choice.seeds
        for credit, options in VARIANTS.values()
    ]
    progress = run_study(cells, RESULTS / "variants.jsonl", choice.jobs)
    rows = list(tqdm(progress, total=len(cells), desc="variants", unit="run"))
    found = {name: [r for r in rows if variant_of(r) == name] for name in VARIANTS}
    lines = [
        {
            "variant": name,
            "seeds": len(runs),
            "end / ceiling": " ".join(f"{score(r):.3f}" for r in runs),
            "area": statistics.mean(map(area, runs)),
            "turns": statistics.mean(r["turns"] for r in runs),
        }
        for name, runs in found.items()
        if runs
    ]
    print_table("Variants", lines)


if __name__ == "__main__":
    main()
