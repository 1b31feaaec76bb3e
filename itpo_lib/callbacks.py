"""What listens to a run: the metrics file, the progress bar, and the graceful stop."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState

from .errors import ItpoError, require
from .files import write_whole


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file; a last line cut off by a crash is dropped."""
    rows: list[dict[str, Any]] = []
    lines = path.read_text().splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise ItpoError(f"{path.name} line {number} is not JSON: {line[:60]!r}") from error
    return rows


class MetricsFile(TrainerCallback):
    """One JSON line per step. On resume, rows after the checkpoint are dropped: they are made again."""

    def __init__(self, path: Path):
        self.path = path

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            rows = read_metrics(self.path)
            for row in rows:
                whole = isinstance(row, dict) and isinstance(row.get("step"), int)
                require(whole, f"{self.path.name} has a row without a step, {str(row)[:60]}: remove it")
            kept = [row for row in rows if row["step"] <= state.global_step]
            write_whole(self.path, "".join(json.dumps(row) + "\n" for row in kept))

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and logs and "train_runtime" not in logs:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")


class OnBegin(TrainerCallback):
    """Does something once the run has begun; a resumed one has loaded its checkpoint by then."""

    def __init__(self, act: Callable[[], None]):
        self.act = act

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.act()


class ProgressBar(TrainerCallback):
    """A bar with numbers of the newest batch; `shown` maps a metric to its format."""

    def __init__(self, **shown: str) -> None:
        self.bar: Any = None
        self.shown = shown or {"success": ".2f", "turns": ".1f"}

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.bar = tqdm(
                total=state.max_steps, initial=state.global_step, desc="training", unit="step", mininterval=1
            )

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        if self.bar is not None and logs:
            newest = {name: f"{float(logs[name]):{form}}" for name, form in self.shown.items() if name in logs}
            if newest:  # steps that reuse a batch of dialogues play none
                self.bar.set_postfix(newest, refresh=False)
            self.bar.update(state.global_step - self.bar.n)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.close()


class GracefulStop(TrainerCallback):
    """Ctrl-C ends the run after the batch at hand and saves it; a second Ctrl-C ends it at once."""

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        try:
            self._before = signal.signal(signal.SIGINT, self._ask)
        except ValueError:  # not the main thread (a notebook's widget): nothing to catch there
            self._before = None

    def _ask(self, *_: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        tqdm.write("Stopping after this batch; press Ctrl-C again to stop at once, without saving.")

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.asked and state.global_step % args.steps_per_batch == 0:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.release()

    def release(self) -> None:
        """Give Ctrl-C back; also for a training that ended in an error, of which no callback hears."""
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None
