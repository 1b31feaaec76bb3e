"""Text scale: what does SmolLM2-135M learn? As it comes, after the warm start, after reinforcement learning.

    python benchmarks/text_learning.py --tasks medical_recommendation        # all stages, on one CPU thread
    python benchmarks/text_learning.py --stages warm_start informed          # the warm start alone, all three tasks
    python benchmarks/text_learning.py --device auto --rl-steps 100 --batches 16 --out gpu.jsonl --work runs/gpu
    python benchmarks/text_learning.py --tasks document_writing --steps 40   # its dialogues are long, and soon learned
    python benchmarks/text_learning.py --tasks medical_recommendation --rl-steps 40 --rl-rate 5e-4 --seed 1 \
        --stages warm_start norm_itpo trajectory itpo                        # credit methods; seeds 0, 1 and 2 were run
    python benchmarks/text_learning.py --stages                              # only the table of what has been run

Stages: as_it_comes, warm_start, informed (the warm start where openings hide nothing), and credit methods (with RLOO,
from the warm start of the same seed). Each gives a row of benchmarks/results/text_learning.jsonl and is not run again. All but `informed` play
the same validation dialogues: same goals, same users, same sampler seeds. So a gain is a mean of paired differences,
with a 95% bootstrap interval over dialogues. Goals are fewer than dialogues: the interval is about these goals.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timing import print_table

from itpo_lib.dialogue import Dialogue
from itpo_lib.evaluate import Estimate, Evaluation, evaluate, paired_gain
from itpo_lib.run import RunSettings, build_trainer, quiet_libraries, task_ceiling
from itpo_lib.study import read_rows
from itpo_lib.warmstart_text import WarmStart, fast_bf16, imitate, measure

RESULTS = Path(__file__).parent / "results" / "text_learning.jsonl"
TASKS = ("math_tutoring", "document_writing", "medical_recommendation")
CREDITS = ("norm_itpo", "trajectory", "itpo")
STAGES = ("as_it_comes", "warm_start", "informed", *CREDITS)
CURVES = ("outcome", "success", "turns", "entropy", "prm/accuracy", "sampler_mismatch")
SHOWN = 4  # dialogues that a row keeps
# Chosen once, before any run at this scale: the tiny scale's settings where they carry over, and learning rates that are
# usual for adapters. One base holds policy, PRM and reference.
OPTIONS: dict[str, Any] = {
    "estimator": "rloo",
    "num_generations": 4,
    "per_device_train_batch_size": 8,
    "num_iterations": 2,
    "lr_scheduler_type": "linear",
    "prm_learning_rate": 3e-4,
    "prm_beta": 0.05,
    "beta": 0.02,
    "credit_temperature": 2.0,
    "micro_batch_size": 8,
    "save_strategy": "no",
}


def row_of(evaluation: Evaluation, dialogues: Sequence[Dialogue], seconds: float, **more: Any) -> dict[str, Any]:
    """What a stage leaves: the evaluation, each dialogue's outcome (for paired differences), a few dialogues."""
    return {
        "evaluation": evaluation.to_dict(),
        "outcomes": [round(d.outcome or 0.0, 4) for d in dialogues],
        "evaluation_cpu_seconds": round(seconds, 1),
        **more,
        "dialogues": [d.messages[1:] for d in dialogues[:SHOWN]],
    }


def machine(device: str) -> dict[str, Any]:
    """What the figures depend on."""
    on_gpu = device != "cpu" and torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if on_gpu else f"CPU ({platform.machine()})",
        "bf16": fast_bf16(torch.device("cuda" if on_gpu else "cpu")),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 1),  # of this process so far
    }


def played(settings: WarmStart, model: str, revealed: bool = False, **more: Any) -> dict[str, Any]:
    """A stage that only plays."""
    began = time.process_time()
    evaluation, dialogues = measure(settings, model, revealed)
    return row_of(evaluation, dialogues, time.process_time() - began, **more)


def started(settings: WarmStart, start: Path) -> dict[str, Any]:
    """As it comes -> warm start; its own report as well."""
    path = start / "warmstart.json"
    report = json.loads(path.read_text()) if path.exists() else imitate(settings, start)
    return played(settings, str(start), warm_start=report, cpu_seconds=report["cpu_seconds"])


def reinforced(choice: argparse.Namespace, settings: WarmStart, start: Path, credit: str) -> dict[str, Any]:
    """Warm start -> a credit method with RLOO; curves as well."""
    on_gpu = choice.device != "cpu" and torch.cuda.is_available()
    options = {
        **OPTIONS,
        "credit": credit,
        "max_steps": choice.rl_steps,
        "learning_rate": choice.rl_rate,
        "gradient_accumulation_steps": choice.batches,
        "bf16": fast_bf16(torch.device("cuda" if on_gpu else "cpu")),
    }
    run = RunSettings(
        settings.task,
        "text",
        str(start),
        str(start.with_name(credit)),
        settings.seed,
        choice.device,
        lora=True,
        threads=None if on_gpu else 1,
        options=options,
    )
    trainer = build_trainer(run)
    if not on_gpu:
        trainer.model.set_attn_implementation("eager")  # the fused kernel's backward pass is slower there
    began, cpu = time.perf_counter(), time.process_time()
    trainer.train()
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    trainer.save_model(str(start.with_name(credit)))
    history = [row for row in trainer.state.log_history if "outcome" in row]
    curve = {name: [round(row[name], 4) for row in history if name in row] for name in ("step", *CURVES)}
    began_playing = time.process_time()
    evaluation, dialogues = evaluate(
        trainer.model.eval(), trainer.chat, trainer.task, settings.eval_dialogues, seed=settings.seed
    )
    return row_of(
        evaluation,
        dialogues,
        time.process_time() - began_playing,
        options=options,
        curve=curve,
        ceiling=task_ceiling(trainer.task),
        cpu_seconds=round(cpu, 1),
        wall_seconds=round(seconds, 1),
    )


def run_task(task: str, choice: argparse.Namespace) -> None:
    """The stages of a task that have no row yet."""
    settings = WarmStart(
        task, choice.model, steps=choice.steps, seed=choice.seed, device=choice.device, eval_dialogues=choice.n
    )
    start = choice.work / f"{task}-{choice.steps}-{choice.seed}" / "start"
    if not (start / "warmstart.json").exists() and set(choice.stages) - {"as_it_comes"}:
        imitate(settings, start)
    stages = {
        "as_it_comes": lambda: played(settings, settings.model),
        "warm_start": lambda: started(settings, start),
        "informed": lambda: played(settings, str(start), revealed=True),
        **{credit: partial(reinforced, choice, settings, start, credit) for credit in CREDITS},
    }
    for stage in choice.stages:
        steps = 0 if stage == "as_it_comes" else choice.steps
        key = {"task": task, "stage": stage, "steps": steps, "seed": choice.seed}
        if stage in CREDITS:
            key |= {"rl_steps": choice.rl_steps, "rl_rate": choice.rl_rate}
        if any(key.items() <= row.items() for row in read_rows(choice.out)):
            continue
        row = {**key, **stages[stage](), "machine": machine(choice.device)}
        choice.out.parent.mkdir(parents=True, exist_ok=True)
        with choice.out.open("a") as file:
            file.write(json.dumps(row) + "\n")


def base_of(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The row that a row's gain is measured against, where there is one."""
    learned_from = dict.fromkeys(CREDITS, ("warm_start", row["steps"]))
    earlier = {"warm_start": ("as_it_comes", 0), **learned_from}.get(row["stage"])
    if earlier is None:
        return None
    wanted = {"task": row["task"], "seed": row["seed"], "stage": earlier[0], "steps": earlier[1]}
    return next((other for other in rows if wanted.items() <= other.items()), None)


def table(rows: Sequence[dict[str, Any]]) -> list[dict[str, object]]:
    """One line per row, with the gain over the stage before it."""
    lines = []
    for row in rows:
        base = base_of(row, rows)
        gain = "" if base is None else str(paired_gain(base["outcomes"], row["outcomes"]))
        lines.append(
            {
                "case": f"{row['task']}, {row['stage']}",
                "steps": " + ".join(str(row[name]) for name in ("steps", "rl_steps") if name in row),
                "seed": row["seed"],
                **{name: str(Estimate(**row["evaluation"][name])) for name in ("outcome", "success", "turns")},
                "gain": gain,
                "CPU s": row.get("cpu_seconds", ""),
            }
        )
    return lines


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--stages", nargs="*", default=list(STAGES[:4]), choices=STAGES)
    parser.add_argument("--model", default="smollm2", help="what the warm start starts from")
    parser.add_argument("--steps", type=int, default=120, help="steps of the warm start")
    parser.add_argument("--rl-steps", type=int, default=20, help="optimiser steps of RL, two a batch")
    parser.add_argument("--rl-rate", type=float, default=3e-4, help="learning rate of RL's adapters")
    parser.add_argument("--batches", type=int, default=2, help="a batch of RL has 8 dialogues times this")
    parser.add_argument("--n", type=int, default=64, help="validation dialogues of each evaluation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu, or auto for a GPU")
    parser.add_argument("--work", type=Path, default=Path("runs/text"), help="where policies go")
    parser.add_argument("--out", type=Path, default=RESULTS)
    choice = parser.parse_args()
    if choice.device == "cpu":
        torch.set_num_threads(1)
    quiet_libraries()
    for task in choice.tasks if choice.stages else ():
        run_task(task, choice)
    print_table("Text scale: sampled validation dialogues", table(read_rows(choice.out)))


if __name__ == "__main__":
    main()
