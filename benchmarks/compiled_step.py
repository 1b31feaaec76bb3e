"""One decoding step: as the library takes it, with a static cache, and with a static cache compiled. CPU, one thread.

    python benchmarks/compiled_step.py --model tiny --rows 16        # needs a C++ compiler; compiling takes minutes
    python benchmarks/compiled_step.py --model smollm2 --rows 8

Side by side, medians of CPU time; the seconds of compiling are wall-clock time of the first compiled call.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from timing import print_table
from torch import Tensor
from transformers import PreTrainedModel, StaticCache

from itpo_lib.generation import CachedGenerator
from itpo_lib.logprobs import backbone, lm_logits
from itpo_lib.models import load_policy
from itpo_lib.run import quiet_libraries

CONTEXT = {"tiny": 96, "smollm2": 256}  # tokens read before the steps
STEPS = 40  # timed ones; the static cache has room for them and for the warm-up


def as_the_library(model: PreTrainedModel, contexts: Tensor) -> Callable[[], Tensor]:
    """A step of `CachedGenerator`, whose cache grows."""
    generator, live = CachedGenerator(model, frozenset()), torch.ones(len(contexts), 1, dtype=torch.bool)
    generator._open(contexts.tolist())
    return lambda: lm_logits(model, generator._forward(contexts[:, :1], live)[:, 0])


def with_static_cache(model: PreTrainedModel, contexts: Tensor, compiled: bool) -> Callable[[], Tensor]:
    """A step on a cache of fixed size, compiled or not."""
    rows, place = contexts.shape
    room = place + STEPS + 8
    cache = StaticCache(config=model.config, max_cache_len=room)
    backbone(model)(input_ids=contexts, past_key_values=cache, use_cache=True)

    def forward(mask: Tensor, positions: Tensor) -> Tensor:
        states = backbone(model)(
            input_ids=contexts[:, :1],
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return lm_logits(model, states[:, 0])

    run = torch.compile(forward, dynamic=False) if compiled else forward

    def step() -> Tensor:
        nonlocal place
        mask = (torch.arange(room) <= place).expand(rows, 1, 1, room).contiguous()
        result = run(mask, torch.full((rows, 1), place))
        place += 1
        return result

    return step


@torch.no_grad()
def main() -> None:
    """Time the three and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", choices=CONTEXT)
    parser.add_argument("--rows", type=int, default=16)
    choice = parser.parse_args()
    torch.set_num_threads(1)
    quiet_libraries()
    model = load_policy(choice.model, "math_tutoring")[0].eval().requires_grad_(False)
    shape, generator = (choice.rows, CONTEXT[choice.model]), torch.Generator().manual_seed(0)
    contexts = torch.randint(5, model.config.vocab_size, shape, generator=generator)
    steps = {
        "as the library": as_the_library(model, contexts),
        "static cache": with_static_cache(model, contexts, compiled=False),
        "static cache, compiled": with_static_cache(model, contexts, compiled=True),
    }
    first, firsts = {}, []
    for name, step in steps.items():
        began = time.perf_counter()
        firsts.append(step())
        first[name] = time.perf_counter() - began
        step()
    gap = max(float((other - firsts[0]).abs().max()) for other in firsts[1:])
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(STEPS):
        for name, step in steps.items():
            began = time.thread_time()
            step()
            times[name].append(time.thread_time() - began)
    lines = [
        {"step": name, "ms": 1e3 * statistics.median(found), "first call, s": first[name]}
        for name, found in times.items()
    ]
    print_table(f"{choice.model}, {choice.rows} rows; logits differ by at most {gap:.1g}", lines)


if __name__ == "__main__":
    main()
