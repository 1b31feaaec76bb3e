"""Execute notebooks and save them as they are committed: no progress bars, no widget state, stable ids.

python notebooks/save.py notebooks/*.ipynb [--clean-only]
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def clean(notebook: nbformat.NotebookNode) -> None:
    """Drop what differs from run to run or means nothing to a reader."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]


def main(arguments: list[str]) -> None:
    """Execute (unless told otherwise), clean and save each notebook in place."""
    for path in map(Path, (a for a in arguments if a != "--clean-only")):
        notebook = nbformat.read(path, as_version=4)
        if "--clean-only" not in arguments:
            where = {"metadata": {"path": str(path.parent)}}
            NotebookClient(notebook, timeout=900, coalesce_streams=True, resources=where).execute()
        clean(notebook)
        nbformat.write(notebook, path)
        print("saved", path)


if __name__ == "__main__":
    main(sys.argv[1:])
