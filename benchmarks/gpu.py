"""What a GPU brings: rollouts, training steps, memory, and (with `learn`) a real model that learns.

    python benchmarks/gpu.py --device cuda --out benchmarks/results/gpu            # one table, measure.jsonl
    python benchmarks/gpu.py learn --device cuda --model 'policies/{task}' --out benchmarks/results/gpu
    python benchmarks/gpu.py --device cpu --tiny --out runs/gpu-tiny               # the same code in seconds; CI runs it

`measure`: tokens a second of rollouts that continue the cache, against Hugging Face `generate` reading the dialogue
again at every turn, and against two limits measured on the spot: a matrix product of the same type, and a copy of
memory (each decoded token reads all weights). Then an ITPO step against plain GRPO, and peak memory.
`learn`: SmolLM2 on the text tasks, credit methods over seeds, from warm starts (`itpo warmstart --scale text`); a row a
run in learn.jsonl with curve, dialogues before and after, tokens/s, memory and time; learn.png. Finished runs are skipped.
On a GPU that is lent by the minute: `--jobs 9 --minutes 8` (decoding leaves most of a GPU idle), and the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import rollout
import step
import torch
from gpu_learning import CREDITS, TASKS, learn
from timing import print_table, side_by_side

from itpo_lib.model_shapes import ModelShape
from itpo_lib.models import load_policy
from itpo_lib.run import quiet_libraries
from itpo_lib.trainer import ITPOTrainer

GIB = 2**30


def matmul_rate(device: str, dtype: torch.dtype, size: int) -> float:
    """Floating point operations a second of a square matrix product."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / side_by_side({"product": lambda: a @ b})["product"]


def copy_rate(device: str, size: int) -> float:
    """Bytes a second that are read and written by a copy."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / side_by_side({"copy": lambda: target.copy_(source)})["copy"]


def limits(model: Any, batch: int, device: str, tiny: bool) -> dict[str, float]:
    """Tokens a second that decoding cannot exceed: by products, and by reading the weights once for all rows."""
    parameters = ModelShape.of(model.config).parameters
    operations = matmul_rate(device, model.dtype, 256 if tiny else 4096 if device == "cuda" else 1024)
    moved = copy_rate(device, 2**22 if tiny else 2**28)
    return {
        "matrix product limit": operations / (2 * parameters),
        "reading limit": batch * moved / (parameters * model.dtype.itemsize),
    }


def rollout_rows(device: str, tiny: bool, repeats: int) -> list[dict[str, Any]]:
    """Tokens a second of both rollouts and of the limits, per case."""
    cases = [("tiny", 4, 16, 2, 4)] if tiny else [("smollm2", b, p, 4, 64) for b in (16, 64, 256) for p in (90, 400)]
    rows = []
    for name, batch, prompt, turns, new in cases:
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        model, _ = load_policy(name, dtype=dtype, device=device)
        case = f"{name}: {batch} dialogues, prompt {prompt}, {turns} turns of {new}"
        row = rollout.measure(case, model, batch=batch, prompt=prompt, turns=turns, new=new, repeats=repeats)
        tokens = batch * turns * new
        rows.append({
            "case": case,
            "cache continued (tokens/s)": tokens / row["cache continued (s)"],
            "generate (tokens/s)": tokens / row["generate, re-prefill (s)"],
            "ratio": row["ratio"],
            **{f"{limit} (tokens/s)": rate for limit, rate in limits(model, batch, device, tiny).items()},
        })  # fmt: skip
    return rows


def step_row(device: str, tiny: bool, repeats: int) -> dict[str, Any]:
    """Seconds of an ITPO step and of a plain GRPO step on the same dialogues; they alternate."""
    options = {"per_device_train_batch_size": 8, "num_generations": 4} if tiny or device == "cpu" else {}
    times: dict[str, list[float]] = {"ITPO": [], "GRPO": []}
    for _ in range(1 if tiny else 3):
        for name, kind in (("GRPO", step.PlainGRPO), ("ITPO", ITPOTrainer)):
            times[name] += step.step_seconds(step.make(kind, repeats, "tiny" if tiny else "text", device, **options))
    itpo, grpo = (statistics.median(times[name]) for name in ("ITPO", "GRPO"))
    case = f"step, {options.get('per_device_train_batch_size', 64)} dialogues, {'tiny' if tiny else 'SmolLM2, text'}"
    return {"case": case, "ITPO (s)": itpo, "plain GRPO (s)": grpo, "ratio": itpo / grpo, "steps": len(times["ITPO"])}


def peak_memory(device: str) -> float:
    """GiB: what PyTorch allocated on a GPU since the start, or the process's resident peak."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def machine(device: str) -> dict[str, Any]:
    """What every row says about where it was measured."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
    return {"device": name, "torch": torch.__version__, "python": platform.python_version()}


def measure(choice: argparse.Namespace) -> None:
    """Rollouts, a step, memory: tables to the screen, rows to measure.jsonl."""
    rows: list[dict[str, Any]] = rollout_rows(choice.device, choice.tiny, choice.repeats)
    print_table(f"Rollouts, {machine(choice.device)['device']}, medians of {choice.repeats}", rows)
    steps = [{**step_row(choice.device, choice.tiny, choice.repeats), "peak memory (GiB)": peak_memory(choice.device)}]
    print_table("Training steps, playing included", steps)
    choice.out.mkdir(parents=True, exist_ok=True)
    with (choice.out / "measure.jsonl").open("a") as file:
        file.writelines(json.dumps({**row, **machine(choice.device)}) + "\n" for row in [*rows, *steps])


def main() -> None:
    """Measure or learn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="measure", choices=("measure", "learn"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--tiny", action="store_true", help="tiny models and few repeats: to test the script")
    parser.add_argument("--repeats", type=int, help="default 5, with --tiny 1")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "runs/gpu")))
    group = parser.add_argument_group("learn")
    group.add_argument("--model", help="folder of the warm start; {task} stands for the task; default: as it comes")
    group.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    group.add_argument("--credits", nargs="+", default=list(CREDITS))
    group.add_argument("--seeds", type=int, default=3)
    group.add_argument("--jobs", type=int, default=1, help="runs at a time, on one GPU; each is a process of its own")
    group.add_argument(
        "--minutes", type=float, help="begin no run that would not end by then, judged by the longest so far"
    )
    group.add_argument("--steps", type=int, help="training steps; default 100, with --tiny 2")
    group.add_argument("--eval-dialogues", type=int, help="of each evaluation; default 128, with --tiny 4")
    group.add_argument("--options", type=json.loads, default={}, help="fields of ITPOConfig, as JSON")
    choice = parser.parse_args()
    choice.repeats = choice.repeats or (1 if choice.tiny else 5)
    torch.set_num_threads(choice.threads)
    quiet_libraries()
    if choice.what == "measure":
        measure(choice)
    else:
        learn(choice, machine(choice.device))


if __name__ == "__main__":
    main()
