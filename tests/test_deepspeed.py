"""ZeRO-2 with two processes on the CPU: the run of plain DDP, resumed exactly; ZeRO-3 and adapters are refused.

Wants `pip install deepspeed`, g++ and ninja: on a CPU DeepSpeed compiles an operator of its own, minutes at the first launch.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from safetensors.torch import load_file
from test_ddp import CONFIGS, SCRIPT, launch
from transformers import AutoModelForCausalLM

from itpo_lib.errors import ItpoError
from itpo_lib.run import RunSettings, train

pytest.importorskip("deepspeed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (shutil.which("g++") and shutil.which("ninja")), reason="DeepSpeed compiles on a CPU"),
]
ZERO2 = SCRIPT + "\nassert trainer.model_wrapped.zero_optimization_stage() == 2\n"
TRAIN = ["-m", "itpo_lib.cli", "train", "--device=cpu"]


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    for name, value in {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}.items():
        monkeypatch.setenv(name, value)


def accelerate(name: str, *command: str) -> list[str]:
    """Two processes, as the recipe's file says."""
    start = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{name}.yaml")]
    return [*start, "--main_process_ip=127.0.0.1", "--main_process_port=0", *command]


@pytest.mark.parametrize("estimator", ["rloo", "ppo"])
def test_zero2_trains_as_ddp_does(tmp_path, estimator):
    for name, script in (("zero2", ZERO2), ("ddp", SCRIPT)):
        (tmp_path / f"{name}.py").write_text(script)
        launch(accelerate(name, str(tmp_path / f"{name}.py"), str(tmp_path / name), "8", estimator, "full"))
    first, second, plain = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("zero2-rank0", "zero2-rank1", "ddp-rank0")
    )
    for part in ("policy", "prm", "critic"):
        assert first[part] == second[part], f"the {part} drifted apart between the ranks"
        assert first[part] == pytest.approx(plain[part], abs=1e-2), part
    for ours, theirs in zip(first["curve"], plain["curve"], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-6)


def test_a_zero2_run_resumes_exactly_and_only_as_one(tmp_path):
    """The optimizer's state lies in a part for each process: with another number of them it would be lost."""
    small = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "num_generations": 4, "save_steps": 2,
             "num_iterations": 1, "lr_scheduler_type": "constant", "micro_batch_size": 8}  # fmt: skip
    flags = ["--eval-dialogues=4", *(f"--set={name}={json.dumps(value)}" for name, value in small.items())]
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    launch(accelerate("zero2", *TRAIN, *flags, f"--out={whole}", "--set=max_steps=4"))
    launch(accelerate("zero2", *TRAIN, *flags, f"--out={cut}", "--set=max_steps=2"))
    alone = RunSettings.load(cut)
    alone.options |= {"max_steps": 4, "per_device_train_batch_size": 16}
    with pytest.raises(ItpoError, match=r"made by 2 DeepSpeed process.*zero2\.yaml and --num_processes 2"):
        train(alone, resume=True)
    flags = ["--resume", "--set=max_steps=4", "--set=per_device_train_batch_size=8"]
    launch(accelerate("zero2", *TRAIN, *flags, f"--out={cut}"))
    resumed, uncut = (load_file(run / "policy" / "model.safetensors") for run in (cut, whole))
    assert resumed.keys() == uncut.keys() and all(resumed[name].equal(uncut[name]) for name in uncut)
    exported = AutoModelForCausalLM.from_pretrained(cut / "policy")
    assert all(weight.equal(uncut[name]) for name, weight in exported.named_parameters())


@pytest.mark.parametrize(
    "name, flags, says",
    [
        ("zero3", [], "Error: DeepSpeed ZeRO stage 3 shards the policy"),
        ("zero2", ["--peft=lora"], "Error: DeepSpeed turns all adapters into its own precision"),
    ],
)
def test_what_would_go_wrong_is_refused_at_launch(tmp_path, name, flags, says):
    command = accelerate(name, *TRAIN, *flags, f"--out={tmp_path / 'run'}")
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode != 0 and says in ended.stderr + ended.stdout
