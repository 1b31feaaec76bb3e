"""Make itpo_lib/widgets/sample.npz: the tiny math tutor's PRM, recorded while it trains. About two CPU minutes.

python benchmarks/sample_recording.py [--dialogues 24] [--every 4] [--out itpo_lib/widgets/sample.npz]
python benchmarks/sample_recording.py --report    # say how the one that ships agrees with the true credit
"""

from __future__ import annotations

import argparse
import tempfile

import numpy as np

from itpo_lib.rollout import Episode, play
from itpo_lib.run import RunSettings, build_trainer
from itpo_lib.true_credit import true_values
from itpo_lib.widgets import Recording, record_inspection
from itpo_lib.widgets.inspection import InspectorScene, disagreement


def report(recording: Recording) -> None:
    """Share of turn pairs that Norm-ITPO orders against the truth, over successful dialogues of two turns or more."""
    scene = InspectorScene(recording)
    table = scene.table("norm_itpo", recording.beta, recording.temperature, "sum")
    rows = [i for i, d in enumerate(recording.dialogues) if scene.succeeded(i) and d.n_turns > 1]
    for step, rewards in zip(recording.steps, table, strict=True):
        truths = {i: np.array(recording.truth[i]) for i in rows}
        mean = np.mean([disagreement(rewards[i, : len(true)], true) for i, true in truths.items()])
        print(f"step {step:>3}: {mean:.2f} of the turn pairs in {len(rows)} dialogues")


def main() -> None:
    """Play with the starting policy, measure the true credit under it, then train and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dialogues", type=int, default=24)
    parser.add_argument("--every", type=int, default=4)
    parser.add_argument("--continuations", type=int, default=64)
    parser.add_argument("--out", default="itpo_lib/widgets/sample.npz")
    parser.add_argument("--report", action="store_true")
    choice = parser.parse_args()
    if choice.report:
        report(Recording.sample())
        return
    trainer = build_trainer(RunSettings(out=tempfile.mkdtemp(), device="cpu", options={"save_strategy": "no"}))
    goals = [trainer.task.goal(i, "validation") for i in range(choice.dialogues)]
    episodes = [Episode(goal, seed=goal.index) for goal in goals]
    dialogues = play(trainer.model, trainer.chat, trainer.task, episodes)
    measured = true_values(trainer.model, trainer.chat, trainer.task, dialogues, m=choice.continuations).credit
    truth = [row[: d.n_turns].tolist() for row, d in zip(measured, dialogues, strict=True)]
    recorder = record_inspection(trainer, dialogues, choice.every)
    trainer.train()
    path = recorder.recording(truth).save(choice.out)
    print(f"{path}: {len(dialogues)} dialogues at steps {recorder.steps}, {path.stat().st_size // 1024} kB")


if __name__ == "__main__":
    main()
