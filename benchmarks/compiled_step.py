"""One decoding step: as the library takes it, with a static cache, compiled, and on a GPU as a CUDA graph.

    python benchmarks/compiled_step.py --model tiny --rows 16        # needs a C++ compiler; compiling takes minutes
    python benchmarks/compiled_step.py --model smollm2 --rows 8
    python benchmarks/compiled_step.py --model smollm2 --rows 64 --device cuda       # never run so far

Side by side, one thread, medians: of CPU time, on a GPU of wall-clock time. The first call's seconds are wall-clock time and
hold what is compiled or recorded.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from timing import print_table, synchronise
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
    generator = CachedGenerator(model, frozenset())
    live = torch.ones(len(contexts), 1, dtype=torch.bool, device=contexts.device)
    generator._open(contexts.tolist())
    return lambda: lm_logits(model, generator._forward(contexts[:, :1], live)[:, 0])


Forward = Callable[[Tensor, Tensor], Tensor]


def recorded(forward: Forward, cache: StaticCache, room: int, rows: int) -> Forward:
    """`forward` as a CUDA graph: its kernels are recorded once and replayed on the recording's own mask and positions."""
    place = int(cache.get_seq_length())
    mask = (torch.arange(room, device="cuda") <= place).expand(rows, 1, 1, room).contiguous()
    positions = torch.full((rows, 1), place, device="cuda")
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        forward(mask, positions)  # what is set up at a first call must not be recorded
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = forward(mask, positions)
    for layer in cache.layers:
        layer.cumulative_length.fill_(place)  # the warm-up's column is written again

    def replay(new_mask: Tensor, new_positions: Tensor) -> Tensor:
        mask.copy_(new_mask)
        positions.copy_(new_positions)
        graph.replay()
        return result.clone()

    return replay


def with_static_cache(model: PreTrainedModel, contexts: Tensor, how: str = "eager") -> Callable[[], Tensor]:
    """A step on a cache of fixed size: eager, compiled or recorded."""
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

    run: Forward | None = {"eager": forward, "compiled": torch.compile(forward, dynamic=False)}.get(how)

    def step() -> Tensor:
        nonlocal place, run
        run = run or recorded(forward, cache, room, rows)
        mask = (torch.arange(room, device=contexts.device) <= place).expand(rows, 1, 1, room).contiguous()
        result = run(mask, torch.full((rows, 1), place, device=contexts.device))
        place += 1
        return result

    return step


@torch.no_grad()
def main() -> None:
    """Time them and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", choices=CONTEXT)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    choice = parser.parse_args()
    torch.set_num_threads(1)
    quiet_libraries()
    clock = time.thread_time if choice.device == "cpu" else time.perf_counter
    dtype = torch.float32 if choice.device == "cpu" else torch.bfloat16
    model = load_policy(choice.model, "math_tutoring", dtype=dtype, device=choice.device)[0]
    model.eval().requires_grad_(False)
    shape, generator = (choice.rows, CONTEXT[choice.model]), torch.Generator().manual_seed(0)
    contexts = torch.randint(5, model.config.vocab_size, shape, generator=generator).to(choice.device)
    steps = {
        "as the library": as_the_library(model, contexts),
        "static cache": with_static_cache(model, contexts),
        "static cache, compiled": with_static_cache(model, contexts, "compiled"),
    }
    if choice.device == "cuda":
        steps["static cache, CUDA graph"] = with_static_cache(model, contexts, "recorded")
    first, firsts = {}, []
    for name, step in steps.items():
        began = time.perf_counter()
        firsts.append(step())
        synchronise()
        first[name] = time.perf_counter() - began
        step()
    gap = max(float((other - firsts[0]).abs().max()) for other in firsts[1:])
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(STEPS):
        for name, step in steps.items():
            synchronise()
            began = clock()
            step()
            synchronise()
            times[name].append(clock() - began)
    lines = [
        {"step": name, "ms": 1e3 * statistics.median(found), "first call, s": first[name]}
        for name, found in times.items()
    ]
    print_table(f"{choice.model}, {choice.rows} rows; logits differ by at most {gap:.1g}", lines)


if __name__ == "__main__":
    main()
