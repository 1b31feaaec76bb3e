"""Write the students' copies in exercises/ from solutions/: nbgrader's own preprocessors, in nbgrader's order.

python solutions/make_exercises.py
"""

from pathlib import Path

import nbformat
from nbgrader.preprocessors import (
    CheckCellMetadata,
    ClearHiddenTests,
    ClearMarkScheme,
    ClearOutput,
    ClearSolutions,
    ComputeChecksums,
    LockCells,
)

STEPS = (
    LockCells,
    ClearSolutions,
    ClearOutput,
    CheckCellMetadata,
    ComputeChecksums,
    ClearHiddenTests,
    ClearMarkScheme,
    ComputeChecksums,
    CheckCellMetadata,
)
ROOT = Path(__file__).resolve().parent.parent
SECRETS = ("BEGIN SOLUTION", "END SOLUTION", "HIDDEN TESTS", "MARK SCHEME")


def student_copy(path: Path) -> str:
    """The text of the student's notebook that belongs to the solution at `path`."""
    notebook, resources = nbformat.read(path, as_version=4), {}
    for step in STEPS:
        notebook, resources = step().preprocess(notebook, resources)
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata = {
            key: cell.metadata[key] for key in ("nbgrader", "deletable", "editable") if key in cell.metadata
        }
        cell.source = cell.source.replace(f"/solutions/{path.name}", f"/exercises/{path.name}").rstrip("\n")
    text = nbformat.writes(notebook) + "\n"
    left = [secret for secret in SECRETS if secret in text]
    if left:
        raise SystemExit(f"{path.name}: {', '.join(left)} would reach the students")
    return text


def main() -> None:
    """Write every student's copy, and remove copies whose solution is gone."""
    folder = ROOT / "exercises"
    folder.mkdir(exist_ok=True)
    copies = {path.name: student_copy(path) for path in sorted((ROOT / "solutions").glob("*.ipynb"))}
    for stale in {path.name for path in folder.glob("*.ipynb")} - copies.keys():
        (folder / stale).unlink()
    for name, text in copies.items():
        (folder / name).write_text(text)
    print(f"wrote {len(copies)} notebooks to exercises/")


if __name__ == "__main__":
    main()
