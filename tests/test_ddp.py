"""Two processes on the CPU (gloo): the same parameters on both, and the same run as one process."""

import contextlib
import json
import os
import signal
import subprocess
import sys

import pytest

SCRIPT = """
import json, os, sys
import torch
from itpo_lib.run import RunSettings, build_trainer
torch.set_num_threads(1)
out, rows, estimator = sys.argv[1], int(sys.argv[2]), sys.argv[3]
options = dict(max_steps=3, per_device_train_batch_size=rows, num_generations=4, learning_rate=1e-3,
               gradient_accumulation_steps=1,
               save_strategy="no", estimator=estimator)
trainer = build_trainer(RunSettings(out=out, device="cpu", options=options))
trainer.train()
policy = trainer.accelerator.unwrap_model(trainer.model)
sums = lambda model: [p.double().sum().item() for p in model.parameters()]
result = {"policy": sums(policy), "prm": sums(trainer.prm.model),
          "critic": sums(trainer.critic.model) if trainer.critic else [],
          "curve": [{k: r[k] for k in ("success", "turns", "prm/accuracy")} for r in trainer.state.log_history if "turns" in r]}
with open(f"{out}-rank{trainer.accelerator.process_index}.json", "w") as file:
    json.dump(result, file)
"""


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["rloo", "ppo"])
def test_two_processes_stay_equal_and_match_one(tmp_path, estimator):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    one = [sys.executable, str(script), str(tmp_path / "one"), "16", estimator]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
    two = [*launcher, "--nproc_per_node=2", str(script), str(tmp_path / "two"), "8", estimator]
    for command in (one, two):
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            _, errors = process.communicate(timeout=240)
        finally:  # a rank that hangs must not outlive the test
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        assert process.returncode == 0, errors[-3000:]
    single, first, second = (
        json.loads((tmp_path / name).read_text()) for name in ("one-rank0.json", "two-rank0.json", "two-rank1.json")
    )
    for part in ("policy", "prm", "critic"):
        assert first[part] == second[part], f"the {part} drifted apart between the ranks"
    assert first["curve"][0]["turns"] == pytest.approx(single["curve"][0]["turns"])
    assert first["curve"][0]["success"] == pytest.approx(single["curve"][0]["success"])
    assert first["policy"] == pytest.approx(single["policy"], abs=0.5, rel=0.05)
