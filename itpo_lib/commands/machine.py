"""`itpo doctor`, `lab`, `serve-user` and `grade`: what this machine can do, and what runs on it beside training."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..errors import require
from ..terminal import console, show_doctor, show_grades


def doctor() -> None:
    """Say what this machine can run: processors, memory, versions, and which recipes fit."""
    from ..doctor import inspect_machine, verdicts, versions

    machine = inspect_machine()
    show_doctor(machine, versions(), verdicts(machine))


def serve_user(
    model: Annotated[str, typer.Option("--model", help="smollm2, a folder, or a model on the hub")],
    host: Annotated[str, typer.Option(help="Address to listen on; the default is reachable from this machine only")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port to listen on", min=1, max=65535)] = 8000,
) -> None:
    """Serve a language model as user and judge of the hub scale: with vLLM where installed, else with transformers."""
    name = model
    if model == "smollm2":
        from ..models import smollm2_folder

        name = str(smollm2_folder())
    binaries = Path(sys.executable).parent
    engine = "vllm" if (binaries / "vllm").exists() else "transformers"
    require(
        engine == "vllm" or all(importlib.util.find_spec(package) for package in ("fastapi", "uvicorn")),
        "a server needs more packages: pip install 'transformers[serving]', or vllm on a machine with a GPU",
    )
    command = [str(binaries / engine), "serve", name, "--host", host, "--port", str(port)]
    console.print(f"{engine} {' '.join(command[1:])}", markup=False, soft_wrap=True)
    url = f"http://{host}:{port}/v1"
    console.print(
        f"Train with --task-option user_url={url} --task-option user_model={name}", markup=False, soft_wrap=True
    )
    os.execv(command[0], command)


def grade(
    submissions: Annotated[
        Path, typer.Argument(help="Folder of submissions: STUDENT/ASSIGNMENT.ipynb or STUDENT__ASSIGNMENT.ipynb")
    ],
    solutions: Annotated[Path, typer.Option(help="Folder of the solution notebooks")] = Path("solutions"),
    out: Annotated[Path, typer.Option(help="Folder for grades.csv, feedback/ and results/")] = Path("grades"),
    jobs: Annotated[int, typer.Option(help="Submissions graded side by side", min=1)] = 2,
    cell_seconds: Annotated[float, typer.Option(help="Time limit of a cell", min=1)] = 60,
    seconds: Annotated[float, typer.Option(help="Time limit of a submission", min=1)] = 300,
    memory_mb: Annotated[int, typer.Option(help="Memory of a student's process beyond the libraries", min=64)] = 2048,
) -> None:
    """Grade submissions without a database. Student code runs confined; what is finished is not run again.

    A time-out counts as finished, too. To grade one submission anew, delete OUT/results/STUDENT/ASSIGNMENT.json.
    """
    from ..grading import Limits
    from ..grading import grade as grade_all

    if getattr(os, "geteuid", lambda: None)() == 0:
        console.print("You are root: what the isolation leaves open is open to student code as root.", soft_wrap=True)
    show_grades(grade_all(submissions, solutions, out, jobs, Limits(cell_seconds, seconds, memory_mb)), out)


def lab(folder: Annotated[Path, typer.Argument(help="Folder of the notebooks")] = Path("notebooks")) -> None:
    """Open the notebooks in JupyterLab."""
    require(folder.is_dir(), f"there is no folder {str(folder)!r} here; run this from the project's folder")
    jupyter = Path(sys.executable).with_name("jupyter-lab")  # found without an activated environment too
    require(jupyter.exists(), "JupyterLab is not installed: pip install 'itpo-lib[notebooks]'")
    os.execv(jupyter, [str(jupyter), str(folder)])
