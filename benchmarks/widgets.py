"""How long a widget takes to answer a move: 64 dialogues of 8 turns, 12 tokens a turn, 20 recorded states.

python benchmarks/widgets.py [--repeats 15]

The time is that of `set` or `press` in the kernel: settings checked, numbers computed, HTML rendered. What the
browser adds is not in it, nor is a first move that imports and compiles. "first" is a move to settings that were not seen before, "again" one back to them.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable

import numpy as np
from timing import print_table

from itpo_lib.dialogue import Dialogue
from itpo_lib.tasks import get_task
from itpo_lib.widgets import CreditExplorer, PlayRoom, Recording, TrainingDashboard, TurnInspector

DIALOGUES, TURNS, TOKENS, STATES = 64, 8, 12, 20


def largest() -> Recording:
    """A recording of the size that the tables speak of."""
    dialogues = []
    for _ in range(DIALOGUES):
        dialogue = Dialogue([1], [{"role": "user", "content": "what is the result ?"}])
        for _ in range(TURNS):
            dialogue.add_assistant([5] * TOKENS, [0.0] * TOKENS, "some words " * (TOKENS // 2))
            dialogue.add_user([6] * 8, "a reply of some length")
        dialogue.outcome = 1.0
        dialogues.append(dialogue)
    width = len(dialogues[0].completion_ids)
    ratios = np.random.default_rng(0).normal(size=(STATES, DIALOGUES, width)).astype(np.float32)
    ratios *= np.array(dialogues[0].turn_ids) > 0
    truth = [[0.1] * TURNS] * DIALOGUES
    return Recording(dialogues, list(range(STATES)), ratios, [["word"] * width] * DIALOGUES, truth=truth)


def milliseconds(move: Callable[[], object], repeats: int) -> dict[str, object]:
    """Median and worst wall time of a move, and its median CPU time, in ms: a busy machine inflates the first two."""
    move()
    wall, cpu = [], []
    for _ in range(repeats):
        began, worked = time.perf_counter(), time.process_time()
        move()
        wall.append(1e3 * (time.perf_counter() - began))
        cpu.append(1e3 * (time.process_time() - worked))
    return {"median ms": statistics.median(wall), "worst ms": max(wall), "median CPU ms": statistics.median(cpu)}


def main() -> None:
    """Print one table of all widgets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    inspector, explorer = TurnInspector(largest()), CreditExplorer()
    room, dashboard = PlayRoom(get_task("math_tutoring")), TrainingDashboard(0.99)
    names = ("success", "turns", "entropy", "prm/accuracy", "time/rollout", "step_time")
    dashboard.callback.rows = [{"step": n, **{name: 0.5 for name in names}} for n in range(500)]
    tables = inspector.scene._tables
    states, dialogues = itertools.cycle(range(STATES)), itertools.cycle(range(DIALOGUES))
    betas, baselines = itertools.cycle((0.1, 0.2)), itertools.cycle(("turn", "official", "outcome"))
    moves: dict[str, Callable[[], object]] = {
        "inspector: training step": lambda: inspector.set(state=next(states)),
        "inspector: another dialogue": lambda: inspector.set(dialogue=next(dialogues)),
        "inspector: β, first": lambda: (tables.clear(), inspector.set(beta=next(betas))),
        "inspector: β, again": lambda: inspector.set(beta=next(betas)),
        "inspector: sort by disagreement": lambda: (inspector.set(show="all"), inspector.set(show="disagreement")),
        "inspector: compare and tokens, training step": lambda: inspector.set(
            compare="itpo", tokens=True, state=next(states)
        ),
        "explorer: baseline": lambda: explorer.set(baseline=next(baselines)),
        "dashboard: 500 steps, redrawn": dashboard.refresh,
        "play room: a turn": lambda: (room.press("new"), room.press("say", text="how many ?")),
    }
    rows = [{"case": case, **milliseconds(move, repeats)} for case, move in moves.items()]
    print_table(f"{DIALOGUES} dialogues x {TURNS} turns x {TOKENS} tokens, {STATES} states, {repeats} repeats", rows)


if __name__ == "__main__":
    main()
