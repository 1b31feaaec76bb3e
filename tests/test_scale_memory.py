"""Out of memory ends in advice; the memory benchmark and the GPU benchmark run at tiny size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from itpo_lib.config import ITPOConfig
from itpo_lib.errors import ItpoError
from itpo_lib.out_of_memory import PLAYING, SCORING, TRAINING, advice, is_out_of_memory, memory_advice
from itpo_lib.resuming import COMPLETE
from itpo_lib.run import RunSettings, build_trainer

ROOT = Path(__file__).parent.parent


def real_failure() -> Exception:
    """What PyTorch raises on this CPU when it cannot allocate."""
    try:
        torch.empty(2**60, dtype=torch.uint8)
    except RuntimeError as error:
        return error
    raise AssertionError("a whole exbibyte was allocated")


@pytest.fixture
def args(tmp_path):
    return ITPOConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, per_device_train_batch_size=8, gradient_accumulation_steps=4,
        num_generations=8, micro_batch_size=8,
    )  # fmt: skip


def test_what_counts_as_out_of_memory():
    cuda = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 14.6 GiB"
    assert all(map(is_out_of_memory, (real_failure(), MemoryError(), torch.OutOfMemoryError(cuda), RuntimeError(cuda))))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_other_errors_pass_untouched(args):
    with pytest.raises(RuntimeError, match=r"^shapes$") as caught, memory_advice(TRAINING, args, adapters=True):
        raise RuntimeError("shapes")
    assert not isinstance(caught.value, ItpoError)
    with pytest.raises(ItpoError, match=r"^mine$"), memory_advice(TRAINING, args, adapters=True):
        raise ItpoError("mine")


def test_the_first_knob_keeps_the_batch(args):
    assert (
        "per_device_train_batch_size=4 with gradient_accumulation_steps=8 instead of 8 and 4"
        in advice(TRAINING, args, False)[0]
    )
    assert "micro_batch_size=4 instead of 8" in advice(SCORING, args, False)[0]
    assert "(32 are played now)" in " ".join(advice(PLAYING, args, False))


def test_knobs_that_are_turned_already_are_not_offered(args):
    assert any("--peft lora" in knob for knob in advice(TRAINING, args, adapters=False))
    assert not any("--peft lora" in knob for knob in advice(TRAINING, args, adapters=True))
    args.gradient_checkpointing, args.per_device_train_batch_size, args.micro_batch_size = True, 1, 1
    args.prm_mini_batch_size, args.bf16 = 1, True
    for doing in (PLAYING, SCORING, TRAINING):
        assert "max_tokens" in advice(doing, args, adapters=True)[-1]
    assert len(advice(SCORING, args, adapters=True)) == len(advice(TRAINING, args, adapters=True)) == 1


def trainer_for(tmp_path, **options):
    small = {"max_steps": 3, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "num_generations": 4,
             "num_iterations": 1, "save_strategy": "no"}  # fmt: skip
    return build_trainer(RunSettings(out=str(tmp_path / "run"), device="cpu", options={**small, **options}))


@pytest.mark.parametrize("place, doing", [("play", PLAYING), ("_learn_from", SCORING), ("_compute_loss", TRAINING)])
def test_a_failed_allocation_anywhere_in_a_step_gives_advice(tmp_path, monkeypatch, place, doing):
    trainer, failure = trainer_for(tmp_path), real_failure()

    def fail(*args, **kwargs):
        raise failure

    if place == "play":
        monkeypatch.setattr("itpo_lib.trainer.play", fail)
    else:
        monkeypatch.setattr(trainer, place, fail)
    with pytest.raises(
        ItpoError, match=f"out of memory during {doing} .*What helps, cheapest first: \\(1\\)"
    ) as caught:
        trainer.train()
    causes, error = [], caught.value
    while error is not None:
        causes.append(error)
        error = error.__cause__
    assert failure in causes  # the stack trace is not lost


def test_out_of_memory_while_playing_saves_the_run(tmp_path, monkeypatch):
    from itpo_lib import trainer as module

    trainer, play = trainer_for(tmp_path, save_strategy="steps", save_steps=100), module.play
    played = []

    def fail_at_the_third(*args, **kwargs):
        played.append(1)
        if len(played) == 3:
            raise MemoryError
        return play(*args, **kwargs)

    monkeypatch.setattr(module, "play", fail_at_the_third)
    with pytest.raises(ItpoError, match="saved at step 2"):
        trainer.train()
    assert (tmp_path / "run" / "checkpoint-2" / COMPLETE).exists()


def run_script(name: str, *arguments: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}
    command = [sys.executable, str(ROOT / "benchmarks" / name), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_memory_benchmark_counts_every_tensor(tmp_path):
    from itpo_lib.estimates import model_bytes
    from itpo_lib.model_shapes import ModelShape
    from itpo_lib.models import load_policy

    out = tmp_path / "memory.jsonl"
    text = run_script("memory.py", "--tokens", "32", "--layouts", "copies", "adapters", "--out", str(out))
    assert "Measured" in text and "Computed, not run" in text
    rows = {row["layout"]: row for row in map(json.loads, out.read_text().splitlines())}
    shape = ModelShape.of(load_policy("tiny")[0].config)
    for layout, rank in (("copies", 0), ("adapters", 16)):
        row = rows[layout]
        expected = model_bytes(shape, rank, roles=3, element_bytes=4)
        assert row["weights"] + row["gradients"] + row["states"] == pytest.approx(expected, rel=0.02), layout
        assert row["peak"] > row["weights"]


def test_only_what_helps_is_offered(args):
    """Full copies of PRM and critic do not recompute layers, whatever the setting."""
    offered = " ".join(advice(SCORING, args, adapters=False))
    assert "gradient_checkpointing" not in offered and "prm_mini_batch_size=16" in offered
    assert "gradient_checkpointing" in " ".join(advice(SCORING, args, adapters=True))


@pytest.mark.slow
def test_the_gpu_benchmark_measures_and_learns_on_a_cpu(tmp_path):
    out = tmp_path / "gpu"
    text = run_script("gpu.py", "--device", "cpu", "--tiny", "--out", str(out))
    assert "Rollouts" in text and "Training steps" in text
    rollouts, step = map(json.loads, (out / "measure.jsonl").read_text().splitlines())
    assert rollouts["ratio"] == pytest.approx(
        rollouts["cache continued (tokens/s)"] / rollouts["generate (tokens/s)"], rel=1e-3
    )
    assert all(rollouts[f"{name} limit (tokens/s)"] > 0 for name in ("matrix product", "reading"))
    assert step["ratio"] == pytest.approx(step["ITPO (s)"] / step["plain GRPO (s)"]) and step["peak memory (GiB)"] > 0
    flags = ["learn", "--device", "cpu", "--tiny", "--tasks", "math_tutoring", "--credits", "norm_itpo", "--seeds", "1"]
    text = run_script("gpu.py", *flags, "--out", str(out))
    assert "1 of 2 runs did not fit" in run_script("gpu.py", *flags[:-1], "2", "--minutes", "0", "--out", str(out))
    rows = list(map(json.loads, (out / "learn.jsonl").read_text().splitlines()))
    assert len(rows) == 1 and (out / "learn.png").stat().st_size > 10_000 and "norm_itpo" in text
    row = rows[0]
    assert row["curve"]["step"] == [1] and None not in row["curve"]["outcome"]  # two steps share a batch
    assert len(row["dialogues"]["before"]) == len(row["dialogues"]["after"]) == 4
    assert row["before"]["dialogues"] == 4 and row["tokens_per_second"] > 0
