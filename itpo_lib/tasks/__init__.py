"""The tasks, by name and scale."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from ..errors import ItpoError, require, unknown_name
from .base import Goal, Limits, Reply, ScriptedAssistant, Task, User, ceiling, play_scripted

__all__ = [
    "Goal",
    "Limits",
    "Reply",
    "ScriptedAssistant",
    "Task",
    "User",
    "ceiling",
    "get_task",
    "list_tasks",
    "play_scripted",
    "register_task",
]

_TASKS: dict[tuple[str, str], str | type[Task]] = {
    ("math_tutoring", "tiny"): "itpo_lib.tasks.math_tiny:TinyMathTutoring",
    ("math_tutoring", "text"): "itpo_lib.tasks.math_text:TextMathTutoring",
    ("math_tutoring", "hub"): "itpo_lib.llm.hub_tasks:HubMathTutoring",
    ("document_writing", "tiny"): "itpo_lib.tasks.document_tiny:TinyDocumentWriting",
    ("document_writing", "text"): "itpo_lib.tasks.document_text:TextDocumentWriting",
    ("document_writing", "hub"): "itpo_lib.llm.hub_tasks:HubDocumentWriting",
    ("medical_recommendation", "tiny"): "itpo_lib.tasks.medical_tiny:TinyMedicalRecommendation",
    ("medical_recommendation", "text"): "itpo_lib.tasks.medical_text:TextMedicalRecommendation",
    ("medical_recommendation", "hub"): "itpo_lib.llm.hub_tasks:HubMedicalRecommendation",
}


def register_task(task: type[Task]) -> type[Task]:
    """Make a task of your own available by name; usable as a class decorator."""
    _TASKS[task.name, task.scale] = task
    return task


def list_tasks() -> list[tuple[str, str]]:
    """All (name, scale) pairs."""
    return sorted(_TASKS)


def get_task(name: str, scale: str = "tiny", **options: Any) -> Task:
    """The task `name` at `scale`; `options` go to its constructor (for example `difficulty`).

    `name` may also be "path/to/file.py:ClassName", a task of your own.
    """
    if ".py:" in name or name.endswith(".py"):
        world = task_class(name)
        if world.scale != scale:
            raise unknown_name(f"scale of task {name!r}", scale, [world.scale])
    else:
        world = registered(name, scale)
    try:
        task = world(**options)
    except TypeError as error:
        raise ItpoError(f"task {name!r} ({scale}): {error}") from error
    limits = getattr(task, "limits", None)
    require(
        isinstance(limits, Limits),
        f"task {name!r} ({scale}): its class needs limits = Limits(max_turns=..., max_turn_tokens=...), got {limits!r}",
    )
    return task


def registered(name: str, scale: str) -> type[Task]:
    """A registry entry, imported if need be."""
    if name not in {n for n, _ in _TASKS}:
        raise unknown_name("task", name, {n for n, _ in _TASKS})
    if (name, scale) not in _TASKS:
        raise unknown_name(f"scale of task {name!r}", scale, [s for n, s in _TASKS if n == name])
    entry = _TASKS[name, scale]
    if isinstance(entry, str):
        module, attribute = entry.split(":")
        entry = getattr(importlib.import_module(module), attribute)
    return entry


def task_class(place: str) -> type[Task]:
    """The class in "path/to/file.py:ClassName". The file is run, as `python path/to/file.py` would run it."""
    require(not place.endswith(".py"), f"task {place!r}: expected path/to/file.py:ClassName, and the class is missing")
    path, _, name = place.rpartition(":")
    file = Path(path)
    require(file.is_file(), f"task {place!r}: expected path/to/file.py:ClassName, and there is no file {path!r}")
    spec = importlib.util.spec_from_file_location(f"itpo_task_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]  # never None for an existing .py file
    sys.modules[module.__name__] = module  # dataclasses and pickle look their module up
    try:
        spec.loader.exec_module(module)  # type: ignore[union-attr]
    except Exception as error:
        raise ItpoError(f"task {place!r}: {path} cannot be run: {type(error).__name__}: {error}") from error
    tasks = {k: v for k, v in vars(module).items() if isinstance(v, type) and issubclass(v, Task)}
    own = {k: v for k, v in tasks.items() if v.__module__ == module.__name__}
    if name not in own:
        raise unknown_name(f"task class in {path}", name, own)
    missing = [attribute for attribute in ("name", "scale") if not hasattr(own[name], attribute)]
    require(not missing, f"task {place!r}: the class lacks the attributes {' and '.join(missing)}")
    return own[name]
