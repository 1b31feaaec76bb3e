"""Read notebooks that nobody vouches for, and join a student's answers into the solution's tests."""

from __future__ import annotations

import json
import os
import re
import stat
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from symtable import symtable
from typing import Any

from IPython.core.inputtransformer2 import TransformerManager

from ..errors import require

MAX_BYTES = 20 * 2**20  # of a notebook; plots that a student left in it are a few megabytes
INTO_LIBRARY = re.compile(r"\bitpo_lib\b(?!\.tasks\b)|\.reference\b|\bchecks\.(?!check_)")


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
    def is_text(self) -> bool:
        return self.kind != "code"

    @property
    def is_test(self) -> bool:
        return self.grade and not self.solution and not self.is_text


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
    if not isinstance(source, str) or raw.get("cell_type") not in ("code", "markdown", "raw"):
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
            kind = "written" if cell.grade or cell.is_text else "answer"
            names = names_of(cell.source) if kind == "answer" else []
            step |= {"kind": kind, "source": "\n\n".join(theirs), "sources": theirs, "names": names}
        elif cell.is_test:
            step |= {"kind": "test", "exercise": exercise or cell.grade_id}
        elif cell.is_text:
            told = cell.source
            continue
        title, rubric = re.search(r"^#+ (.+)", told, re.M), re.search(r"^Rubric.*", told, re.M | re.S)
        steps.append(step | {"title": title and title[1], "rubric": rubric and rubric[0]})
    return steps, notes


def claim(solution: list[Cell], submission: list[Cell]) -> tuple[dict[str, list[str]], list[str]]:
    """The student's sources for each answer's grade id, and notes.

    Code that the student added belongs to the answer before it or, after its tests, to the next one. Added text
    belongs to the written answer whose question is the teacher's cell before. The student's copies of the teacher's
    cells are dropped. A grade id that is lost is found by a name, or by the question.
    """
    answers = {c.grade_id: c for c in solution if c.solution}
    given = {c.grade_id: handed_out(c) for c in solution if c.grade_id and not c.solution}
    given_sources = {handed_out(c) for c in solution if not c.solution}
    texts = [(q, a) for q, a in pairwise(solution) if q.is_text and not q.solution and a.is_text and a.solution]
    questions = {handed_out(question): answer.grade_id for question, answer in texts}
    ids = [c.grade_id for c in submission if (mine := answers.get(c.grade_id)) and (mine.is_text or not c.is_text)]
    code = (c for i, c in answers.items() if not c.is_text and i not in ids)
    lost = {name: c.grade_id for c in code for name in names_of(c.source)}
    sources: dict[str, list[str]] = {}
    notes = [f"{i}: {ids.count(i)} cells have this grade id; all count, in order" for i in answers if ids.count(i) > 1]
    current = written = ""
    pending, above = [""] * 0, [""] * 0  # code and text that wait for their answer
    for cell in submission:
        copy, mine = handed_out(cell), answers.get(cell.grade_id)
        if not mine and (cell.grade_id in given or copy in given_sources):
            if copy != given.get(cell.grade_id, copy):
                notes.append(f"{cell.grade_id}: this given cell was changed; what counts is the one handed out")
            current, written, above = "", questions.get(copy, ""), []
        elif cell.is_text or (mine and mine.is_text):
            if mine and mine.is_text:
                written = cell.grade_id
            if written:
                sources.setdefault(written, []).extend([*above, cell.source])
            above = [] if written else [*above, cell.source]
        else:
            defined = [n for n in re.findall(r"^(?:def|class)\s+(\w+)", cell.source, re.M) if n in lost]
            if mine or defined:
                current = cell.grade_id if mine else lost[defined[0]]
            if defined and not mine:
                notes.append(f"{current}: a cell without its grade id was taken, because it defines {defined[0]}")
            if current:
                sources.setdefault(current, []).extend([*pending, cell.source])
            pending = [] if current else [*pending, cell.source]
    for i, answer in answers.items():
        if i not in sources:
            notes.append(f"{i}: {missing(answer, submission)}")
        elif answer.is_text and i not in ids:
            notes.append(f"{i}: no cell with this grade id; the text below the question was taken")
    return sources, notes + borrowed(solution, {i: s for i, s in sources.items() if not answers[i].is_text})


def handed_out(cell: Cell) -> str:
    """A cell's source as the students got it, without what editors do to white space."""
    return "".join(re.sub(r"### BEGIN HIDDEN TESTS.*?### END HIDDEN TESTS", "", cell.source, flags=re.S).split())


def missing(answer: Cell, submission: list[Cell]) -> str:
    """Why there is nothing for an answer."""
    if any(cell.grade_id == answer.grade_id for cell in submission):
        return "its cell is no longer a code cell, and did not run"
    named = not answer.is_text and names_of(answer.source)
    return "no cell with this grade id" + (" and none that defines it" if named else "")


def borrowed(solution: list[Cell], sources: dict[str, list[str]]) -> list[str]:
    """Notes on lines that reach into the library, where the right answers are, and that are not the teacher's."""
    own = {line.strip() for cell in solution for line in cell.source.splitlines()}
    lines = {(i, line.strip()) for i, parts in sources.items() for part in parts for line in part.splitlines()}
    found = sorted((i, line) for i, line in lines if line not in own and INTO_LIBRARY.search(line))
    return [f"{i}: maybe not their own work: {line[:100]!r}" for i, line in found]
