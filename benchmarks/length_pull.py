"""What does each rule pay for asking once more, on the very same dialogues?

    python benchmarks/length_pull.py --seeds 3

Norm-ITPO trains the tiny math tutor as in the study (η = 0.4). Each batch that it played, with the token rewards that its
PRM gave, is then handed to other rules too: what would they have taught? One number per rule and batch, over dialogues of
two turns or more: the mean advantage of the turns before the last, minus that of the last. Above 0 a rule says "go on
asking", below 0 "come to the end". A rule that tells turns apart by the outcome alone says 0. At every fourth batch the
true credit (16 continuations) says what asking was worth.

Rows go to benchmarks/results/length_pull.jsonl; docs/study.md has the figure (`make figures`).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from study import BUDGET, seed_range
from timing import print_table
from torch import Tensor
from transformers import TrainerCallback

from itpo_lib.credit import unit_lengths, unit_sums
from itpo_lib.learning import Experience, LearningRule, token_advantages
from itpo_lib.run import RunSettings, build_trainer
from itpo_lib.study import read_rows
from itpo_lib.true_credit import true_values

RESULTS = Path(__file__).parent / "results" / "length_pull.jsonl"
SHARP = 0.4
RULES = {
    "trajectory share": LearningRule("trajectory", baseline="outcome"),
    **{
        f"baseline {name}": LearningRule("norm_itpo", baseline=name, credit_temperature=SHARP)
        for name in ("credit_weighted", "outcome", "signed", "turn", "official")
    },
    "raw ITPO": LearningRule("itpo", baseline="turn"),
}
TRUTH = "true credit"
SAMPLES, EVERY = 16, 4  # continuations of the true credit, and at each how many-th batch


def asking_over_answering(advantages: Tensor, turn_ids: Tensor) -> float:
    """Mean advantage (B, T) of the turns before the last minus that of the last, over dialogues that have both."""
    n_turns = int(turn_ids.max())
    lengths = unit_lengths(turn_ids, n_turns)
    of_turns = unit_sums(advantages, turn_ids, n_turns) / lengths.clamp(min=1)  # (B, K)
    count = (lengths > 0).sum(1)
    asked = count > 1
    last = of_turns.gather(1, (count - 1).clamp(min=0)[:, None])[:, 0]
    before = (of_turns.sum(1) - last) / (count - 1).clamp(min=1)
    return float((before - last)[asked].mean())


class Listener(TrainerCallback):
    """Hands each batch to all rules once it has been learned from."""

    def __init__(self, seed: int):
        self.seed, self.batches = seed, 0
        self.trainer: Any = None
        self.rows: list[dict[str, Any]] = []
        self.newest: Experience | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        found = self.trainer.experience
        if found is self.newest:
            return  # the batch's second step
        self.newest = found
        pulls = {name: self._pull(rule, found) for name, rule in RULES.items()}
        if self.batches % EVERY == 0:
            policy, trainer = self.trainer.accelerator.unwrap_model(self.trainer.model), self.trainer
            truth = true_values(policy, trainer.chat, trainer.task, trainer.dialogues, SAMPLES, seed=state.global_step)
            known = replace(found, turn_values=truth.values[:, :-1].float())
            pulls[TRUTH] = self._pull(LearningRule("oracle", baseline="turn"), known)
        self.batches += 1
        turns = sum(d.n_turns for d in self.trainer.dialogues) / len(self.trainer.dialogues)
        pulls = {name: round(pull, 4) for name, pull in pulls.items()}
        self.rows.append({"seed": self.seed, "step": state.global_step, "turns": round(turns, 3), "pull": pulls})

    def _pull(self, rule: LearningRule, experience: Experience) -> float:
        group, turns = self.trainer.args.num_generations, self.trainer.task.limits.max_turns
        return asking_over_answering(token_advantages(rule, experience, group, turns)[0], experience.turn_ids)


def listen(seed: int, steps: int) -> list[dict[str, Any]]:
    """One run; a row for each batch."""
    listener = Listener(seed)
    options = {"max_steps": steps, "credit_temperature": SHARP, "save_strategy": "no"}
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(RunSettings(out=folder, seed=seed, device="cpu", options=options), [listener])
        listener.trainer = trainer
        trainer.train()
    return listener.rows


def main() -> None:
    """Run the seeds that are missing and print means over them by third of training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=seed_range, default=range(3), help="3 (the first three) or 5-9")
    parser.add_argument("--steps", type=int, default=BUDGET["max_steps"])
    parser.add_argument("--out", type=Path, default=RESULTS)
    choice = parser.parse_args()
    done = {row["seed"] for row in read_rows(choice.out)}
    for seed in choice.seeds:
        if seed not in done:
            rows = listen(seed, choice.steps)
            with choice.out.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
    rows = read_rows(choice.out)
    lines = []
    for name in (*RULES, TRUTH):
        thirds = [[], [], []]
        for row in rows:
            if name in row["pull"]:
                thirds[min(2, 3 * (row["step"] - 1) // choice.steps)].append(row["pull"][name])
        means = [float(torch.tensor(third).mean()) if third else float("nan") for third in thirds]
        lines.append({"rule": name, **dict(zip(("early", "middle", "late"), means, strict=True))})
    print_table("Advantage of asking over answering", lines)


if __name__ == "__main__":
    main()
