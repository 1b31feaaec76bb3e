"""The process that tests a student's answers; the answers themselves run in a worker of its own.

`python -m itpo_lib.grading.judge` reads jobs as JSON lines: first the teacher's cells before the first
answer, run once, then one submission's steps a line. Each submission is judged in a fork, so that torch is
imported once. The job's result goes to standard output, again a line.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import matplotlib.pyplot  # noqa: F401  its search for fonts takes a second: once, not in each worker
import torch
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from .. import checks
from .remote import Gone, JudgeEnd, WorkerEnd, describe
from .sandbox import DUMPABLE, end_process, fork_confined, prctl

SHOWN = 1000  # characters of a message


def quiet_shell() -> InteractiveShell:
    """IPython without history, screen and terminal; `%matplotlib inline` and `!command` work nevertheless."""
    config = Config()
    config.HistoryManager.enabled = False
    shell = InteractiveShell.instance(config=config)
    quiet = dict.fromkeys(("showtraceback", "showsyntaxerror", "enable_gui"), lambda *args, **kwargs: None)
    for name, method in {**quiet, "system": shell.system_raw}.items():
        setattr(shell, name, method)
    return shell


def run_cell(shell: InteractiveShell, source: str) -> BaseException | None:
    """Run a cell as Jupyter would; returns what it raised."""
    result = shell.run_cell(source, silent=True)
    return result.error_before_exec or result.error_in_exec


def in_a_line(error: BaseException | None) -> str | None:
    """A check's message, or the last line of a traceback."""
    if error is None:
        return None
    if isinstance(error, checks.CheckFailed | Gone):
        return str(error)[:SHOWN]
    kind, message, number, line = describe(error)
    return f"{kind}: {message}"[:SHOWN] + (f" (line {number}: {line[:200]})" if line else "")


class Worker:
    """A confined process with the student's names; started again without the cell that ended it."""

    def __init__(self, shell: InteractiveShell, job: dict[str, Any]):
        self.shell, self.job, self.last = shell, job, time.monotonic() + job["seconds"]
        self.ran: list[str] = []
        self.names: list[str] = []
        self.isolation: list[str] = []
        self.end: JudgeEnd | None = None

    def ready(self) -> JudgeEnd:
        """Our end of a living worker that has run all cells so far, with the time for one more cell."""
        if time.monotonic() > self.last:
            raise Gone("the time for the whole notebook is up")
        if self.end is None:
            self.folder = tempfile.mkdtemp()
            self.ids = fork_confined(
                self.serve, Path(self.folder), self.job["memory_mb"] << 20, int(self.job["seconds"]) + 1
            )
            self.end = JudgeEnd(self.ids[2])
            self.isolation = self.timed(self.end).ask("isolation")
            for source in self.ran:
                self.timed(self.end).ask("run", source)
            self.bind(self.names)
        return self.timed(self.end)

    def timed(self, end: JudgeEnd) -> JudgeEnd:
        """`end`, with the time for one more cell."""
        end.deadline = min(time.monotonic() + self.job["cell_seconds"], self.last)
        return end

    def serve(self, pipe: Connection, isolation: list[str]) -> None:
        """What the process does: whatever the judge asks."""

        def run(source: str) -> str | None:
            error = run_cell(self.shell, source)
            if isinstance(error, MemoryError):
                os._exit(1)  # else what the cell hoards is missing in all later cells
            return in_a_line(error)

        os.environ |= dict.fromkeys(("HOME", "TMPDIR", "MPLCONFIGDIR"), self.folder)
        tempfile.tempdir = None
        end = WorkerEnd(pipe, self.shell.user_ns, run)
        end.operations["isolation"] = lambda: isolation
        while True:
            end.serve(end.receive())

    def run(self, source: str) -> str | None:
        """Run a cell there; what it raised, in a line. A cell that ends the process is not run again."""
        try:
            error = self.ready().ask("run", source)
        except BaseException as broken:  # whatever else a hostile worker sends
            self.stop()
            return in_a_line(broken)
        self.ran.append(source)
        return None if error is None else str(error)[:SHOWN]

    def run_here(self, source: str) -> str | None:
        """Run the teacher's cell in the judge, where the student's names lead to the worker."""
        error: BaseException | None
        try:
            self.ready()
            error = run_cell(self.shell, source)
        except Gone as gone:
            error = gone
        if self.end is None or self.end.open:
            self.stop()
        return in_a_line(error)

    def bind(self, names: list[str]) -> None:
        """Put the student's objects into the judge's notebook, under the solution's names."""
        for name in names:
            self.shell.user_ns.pop(name, None)
            if self.end and not self.end.open:
                with contextlib.suppress(BaseException):  # not there: the test will say so
                    self.shell.user_ns[name] = self.end.ask("get", name)

    def stop(self) -> None:
        if self.end:
            end_process(*self.ids[:2])
            self.end.connection.close()
            shutil.rmtree(self.folder, ignore_errors=True)
        self.end = None


def judge(shell: InteractiveShell, job: dict[str, Any]) -> dict[str, Any]:
    """What each test of one submission says (None: passed), and what an answer's cells raised first."""
    worker = Worker(shell, job)
    tests: dict[str, str | None] = {}
    errors: dict[str, str] = {}
    stopped: dict[str, str | None] = {}  # exercises that ended the worker: their other tests would, too
    for step in job["steps"]:
        if step["kind"] == "setup":
            worker.run(step["source"])
            worker.run_here(step["source"])
        elif step["kind"] == "answer":
            for source in step["sources"]:
                if error := worker.run(source):
                    errors.setdefault(step["id"], error)
            worker.bind(step["names"])
            worker.names += step["names"]
        elif step["kind"] == "test":
            exercise = step["exercise"]
            tests[step["id"]] = stopped.get(exercise) or worker.run_here(step["source"])
            if worker.end is None:
                stopped[exercise] = tests[step["id"]]
    worker.stop()
    return {"tests": tests, "errors": errors, "isolation": worker.isolation}


def main() -> None:
    """Judge job after job; each in a fork of this process, which never sees a student's code."""
    prctl(DUMPABLE, 0)  # nobody reads or writes this memory through /proc
    jobs, results = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    shell, one = quiet_shell(), torch.ones((), requires_grad=True)
    torch.autograd.grad(one.clone(), one, torch.ones(()))  # its first use imports hundreds of modules: before the forks
    for line in jobs:
        job = json.loads(line)
        if "setup" in job:
            for source in job["setup"]:
                run_cell(shell, source)
            continue
        child = os.fork()
        if child == 0:
            os.dup2(nowhere, 2)
            try:
                text = json.dumps(judge(shell, job))
            except BaseException as error:
                text = json.dumps({"failed": in_a_line(error)})
            print(text, file=results, flush=True)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            print(json.dumps({"failed": "the judge crashed"}), file=results, flush=True)
    os._exit(0)  # the grader is gone, and so may be this folder, which IPython's exit hook wants


if __name__ == "__main__":
    main()
