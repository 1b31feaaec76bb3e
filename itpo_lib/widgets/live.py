"""The training dashboard without a browser: a callback that keeps what a run says, and its picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..callbacks import GracefulStop
from ..dialogue import Dialogue
from ..plots import smooth
from .charts import Limits, Line, line_chart
from .render import Control, Scene, View, render

if TYPE_CHECKING:
    from ..trainer import ITPOTrainer

PANELS = (
    ("success", "Success rate", (0.0, 1.0)),
    ("turns", "Assistant turns", (0.0, None)),
    ("entropy", "Entropy, nats per token", (0.0, None)),
    ("prm/accuracy", "PRM accuracy", (0.0, 1.0)),
)
PHASES = {"time/rollout": "playing dialogues", "time/reference": "reference log-probs", "time/prm": "training the PRM"}


class TrainingWatch(GracefulStop):
    """Keeps a run's metrics and newest dialogue, tells `on_change`, and stops the run when `asked`.

    The stop is `GracefulStop`'s: after the batch at hand, saved. Ctrl-C stays with the run's own handler.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, Any]] = []
        self.step = self.max_steps = 0
        self.running = False
        self.error = ""
        self.dialogue: Dialogue | None = None
        self.trainer: ITPOTrainer | None = None
        self.on_change: Callable[[], None] = lambda: None

    def attach(self, trainer: ITPOTrainer) -> None:
        """Tell the watch whose newest dialogue to show."""
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.rows = [row for row in self.rows if row["step"] <= state.global_step]
        self.step, self.max_steps, self.running, self.asked = state.global_step, state.max_steps, True, False
        self.error = ""
        self.on_change()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "train_runtime" not in logs:
            self.rows.append({"step": state.global_step, **logs})
            self.step = state.global_step
            if self.trainer is not None and self.trainer.dialogues:
                self.dialogue = self.trainer.dialogues[0]
            self.on_change()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.running = False
        self.on_change()

    def fail(self, error: BaseException) -> None:
        """The run ended with an error."""
        self.running, self.error = False, f"{type(error).__name__}: {error}"
        self.on_change()


def time_split(rows: list[dict[str, Any]]) -> list[tuple[str, float, float]]:
    """Where the seconds of a run went: (phase, seconds, share); what is in no phase is the policy's update."""
    total = sum(row.get("step_time", 0.0) for row in rows)
    parts = [(label, sum(row.get(key, 0.0) for row in rows)) for key, label in PHASES.items()]
    parts.append(("updating the policy, and the rest", max(0.0, total - sum(seconds for _, seconds in parts))))
    return [(label, seconds, seconds / total if total else 0.0) for label, seconds in parts]


class DashboardScene(Scene):
    """A run as it goes: success against the ceiling, turns, entropy, PRM accuracy, time, newest dialogue."""

    title = "Training dashboard"

    def __init__(self, watch: TrainingWatch, ceiling: float | None = None):
        self.watch, self.ceiling = watch, ceiling

    def controls(self, values: Mapping[str, Any]) -> list[Control]:
        idle = not self.watch.running or self.watch.asked
        return [Control("stop", "Stop and save", "button", disabled=idle)]

    def press(self, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
        if name != "stop":
            return super().press(name, values)
        self.watch.asked = True
        return {}

    def view(self, values: Mapping[str, Any]) -> View:
        watch = self.watch
        html = render(
            "dashboard.html", charts=[self.chart(*panel) for panel in PANELS], split=time_split(watch.rows),
            dialogue=watch.dialogue, step=watch.step,
        )  # fmt: skip
        return View(html, self.status())

    def chart(self, key: str, title: str, y_limits: Limits) -> str:
        """Dots are batches, the line is their trailing mean."""
        known = [(row["step"], row[key]) for row in self.watch.rows if row.get(key) is not None]
        steps, seen = [s for s, _ in known], [v for _, v in known]
        mean = smooth(seen).tolist()
        lines = (
            [Line("", steps, seen, dots=True, style=0), Line(f"{mean[-1]:.2f}", steps, mean, style=0)] if known else []
        )
        level = (f"ceiling {self.ceiling:.2f}", self.ceiling) if key == "success" and self.ceiling is not None else None
        return line_chart(title, lines, level=level, x_limits=(0.0, self.watch.max_steps), y_limits=y_limits)

    def status(self) -> str:
        """One line: how far the run is."""
        watch = self.watch
        if watch.error:
            return f"The run failed. {watch.error}"
        if not watch.rows and not watch.running:
            return "No run yet."
        newest = next((row["success"] for row in reversed(watch.rows) if "success" in row), None)
        success = "" if newest is None else f", success {newest:.2f}"
        state = "running" if watch.running else "finished" if watch.step >= watch.max_steps else "stopped and saved"
        if watch.running and watch.asked:
            state = "stopping after this batch"
        return f"Step {watch.step} of {watch.max_steps}{success}: {state}."
