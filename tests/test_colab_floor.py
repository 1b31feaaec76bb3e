"""The widgets and notebooks 00 to 05 on the oldest versions: Colab's old ipywidgets and IPython, and the minimum that
pyproject.toml declares of every other package but torch. The widgets are spoken to as a browser would.

torch is the one that this environment already has. Its minimum, 2.6.0, was tried by hand in November 2026 beside all
the other minimums, on Python 3.11: they install together, and `itpo train` runs. It is not part of CI: for Linux the
package index has 2.6.0 only as a download of 0.77 GB for CUDA, which does not import ("libcublas.so not found") without
2.7 GB of NVIDIA's libraries (installed).

An environment of 0.75 GB is built once, with the old packages in front of this one's. It is kept in ITPO_CACHE (default:
the user's cache). Where the registry cannot be reached the tests skip; with ITPO_REQUIRE_BROWSER=1 they fail.
Notebooks 00 to 05 run there, too: about four minutes of CPU; ITPO_FLOOR_NOTEBOOKS=0 leaves them out.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest
from filelock import FileLock
from packaging.requirements import Requirement
from packaging.version import Version

SILENCE = 600  # seconds without a sign of life; a training cell on a busy machine prints nothing for minutes
REPO = Path(__file__).resolve().parent.parent
DECLARED = map(Requirement, tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["dependencies"])
FLOORS = {r.name: s.version for r in DECLARED for s in r.specifier if s.operator == ">=" and r.name != "torch"}
OLD = {**FLOORS, "ipywidgets": "7.7.1", "ipython": "7.34.0"}
ALONE = {"accelerate", "anywidget", "ipywidgets", "peft", "trl"}  # they would bring torch, or the classic notebook
BESIDE = ["ipykernel<7", "ipython-genutils"]  # what ipywidgets 7 needs of a kernel
BOOKS = sorted((REPO / "notebooks").glob("0[0-5]_*.ipynb"))


def build(folder: Path) -> None:
    """A virtual environment whose own packages come before all of ours."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    environment = {k: v for k, v in os.environ.items() if k not in ("PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT")}
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--retries=1",
        "--only-binary=:all:",
    ]
    alone, whole = ([f"{n}=={v}" for n, v in OLD.items() if (n in ALONE) == wanted] for wanted in (True, False))
    for arguments in ([*whole, *BESIDE], ["--no-deps", *alone]):
        done = subprocess.run([*pip, *arguments], env=environment, capture_output=True, text=True)
        if done.returncode:
            raise OSError(f"pip could not install {arguments}: {done.stderr.strip().splitlines()[-1]}")
    ours = sysconfig.get_paths()["purelib"]
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "zz_ours.pth").write_text(f"import site; site.addsitedir({ours!r})\n{REPO}\n")


@pytest.fixture(scope="module")
def floor_python() -> Path:
    """The interpreter of the old environment."""
    cache = Path(os.environ.get("ITPO_CACHE") or Path.home() / ".cache" / "itpo")
    key = hashlib.sha256(json.dumps([sys.prefix, sys.version, OLD, BESIDE, str(REPO)]).encode()).hexdigest()[:12]
    folder = cache / f"colab-floor-{key}"
    fresh = folder.with_suffix(".part")
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # a second worker waits for the first one's
        if not folder.exists():
            shutil.rmtree(fresh, ignore_errors=True)
            try:
                build(fresh)
            except OSError as error:
                (pytest.fail if os.environ.get("ITPO_REQUIRE_BROWSER") == "1" else pytest.skip)(str(error))
            fresh.rename(folder)
    return folder / "bin" / "python"


class Kernel:
    """A running kernel; what it published, and the comms that it opened."""

    def __init__(self, client):
        self.client = client

    def ask(self, kind: str, content: dict) -> list[dict]:
        """Send one message and return what the kernel published until it was idle again."""
        message = self.client.session.msg(kind, content)
        self.client.shell_channel.send(message)
        published = []
        while True:
            try:
                found = self.client.get_iopub_msg(timeout=SILENCE)
            except queue.Empty:
                pytest.fail(f"the kernel never answered {kind}")
            if found["parent_header"].get("msg_id") != message["header"]["msg_id"]:
                continue
            if found["msg_type"] == "error":
                pytest.fail("\n".join(found["content"]["traceback"]))
            if found["msg_type"] == "status" and found["content"]["execution_state"] == "idle":
                return published
            published.append(found)

    def run(self, code: str) -> list[dict]:
        """Execute a cell."""
        return self.ask("execute_request", {"code": code, "silent": False, "store_history": False})

    def move(self, comm_id: str, **content) -> dict:
        """What the widget's browser half would send; returns the state that came back."""
        data = {"method": "custom", "content": {"moves": {}, "press": None, **content}}
        state, answered = {}, False
        for message in self.ask("comm_msg", {"comm_id": comm_id, "data": data}):
            if message["msg_type"] == "comm_msg" and message["content"]["comm_id"] == comm_id:
                body = message["content"]["data"]
                state.update(body.get("state", {}))
                answered = answered or body.get("content") == {"done": True}
        assert answered
        return state


@contextmanager
def running(python: Path, folder: Path) -> Iterator[Kernel]:
    """A kernel of the old environment, started among the notebooks."""
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import KernelManager

    command = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (folder / "colab").mkdir()
    (folder / "colab" / "kernel.json").write_text(
        json.dumps({"argv": command, "display_name": "Colab's floor", "language": "python"})
    )
    manager = KernelManager(kernel_name="colab", kernel_spec_manager=KernelSpecManager(kernel_dirs=[str(folder)]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    manager.start_kernel(env=environment, cwd=str(REPO / "notebooks"))
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=120)
        yield Kernel(client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def kernel(floor_python, tmp_path_factory):
    """A kernel with the widgets imported."""
    with running(floor_python, tmp_path_factory.mktemp("kernels")) as started:
        started.run("from itpo_lib.widgets import *\nfrom itpo_lib.tasks import get_task")
        yield started


def show(kernel: Kernel, expression: str) -> tuple[str, dict, dict]:
    """Evaluate a widget as a cell's last line: its comm, the state it opened with, and what is displayed."""
    published = kernel.run(expression)
    opened = [m["content"] for m in published if m["msg_type"] == "comm_open"]
    main = next(o for o in opened if "view" in o["data"]["state"])
    shown = next(m["content"]["data"] for m in published if m["msg_type"] in ("execute_result", "display_data"))
    assert shown["application/vnd.jupyter.widget-view+json"]["model_id"] == main["comm_id"]
    state = dict(main["data"]["state"])
    for message in published:
        if message["msg_type"] == "comm_msg" and message["content"]["comm_id"] == main["comm_id"]:
            state.update(message["content"]["data"].get("state", {}))
    return main["comm_id"], state, shown


def test_every_package_is_as_old_as_declared(kernel):
    code = f"from importlib.metadata import version\nprint(*map(version, {list(OLD)}))"
    (stream,) = [m for m in kernel.run(code) if m["msg_type"] == "stream"]
    assert list(map(Version, stream["content"]["text"].split())) == list(map(Version, OLD.values()))


def test_inspector_renders_and_answers(kernel):
    comm, state, shown = show(kernel, "TurnInspector(Recording.sample(), dialogue=4)")
    assert state["_esm"].startswith("// The browser's half") and ".itpo {" in state["_css"]
    assert "PRM at step 76" in state["status"] and "bubble assistant" in state["view"]
    assert shown["text/plain"] == "TurnInspector()" and "bubble assistant" in shown["text/html"]
    moved = kernel.move(comm, moves={"state": 0, "credit": "itpo"})
    assert "PRM at step 0: ITPO" in moved["status"] and moved["values"]["credit"] == "itpo"
    assert 'role="alert"' in kernel.move(comm, moves={"state": 999})["view"]
    assert "PRM at step 4" in kernel.move(comm, moves={"state": 1})["status"]


def test_explorer_renders_and_answers(kernel):
    comm, state, _ = show(kernel, "CreditExplorer()")
    assert "Baseline turn" in state["status"]
    kernel.move(comm, press="equal")
    assert "D −1.44" in kernel.move(comm, moves={"baseline": "official"})["status"]


def test_play_room_renders_and_answers(kernel):
    comm, state, _ = show(kernel, "PlayRoom(get_task('math_tutoring'))")
    assert "Assistant turn 1 of" in state["status"]
    said = kernel.move(comm, press="say", moves={"text": "how many ? <b>"})
    assert "how many ? &lt;b&gt;" in said["view"] and "Assistant turn 2 of" in said["status"]


def test_dashboard_follows_a_thread_and_stops(kernel):
    comm, state, _ = show(kernel, "dashboard = TrainingDashboard(0.9)\ndashboard")
    assert state["status"] == "No run yet."
    script = """
    from types import SimpleNamespace
    import time
    def work():
        watch = dashboard.callback
        watch.on_train_begin(None, SimpleNamespace(global_step=0, max_steps=10**6), None)
        control = SimpleNamespace(should_training_stop=False)
        step = 0
        while not control.should_training_stop:
            time.sleep(0.01)
            step += 1
            state = SimpleNamespace(global_step=step)
            watch.on_log(None, state, None, logs={'success': 0.5})
            watch.on_step_end(SimpleNamespace(steps_per_batch=1), state, control)
        watch.on_train_end(None, state, None)
        return 'saved' if control.should_save else 'lost'
    dashboard.start(work)
    """
    kernel.run("if True:" + script)
    status = kernel.move(comm, press="stop")["status"]
    assert status.endswith(("stopping after this batch.", "stopped and saved.")), "the run may have ended meanwhile"
    (stream,) = [m for m in kernel.run("print(dashboard.wait(), dashboard.status)") if m["msg_type"] == "stream"]
    assert stream["content"]["text"].startswith("saved Step") and "stopped and saved" in stream["content"]["text"]


# The notebooks


def test_a_cell_that_raises_is_a_failure(kernel):
    with pytest.raises(pytest.fail.Exception, match="ZeroDivisionError"):
        kernel.run("1 / 0")


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("ITPO_FLOOR_NOTEBOOKS") == "0", reason="switched off by ITPO_FLOOR_NOTEBOOKS=0")
@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.stem)
def test_notebook_runs(book, floor_python, tmp_path):
    """Every code cell, top to bottom, in a kernel of its own; a cell that raises fails the test."""
    with running(floor_python, tmp_path) as kernel:
        for cell in nbformat.read(book, as_version=4).cells:
            if cell.cell_type == "code":
                kernel.run(cell.source)
