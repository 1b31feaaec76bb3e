"""Recipes: whole runs as TOML files, from a laptop to the paper's GPUs. `itpo train --config NAME_OR_FILE`.

Tables: [run] fields of `RunSettings`, [options] fields of `ITPOConfig`, [task_options] what goes to the task,
[tasks.NAME.*] what differs for another task, [dialogue] and [expected] what the run is thought to need.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .checking import check_type, check_types
from .errors import ItpoError, require, unknown_name
from .estimates import DEVICES, Workload, memory, step_seconds
from .model_shapes import SHAPES
from .presets import ADAPTERS, PRESETS
from .run import DEFAULT_MODELS, RunSettings
from .tasks import list_tasks

FOLDERS = (Path(__file__).parent / "recipe_files", Path(__file__).parent.parent / "recipes")  # installed, or in a clone
RUN_FIELDS = {f.name for f in dataclasses.fields(RunSettings)} - {"options", "task_options"}
BASES = ("measured", "estimated")


@dataclass(frozen=True)
class Expected:
    """What a run should need. Each basis is "measured" or "estimated"; `note` has the command or the assumption."""

    memory_gib: float
    memory_basis: str
    minutes: float
    time_basis: str
    dollars: float = 0.0
    dollars_per_hour: float = 0.0
    note: str = ""


@dataclass(frozen=True)
class Recipe:
    """A run as a file. `hardware` is "cpu" or one of `estimates.DEVICES`; `needs` are packages beyond the library's."""

    name: str
    title: str
    settings: RunSettings
    expected: Expected
    dialogue: dict[str, float]
    hardware: str = "cpu"
    gpus: int = 1
    needs: tuple[str, ...] = ()
    server: tuple[str, ...] = ()

    @property
    def options(self) -> dict[str, Any]:
        """Fields of `ITPOConfig`, the scale's preset under the recipe's own."""
        return {**PRESETS[self.settings.scale], **self.settings.options}

    @property
    def workload(self) -> Workload:
        """What `estimates` wants to know about one process of this run."""
        options, dialogue = self.options, dict(self.dialogue)
        rows, slices = options["per_device_train_batch_size"], options["gradient_accumulation_steps"]
        graph = options["micro_batch_size"] if self.settings.lora else options.get("prm_mini_batch_size")  # of the PRM
        ppo = options.get("estimator") == "ppo"
        return Workload(
            shape=SHAPES[self.settings.model or DEFAULT_MODELS[self.settings.scale]],
            adapters=ADAPTERS["r"] if self.settings.lora else 0,
            roles=3 if ppo else 2,
            element_bytes=2 if self.settings.lora and options.get("bf16") else 4,
            rows=max(rows, min(graph or rows * slices, rows * slices)),
            dialogues=rows * slices,
            checkpointing=options.get("gradient_checkpointing", False),
            critic_epochs=options.get("critic_epochs", 2) if ppo else 0,
            user_seconds=float(dialogue.pop("user_seconds", 0.0)),
            **{name: int(value) for name, value in dialogue.items()},
        )

    def estimate(self) -> dict[str, float]:
        """Memory, minutes and dollars by `estimates`, to two digits; evaluation before and after is not counted."""
        needed = {"memory_gib": memory(self.workload)["peak"]}
        if self.hardware in DEVICES:
            seconds = step_seconds(self.workload, DEVICES[self.hardware])["step"] * self.options["max_steps"]
            needed |= {"minutes": seconds / 60, "dollars": seconds / 3600 * self.expected.dollars_per_hour}
        return {name: float(f"{value:.2g}") for name, value in needed.items()}


def recipe_files() -> dict[str, Path]:
    """The recipes at hand, by name."""
    return {path.stem: path for folder in FOLDERS for path in sorted(folder.glob("*.toml"))}


def load_recipe(source: str, task: str | None = None) -> Recipe:
    """The recipe of a name or of a file, for its own task or another that it names."""
    path = Path(source)
    if not path.is_file():
        files = recipe_files()
        if path.stem not in files:
            raise unknown_name("recipe (or file)", source, files)
        path = files[path.stem]
    try:
        data = tomllib.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise ItpoError(f"{path.name} cannot be read as TOML: {error}") from error
    return parse_recipe(path.stem, data, task)


def parse_recipe(name: str, data: dict[str, Any], task: str | None = None) -> Recipe:
    """Check every key and build the recipe; `task` picks a table under [tasks]."""
    own = [f.name for f in dataclasses.fields(Recipe) if f.name not in ("name", "settings")]
    check_keys(name, "", data, [*own, "run", "options", "task_options", "tasks"])
    for table in ("run", "options", "task_options", "tasks", "dialogue", "expected"):
        require(isinstance(data.get(table, {}), dict), f"{name}: [{table}] must be a table, got {data.get(table)!r}")
    run = dict(data.get("run", {}))
    check_keys(name, "run", run, RUN_FIELDS)
    check_keys(name, "dialogue", data.get("dialogue", {}), dialogue_fields())
    check_keys(name, "expected", data.get("expected", {}), [f.name for f in dataclasses.fields(Expected)])
    check_types(RunSettings, run, f"{name}: [run] ")
    check_types(Expected, data.get("expected", {}), f"{name}: [expected] ")
    for key, value in data.get("dialogue", {}).items():
        check_type(f"{name}: [dialogue] {key}", value, float)
    for key, kind in (("title", str), ("gpus", int), ("needs", list[str]), ("server", list[str])):
        check_type(f"{name}: {key}", data.get(key, kind()), kind)
    special = special_tables(name, data.get("tasks", {}), task or run.get("task", "math_tutoring"))
    run["task"] = task or run.get("task", "math_tutoring")
    settings = RunSettings(
        **run,
        options={**data.get("options", {}), **special.get("options", {})},
        task_options={**data.get("task_options", {}), **special.get("task_options", {})},
    )
    hardware = data.get("hardware", "cpu")
    if hardware not in ("cpu", *DEVICES):
        raise unknown_name(f"hardware in {name}", hardware, ("cpu", *DEVICES))
    unknown = {"memory_gib": 0.0, "memory_basis": "estimated", "minutes": 0.0, "time_basis": "estimated"}
    expected = Expected(**{**unknown, **data.get("expected", {})})
    for basis in (expected.memory_basis, expected.time_basis):
        if basis not in BASES:
            raise unknown_name(f"basis in {name}", basis, BASES)
    return Recipe(
        name,
        data.get("title", name),
        settings,
        expected,
        data.get("dialogue", {}),
        hardware,
        data.get("gpus", 1),
        tuple(data.get("needs", ())),
        tuple(data.get("server", ())),
    )


def dialogue_fields() -> list[str]:
    """What [dialogue] may say."""
    return ["prompt_tokens", "completion_limit", "completion_tokens", "assistant_tokens", "turns", "user_seconds"]


def special_tables(name: str, tables: dict[str, Any], task: str) -> dict[str, Any]:
    """The checked table of one task; the others are checked too."""
    known = {task, *(registered for registered, _ in list_tasks())}
    for other, table in tables.items():
        if other not in known and ".py:" not in other:
            raise unknown_name(f"task in {name} [tasks]", other, known)
        require(isinstance(table, dict), f"{name}: [tasks.{other}] must be a table, got {table!r}")
        check_keys(name, f"tasks.{other}", table, ("options", "task_options"))
        check_type(f"{name}: [tasks.{other}]", table, dict[str, dict[str, Any]])
    return tables.get(task, {})


def check_keys(name: str, table: str, found: Iterable[str], known: Iterable[str]) -> None:
    """Refuse a key that nobody would read."""
    for key in found:
        if key not in known:
            raise unknown_name(f"key in {name}{f' [{table}]' if table else ''}", key, known)


def settings_of(source: str, given: dict[str, Any], options: dict[str, Any]) -> RunSettings:
    """A recipe's settings under what was typed on the command line: fields of `RunSettings`, and `options`."""
    recipe, given = load_recipe(source, given.get("task")), dict(given)
    return dataclasses.replace(
        recipe.settings,
        **{**given, "task_options": {**recipe.settings.task_options, **given.get("task_options", {})}},
        options={**recipe.settings.options, **options},
    )
