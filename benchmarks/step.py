"""An ITPO step against a plain TRL GRPO step on the same dialogues, and turn sums against a loop.

    python benchmarks/step.py [--repeats 10]

Both trainers use the same rollout function; "plain GRPO" is TRL's GRPOTrainer with the same KL to a
reference, one advantage per dialogue, no PRM. Rollouts are seeded alike, and only the steps after the
first are counted. The policy's learning rate is 0, so both keep playing the same dialogues.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from timing import print_table, side_by_side, synchronise
from transformers.trainer_callback import PrinterCallback

from itpo_lib.config import ITPOConfig
from itpo_lib.credit import softmax_shares, unit_sums
from itpo_lib.models import load_policy
from itpo_lib.run import quiet_libraries
from itpo_lib.tasks import get_task
from itpo_lib.trainer import ITPOTrainer


class PlainGRPO(ITPOTrainer):
    """TRL's own credit on our dialogues: the batch is left as GRPOTrainer made it."""

    def _learn_from(self, batch):  # type: ignore[no-untyped-def]
        from itpo_lib.logprobs import token_logprobs

        ref = token_logprobs(self.frozen, batch, self.temperature, self.args.micro_batch_size)
        return torch.zeros_like(ref), ref

    def _generate_and_score_completions(self, inputs):  # type: ignore[no-untyped-def]
        output = super()._generate_and_score_completions(inputs)
        outcomes = torch.tensor([d.outcome for d in self.dialogues], device=self.accelerator.device)
        outcomes = outcomes.view(-1, self.num_generations)
        centred = outcomes - outcomes.mean(1, keepdim=True)
        output["advantages"] = (centred / (outcomes.std(1, keepdim=True) + 1e-4)).flatten()
        return output


def make(kind: type[ITPOTrainer], repeats: int, scale: str = "tiny", device: str = "cpu", **options) -> ITPOTrainer:  # type: ignore[no-untyped-def]
    """A trainer on the math tutor; `options` are fields of `ITPOConfig`."""
    model, chat = load_policy({"tiny": "tiny", "text": "smollm2"}[scale], device=device)
    fields = {"per_device_train_batch_size": 64, "num_generations": 8, "micro_batch_size": 16, **options}
    args = ITPOConfig(
        output_dir=tempfile.mkdtemp(), max_steps=repeats + 2, learning_rate=0.0, beta=1e-3, save_strategy="no",
        use_cpu=device == "cpu", disable_tqdm=True, **fields,
    )  # fmt: skip
    trainer = kind(model, args, get_task("math_tutoring", scale), chat)
    trainer.remove_callback(PrinterCallback)
    return trainer


def step_seconds(trainer: ITPOTrainer) -> list[float]:
    """Wall seconds of each training step after the first two."""
    times: list[float] = []
    inner = trainer.training_step

    def timed(*args, **kwargs):  # type: ignore[no-untyped-def]
        synchronise()
        began = time.perf_counter()
        loss = inner(*args, **kwargs)
        synchronise()
        times.append(time.perf_counter() - began)
        return loss

    trainer.training_step = timed  # type: ignore[method-assign]
    trainer.train()
    return times[2:]


def loop_shares(values: torch.Tensor, ids: torch.Tensor, n_turns: int, temperature: float) -> torch.Tensor:
    """Turn sums and softmax, row by row and token by token."""
    rows = []
    for row_values, row_ids in zip(values.tolist(), ids.tolist(), strict=True):
        sums = [0.0] * n_turns
        for value, turn in zip(row_values, row_ids, strict=True):
            if turn:
                sums[turn - 1] += value
        rows.append(torch.softmax(torch.tensor(sums) / temperature, 0))
    return torch.stack(rows)


def sums_row(repeats: int) -> dict:
    """Vectorised turn sums and softmax on (128, 4096) against the loop."""
    ids = (torch.arange(4096) // 512 + 1).expand(128, -1).contiguous()
    values, mask = torch.randn(128, 4096), torch.ones(128, 8, dtype=torch.bool)
    seconds = side_by_side(
        {
            "vectorised": lambda: softmax_shares(unit_sums(values, ids, 8), mask, 0.4),
            "loop": lambda: loop_shares(values, ids, 8, 0.4),
        },
        repeats,
    )
    return {
        "case": "turn sums and softmax, (128, 4096): loop / vectorised",
        "slow (s)": seconds["loop"],
        "fast (s)": seconds["vectorised"],
        "ratio": seconds["loop"] / seconds["vectorised"],
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    quiet_libraries()
    times: dict[str, list[float]] = {"itpo": [], "grpo": []}
    for _ in range(3):  # alternate, so that a busy machine hurts both alike
        times["grpo"] += step_seconds(make(PlainGRPO, options.repeats // 2))
        times["itpo"] += step_seconds(make(ITPOTrainer, options.repeats // 2))
    itpo, grpo = statistics.median(times["itpo"]), statistics.median(times["grpo"])
    print_table(
        f"Steps on the tiny math tutor, 64 dialogues, 1 thread, median of {len(times['itpo'])}",
        [
            {"case": "ITPO step / plain GRPO step", "slow (s)": itpo, "fast (s)": grpo, "ratio": itpo / grpo},
            sums_row(options.repeats),
        ],
    )


if __name__ == "__main__":
    main()
