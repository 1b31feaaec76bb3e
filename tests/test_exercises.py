"""The students' copies: generated without drift, without a trace of a solution, and failing until they are solved."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from pathlib import Path

import nbformat
import pytest

from itpo_lib import checks

ROOT = Path(__file__).resolve().parent.parent
SOLUTIONS = sorted((ROOT / "solutions").glob("*.ipynb"))
ALLOWED_IMPORTS = {"itpo_lib", "torch", "numpy", "matplotlib"} | sys.stdlib_module_names

books = pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def make_exercises():
    """solutions/make_exercises.py; it needs nbgrader, which the extra `instructor` brings."""
    spec = importlib.util.spec_from_file_location("make_exercises", ROOT / "solutions" / "make_exercises.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cells(path, folder="solutions"):
    return nbformat.read(ROOT / folder / path.name, as_version=4).cells


def graded(cell):
    return cell.metadata.get("nbgrader", {})


def code_exercises(path, folder="solutions"):
    """(explanation, solution cell, visible check, hidden test) of each exercise with code."""
    book = cells(path, folder)
    for i, cell in enumerate(book):
        if cell.cell_type == "code" and graded(cell).get("solution"):
            yield book[i - 1], cell, book[i + 1], book[i + 2]


def written_exercises(path, folder="solutions"):
    """(explanation, answer) of each exercise that is marked by hand."""
    book = cells(path, folder)
    for i, cell in enumerate(book):
        if cell.cell_type == "markdown" and graded(cell):
            yield book[i - 1], cell


def printed(cell):
    return "".join(output.get("text", "") for output in cell.outputs)


# Generated, and nothing slips through


@books
def test_exercises_have_not_drifted(path, make_exercises):
    fresh = make_exercises.student_copy(path)
    assert fresh == make_exercises.student_copy(path), "two runs differ"
    committed = (ROOT / "exercises" / path.name).read_text()
    assert committed == fresh, "out of date: run `make exercises`"


def test_there_is_an_exercise_for_each_solution():
    assert [p.name for p in sorted((ROOT / "exercises").glob("*"))] == [p.name for p in SOLUTIONS]


@books
def test_no_trace_of_a_solution(path):
    """Not the region, not the model answer, not a single longer line of them, and no output."""
    text = "\n".join(cell.source for cell in cells(path, "exercises"))
    assert not re.search(r"(BEGIN|END) SOLUTION|HIDDEN TEST|seeds=", text)
    secrets = []
    for _, solution, _, _ in code_exercises(path):
        for region in re.findall(r"### BEGIN SOLUTION\n(.*?)### END SOLUTION", solution.source, re.S):
            secrets += [line.strip() for line in region.splitlines()]
    secrets += [line.strip() for _, answer in written_exercises(path) for line in answer.source.splitlines()]
    leaked = [line for line in secrets if len(line) > 24 and line in text]
    assert not leaked and len(secrets) > 10
    for cell in cells(path, "exercises"):
        assert cell.cell_type != "code" or (not cell.outputs and cell.execution_count is None)


def test_a_solution_outside_a_solution_cell_is_refused(make_exercises, tmp_path):
    """nbgrader's preprocessors notice a region in a cell that is not marked as a solution."""
    notebook = nbformat.read(SOLUTIONS[0], as_version=4)
    notebook.cells[2].source += "\n### BEGIN SOLUTION\nx = 1\n### END SOLUTION"
    nbformat.write(notebook, tmp_path / "leaky.ipynb")
    with pytest.raises(RuntimeError, match="Solution region"):
        make_exercises.student_copy(tmp_path / "leaky.ipynb")


@books
def test_graded_cells_are_locked_and_keep_their_place(path):
    theirs, ours = cells(path, "exercises"), cells(path)
    assert [c.id for c in theirs] == [c.id for c in ours]
    for cell in theirs:
        meta = graded(cell)
        if meta.get("grade") and not meta["solution"]:
            assert cell.metadata["deletable"] is False and cell.metadata["editable"] is False and meta["locked"]
        if meta.get("solution"):
            assert cell.source.rstrip().endswith(("raise NotImplementedError()", "YOUR ANSWER HERE"))


# Solved and unsolved


@books
def test_every_stub_fails_its_check(path):
    """In the student's copy, with nothing written: the check says so, whatever stands in the stub."""
    space = {}
    for cell in cells(path, "exercises"):
        if cell.cell_type == "code" and re.match(r"(import|from) ", cell.source) and "%pip" not in cell.source:
            exec(cell.source, space)
    for _, stub, check, hidden in code_exercises(path, "exercises"):
        exec(stub.source, space)
        with pytest.raises(checks.CheckFailed, match="not written yet"):
            exec(check.source.splitlines()[-1], space)
        assert hidden.source.startswith("#") and "check_" not in hidden.source


@books
def test_solutions_score_full_marks(path):
    """As committed; nbval runs them again. The expected output in the text is what the solution prints."""
    for text, _, check, hidden in code_exercises(path):
        for cell in (check, hidden):
            assert printed(cell).rstrip().splitlines()[-1].startswith("✓"), cell.source
        shown = re.search(r"Expected output:\n\n```text\n(.*?)\n```", text.source, re.S)
        before_the_tick = printed(check).split("✓")[0].rstrip()
        assert (shown[1] if shown else "") == before_the_tick, f"{check.source}\nprints\n{before_the_tick}"


def test_every_check_is_used_once_in_sight_and_once_hidden():
    visible = [
        re.findall(r"checks\.(check_\w+)\(\w+\)", c.source) for p in SOLUTIONS for _, _, c, _ in code_exercises(p)
    ]
    hidden = [
        re.findall(r"checks\.(check_\w+)\(\w+, seeds=checks\.HIDDEN\)", h.source)
        for p in SOLUTIONS
        for _, _, _, h in code_exercises(p)
    ]
    assert visible == hidden and [len(v) for v in visible] == [1] * len(visible)
    assert sorted(v[0] for v in visible) == sorted(checks.CHECKS)


# What a student is told


def test_there_are_enough_exercises():
    assert len(SOLUTIONS) >= 8
    number = sum(len([*code_exercises(p), *written_exercises(p)]) for p in SOLUTIONS)
    assert 40 <= number <= 60


@books
def test_every_exercise_says_what_it_asks_for(path):
    """Points as they are graded, difficulty, importance, minutes, two folded hints; a rubric where marked by hand."""
    total, number = 0, 0
    ids = [graded(c)["grade_id"] for c in cells(path) if graded(c)]
    assert len(ids) == len(set(ids))
    for text, *rest in [*code_exercises(path), *written_exercises(path)]:
        points = sum(graded(cell).get("points", 0) for cell in rest)
        said = re.search(
            r"^## \d\.\d+ .+\n\n\*\*(\d+) points.*difficulty [●○]{5} · importance [●○]{5} · \d+ minutes$",
            text.source,
            re.M,
        )
        assert said and int(said[1]) == points, text.source[:80]
        hints = re.findall(r"<details><summary>Hint (\d)</summary>\n\n.+?\n\n</details>", text.source, re.S)
        if len(rest) == 3:
            assert hints == ["1", "2"], text.source[:80]
        else:
            rubric = [int(n) for n in re.findall(r"^- (\d+) points?: ", text.source, re.M)]
            assert sum(rubric) == points and len(rubric) >= 3
        total, number = total + points, number + 1
    assert f"**{number} exercises, {total} points.**" in cells(path)[0].source


@books
def test_students_need_only_the_library(path):
    for cell in cells(path):
        if cell.cell_type == "code" and "%pip" not in cell.source:
            for node in ast.walk(ast.parse(cell.source)):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [node.module] if isinstance(node, ast.ImportFrom) else []
                assert {name.split(".")[0] for name in names} <= ALLOWED_IMPORTS
