"""Memory of one training step: adapters on one base against four separate models, and a computed table by size.

    python benchmarks/memory.py --model smollm2 --out benchmarks/results/memory.jsonl

Each layout runs in a fresh process: the reference scores a batch of dialogues, PRM, critic and policy each take an
optimizer step on it. Bytes of weights, gradients and optimizer states are counted tensor by tensor; the peak is the
process's resident memory in two such steps, above what it was before any model was loaded (on a GPU: what PyTorch
allocated). The C library is told to give freed memory back at once: by default it keeps it, whatever the layout.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from timing import print_table

from itpo_lib.critic import Critic
from itpo_lib.dialogue import DialogueBatch
from itpo_lib.estimates import GIB, Workload, memory
from itpo_lib.logprobs import micro_batches, token_logprobs
from itpo_lib.model_shapes import SHAPES
from itpo_lib.models import load_policy
from itpo_lib.presets import ADAPTERS
from itpo_lib.prm import ImplicitPRM, reference
from itpo_lib.run import quiet_libraries

GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}  # glibc
LAYOUTS = ("copies", "adapters", "adapters, bf16 base", "adapters, checkpointing")


def dialogues(rows: int, tokens: int, vocabulary: int, device: str) -> DialogueBatch:
    """Random tokens: a prompt of a quarter of the length, then four turns with user tokens between them."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, vocabulary, (rows, tokens), generator=generator)
    prompt, completion = tokens // 4, tokens - tokens // 4
    turns = (torch.arange(completion) * 8 // completion).expand(rows, -1)
    lengths = [torch.full((rows,), n) for n in (prompt, completion)]
    zeros = torch.zeros(rows, completion)
    return DialogueBatch(ids, *lengths, ids[:, prompt:], torch.where(turns % 2 == 0, turns // 2 + 1, 0), zeros).to(
        device
    )


class Roles:
    """Policy, PRM, critic and reference in one layout, and a step in which each of them works once."""

    def __init__(self, model: str, layout: str, micro_batch: int, device: str):
        dtype = torch.bfloat16 if "bf16" in layout else torch.float32
        policy, _ = load_policy(model, dtype=dtype, device=device)
        self.frozen = None
        if layout == "copies":
            self.frozen = copy.deepcopy(policy).requires_grad_(False)
        else:
            policy = adapted(policy, checkpointing="checkpointing" in layout)
        self.policy, self.micro_batch = policy, micro_batch
        self.prm = ImplicitPRM.beside(policy, beta=0.05, lr=1e-5, mini_batch=micro_batch, micro_batch=micro_batch)
        self.critic = Critic(policy, lr=1e-5, epochs=1, micro_batch=micro_batch)
        self.optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-5)

    def step(self, batch: DialogueBatch) -> None:
        """What a training step does with a batch of dialogues, playing aside."""
        with torch.no_grad(), reference(self.policy, self.frozen) as ref:
            ref_logprobs = token_logprobs(ref, batch, micro_batch=self.micro_batch)
        outcomes = (torch.arange(len(batch), device=ref_logprobs.device) % 2).float()
        valid = torch.ones_like(outcomes, dtype=torch.bool)
        self.prm.update(batch, ref_logprobs, outcomes, valid)
        self.prm.rewards(batch, ref_logprobs)
        values = self.critic.values(batch)
        self.critic.update(batch, values, outcomes[:, None] * batch.assistant_mask, valid)
        self.optimizer.zero_grad()
        for rows in micro_batches(batch, self.micro_batch):
            token_logprobs(self.policy, batch.rows(rows)).mean().backward()
        self.optimizer.step()

    def bytes(self) -> dict[str, int]:
        """Weights, gradients and optimizer states, each storage counted once."""
        modules = [m for m in (self.policy, self.prm.model, self.critic.model, self.frozen) if m is not None]
        weights = [p for module in modules for p in module.parameters()]
        optimizers = [self.optimizer, self.prm.sidecar.optimizer, self.critic.sidecar.optimizer]
        states = [t for o in optimizers for state in o.state.values() for t in state.values()]
        groups = {"weights": weights, "gradients": [p.grad for p in weights if p.grad is not None], "states": states}
        return {name: storage_bytes(tensors) for name, tensors in groups.items()}


def adapted(policy: Any, checkpointing: bool) -> Any:
    """The policy under an adapter, as the trainer makes it."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(policy, LoraConfig(**ADAPTERS))
    if checkpointing:
        model.train()
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    return model


def storage_bytes(tensors: list[torch.Tensor]) -> int:
    """Bytes of all distinct storages."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def resident(what: str = "VmRSS") -> int:
    """Bytes of this process in memory now; "VmHWM": the most since the last `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


def forget_peak() -> None:
    """Begin the peak anew: what loading needed for a moment is not the step's."""
    Path("/proc/self/clear_refs").write_text("5")


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """One layout in this process: two steps, since gradients and states exist only after the first."""
    torch.set_num_threads(1)
    quiet_libraries()
    device, before = job["device"], resident()
    shape = SHAPES[job["model"]]
    batch = dialogues(job["rows"], job["tokens"], min(128, shape.vocabulary), device)
    roles = Roles(job["model"], job["layout"], job["micro_batch"], device)
    forget_peak()
    for _ in range(2):
        roles.step(batch)
    if device == "cpu":
        peak = resident("VmHWM") - before
    else:
        peak = torch.cuda.max_memory_allocated()
    return {**job, **roles.bytes(), "peak": peak}


def in_process(job: dict[str, Any]) -> dict[str, Any]:
    """`measure` in a fresh process."""
    command = [sys.executable, __file__, "--job", json.dumps(job)]
    done = subprocess.run(command, env={**os.environ, **GIVE_BACK}, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{job} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def measured_table(rows: list[dict[str, Any]]) -> list[dict[str, object]]:
    """GiB of each layout, its peak by the formula beside it, and the peak as a share of the copies' peak."""
    most = next(row["peak"] for row in rows if row["layout"] == "copies")
    parts = ("weights", "gradients", "states", "peak")
    return [
        {
            "case": row["layout"],
            **{f"{name} (GiB)": row[name] / GIB for name in parts},
            "peak by the formula (GiB)": expected_peak(row),
            "peak / copies": row["peak"] / most,
        }
        for row in rows
    ]


def expected_peak(row: dict[str, Any]) -> float:
    """What `itpo_lib.estimates` says of a measured row, GiB."""
    work = Workload(
        SHAPES[row["model"]],
        adapters=0 if row["layout"] == "copies" else ADAPTERS["r"],
        roles=3,
        element_bytes=2 if "bf16" in row["layout"] else 4,
        rows=min(row["rows"], row["micro_batch"]),
        dialogues=1,
        prompt_tokens=row["tokens"] // 4,
        completion_limit=row["tokens"] - row["tokens"] // 4,
        checkpointing="checkpointing" in row["layout"],
    )
    return memory(work)["peak"]


def computed_table(rows: int = 4, tokens: int = 1024) -> list[dict[str, object]]:
    """Peaks by `itpo_lib.estimates`, policy, PRM and critic training: nothing here was run."""
    table = []
    for name, shape in SHAPES.items():
        if name == "tiny" or shape.parameters > 1e10:
            continue
        work = {
            "shape": shape,
            "roles": 3,
            "rows": rows,
            "prompt_tokens": tokens // 4,
            "completion_limit": tokens * 3 // 4,
        }
        copies = memory(Workload(**work))["peak"]
        base = memory(Workload(**work, adapters=ADAPTERS["r"]))["peak"]
        small = memory(Workload(**work, adapters=ADAPTERS["r"], element_bytes=2, checkpointing=True))["peak"]
        table.append({
            "case": name.split("/")[-1].removesuffix("-Instruct"), "parameters (10⁹)": shape.parameters / 1e9, "four copies, fp32 (GiB)": copies,
            "adapters, fp32 (GiB)": base, "ratio": base / copies, "adapters, bf16 and checkpointing (GiB)": small,
        })  # fmt: skip
    return table


def main() -> None:
    """Measure, print both tables, and append the measured rows to --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", choices=("tiny", "smollm2"))
    parser.add_argument("--layouts", nargs="+", default=list(LAYOUTS), choices=LAYOUTS)
    parser.add_argument("--rows", type=int, default=4, help="dialogues in the batch")
    parser.add_argument("--tokens", type=int, default=256, help="tokens of a dialogue, prompt included")
    parser.add_argument("--micro-batch", type=int, default=2, help="dialogues of one pass")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path, help="append measured rows to this JSON-lines file")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        print(json.dumps(measure(options.job)))
        return
    common = {name: getattr(options, name) for name in ("model", "rows", "tokens", "micro_batch", "device")}
    rows = [in_process({"layout": layout, **common}) for layout in options.layouts]
    print_table(f"Measured: {options.model}, {options.rows} dialogues of {options.tokens} tokens", measured_table(rows))
    print_table("Computed, not run: 4 dialogues of 1024 tokens in a pass, three roles train", computed_table())
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with options.out.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
