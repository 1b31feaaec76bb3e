"""Why does the PRM's agreement with the truth fall in training? The PRM that trains along, against one that does not.

    python benchmarks/offline_prm.py --seeds 3

The `offline` PRM learns once, from 2,048 dialogues of the policy that training starts from, of which two in three failed;
then it stays as it is. The `online` PRM is the run's own: Norm-ITPO on tiny math, the study's settings. At every fourth step
both rank the turns of the same failures, and both are compared with the true credit under the policy of that step.
If the offline PRM holds its agreement, the online one lost it for want of failures to learn from. If both fall, the
failures themselves have become harder to read.

Rows go to benchmarks/results/offline_prm.jsonl; docs/study.md has the table (`make figures`).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from study import BUDGET, seed_range
from timing import print_table

from itpo_lib.credit import unit_sums
from itpo_lib.dialogue import Dialogue, collate
from itpo_lib.logprobs import token_logprobs
from itpo_lib.rollout import Episode, play
from itpo_lib.run import RunSettings, build_trainer
from itpo_lib.study import PROBE_SAMPLES, TruthProbe, agreement_by_phase, compared, read_rows
from itpo_lib.true_credit import true_values

RESULTS = Path(__file__).parent / "results"
GOALS, EACH, BATCH, EPOCHS = 512, 4, 64, 2  # of what the offline PRM learns
UNSEEN = 1 << 20  # goals and seeds from here on are in no training run
STEPS = range(3, 48, 4)
KINDS = ("online", "offline")


def offline_prm(trainer: Any) -> Any:
    """A PRM trained on dialogues of the untrained policy."""
    from itpo_lib.companions import make_prm

    policy, task, chat = trainer.accelerator.unwrap_model(trainer.model), trainer.task, trainer.chat
    prm = make_prm(policy, trainer.args)
    episodes = [Episode(task.goal(UNSEEN + i // EACH), UNSEEN + i) for i in range(GOALS * EACH)]
    played = [d for i in range(0, len(episodes), 512) for d in play(policy, chat, task, episodes[i : i + 512])]
    for epoch in range(EPOCHS):
        for rows in torch.randperm(len(played), generator=torch.Generator().manual_seed(epoch)).split(BATCH):
            dialogues = [played[i] for i in rows]
            batch = collate(dialogues, chat.pad_id)
            outcomes = torch.tensor([d.outcome for d in dialogues])
            prm.update(batch, batch.logprobs, outcomes, torch.ones(len(rows), dtype=torch.bool))
    return prm


class BothProbe(TruthProbe):
    """Compares both PRMs' turn rewards with the truth, on the same failures."""

    offline: Any = None

    def _compare(self, which: list[int]) -> dict[str, Any]:
        trainer = self.trainer
        played: list[Dialogue] = [trainer.dialogues[i] for i in which]
        policy = trainer.accelerator.unwrap_model(trainer.model)
        truth = true_values(policy, trainer.chat, trainer.task, played, PROBE_SAMPLES, seed=trainer.state.global_step)
        batch, turns = collate(played, trainer.chat.pad_id), trainer.task.limits.max_turns
        with torch.no_grad():
            ref_logprobs = token_logprobs(trainer.frozen, batch)
        rewards = self.offline.rewards(batch, ref_logprobs)
        given = {"online": trainer.turn_credit()[which], "offline": unit_sums(rewards, batch.turn_ids, turns)}
        return {kind: compared(credit.numpy(), truth) for kind, credit in given.items()}


def run(seed: int, steps: int) -> dict[str, Any]:
    """One training run with both PRMs; a row."""
    tuned = json.loads((RESULTS / "settings.json").read_text())["norm_itpo"]
    options = {**tuned, "max_steps": steps, "save_strategy": "no"}
    probe = BothProbe(STEPS)
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(RunSettings(out=folder, seed=seed, device="cpu", options=options), [probe])
        probe.trainer, probe.offline = trainer, offline_prm(trainer)
        trainer.train()
    return {"seed": seed, "steps": steps, "probes": probe.rows}


def of_kind(rows: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The rows as a study's, with the probes of one PRM."""
    return [{**row, "truth": [{"step": p["step"], **p[kind]} for p in row["probes"]]} for row in rows]


def main() -> None:
    """Run the seeds that are missing and print agreement by third of training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=seed_range, default=range(3), help="3 (the first three) or 5-9")
    parser.add_argument("--steps", type=int, default=BUDGET["max_steps"])
    parser.add_argument("--out", type=Path, default=RESULTS / "offline_prm.jsonl")
    choice = parser.parse_args()
    done = {row["seed"] for row in read_rows(choice.out)}
    for seed in choice.seeds:
        if seed not in done:
            with choice.out.open("a") as file:
                file.write(json.dumps(run(seed, choice.steps)) + "\n")
    rows = read_rows(choice.out)
    names = ("best", "best_by_chance", "worst", "worst_by_chance", "tau", "dialogues")
    lines = [
        {"PRM": kind, "part of training": phase, **{name: found[name] for name in names}}
        for kind in KINDS
        for phase, found in agreement_by_phase(of_kind(rows, kind)).items()
    ]
    print_table("Agreement with the true credit of failures", lines)


if __name__ == "__main__":
    main()
