"""Rollouts in two waves, whose users think while the other wave is generated, against one wave.

    python benchmarks/overlap.py [--repeats 5]

The shipped tiny policy plays the same dialogues both ways. The users repeat a sentence, each reply a fixed time after
it was asked for, as behind a server that has room for all. That time is none (what does it cost to halve the batch?)
or what the policy takes for one turn of one of the two waves, measured first.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from timing import print_table, side_by_side

from itpo_lib.models import load_policy
from itpo_lib.rollout import Episode, play
from itpo_lib.run import quiet_libraries
from itpo_lib.tasks import Goal, Limits, Reply, User
from itpo_lib.tasks.math_tiny import TinyMathTutoring

TURNS = 4


class DistantUser(User):
    """Repeats a sentence for `TURNS` turns; a reply arrives `latency` seconds after it was asked for."""

    def __init__(self, latency: float):
        self.latency, self.heard = latency, 0

    def reply(self, text: str) -> Reply:
        return self.start_reply(text)()

    def start_reply(self, text: str) -> Callable[[], Reply]:
        self.heard += 1
        arrives, done = time.perf_counter() + self.latency, self.heard >= TURNS

        def finish() -> Reply:
            time.sleep(max(0.0, arrives - time.perf_counter()))
            return Reply("it is 5 .", done)

        return finish


class DistantTask(TinyMathTutoring):
    """Tiny math tutoring with users far away."""

    latency = 0.0
    limits = Limits(max_turns=TURNS, max_turn_tokens=16, max_tokens=200)

    def user(self, goal: Goal, seed: int) -> User:
        return DistantUser(self.latency)


def measure(dialogues: int, repeats: int) -> list[dict[str, object]]:
    """Rows of the table for one batch size, one for each latency."""
    (model, chat), task = load_policy("tiny", "math_tutoring"), DistantTask()
    episodes = [Episode(task.goal(i), i) for i in range(dialogues)]

    def run(batch: list[Episode], waves: int) -> Callable[[], object]:
        return lambda: play(model, chat, task, batch, waves=waves)

    wave_turn = side_by_side({"half": run(episodes[: dialogues // 2], 1)}, repeats)["half"] / TURNS
    rows = []
    for times in (0.0, 1.0):
        task.latency = times * wave_turn
        seconds = side_by_side({"one": run(episodes, 1), "two": run(episodes, 2)}, repeats)
        rows.append(
            {
                "case": f"tiny, {dialogues} dialogues, {TURNS} turns",
                "latency / a wave's turn": times,
                "latency (ms)": 1000 * task.latency,
                "one wave (s)": seconds["one"],
                "two waves (s)": seconds["two"],
                "ratio": seconds["one"] / seconds["two"],
            }
        )
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    quiet_libraries()
    rows = [row for dialogues in (16, 64, 256) for row in measure(dialogues, options.repeats)]
    print_table(f"Overlap of users and policy, {options.threads} thread(s)", rows)


if __name__ == "__main__":
    main()
