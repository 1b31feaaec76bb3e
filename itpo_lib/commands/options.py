"""What commands share: their common options, errors in one line, and the policy that was asked for."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from ..errors import DialogueFailed, ItpoError, require

TASKS = "math_tutoring, document_writing, medical_recommendation, or your own: file.py:Class"
SCALES = "tiny (offline, seconds), text (offline, a real model), hub (the paper's data)"
TaskName = Annotated[str, typer.Option("--task", help=TASKS)]
Scale = Annotated[str, typer.Option(help=SCALES)]
Difficulty = Annotated[str | None, typer.Option(help="easy, normal or stress, where the task has levels")]
ModelName = Annotated[str | None, typer.Option("--model", help="tiny, smollm2, a folder, or a model on the hub")]
Device = Annotated[str, typer.Option(help="auto or cpu")]
TaskOptions = Annotated[
    list[str] | None,
    typer.Option("--task-option", help="An option of the task, as name=value (hub: user_url, user_model); repeatable"),
]


@contextlib.contextmanager
def clear_errors() -> Iterator[None]:
    """Print what is wrong with the input and exit with 2; anything else keeps its traceback."""
    try:
        yield
    except (ItpoError, DialogueFailed) as error:
        Console(stderr=True).print(
            f"[bold red]Error:[/] {escape(str(error))}", markup=True, highlight=False, soft_wrap=True
        )
        raise typer.Exit(2) from None


def use_one_thread(scale: str) -> None:
    """More threads slow a tiny model down."""
    if scale == "tiny":
        import torch

        torch.set_num_threads(1)


def policy_for(name: str | None, task: str, world: Any) -> tuple[Any, Any]:
    """A policy and its chat format; without a name, the one that training at this scale starts from."""
    from ..models import load_policy
    from ..run import DEFAULT_MODELS, quiet_libraries

    use_one_thread(world.scale)
    quiet_libraries()
    return load_policy(name or DEFAULT_MODELS[world.scale], task, difficulty=getattr(world, "difficulty", "normal"))


def options_of_task(difficulty: str | None, pairs: list[str] | None) -> dict[str, Any]:
    """What goes to the task's constructor."""
    return {**({"difficulty": difficulty} if difficulty else {}), **parse_options(pairs or [], "--task-option")}


def refuse_flags(ctx: typer.Context, but: tuple[str, ...], why: str) -> None:
    """Refuse typed flags that a command would not read."""
    typed = [p.opts[-1] for p in ctx.command.params if p.name in typed_flags(ctx) and p.name not in but]
    require(not typed, f"{', '.join(typed)}: {why}")


def typed_flags(ctx: typer.Context) -> set[str]:
    """Names of the parameters that stood on the command line."""
    return {name for name in ctx.params if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"}


def parse_options(pairs: list[str], flag: str = "--set") -> dict[str, Any]:
    """`name=value` pairs; a value is JSON where it parses as JSON, True, False or None as Python writes it, else a string."""
    options: dict[str, Any] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        require(bool(sign) and name.isidentifier(), f"{flag} wants name=value, got {pair!r}")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = {"True": True, "False": False, "None": None}.get(value, value)
    return options
