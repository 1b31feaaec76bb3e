"""`itpo grade`: which submissions there are, what each is worth, and where that is written."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import queue
import re
import select
import signal
import subprocess
import sys
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from ..errors import ItpoError, require, unknown_name
from .feedback import write_feedback, write_grades
from .notebook import Cell, join, parse, read_bytes, read_solution

START_SECONDS = 300  # to import torch and run the teacher's first cells, on a busy machine
Record = dict[str, Any]


@dataclass(frozen=True)
class Limits:
    """What one submission may use."""

    cell_seconds: float = 60
    seconds: float = 300
    memory_mb: int = 2048


class Server:
    """A judging process; started with its first job, and again after a failure."""

    def __init__(self, setup: list[str]):
        self.setup = setup
        self.process: subprocess.Popen[str] | None = None

    def ask(self, job: Record) -> Record:
        """The judge's result of a job; `failed` if there is none."""
        seconds = job["seconds"] + 60 + START_SECONDS * (self.process is None)
        process = self.process = self.process or self.start()
        assert process.stdin and process.stdout
        line = ""
        with suppress(OSError, ValueError):  # it died
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            if select.select([process.stdout], [], [], seconds)[0]:
                line = process.stdout.readline()
        if not line:
            self.stop()
        return json.loads(line) if line else {"failed": "the judging process gave no answer"}

    def start(self) -> subprocess.Popen[str]:
        """A new process with an environment that holds no secrets, in a folder of its own."""
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        environment = {
            "PATH": os.defpath,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "HOME": self.folder.name,
            "TMPDIR": self.folder.name,
            "MPLBACKEND": "agg",
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "itpo_lib.grading.judge"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            cwd=self.folder.name,
            start_new_session=True,
            text=True,
        )
        assert process.stdin
        process.stdin.write(json.dumps({"setup": self.setup}) + "\n")
        return process

    def stop(self) -> None:
        """End the process and what it started."""
        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.folder.cleanup()
        self.process = None


class Assignment:
    """A solution notebook, and the processes that judge submissions by it."""

    def __init__(self, path: Path, limits: Limits, library: str):
        self.name, self.limits, self.cells = path.stem, limits, read_solution(path)
        self.version = f"{library} {fingerprint(read_bytes(path))} {limits}"
        steps, _ = join(self.cells, self.cells)
        self.setup = [s["source"] for s in itertools.takewhile(lambda s: s["kind"] == "setup", steps)]
        self.exercises = list(by_exercise(steps))
        self.max = sum(s["points"] for s in steps if s["kind"] == "test")
        self.by_hand = sum(s["points"] for s in steps if s["kind"] == "written")
        self.servers: queue.SimpleQueue[Server] = queue.SimpleQueue()

    def judge(self, submission: list[Cell]) -> Record:
        """What goes into a record: exercises with points and messages, or the status `failed`."""
        steps, notes = join(self.cells, submission)
        server = self.servers.get()
        try:
            result = server.ask({"steps": steps[len(self.setup) :], **asdict(self.limits)})
        finally:
            self.servers.put(server)
        if "failed" in result:
            return {"status": "failed", "notes": [*notes, result["failed"]]}
        exercises = [exercise(name, group, result) for name, group in by_exercise(steps).items()]
        total = sum(e["points"] or 0 for e in exercises)
        isolation = result["isolation"]
        return {"status": "graded", "notes": notes, "total": total, "exercises": exercises, "isolation": isolation}

    def prove(self) -> None:
        """The solution itself has to get all points, else no student can."""
        record = self.judge(self.cells)
        messages = [
            f"{t['id']}: {t['message']}" for e in record.get("exercises", ()) for t in e["tests"] if t["message"]
        ]
        if record["status"] == "failed" or messages:
            said = "; ".join(messages or record["notes"])
            if "no result in time" in said:
                said += ". Limits count wall time: on a busy machine give more --cell-seconds"
            raise ItpoError(f"the solution {self.name!r} fails its own tests: {said}")

    def finish(self, record: Record, out: Path) -> None:
        """Judge a new record's cells, and save what came out."""
        result = self.judge(record.pop("cells"))
        record |= result | {"notes": record["notes"] + result["notes"]}
        if record["status"] == "graded":
            path = saved_at(out, record)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".part").write_text(json.dumps(record, indent=1))
            path.with_suffix(".part").replace(path)

    @contextmanager
    def workforce(self, jobs: int) -> Iterator[ThreadPoolExecutor]:
        """`jobs` threads with a judging process each; all gone afterwards, Ctrl-C included."""
        servers = [Server(self.setup) for _ in range(jobs)]
        for server in servers:
            self.servers.put(server)
        pool = ThreadPoolExecutor(jobs)
        try:
            yield pool
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for server in servers:
                server.stop()


def by_exercise(steps: list[Record]) -> dict[str, list[Record]]:
    """An exercise is an answer with the tests that follow it, or a text that a person reads."""
    groups: dict[str, list[Record]] = {}
    for step in steps:
        if step["kind"] != "setup":
            groups.setdefault(step.get("exercise") or step["id"], []).append(step)
    return groups


def exercise(name: str, group: list[Record], result: Record) -> Record:
    """One exercise of a record; `points` is None where a person has to read."""
    first, written = group[0], group[0]["kind"] == "written"
    tests = [
        {"id": s["id"], "max": s["points"], "message": result["tests"][s["id"]]} for s in group if s["kind"] == "test"
    ]
    for test in tests:
        test["points"] = 0.0 if test["message"] else test["max"]
    return {
        "id": name,
        "title": first["title"] or name,
        "points": None if written else sum(t["points"] for t in tests),
        "max": first["points"] if written else sum(t["max"] for t in tests),
        "tests": tests,
        "error": result["errors"].get(name),
        "answer": first["source"] if written else None,
        "rubric": first["rubric"] if written else None,
    }


def grade(submissions: Path, solutions: Path, out: Path, jobs: int = 2, limits: Limits | None = None) -> list[Record]:
    """Grade a folder; writes `grades.csv`, `feedback/` and `results/` into `out`. What is finished is not run again."""
    require(hasattr(os, "fork"), "grading needs Linux or macOS")
    require(submissions.is_dir(), f"there is no folder {str(submissions)!r} with submissions")
    library = fingerprint(*(path.read_bytes() for path in sorted(Path(__file__).parents[1].rglob("*.py"))))
    paths = sorted(solutions.glob("*.ipynb"))
    require(bool(paths), f"there is no solution notebook in {str(solutions)!r}")
    assignments = {path.stem: Assignment(path, limits or Limits(), library) for path in paths}
    found = find(submissions, assignments)
    wanted = "STUDENT/ASSIGNMENT.ipynb or STUDENT__ASSIGNMENT.ipynb"
    require(bool(found), f"there is no notebook in {str(submissions)!r}; wanted are files {wanted} in it")
    records = [look(submissions, out, assignments, *each) for each in found]
    with Progress(console=Console(stderr=True)) as bar:
        for assignment in assignments.values():
            if todo := [r for r in records if "cells" in r and r["assignment"] == assignment.name]:
                task = bar.add_task(assignment.name, total=len(todo))
                with assignment.workforce(jobs) as pool:
                    assignment.prove()
                    for future in as_completed([pool.submit(assignment.finish, record, out) for record in todo]):
                        future.result()
                        bar.advance(task)
    for record, (*_, paths) in zip(records, found, strict=True):
        names = [path.relative_to(submissions) for path in paths]
        record["notes"] += [f"not graded: {name}; what counts is {names[0]}" for name in names[1:]]
        write_feedback(record, out)
    handed_in = [a for a in assignments.values() if any(r["assignment"] == a.name for r in records)]
    write_grades(records, [name for a in handed_in for name in a.exercises], out)
    return records


def find(submissions: Path, assignments: Iterable[str]) -> list[tuple[str, str, list[Path]]]:
    """Students, assignments and notebooks; none where others handed an assignment in and this student did not.

    Taken are student__assignment.ipynb, student/assignment.ipynb, then deeper ones (nbgrader collects
    student/assignment/assignment.ipynb). The first of several counts.
    """
    found: dict[tuple[str, str], list[Path]] = {}
    names = sorted(assignments, key=len, reverse=True)  # of two that fit, the longer one is meant
    paths = {*submissions.glob("*/*"), *submissions.rglob("*")}  # the former looks behind links, too
    for path in sorted(paths, key=lambda path: (len(path.parts), path)):
        parts = [unicodedata.normalize("NFC", part) for part in path.relative_to(submissions).parts]
        if path.suffix.lower() == ".ipynb" and not any(map(is_hidden, parts)):
            found.setdefault(whose(parts, names), []).append(path)
    folders = {unicodedata.normalize("NFC", path.name) for path in submissions.iterdir() if path.is_dir()}
    students = {folder for folder in folders if not is_hidden(folder)} | {student for student, _ in found}
    expected = itertools.product(students, {name for _, name in found} & set(names))
    return [(*key, found.get(key, [])) for key in sorted({*found, *expected})]


def whose(parts: list[str], assignments: list[str]) -> tuple[str, str]:
    """Student and assignment by a path; `Name`, `name (1)`, `name-1` and `name-Copy1` are the assignment `name`."""
    flat, stem = len(parts) == 1, Path(parts[-1]).stem
    for name in assignments:
        pattern = rf"{'(.*)__' * flat}{re.escape(name)}(?: \(\d+\)|-(?:Copy)?\d+)?"
        if match := re.fullmatch(pattern, stem, re.I | re.S):
            return match[1] if flat else parts[0], name
    return stem if flat else parts[0], stem


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def look(
    submissions: Path, out: Path, assignments: dict[str, Assignment], student: str, name: str, paths: list[Path]
) -> Record:
    """A record as far as it needs no judge: missing, unreadable, finished before, or new, with `cells`."""
    record: Record = {
        "student": student,
        "assignment": name,
        "status": "missing",
        "notes": [],
        "total": 0,
        "exercises": [],
    }
    record |= {"max": 0, "by_hand": 0}
    try:
        if name not in assignments:
            raise unknown_name("assignment", name, assignments)
        assignment = assignments[name]
        record |= {"max": assignment.max, "by_hand": assignment.by_hand}
        if not paths:
            return record
        require(
            paths[0].resolve() == submissions.resolve() / paths[0].relative_to(submissions), "is a link, or behind one"
        )
        data = read_bytes(paths[0])
        record |= {"key": fingerprint(assignment.version.encode(), data), "cells": parse(data)}
        with suppress(OSError, ValueError, LookupError, TypeError):  # there is none, or what is there is no record
            saved = json.loads(saved_at(out, record).read_text())
            if saved["key"] == record["key"]:
                record = saved
    except (ItpoError, OSError) as error:
        record["status"] = "unreadable" if name in assignments else "unknown assignment"
        record["notes"].append(f"{paths[0].name} {error}")
    return record


def saved_at(out: Path, record: Record) -> Path:
    return out / "results" / record["student"] / f"{record['assignment']}.json"


def fingerprint(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()
