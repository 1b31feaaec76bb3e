"""vLLM as a server, on a CPU: several processes train, one server plays, and new weights reach it.

    vllm-env/bin/python benchmarks/vllm_server_cpu.py serve &          # the environment of benchmarks/vllm_cpu.py
    vllm-env/bin/python benchmarks/vllm_server_cpu.py learn
    vllm-env/bin/python benchmarks/vllm_server_cpu.py learn --lora
    vllm-env/bin/accelerate launch --config_file recipes/accelerate/ddp.yaml --num_processes 2 \\
        benchmarks/vllm_server_cpu.py learn

Between GPUs TRL sends new weights through NCCL, which a CPU has not got. Here they go through a file: `FileEngine` on the
server's side, `send_by_file` on TRL's. All else is what a GPU would run: TRL's client, vLLM's routes, `VLLMGenerator`.
Rows go to benchmarks/results/vllm.jsonl.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", VLLM_CPU_OMP_THREADS_BIND="nobind", VLLM_SERVER_DEV_MODE="1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

import torch
from safetensors.torch import load_file, save_file
from vllm.distributed.weight_transfer import base, factory

ROOT = Path(__file__).parents[1]
PORT = 8123
SERVE = {
    "model": ROOT / "itpo_lib" / "checkpoints" / "math_tutoring-normal", "host": "127.0.0.1", "port": PORT,
    "dtype": "float32", "max-model-len": 256, "max-num-seqs": 64,
    "weight-transfer-config": '{"backend": "file"}', "logprobs-mode": "processed_logprobs", "max-logprobs": -1,
}  # fmt: skip


@dataclass
class FileUpdate(base.WeightTransferUpdateInfo):
    """Where the new weights lie."""

    path: str


class FileEngine(base.WeightTransferEngine):
    """Loads new weights from a file of safetensors."""

    init_info_cls, update_info_cls = base.WeightTransferInitInfo, FileUpdate

    def init_transfer_engine(self, init_info: Any) -> None:
        """Nobody to meet."""

    def start_weight_update(self) -> None:
        """Weights are loaded in place."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Without vLLM's wait for a GPU."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: FileUpdate) -> None:
        """All of them at once."""
        self.model.load_weights(iter(load_file(update_info.path).items()))

    def finish_weight_update(self) -> None:
        """Nothing is left to do."""

    def shutdown(self) -> None:
        """Nothing is held."""


def keep_weights_plain() -> None:
    """Linear layers read their weights at each call, so that new ones can be loaded."""
    from vllm.model_executor.layers import utils

    def plain(layer: torch.nn.Module, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    utils.dispatch_cpu_unquantized_gemm = plain


def serve() -> None:
    """A server of the tiny math tutor, until it is stopped."""
    from vllm.entrypoints.launchers.api_server.entry import main as launch

    sys.argv = [__file__, "--enforce-eager", *(f"--{name}={value}" for name, value in SERVE.items())]
    launch()


def send_by_file() -> None:
    """TRL's client hands weights over in a file instead of through NCCL."""
    from trl.generation.vllm_client import VLLMClient

    path = str(Path(tempfile.mkdtemp()) / "weights.safetensors")

    def meet(client: VLLMClient, device: Any = None) -> None:
        client._post(f"{client.base_url}/init_weight_transfer_engine", json={"init_info": {}})

    def send(client: VLLMClient, metadata: Any, named: Iterator[tuple[str, torch.Tensor]]) -> None:
        save_file({name: weights.detach().clone().contiguous() for name, weights in named}, path)
        client._start_weight_update()
        client._post(f"{client.base_url}/update_weights", json={"update_info": {"path": path}})
        client._finish_weight_update()

    VLLMClient.init_communicator, VLLMClient.update_named_params = meet, send


def main() -> None:
    """Serve, or learn and add a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("serve", "learn"))
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "vllm.jsonl")
    choice = parser.parse_args()
    if choice.what == "serve":
        return serve()
    from vllm_cpu import learn, note

    torch.set_num_threads(1)
    send_by_file()
    row = learn("a vLLM server, float32", choice.lora, choice.seed, Path("runs/vllm-cpu"), f"http://127.0.0.1:{PORT}")
    if int(os.environ.get("RANK", "0")) == 0:
        note([row], choice.out)


if __name__ in ("__main__", "__mp_main__"):  # each process of the server begins by reading this file
    keep_weights_plain()
    factory.WeightTransferEngineFactory.register_engine("file", FileEngine)
if __name__ == "__main__":
    main()
