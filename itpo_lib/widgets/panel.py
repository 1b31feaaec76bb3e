"""The live half of the scenes: widgets that work in JupyterLab 4, Colab and VS Code alike."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import traitlets

from ..errors import ItpoError, require
from ..tasks.base import Task
from .exploration import ExplorerScene
from .inspection import InspectorScene
from .live import DashboardScene, TrainingWatch
from .playing import PlayScene
from .recording import Recording
from .render import SCRIPT_FILE, STYLE_FILE, Scene, render

if TYPE_CHECKING:
    from ..trainer import ITPOTrainer


class Panel(anywidget.AnyWidget):
    """Shows a `Scene`. Moves arrive one at a time from the browser or from `set`, and end in `Scene.view`.

    `values` is what the controls hold: to be read; change it with `set`.
    """

    _esm = SCRIPT_FILE
    _css = STYLE_FILE
    _ipython_display_ = None  # ipywidgets 7 would display without the static twin

    label = traitlets.Unicode().tag(sync=True)
    controls = traitlets.Unicode().tag(sync=True)
    view = traitlets.Unicode().tag(sync=True)
    status = traitlets.Unicode().tag(sync=True)
    values = traitlets.Dict().tag(sync=True)

    def __init__(self, scene: Scene, **values: Any):
        self.scene = scene
        self._drawing = threading.RLock()  # JupyterLab may deliver moves in a thread of their own
        super().__init__(label=scene.title)
        self.set(**values)
        self.on_msg(self._on_message)

    def set(self, **changes: Any) -> None:
        """Move controls from Python; raises where the reader would see a message."""
        self._show({**self.values, **changes})

    def press(self, button: str, **changes: Any) -> None:
        """Press a button, after moving controls."""
        values = self.scene.settle({**self.values, **changes})
        self._show({**values, **self.scene.press(button, values)})

    def refresh(self) -> None:
        """Draw again: what the scene shows has changed by itself."""
        self._show(self.values)

    def to_html(self, path: str | Path) -> Path:
        """Write the static twin of what is shown now."""
        return self.scene.to_html(path, **self.values)

    def _show(self, values: dict[str, Any]) -> None:
        with self._drawing, self.hold_sync():
            values = self.scene.settle(values)
            view = self.scene.view(values)
            self.controls = self.scene.controls_html(values)
            self.values, self.view, self.status = values, view.html, view.status

    def _on_message(self, _: Any, content: dict[str, Any], __: Any) -> None:
        """A move or a press from the browser, which waits for the answer before it sends another."""
        button, moves = content.get("press"), content.get("moves", {})
        try:
            self.set(**moves) if button is None else self.press(button, **moves)
        except ItpoError as error:  # of the reader's making, so it belongs under the reader's eyes
            self.view, self.status = render("error.html", text=str(error)), ""
        finally:
            self.send({"done": True})

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The widget, and beside it the static twin for places without a kernel."""
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is not None:
            bundle[0]["text/html"] = self.scene.static_html(self.values)
        return bundle


class TurnInspector(Panel):
    """Dialogues with the reward of each turn, under settings that the reader moves."""

    def __init__(self, recording: Recording, **values: Any):
        super().__init__(InspectorScene(recording), **values)


class PlayRoom(Panel):
    """Be the assistant or the user of a task. The arguments are those of `PlayScene`."""

    def __init__(self, task: Task, **settings: Any):
        super().__init__(PlayScene(task, **settings))


class CreditExplorer(Panel):
    """Four hand-made dialogues, from log-ratios to advantages, with editable numbers."""

    def __init__(self, **values: Any):
        super().__init__(ExplorerScene(), **values)


class TrainingDashboard(Panel):
    """A run as it goes. Give `callback` to the trainer; `start` trains in a thread, so that Stop works anywhere."""

    seconds_between_updates = 0.25

    def __init__(self, ceiling: float | None = None):
        self.callback = TrainingWatch()
        self._drawn_at = 0.0
        self._job: Future[Any] | None = None
        super().__init__(DashboardScene(self.callback, ceiling))
        self.callback.on_change = self._changed

    def watch(self, trainer: ITPOTrainer) -> None:
        """Listen to a trainer; call it before `trainer.train()`."""
        self.callback.attach(trainer)
        trainer.add_callback(self.callback)

    def _changed(self) -> None:
        now = time.monotonic()
        if not self.callback.running or now - self._drawn_at > self.seconds_between_updates:
            self._drawn_at = now
            self.refresh()

    def start(self, work: Callable[[], Any]) -> None:
        """Run `work`, which trains with this dashboard's callback, beside the notebook."""
        require(not self.callback.running, "this dashboard already watches a run: stop it first")
        job: Future[Any] = Future()
        self._job = job

        def run() -> None:
            try:
                job.set_result(work())
            except BaseException as error:
                job.set_exception(error)
                self.callback.fail(error)

        threading.Thread(target=run, name="training", daemon=True).start()

    def wait(self) -> Any:
        """What the `work` given to `start` returned, once it has; its error is raised here.

        A cell that waits keeps Stop from being heard; the kernel's own interrupt then does the same.
        """
        if self._job is None:
            raise ItpoError("nothing was started: call start first")
        try:
            return self._job.result()
        except KeyboardInterrupt:
            self.callback.asked = True
            return self._job.result()
