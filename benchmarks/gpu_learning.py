"""`gpu.py learn`: text tasks, credit methods and seeds, each run a row; and the figure of their curves."""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from timing import print_table

from itpo_lib.evaluate import evaluate
from itpo_lib.plots import COLOURS, STYLE, save_figure, smooth
from itpo_lib.run import RunSettings, build_trainer, quiet_libraries, task_ceiling
from itpo_lib.study import read_rows

TASKS = ("math_tutoring", "document_writing", "medical_recommendation")
CREDITS = ("norm_itpo", "trajectory", "itpo")
CURVES = ("outcome", "turns", "entropy", "prm/accuracy", "sampler_mismatch", "step_time", "time/rollout")
SHOWN = 4  # dialogues that a row keeps, before and after
# Chosen before any run on a GPU: 8 prompts x 8 samples a step, adapters, learning rates that are usual for them.
OPTIONS: dict[str, Any] = {
    "per_device_train_batch_size": 16,
    "gradient_accumulation_steps": 4,
    "num_generations": 8,
    "num_iterations": 2,
    "learning_rate": 2e-4,
    "prm_learning_rate": 2e-4,
    "lr_scheduler_type": "linear",
    "micro_batch_size": 16,
    "save_strategy": "no",
}
TINY: dict[str, Any] = {
    **OPTIONS,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "num_generations": 4,
}


def settings_of(choice: argparse.Namespace, task: str, credit: str, seed: int) -> RunSettings:
    """One run."""
    fields = TINY if choice.tiny else OPTIONS
    steps = choice.steps or (2 if choice.tiny else 100)
    return RunSettings(
        task=task,
        scale="tiny" if choice.tiny else "text",
        model=choice.model.format(task=task) if choice.model else None,
        out=str(choice.out / "runs" / f"{task}-{credit}-{seed}"),
        seed=seed,
        device="cpu" if choice.device == "cpu" else "auto",
        lora=True,
        threads=choice.threads if choice.device == "cpu" else None,
        options={**fields, "max_steps": steps, "credit": credit, **choice.options},
    )


def run(settings: RunSettings, n: int) -> dict[str, Any]:
    """Evaluate, train, evaluate on the same goals and users; one row. The body of a fresh process."""
    torch.set_num_threads(settings.threads or 1)
    quiet_libraries()
    trainer = build_trainer(settings)
    model, began = trainer.accelerator.unwrap_model(trainer.model), time.perf_counter()
    before, first = evaluate(model, trainer.chat, trainer.task, n)
    evaluating = time.perf_counter() - began
    trainer.train()
    training = time.perf_counter() - began - evaluating
    after, last = evaluate(model.eval(), trainer.chat, trainer.task, n)
    history = [row for row in trainer.state.log_history if "outcome" in row]
    said = sum(sum(k > 0 for k in d.turn_ids) for d in first)
    return {
        "task": settings.task,
        "credit": settings.options["credit"],
        "seed": settings.seed,
        "model": Path(settings.model or "as it comes").name,
        "options": settings.options,
        "ceiling": task_ceiling(trainer.task),
        "before": before.to_dict(),
        "after": after.to_dict(),
        "curve": {name: [row.get(name) for row in history] for name in ("step", *CURVES)},
        "dialogues": {"before": [d.messages for d in first[:SHOWN]], "after": [d.messages for d in last[:SHOWN]]},
        "tokens_per_second": round(said / evaluating, 1),
        "train_seconds": round(training, 1),
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None,
    }


def learn(choice: argparse.Namespace, machine: dict[str, Any]) -> None:
    """All runs that `learn.jsonl` lacks, seeds outermost, `choice.jobs` at a time; then the table and the figure."""
    choice.out.mkdir(parents=True, exist_ok=True)
    path, n = choice.out / "learn.jsonl", choice.eval_dialogues or (4 if choice.tiny else 128)
    cells = [(task, credit, seed) for seed in range(choice.seeds) for task in choice.tasks for credit in choice.credits]
    missing = [cell for cell in cells if cell not in {cell_of(row) for row in read_rows(path)}]
    began, longest, writing = time.monotonic(), 0.0, Lock()

    def fits() -> bool:
        """Whether a run as long as the longest so far would end in time."""
        return choice.minutes is None or time.monotonic() - began + longest < 60 * choice.minutes

    def one(cell: tuple[str, str, int]) -> None:
        nonlocal longest
        if not fits():
            return
        started = time.monotonic()
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            row = process.submit(run, settings_of(choice, *cell), n).result()
        longest = max(longest, time.monotonic() - started)
        with writing, path.open("a") as file:
            file.write(json.dumps({**row, **machine, "jobs": choice.jobs}) + "\n")
        ends = (row[when]["outcome"]["mean"] for when in ("before", "after"))
        print(f"{', '.join(map(str, cell))}: {' to '.join(f'{end:.3f}' for end in ends)}", flush=True)

    with ThreadPoolExecutor(choice.jobs) as pool:
        runs = [pool.submit(one, cell) for cell in missing]
    for finished in runs:
        finished.result()  # raises what a run raised, after the others are done and written
    rows = sorted((row for row in read_rows(path) if cell_of(row) in cells), key=lambda row: cells.index(cell_of(row)))
    if len(rows) < len(cells):
        print(f"{len(cells) - len(rows)} of {len(cells)} runs did not fit into the time; the same command goes on")
    if rows:
        print_table(f"Mean outcome of {n} validation dialogues", table(rows))
        figure(rows, choice.out / "learn.png")


def cell_of(row: dict[str, Any]) -> tuple[str, str, int]:
    """What a run is identified by."""
    return row["task"], row["credit"], row["seed"]


def table(rows: list[dict[str, Any]]) -> list[dict[str, object]]:
    """One line per task and credit: every seed's outcome before and after."""
    lines = []
    for task, credit in dict.fromkeys((row["task"], row["credit"]) for row in rows):
        own = [row for row in rows if (row["task"], row["credit"]) == (task, credit)]
        gains = [row["after"]["outcome"]["mean"] - row["before"]["outcome"]["mean"] for row in own]
        lines.append({
            "case": f"{task}, {credit}",
            "seeds": len(own),
            "before": " ".join(f"{row['before']['outcome']['mean']:.3f}" for row in own),
            "after": " ".join(f"{row['after']['outcome']['mean']:.3f}" for row in own),
            "mean gain": float(np.mean(gains)),
            "minutes": float(np.mean([row["train_seconds"] for row in own])) / 60,
        })  # fmt: skip
    return lines


def figure(rows: list[dict[str, Any]], path: Path) -> None:
    """Curves by task: the mean over seeds, smoothed over five batches, and the range of the seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tasks, credits = (list(dict.fromkeys(row[name] for row in rows)) for name in ("task", "credit"))
    with plt.rc_context({**STYLE, "figure.figsize": (4 * len(tasks), 3.6)}):
        drawing, axes = plt.subplots(1, len(tasks), layout="constrained", squeeze=False)
        for axis, task in zip(axes[0], tasks, strict=True):
            for colour, marker, credit in zip(COLOURS, "os^Dv<>", credits, strict=False):
                own = [row["curve"] for row in rows if (row["task"], row["credit"]) == (task, credit)]
                if own:
                    lines = np.array([smooth(curve["outcome"]) for curve in own])
                    steps = own[0]["step"]
                    axis.plot(
                        steps,
                        lines.mean(0),
                        color=colour,
                        marker=marker,
                        markevery=max(1, len(steps) // 8),
                        label=credit,
                    )
                    axis.fill_between(steps, lines.min(0), lines.max(0), color=colour, alpha=0.15)
            axis.set(title=task.replace("_", " "), xlabel="training step", ylabel="mean outcome", ylim=(0, 1.02))
        axes[0, 0].legend(loc="best")
        save_figure(drawing, path)
