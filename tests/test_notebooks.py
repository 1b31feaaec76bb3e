"""What nbval does not see: unexecuted cells, marked cells without outputs, leftovers of one machine."""

import json
import re
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
BOOKS = sorted(
    p for folder in ("notebooks", "solutions") for p in Path(folder).rglob("*.ipynb") if "checkpoint" not in str(p)
)


def code_cells(path):
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code" and c.source.strip()]


def test_there_are_notebooks():
    assert any(p.name == "00_quickstart.ipynb" for p in BOOKS)


@pytest.mark.parametrize("path", BOOKS, ids=lambda p: p.name)
def test_committed_notebook_is_executed_and_clean(path):
    notebook, cells = nbformat.read(path, as_version=4), code_cells(path)
    assert "widgets" not in notebook.metadata, "GitHub calls a notebook with stale widget state invalid"
    for cell in cells:
        assert cell.execution_count is not None, f"not executed: {cell.source[:60]!r}"
        assert not any(o.output_type == "error" for o in cell.outputs), cell.source[:60]
        if "NBVAL_CHECK_OUTPUT" in cell.source:
            assert cell.outputs, f"marked for comparison, but without output: {cell.source[:60]!r}"
        assert len(cell.source.splitlines()) <= 25, f"over 25 lines: {cell.source[:60]!r}"
    text = path.read_text()
    assert not re.search(r"\"[^\"]*/(root|work|home|tmp)/", text), "a path of one machine"


@pytest.mark.parametrize("path", BOOKS, ids=lambda p: p.name)
def test_header_says_what_a_reader_needs(path):
    first = nbformat.read(path, as_version=4).cells[0].source
    for word in ("Goal", "Time", "Before you start", "colab-badge"):
        assert word in first, f"the first cell lacks {word!r}"


@pytest.mark.parametrize("folder", ["notebooks", "exercises", "solutions"])
def test_badges_and_install_cells_can_be_pointed_at_a_repository(tmp_path, folder):
    sys.path.insert(0, str(ROOT / "notebooks"))
    from repository import main, point_at

    for path in (ROOT / folder).glob("*.ipynb"):
        text = path.read_text()
        moved = point_at(text, "school/rl-course")
        assert moved.count("school/rl-course") == text.count("OWNER/itpo") == 2 and "OWNER" not in moved
        assert json.loads(moved).keys() == json.loads(text).keys()
        assert point_at(moved, "OWNER/itpo") == text == point_at(text, "OWNER/itpo")
        (tmp_path / path.name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["repository.py", "no-slash", "--folder", str(tmp_path)])
        with pytest.raises(SystemExit):
            main()
        patch.setattr(sys, "argv", ["repository.py", "school/rl-course", "--folder", str(tmp_path)])
        main()
    assert all("school/rl-course/blob/main" in path.read_text() for path in tmp_path.glob("*.ipynb"))
