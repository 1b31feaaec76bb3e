"""What the command line prints: dialogues, tables of evaluations, of studies and of grades."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from .doctor import Machine, Verdict

console = Console()


def show_dialogue(title: str, dialogue: dict[str, Any]) -> None:
    """One dialogue as text."""
    outcome = "failed" if dialogue["outcome"] is None else f"R = {dialogue['outcome']:.2f}"
    console.print(f"\n[bold]{title} training[/] ({outcome})")
    for message in dialogue["messages"]:
        show_message(message["role"], message["content"])


def show_message(role: str, text: str) -> None:
    """One utterance; the system prompt is not shown."""
    if role != "system":
        style = "green" if role == "assistant" else "cyan"
        console.print(f"  {role:>9}: {text}", style=style, markup=False, highlight=False)


def show_table(columns: dict[str, dict[str, Any]], ceiling: float | None) -> None:
    """Evaluations side by side."""
    first = next(iter(columns.values()))
    table = Table(title=f"{first['dialogues']} validation dialogues, mean [95% bootstrap interval]")
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right")
    for key, label in (
        ("success", "success rate"),
        ("outcome", f"mean {first.get('outcome_name', 'outcome')}"),  # early versions did not write it
        ("turns", "turns"),
        ("words", "words"),
    ):
        cells = [f"{c[key]['mean']:.3f} \\[{c[key]['low']:.3f}, {c[key]['high']:.3f}]" for c in columns.values()]
        table.add_row(label, *cells)
    if any(c["failed"] for c in columns.values()):
        table.add_row("failed dialogues", *(str(c["failed"]) for c in columns.values()))
    if ceiling is not None:
        table.add_row("of the ceiling", *(f"{c['outcome']['mean'] / ceiling:.0%}" for c in columns.values()))
        table.caption = f"ceiling (scripted expert): {ceiling:.3f}"
    console.print(table)


def show_study(title: str, credits: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    """One line per credit method, and its paired difference to the last one."""
    from .study import area, over_seeds, paired, score

    table = Table(title=f"{title}: share of the ceiling, mean [range over seeds]")
    for name in ("credit", "seeds", "final score", "area under the curve", f"minus {credits[-1]} (p)"):
        table.add_column(name, justify="left" if name == "credit" else "right")
    for name in credits:
        own, last = ([r for r in rows if r["credit"] == c] for c in (name, credits[-1]))
        means = [escape(str(over_seeds([measure(r) for r in own]))) for measure in (score, area)]
        gap, p = paired(own, last)
        table.add_row(name, str(len(own)), *means, "" if own == last else f"{gap.mean:+.3f} ({p:.2f})")
    console.print(table)


def show_grades(records: Sequence[dict[str, Any]], out: Path) -> None:
    """How many submissions ended how, and what held the students' code."""
    table = Table("status", "submissions")
    for status, n in Counter(record["status"] for record in records).most_common():
        table.add_row(status, str(n))
    console.print(table)
    isolation = {tuple(record["isolation"]) for record in records if "isolation" in record}
    for given in sorted(isolation):
        console.print(f"Student code had: {'; '.join(given) or 'LIMITS ONLY, no isolation on this system'}")
    console.print(f"Points: {out}/grades.csv   pages for students: {out}/feedback", markup=False, soft_wrap=True)


def show_doctor(machine: Machine, versions: dict[str, str], verdicts: Sequence[Verdict]) -> None:
    """What this machine has, and which recipes fit it."""
    table = Table(title="This machine")
    table.add_column("what")
    table.add_column("value", overflow="fold")
    table.add_row("processor cores for this process", str(machine.cores))
    memory = f"{machine.memory:.1f} GiB, {machine.free:.1f} free" if machine.memory else "unknown"
    table.add_row("main memory", memory)
    for gpu in machine.accelerators:
        kind = "bf16" if gpu.bf16 else "no bf16"
        table.add_row("GPU", escape(f"{gpu.name}: {gpu.memory:.1f} GiB, {gpu.free:.1f} free, {kind}"))
    if not machine.accelerators:
        table.add_row("GPU", "none that PyTorch sees")
    table.add_row("versions", ", ".join(f"{name} {value}" for name, value in versions.items() if value != "missing"))
    table.add_row("not installed", ", ".join(name for name, value in versions.items() if value == "missing") or "-")
    console.print(table)
    recipes = Table(title="Recipes: itpo train --config NAME")
    for name in ("recipe", "what", "memory", "time", "cost", "fits"):
        recipes.add_column(name, justify="right" if name in ("memory", "time", "cost") else "left", overflow="fold")
    for verdict in verdicts:
        recipe, expected = verdict.recipe, verdict.recipe.expected
        memory, minutes = f"{expected.memory_gib:g} GiB", duration(expected.minutes)
        cost = f"${expected.dollars:g}" if expected.dollars else "0"
        fits = f"[green]yes[/]: {escape(verdict.reason)}" if verdict.fits else f"[red]no[/]: {escape(verdict.reason)}"
        starred = ["*" * (basis == "estimated") for basis in (expected.memory_basis, expected.time_basis)]
        recipes.add_row(recipe.name, recipe.title, memory + starred[0], minutes + starred[1], cost, fits)
    recipes.caption = "* estimated, never run here; the rest was measured. docs/scale.md has the commands."
    console.print(recipes)


def duration(minutes: float) -> str:
    """Minutes in the unit that reads best."""
    if minutes < 2 * 60:
        return f"{minutes:.1f} min"
    if minutes < 2 * 24 * 60:
        return f"{minutes / 60:.1f} h"
    return f"{minutes / (24 * 60):.1f} days"
