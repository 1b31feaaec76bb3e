"""A small assignment for the tests of both graders: a solution, its student copy, and ways to fill that in."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

Notebook = dict[str, Any]
SETUP = "import torch\n\nfrom itpo_lib import checks\n\nids = torch.tensor([[1, 1, 0, 2]])"
DOUBLE = "def double(x):\n    return 2 * x"
TURN_SUMS = (
    "def turn_sums(values, turn_ids, n_turns):\n"
    "    return torch.stack([(values * (turn_ids == k)).sum(1) for k in range(1, n_turns + 1)], 1)"
)
QUADRUPLE = "def quadruple(x):\n    return double(double(x))"
LOSS = "def loss(x):\n    return (x**2).sum()"
STUB = "raise NotImplementedError()"
WHY = "Because sums add up."


def cell(kind: str, source: str, grade_id: str = "", points: float = 0, grade: bool = False, solution: bool = False):
    """A cell in nbgrader's format."""
    mark = {"grade_id": grade_id, "grade": grade, "solution": solution, "locked": not solution, "task": False}
    mark |= {"schema_version": 3} | ({"points": points} if grade else {})
    made = {"cell_type": kind, "id": grade_id or f"cell-{abs(hash(source)) % 10**8}", "source": source, "metadata": {}}
    if kind == "code":
        made |= {"execution_count": None, "outputs": []}
    return made | ({"metadata": {"nbgrader": mark}} if grade_id else {})


def exercise(name: str, answer: str, visible: str, hidden: str, points: tuple[float, float]) -> list[dict]:
    """Heading, answer, visible check and hidden tests."""
    head, body = answer.split("\n", 1)
    hidden = f"# Graded later.\n### BEGIN HIDDEN TESTS\n{hidden}\n### END HIDDEN TESTS"
    return [
        cell("markdown", f"## The exercise {name}"),
        cell("code", f"{head}\n    ### BEGIN SOLUTION\n{body}\n    ### END SOLUTION", name, solution=True),
        cell("code", visible, f"{name}-check", points[0], grade=True),
        cell("code", hidden, f"{name}-hidden", points[1], grade=True),
    ]


def solution() -> Notebook:
    """10 points by tests, 4 by hand."""
    gradient = "x = torch.ones(3, requires_grad=True)\nloss(x).backward()\nassert x.grad.tolist() == [2.0, 2.0, 2.0]"
    in_place = "before = torch.arange(3.0)\nloss(before)\nassert before.tolist() == [0.0, 1.0, 2.0], 'changed in place'"
    all_right = "assert all(map(lambda i: double(i) == 2 * i, range(20)))"
    cells = [
        cell("code", SETUP),
        *exercise("double", DOUBLE, "assert double(3) == 6", all_right, (1, 2)),
        *exercise(
            "turn_sums",
            TURN_SUMS,
            "print(turn_sums(torch.ones(1, 4), ids, 2))\nchecks.check_turn_sums(turn_sums, seeds=[0])",
            "checks.check_turn_sums(turn_sums, seeds=[100])",
            (1, 2),
        ),
        *exercise(
            "quadruple", QUADRUPLE, "assert quadruple(1) == 4, quadruple(1)", "assert quadruple(3) == 12", (1, 1)
        ),
        *exercise("loss", LOSS, gradient, in_place, (1, 1)),
        cell("markdown", "## Why sums?\n\nRubric:\n\n- 4 points: they add up"),
        cell("markdown", WHY, "why", 4, grade=True, solution=True),
    ]
    metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": cells}


def student(**answers: str) -> Notebook:
    """The student's copy, with sources by grade id in place of stubs; `why` is the written answer."""
    made = copy.deepcopy(solution())
    for c in made["cells"]:
        name = c["metadata"].get("nbgrader", {}).get("grade_id")
        c["source"] = re.sub(r"### BEGIN HIDDEN TESTS.*### END HIDDEN TESTS", "", c["source"], flags=re.S).strip()
        c["source"] = re.sub(r"### BEGIN SOLUTION.*### END SOLUTION", STUB, c["source"], flags=re.S)
        if name in answers:
            c["source"] = answers[name]
        elif name == "why":
            c["source"] = "YOUR ANSWER HERE"
    return made


GOOD = {"double": DOUBLE, "turn_sums": TURN_SUMS, "quadruple": QUADRUPLE, "loss": LOSS, "why": WHY}
PARTIAL = {
    "double": DOUBLE,
    "turn_sums": TURN_SUMS.replace(".sum(1)", ".sum(1) / (turn_ids == k).sum(1).clamp(min=1)"),
    "quadruple": QUADRUPLE,
}
BROKEN = {
    "double": "def double(x:\n    return 2 * x",
    "turn_sums": "1 / 0",
    "loss": "def loss(x):\n    return undefined(x)",
}
POINTS = {  # by exercise, for both graders
    "good": {"double": 3, "turn_sums": 3, "quadruple": 2, "loss": 2},
    "partial": {"double": 3, "turn_sums": 0, "quadruple": 2, "loss": 0},
    "broken": {"double": 0, "turn_sums": 0, "quadruple": 0, "loss": 0},
}
SUBMISSIONS = {"good": GOOD, "partial": PARTIAL, "broken": BROKEN}


def save(path: Path, notebook: Notebook | bytes | str) -> None:
    """Write a notebook, or whatever pretends to be one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = (
        notebook
        if isinstance(notebook, bytes)
        else (notebook if isinstance(notebook, str) else json.dumps(notebook)).encode()
    )
    path.write_bytes(data)
