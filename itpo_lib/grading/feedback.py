"""The table for the teacher and a page for each student. Everything from a submission is escaped."""

from __future__ import annotations

import csv
from importlib.resources import files
from pathlib import Path
from typing import Any


def write_grades(records: list[dict[str, Any]], exercises: list[str], out: Path) -> None:
    """`grades.csv`: a row per student and assignment, a column per exercise; empty where a person has to read."""
    out.mkdir(parents=True, exist_ok=True)
    fields = ["student", "assignment", "status", "total", "max", "by_hand", *dict.fromkeys(exercises), "notes"]
    with open(out / "grades.csv", "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        table = csv.DictWriter(file, fields)
        table.writeheader()
        for record in records:
            points = {e["id"]: e["points"] for e in record["exercises"]}
            row = {field: record[field] for field in fields[:6]} | points | {"notes": "; ".join(record["notes"])}
            table.writerow({field: as_text(value) for field, value in row.items()})


def as_text(value: Any) -> str:
    """A cell that no spreadsheet takes for a formula."""
    text = "" if value is None else f"{value:g}" if isinstance(value, int | float) else str(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def write_feedback(record: dict[str, Any], out: Path) -> None:
    """`feedback/STUDENT/ASSIGNMENT.html`, for whoever handed in something that belongs to an assignment."""
    path = out / "feedback" / record["student"] / f"{record['assignment']}.html"
    if record["status"] == "missing":
        path.unlink(missing_ok=True)  # of a file that was there at an earlier run
    if record["status"] in ("missing", "unknown assignment"):
        return
    from jinja2 import Environment

    template = files("itpo_lib").joinpath("templates/feedback.html").read_text()
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page.render(**record), encoding="utf-8", errors="backslashreplace")
