"""The tasks, by name and scale."""

from __future__ import annotations

import importlib
from typing import Any

from ..errors import ItpoError, unknown_name
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
    ("document_writing", "tiny"): "itpo_lib.tasks.document_tiny:TinyDocumentWriting",
    ("medical_recommendation", "tiny"): "itpo_lib.tasks.medical_tiny:TinyMedicalRecommendation",
}


def register_task(task: type[Task]) -> type[Task]:
    """Make a task of your own available by name; usable as a class decorator."""
    _TASKS[task.name, task.scale] = task
    return task


def list_tasks() -> list[tuple[str, str]]:
    """All (name, scale) pairs."""
    return sorted(_TASKS)


def get_task(name: str, scale: str = "tiny", **options: Any) -> Task:
    """The task `name` at `scale`; `options` go to its constructor (for example `difficulty`)."""
    if name not in {n for n, _ in _TASKS}:
        raise unknown_name("task", name, {n for n, _ in _TASKS})
    if (name, scale) not in _TASKS:
        raise unknown_name(f"scale of task {name!r}", scale, [s for n, s in _TASKS if n == name])
    entry = _TASKS[name, scale]
    if isinstance(entry, str):
        module, attribute = entry.split(":")
        entry = getattr(importlib.import_module(module), attribute)
    try:
        return entry(**options)
    except TypeError as error:
        raise ItpoError(f"task {name!r} ({scale}): {error}") from error
