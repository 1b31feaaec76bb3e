"""nbgrader itself, on the same three students as `itpo grade`: the grades are those that were expected."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import grading_course as course
import pytest

pytest.importorskip("nbgrader")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def activated():
    """nbgrader calls alembic by name: the environment's programs have to be on the path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        yield


@pytest.fixture(scope="module")
def grades(tmp_path_factory, activated) -> dict[str, dict[str, float]]:
    """Release, fill in, collect and autograde; student -> grade id -> points."""
    from nbgrader.api import Gradebook
    from nbgrader.apps import NbGraderAPI
    from traitlets.config import Config

    root: Path = tmp_path_factory.mktemp("nbgrader")
    config = Config()
    config.CourseDirectory.root, config.CourseDirectory.course_id = str(root), "itpo"
    course.save(root / "source" / "tiny" / "tiny.ipynb", course.solution())
    api = NbGraderAPI(config=config)
    released = api.generate_assignment("tiny")
    assert released["success"], released
    text = (root / "release" / "tiny" / "tiny.ipynb").read_text()
    assert not any(secret in text for secret in ("return 2 * x", "BEGIN SOLUTION", "HIDDEN TESTS", course.WHY))
    for student, answers in course.SUBMISSIONS.items():
        course.save(root / "submitted" / student / "tiny" / "tiny.ipynb", course.student(**answers))
        graded = api.autograde("tiny", student)
        assert graded["success"], graded
    with Gradebook(f"sqlite:///{root}/gradebook.db") as book:
        return {
            s: {
                grade.name: grade.auto_score or 0.0 for grade in book.find_submission_notebook("tiny", "tiny", s).grades
            }
            for s in course.SUBMISSIONS
        }


@pytest.mark.parametrize("student", course.SUBMISSIONS)
def test_points(grades, student):
    found = {name: sum(p for i, p in grades[student].items() if i.startswith(name)) for name in course.POINTS["good"]}
    assert found == course.POINTS[student]


def test_a_person_reads_the_written_answer(grades):
    assert grades["good"]["why"] == 0
