"""The light LM head against TRL's, on a CPU: forward and backward of one pass of SmolLM2 with adapters.

    python benchmarks/head.py            # 8 dialogues of 60 + 200 tokens, every second completion token trained

Side by side in one run, CPU seconds, medians over the repeats after one to warm up.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from timing import print_table

from itpo_lib.logprobs import loss_logprobs
from itpo_lib.models import load_policy
from itpo_lib.presets import ADAPTERS
from itpo_lib.run import quiet_libraries
from itpo_lib.warmstart_text import fast_bf16

ROWS, PROMPT, COMPLETION = 8, 60, 200


def main() -> None:
    """Time both and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    choice = parser.parse_args()
    torch.set_num_threads(1)
    quiet_libraries()
    from peft import LoraConfig, get_peft_model
    from trl.trainer.utils import add_fused_lm_head

    from itpo_lib.config import ITPOConfig  # noqa: F401  # switches TRL's telemetry off before TRL is imported

    bf16 = fast_bf16(torch.device("cpu"))
    model, _ = load_policy("smollm2", "medical_recommendation", dtype=torch.bfloat16 if bf16 else torch.float32)
    model.set_attn_implementation("eager")
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    policy = get_peft_model(model, LoraConfig(**ADAPTERS))
    ids = torch.randint(
        0, model.config.vocab_size, (ROWS, PROMPT + COMPLETION), generator=torch.Generator().manual_seed(0)
    )
    seen, mask = torch.ones_like(ids), torch.arange(COMPLETION).expand(ROWS, -1) % 2 == 0
    labels = ids.clone()
    labels[:, :PROMPT] = -100

    def light() -> torch.Tensor:
        return loss_logprobs(policy, ids, seen, mask)[0][mask].sum()

    def fused() -> torch.Tensor:
        found = policy(input_ids=ids, attention_mask=seen, labels=labels, fused_lm_head=True)
        return found.log_probs[:, -COMPLETION:][mask].sum()

    seconds: dict[str, list[float]] = {"light head": [], "TRL's head": []}
    for _ in range(choice.repeats + 1):
        for name, head in zip(seconds, (light, fused), strict=True):
            began = time.process_time()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                loss = head()
            loss.backward()
            seconds[name].append(time.process_time() - began)
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    ratio = medians["TRL's head"] / medians["light head"]
    lines = [
        {"head": name, "CPU s": median, "all": " ".join(f"{s:.1f}" for s in seconds[name][1:])}
        for name, median in medians.items()
    ]
    print_table(
        f"SmolLM2-135M with adapters, {'bf16' if bf16 else 'fp32'}: the light head is {ratio:.1f} times as fast", lines
    )


if __name__ == "__main__":
    main()
