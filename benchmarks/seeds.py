"""Does it learn, in how many CPU seconds, over seeds? One fresh process per run, one thread each.

    python benchmarks/seeds.py --task math_tutoring --credits norm_itpo --estimators rloo --seeds 5

A row per run goes to --out (finished runs are skipped), a table to the screen. CPU seconds are process
time of the whole run: imports, training, and one evaluation of 512 sampled validation dialogues.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from timing import print_table

WORK = """
import json, sys, tempfile, time
from itpo_lib.evaluate import evaluate
from itpo_lib.run import RunSettings, build_trainer, task_ceiling
job = json.loads(sys.argv[1])
options = {"credit": job["credit"], "estimator": job["estimator"], "save_strategy": "no", **job["options"]}
settings = RunSettings(task=job["task"], out=tempfile.mkdtemp(), seed=job["seed"], device="cpu", options=options)
trainer = build_trainer(settings)
loaded = time.process_time()
start = evaluate(trainer.model, trainer.chat, trainer.task, 512)[0]
measuring = time.process_time() - loaded  # the evaluation of the start is not part of the run
trainer.train()
end = evaluate(trainer.model.eval(), trainer.chat, trainer.task, 512)[0]
seconds = time.process_time() - measuring
print(json.dumps({**job, "steps": trainer.state.global_step, "before": start.outcome.mean, "after": end.outcome.mean,
                  "success": end.success.mean, "turns": end.turns.mean, "ceiling": task_ceiling(trainer.task),
                  "cpu_seconds": round(seconds, 1)}))
"""


def run(job: dict) -> dict:
    """One training run in its own process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", WORK, json.dumps(job)], env=environment, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise RuntimeError(f"{job} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def summary(rows: list[dict]) -> list[dict]:
    """One line per task, credit and estimator."""
    key = lambda r: (r["task"], r["credit"], r["estimator"])  # noqa: E731
    lines = []
    for (task, credit, estimator), group in itertools.groupby(sorted(rows, key=key), key):
        runs = list(group)
        shares = [r["after"] / r["ceiling"] for r in runs]
        lines.append(
            {
                "case": f"{task}, {credit}, {estimator}",
                "seeds": len(runs),
                "start / ceiling": statistics.mean(r["before"] / r["ceiling"] for r in runs),
                "end / ceiling": " ".join(f"{s:.3f}" for s in shares),
                "worst": min(shares),
                "turns": statistics.mean(r["turns"] for r in runs),
                "CPU s": " ".join(f"{r['cpu_seconds']:.0f}" for r in runs),
            }
        )
    return lines


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", nargs="+", default=["math_tutoring"])
    parser.add_argument("--credits", nargs="+", default=["norm_itpo"])
    parser.add_argument("--estimators", nargs="+", default=["rloo"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; 1 for honest CPU seconds")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/seeds.jsonl"))
    parser.add_argument("--options", type=json.loads, default={}, help="fields of ITPOConfig, as JSON")
    choice = parser.parse_args()
    choice.out.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in choice.out.read_text().splitlines()] if choice.out.exists() else []
    names = ("task", "credit", "estimator", "seed", "options")
    done = {json.dumps([row[n] for n in names]) for row in rows}
    grid = itertools.product(choice.task, choice.credits, choice.estimators, range(choice.seeds))
    jobs = [dict(zip(names, (*cell, choice.options), strict=True)) for cell in grid]
    jobs = [job for job in jobs if json.dumps([job[n] for n in names]) not in done]
    with ThreadPoolExecutor(choice.jobs) as pool, choice.out.open("a") as file:
        for row in pool.map(run, jobs):
            rows.append(row)
            file.write(json.dumps(row) + "\n")
            file.flush()
    print_table(f"Runs of {choice.out.name}", summary(rows))


if __name__ == "__main__":
    main()
