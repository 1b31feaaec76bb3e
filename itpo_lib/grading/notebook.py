"""Read notebooks that nobody vouches for, and join a student's answers into the solution's tests."""

from __future__ import annotations

import json
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from symtable import symtable
from typing import Any

from IPython.core.inputtransformer2 import TransformerManager

from ..errors import require

MAX_BYTES = 20 * 2**20  # of a notebook; plots that a student left in it are a few megabytes


@dataclass(frozen=True)
class Cell:
    """What matters of a cell. `grade`, `solution`: nbgrader's marks for tests and for answers."""

    kind: str
    source: str
    grade_id: str = ""
    grade: bool = False
    solution: bool = False
    points: float = 0.0

    @property
    def is_test(self) -> bool:
        return self.grade and not self.solution and self.kind == "code"


def read_bytes(path: Path) -> bytes:
    """A regular file's content; a link is not followed, a pipe not waited for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        require(stat.S_ISREG(os.fstat(descriptor).st_mode), "is not a regular file")
        data = file.read(MAX_BYTES + 1)
    require(len(data) <= MAX_BYTES, f"is larger than {MAX_BYTES >> 20} MB; clear the outputs")
    return data


def parse(data: bytes) -> list[Cell]:
    """The cells of a notebook; whatever is odd about a cell is dropped, whatever is odd about the file is an error."""
    require(bool(data.strip()), "is empty")
    try:
        notebook = json.loads(data.decode(json.detect_encoding(data), "replace"))
    except (ValueError, RecursionError) as error:
        require(False, f"is not a notebook: {error}")
    require(isinstance(notebook, dict), "is not a notebook: no JSON object")
    found, cells = notebook.get("nbformat"), notebook.get("cells")
    require(
        found == 4 and isinstance(cells, list),
        f"has nbformat {str(found)[:20]}; wanted is 4: save it with a current Jupyter",
    )
    return [cell for raw in cells if isinstance(raw, dict) and (cell := _cell(raw))]


def _cell(raw: dict[str, Any]) -> Cell | None:
    source, metadata = raw.get("source"), raw.get("metadata")
    if isinstance(source, list):
        source = "".join(line for line in source if isinstance(line, str))
    if not isinstance(source, str) or raw.get("cell_type") not in ("code", "markdown"):
        return None
    mark = metadata.get("nbgrader") if isinstance(metadata, dict) else None
    mark = mark if isinstance(mark, dict) and isinstance(mark.get("grade_id"), str) else {}
    points = mark.get("points")
    return Cell(
        raw["cell_type"],
        source.encode("utf-8", "replace").decode(),  # half a surrogate pair cannot be written anywhere
        mark.get("grade_id", ""),
        mark.get("grade") is True,
        mark.get("solution") is True,
        float(points) if isinstance(points, int | float) else 0.0,
    )


def read_solution(path: Path) -> list[Cell]:
    """The teacher's notebook, from which tests and points come."""
    cells = parse(read_bytes(path))
    ids = [cell.grade_id for cell in cells if cell.grade_id]
    twice = sorted({i for i in ids if ids.count(i) > 1})
    require(not twice, f"{path}: these grade ids occur twice: {', '.join(twice)}")
    require(
        any(cell.is_test for cell in cells), f"{path}: no cell has tests; wanted are nbgrader's grade ids and points"
    )
    return cells


def names_of(source: str) -> list[str]:
    """What a cell binds at its top level."""
    code = TransformerManager().transform_cell(source)
    return [s.get_name() for s in symtable(code, "<answer>", "exec").get_symbols() if s.is_assigned()]


def join(solution: list[Cell], submission: list[Cell]) -> tuple[list[dict[str, Any]], list[str]]:
    """The steps to run, in the solution's order, and what a person should know.

    A step is setup (the teacher's code), an answer (the student's cells), a test (the teacher's) or written
    (a person reads it).
    """
    sources, notes = claim(solution, submission)
    steps: list[dict[str, Any]] = []
    exercise = told = ""
    for cell in solution:
        step = {"kind": "setup", "id": cell.grade_id, "points": cell.points, "source": cell.source}
        if cell.solution:
            exercise, theirs = cell.grade_id, sources.get(cell.grade_id, [])
            kind = "written" if cell.grade or cell.kind == "markdown" else "answer"
            names = names_of(cell.source) if kind == "answer" else []
            step |= {"kind": kind, "source": "\n\n".join(theirs), "sources": theirs, "names": names}
            if not theirs:
                notes.append(f"{exercise}: no cell with this grade id{' and none that defines it' * bool(names)}")
        elif cell.is_test:
            step |= {"kind": "test", "exercise": exercise or cell.grade_id}
        elif cell.kind == "markdown":
            told = cell.source
            continue
        title, rubric = re.search(r"^#+ (.+)", told, re.M), re.search(r"^Rubric.*", told, re.M | re.S)
        steps.append(step | {"title": title and title[1], "rubric": rubric and rubric[0]})
    return steps, notes


def claim(solution: list[Cell], submission: list[Cell]) -> tuple[dict[str, list[str]], list[str]]:
    """The student's sources for each answer's grade id, and notes.

    Cells that the student added belong to the answer before them or, after its tests, to the next one.
    The student's copies of the teacher's cells are dropped. A grade id that is lost is found by a name.
    """
    answers = {c.grade_id: c for c in solution if c.solution}
    given = {c.grade_id for c in solution if c.grade_id} - answers.keys()
    given_sources = {c.source.strip() for c in solution if not c.solution}
    ids = [c.grade_id for c in submission if c.grade_id in answers]
    code = (c for i, c in answers.items() if c.kind == "code" and i not in ids)
    lost = {name: c.grade_id for c in code for name in names_of(c.source)}
    sources: dict[str, list[str]] = {}
    notes = [f"{i}: {ids.count(i)} cells have this grade id; all ran, in order" for i in answers if ids.count(i) > 1]
    current, pending = "", [""] * 0
    for cell in submission:
        if cell.grade_id in given or cell.source.strip() in given_sources:
            current = ""
            continue
        defined = [n for n in re.findall(r"^(?:def|class)\s+(\w+)", cell.source, re.M) if n in lost]
        mine = answers.get(cell.grade_id)
        if mine and mine.kind == "markdown":
            sources.setdefault(cell.grade_id, []).append(cell.source)
        elif cell.kind == "code":
            if mine or defined:
                current = cell.grade_id if mine else lost[defined[0]]
            if defined and not mine:
                notes.append(f"{current}: a cell without its grade id was taken, because it defines {defined[0]}")
            if current:
                sources.setdefault(current, []).extend([*pending, cell.source])
            pending = [] if current else [*pending, cell.source]
    return sources, notes
