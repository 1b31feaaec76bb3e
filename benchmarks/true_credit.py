"""What the true credit costs, and how exact it is: CPU seconds and standard errors on the tiny worlds.

    OMP_NUM_THREADS=1 python benchmarks/true_credit.py [--dialogues 64] [--m 64]

The shipped warm starts play; "groups of 8" asks for 8 samples per goal, so that openings are shared.
"pairing": by what factor common random numbers cut the variance of V_k - V_{k-1}, last turns left out.
"""

from __future__ import annotations

import argparse
import time

import torch
from timing import print_table

from itpo_lib.models import load_policy
from itpo_lib.rollout import Episode, play
from itpo_lib.run import quiet_libraries
from itpo_lib.tasks import get_task
from itpo_lib.true_credit import true_values

CASES = (("math_tutoring", 1), ("math_tutoring", 8), ("document_writing", 1), ("medical_recommendation", 1))


def measure(name: str, group: int, dialogues: int, m: int) -> dict[str, object]:
    """One row of the table."""
    task, (model, chat) = get_task(name), load_policy("tiny", name)
    played = play(model, chat, task, [Episode(task.goal(i // group), seed=i) for i in range(dialogues)])
    began = time.process_time()
    truth = true_values(model, chat, task, played, m)
    seconds = time.process_time() - began
    inner = truth.mask & truth.mask.roll(-1, 1).index_fill(1, torch.tensor([truth.mask.shape[1] - 1]), False)
    squares = truth.value_errors.square()
    unpaired = (squares[:, :-1] + squares[:, 1:])[inner].mean()
    return {
        "case": name + (f", groups of {group}" if group > 1 else ""),
        "turns": int(truth.mask.sum()),
        "CPU s": seconds,
        "error of V": float(truth.value_errors[:, :-1][truth.mask].square().mean().sqrt()),
        "error of A*": float(truth.credit_errors[truth.mask].square().mean().sqrt()),
        "pairing": float(unpaired / truth.credit_errors[inner].square().mean()),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dialogues", type=int, default=64)
    parser.add_argument("--m", type=int, default=64, help="continuations per boundary")
    options = parser.parse_args()
    torch.set_num_threads(1)
    quiet_libraries()
    measure(*CASES[0], dialogues=2, m=2)  # warm up
    rows = [measure(name, group, options.dialogues, options.m) for name, group in CASES]
    print_table(f"True credit of {options.dialogues} dialogues, {options.m} continuations per boundary, 1 thread", rows)


if __name__ == "__main__":
    main()
