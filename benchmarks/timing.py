"""Side-by-side timing: candidates take turns in one process, and medians are compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def side_by_side(candidates: dict[str, Callable[[], object]], repeats: int = 5, warmup: int = 1) -> dict[str, float]:
    """Median wall seconds of each candidate; they alternate, so that a busy machine hurts all alike."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for repeat in range(warmup + repeats):
        for name, run in candidates.items():
            synchronise()
            began = time.perf_counter()
            run()
            synchronise()
            if repeat >= warmup:
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def synchronise() -> None:
    """Wait for the GPU, if there is one: its work is only queued when a call returns."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def print_table(title: str, rows: list[dict[str, object]]) -> None:
    """A table in plain text, one row per measurement."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "case" else "right", overflow="fold")
    for row in rows:
        table.add_row(*(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()))
    Console(width=120).print(table)
