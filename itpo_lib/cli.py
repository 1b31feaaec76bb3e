"""The `itpo` command line. Heavy imports wait until a command needs them."""

from __future__ import annotations

import typer

from .commands.dialogues import evaluate, play
from .commands.machine import doctor, grade, lab, serve_user
from .commands.options import clear_errors
from .commands.training import demo, study, train, warmstart

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Multi-turn reinforcement learning with turn-wise credit."
)
for command in (train, doctor, demo, evaluate, play, warmstart, study, serve_user, grade, lab):
    app.command()(clear_errors()(command))


if __name__ == "__main__":
    app()
