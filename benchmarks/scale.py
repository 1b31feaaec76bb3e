"""Writes the tables of docs/scale.md from the recipes, the formulas and the measured rows.

python benchmarks/scale.py            # write them
python benchmarks/scale.py --check    # say what differs, and exit with 1 if anything does
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from memory import computed_table, measured_table

from itpo_lib.estimates import DEVICES, memory
from itpo_lib.recipes import load_recipe, recipe_files
from itpo_lib.study import read_rows
from itpo_lib.study_tables import markdown
from itpo_lib.terminal import duration

ROOT = Path(__file__).parents[1]
PAGE, RESULTS = ROOT / "docs" / "scale.md", ROOT / "benchmarks" / "results"
BLOCK = re.compile(r"(<!-- rows: (\w+) -->\n).*?(<!-- end -->)", re.S)


def recipe_table() -> str:
    """Each recipe with what it should need, and whether somebody measured that."""
    lines = []
    for recipe in sorted(map(load_recipe, recipe_files()), key=lambda r: r.expected.memory_gib):
        own = recipe.expected
        hardware = {"cpu": "CPU"}.get(recipe.hardware) or f"{recipe.gpus} × {DEVICES[recipe.hardware].name}"
        cost = f"${own.dollars:g}" if own.dollars else "0"
        memory_, time_ = f"{own.memory_gib:g} GiB, {own.memory_basis}", f"{duration(own.minutes)}, {own.time_basis}"
        lines.append([f"`{recipe.name}`", recipe.title, hardware, memory_, time_, cost, own.note])
    return markdown(["recipe", "what", "hardware", "memory", "time", "cost", "how known"], lines)


def parts_table() -> str:
    """What the estimated peaks consist of."""
    lines = []
    for recipe in map(load_recipe, recipe_files()):
        if recipe.expected.memory_basis == "estimated":
            parts = memory(recipe.workload)
            lines.append(
                [f"`{recipe.name}`", *(f"{parts[p]:.1f}" for p in ("models", "activations", "logits", "cache", "peak"))]
            )
    return markdown(["recipe", "models", "activations", "logits", "key-value cache", "peak (GiB)"], lines)


def table_of(rows: list[dict[str, object]]) -> str:
    """A benchmark's table in Markdown."""
    cells = [[f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows]
    return markdown(list(rows[0]), cells)


def vllm_table(kind: str) -> str:
    """The rows of benchmarks/vllm_cpu.py that have the column `kind`, without what the caption says."""
    rows = [row for row in read_rows(RESULTS / "vllm.jsonl") if kind in row]
    said = ("vllm", "seed", "repeats")
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in said]
    return table_of([{name: row.get(name, "") for name in names} for row in rows])


TABLES = {
    "recipes": recipe_table,
    "parts": parts_table,
    "memory": lambda: table_of(measured_table(read_rows(RESULTS / "memory.jsonl"))),
    "sizes": lambda: table_of(computed_table()),
    "vllm_learn": lambda: vllm_table("batches"),
    "vllm_speed": lambda: vllm_table("vLLM (tokens/s)"),
}


def written(page: str) -> str:
    """The page with every table made anew."""
    return BLOCK.sub(lambda found: found[1] + TABLES[found[2]]().rstrip("\n") + "\n" + found[3], page)


def main() -> None:
    """Write or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check, page = parser.parse_args().check, PAGE.read_text()
    if not check:
        PAGE.write_text(written(page))
    elif written(page) != page:
        print(f"{PAGE.name} differs from the recipes and rows: run python benchmarks/scale.py")
        sys.exit(1)


if __name__ == "__main__":
    main()
