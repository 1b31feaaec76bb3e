"""Two processes on the CPU (gloo): the same parameters on both, and the same run as one process.

Of sharded training it is tested what is refused, and why; `test_deepspeed.py` runs ZeRO-2 where DeepSpeed is installed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from itpo_lib.errors import ItpoError
from itpo_lib.processes import check_processes
from itpo_lib.resuming import check_resumable, checkpoint_note
from itpo_lib.run import RunSettings, train

CONFIGS = Path(__file__).parent.parent / "recipes" / "accelerate"
SCRIPT = """
import json, os, sys
import torch
from itpo_lib.run import RunSettings, build_trainer
torch.set_num_threads(1)
out, rows, estimator, lora = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4] == "lora"
options = dict(max_steps=3, per_device_train_batch_size=rows, num_generations=4, learning_rate=1e-3,
               gradient_accumulation_steps=1,
               save_strategy="no", estimator=estimator)
trainer = build_trainer(RunSettings(out=out, device="cpu", lora=lora, options=options))
trainer.train()
policy = trainer.accelerator.unwrap_model(trainer.model)
sums = lambda model: [p.double().sum().item() for p in model.parameters()]
result = {"policy": sums(policy), "prm": sums(trainer.prm.model),
          "critic": sums(trainer.critic.model) if trainer.critic else [],
          "curve": [{k: r[k] for k in ("success", "turns", "prm/accuracy")} for r in trainer.state.log_history if "turns" in r]}
weights = lambda model: torch.cat([p.detach().double().flatten() for p in model.parameters()])
torch.save({"policy": weights(policy), "prm": weights(trainer.prm.model),
            **({"critic": weights(trainer.critic.model)} if trainer.critic else {})},
           f"{out}-rank{trainer.accelerator.process_index}.pt")
with open(f"{out}-rank{trainer.accelerator.process_index}.json", "w") as file:
    json.dump(result, file)
"""


def launch(command: list[str]) -> str:
    """Run to the end and return stdout; a rank that hangs must not outlive the test."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        output, errors = process.communicate(timeout=400)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, errors[-3000:]
    return output


@pytest.mark.slow
@pytest.mark.parametrize("estimator, weights", [("rloo", "full"), ("ppo", "full"), ("ppo", "lora")])
def test_two_processes_stay_equal_and_match_one(tmp_path, estimator, weights):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
    launch([sys.executable, str(script), str(tmp_path / "one"), "16", estimator, weights])
    launch([*launcher, "--nproc_per_node=2", str(script), str(tmp_path / "two"), "8", estimator, weights])
    single, first, second = (
        json.loads((tmp_path / name).read_text()) for name in ("one-rank0.json", "two-rank0.json", "two-rank1.json")
    )
    for part in ("policy", "prm", "critic"):
        assert first[part] == second[part], f"the {part} drifted apart between the ranks"
    assert first["curve"][0]["turns"] == pytest.approx(single["curve"][0]["turns"])
    assert first["curve"][0]["success"] == pytest.approx(single["curve"][0]["success"])
    alone, shared = (torch.load(tmp_path / f"{name}-rank0.pt", weights_only=True) for name in ("one", "two"))
    for part, found in shared.items():
        assert (found - alone[part]).abs().max() < 5e-4, f"the {part} is not that of one process"  # a step moves 1e-3


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_in_one(tmp_path):
    """Launched as the recipe says; then resumed with one process, which must see the same batches as one from the start."""
    small = {"max_steps": 2, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "num_generations": 4,
             "num_iterations": 1, "save_steps": 2, "lr_scheduler_type": "constant", "micro_batch_size": 8}  # fmt: skip
    flags = [f"--set={name}={json.dumps(value)}" for name, value in small.items()]
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / "ddp.yaml")]
    accelerate += ["--main_process_ip=127.0.0.1", "--main_process_port=0"]
    command = ["-m", "itpo_lib.cli", "train", "--device=cpu", "--eval-dialogues=4", f"--out={tmp_path / 'two'}"]
    launch([*accelerate, *command, *flags])
    note = json.loads((tmp_path / "two" / "checkpoint-2" / "itpo_complete.json").read_text())
    files = note.pop("files")
    assert note == {"step": 2, "processes": 2, "dialogues": 16}
    assert "optimizer.pt" in files and not any(name.startswith("rng_state") for name in files)  # each has its own

    resumed = RunSettings.load(tmp_path / "two")
    resumed.options["max_steps"] = 4
    with pytest.raises(ItpoError, match=r"2 process.* 16 dialogues a step.*--set per_device_train_batch_size=16"):
        train(resumed, resume=True)
    resumed.options["per_device_train_batch_size"] = 16
    train(resumed, resume=True)
    whole = RunSettings(out=str(tmp_path / "one"), device="cpu", eval_dialogues=4, options=resumed.options)
    train(whole)
    rows = [read_rows(tmp_path / name) for name in ("two", "one")]
    assert [[row["step"] for row in curve] for curve in rows] == [[1, 2, 3, 4]] * 2
    for ours, theirs in zip(*rows, strict=True):
        assert ours["turns"] == pytest.approx(theirs["turns"], abs=0.15), ours["step"]
        assert ours["outcome"] == pytest.approx(theirs["outcome"], abs=0.15), ours["step"]


def read_rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def arguments(rows=8, slices=1, processes=2, fsdp=None, stage=None, replay=0):
    plugin = None if stage is None else SimpleNamespace(zero_stage=stage)
    return SimpleNamespace(
        per_device_train_batch_size=rows, gradient_accumulation_steps=slices, world_size=processes, fsdp=fsdp,
        deepspeed_plugin=plugin, prm_replay=replay,
    )  # fmt: skip


@pytest.mark.parametrize(
    "now, says",
    [
        (arguments(8, 1, 2), None),
        (arguments(16, 1, 1), None),
        (arguments(8, 2, 1), None),
        (arguments(2, 1, 8), None),
        (arguments(8, 1, 1), "would make it 8. Resume with --set per_device_train_batch_size=16"),
        (arguments(8, 1, 4), "would make it 32. Resume with --set per_device_train_batch_size=4"),
        (arguments(8, 3, 2), "would make it 48. Resume with --set other batch sizes"),
        (
            arguments(8, 1, 2, stage=2),
            "made without DeepSpeed, .* Resume with recipes/accelerate/ddp.yaml or one process",
        ),
    ],
)
def test_resuming_keeps_the_batch(tmp_path, now, says):
    note = tmp_path / "checkpoint-2" / "itpo_complete.json"
    check_resumable(note, now)  # made by an earlier version: nothing to compare with
    note.parent.mkdir()
    note.write_text(json.dumps(checkpoint_note(arguments(8, 1, 2), step=2)))
    if says is None:
        check_resumable(note, now)
    else:
        with pytest.raises(ItpoError, match=says):
            check_resumable(note, now)


def test_each_process_wants_its_own_random_state(tmp_path):
    note = tmp_path / "itpo_complete.json"
    note.write_text(json.dumps({**checkpoint_note(arguments(8, 1, 2), step=2), "files": {"optimizer.pt": 0}}))
    (tmp_path / "optimizer.pt").touch()
    (tmp_path / "rng_state_0.pth").touch()
    for index in (0, 1):
        now = arguments(8, 1, 2)
        now.process_index = index
        if index == 0:
            check_resumable(note, now)
        else:
            with pytest.raises(ItpoError, match=r"rng_state_1\.pth: missing or cut off"):
                check_resumable(note, now)
    check_resumable(note, arguments(16, 1, 1))  # another number of processes: theirs begin anew


@pytest.mark.parametrize(
    "args, adapters, says",
    [
        (arguments(), True, None),
        (arguments(), False, None),
        (arguments(stage=2), False, None),
        (arguments(processes=1, replay=64), True, None),
        (arguments(replay=64), False, "prm_replay=64 works in one process, here are 2"),
        (arguments(stage=2), True, r"DeepSpeed turns all adapters.*ddp\.yaml"),
        (arguments(stage=3), False, r"ZeRO stage 3 shards the policy.*whole weights.*ddp\.yaml"),
        (arguments(fsdp=True), False, r"FSDP shards the policy.*whole weights.*ddp\.yaml"),
    ],
)
def test_ways_of_sharing_that_would_go_wrong_are_refused(args, adapters, says, monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    if says is None:
        check_processes(args, adapters)
    else:
        with pytest.raises(ItpoError, match=says):
            check_processes(args, adapters)


def test_a_launch_with_fsdp_is_refused_by_the_trainer(tmp_path, monkeypatch):
    """accelerate tells its processes through the environment."""
    from itpo_lib.run import build_trainer

    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ItpoError, match="FSDP shards the policy"):
        build_trainer(RunSettings(out=str(tmp_path), device="cpu"))


@pytest.mark.parametrize("now", [arguments(16, 1, 1), arguments(8, 1, 2), arguments(4, 1, 4, stage=2)])
def test_a_checkpoint_of_deepspeed_goes_on_only_with_as_many_of_its_processes(tmp_path, now):
    """The optimizer's state lies there in parts, and would be begun anew without a word."""
    note = tmp_path / "itpo_complete.json"
    note.write_text(json.dumps(checkpoint_note(arguments(8, 1, 2, stage=2), step=2)))
    check_resumable(note, arguments(8, 1, 2, stage=2))
    with pytest.raises(ItpoError, match=r"made by 2 DeepSpeed .*zero2.yaml and --num_processes 2"):
        check_resumable(note, now)


@pytest.mark.parametrize("name", ["ddp", "zero2", "zero3", "fsdp2"])
def test_accelerate_configs_are_ones_that_accelerate_reads(name):
    from accelerate.commands.config.config_args import load_config_from_file

    path = CONFIGS / f"{name}.yaml"
    config = load_config_from_file(str(path))  # refuses unknown keys
    assert config.num_processes == 2 and config.distributed_type.value in path.read_text()
    refused = name in ("zero3", "fsdp2")
    assert ("REFUSED" in path.read_text()) == refused
    settings = yaml.safe_load(path.read_text())
    if name == "zero2":
        assert settings["deepspeed_config"]["zero_stage"] == 2 and not settings["deepspeed_config"]["zero3_init_flag"]
    assert "ever run" in path.read_text()
