"""Spelling of what people read: pages, notebooks' markdown, docstrings and comments. codespell's own dictionaries."""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import tokenize
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
CODE = ("itpo_lib", "tests", "benchmarks", "notebooks", "solutions", "examples")
BOOKS = ("notebooks", "solutions", "exercises")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def prose(path: Path) -> str:
    """What a person reads of a file. Of code, each piece stays on its own line, so that line numbers fit."""
    text = path.read_text()
    if path.suffix == ".ipynb":
        return "\n\n".join(c.source for c in nbformat.reads(text, as_version=4).cells if c.cell_type == "markdown")
    if path.suffix != ".py":
        return text
    lines = [""] * (len(text.splitlines()) + 1)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False):
            value = node.body[0].value
            for number, line in enumerate(value.value.splitlines(), value.lineno - 1):
                lines[number] += line
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            lines[token.start[0] - 1] += token.string
    return "\n".join(lines)


def misspelt(texts: dict[str, str], folder: Path) -> list[str]:
    """codespell's findings, "file:line: word ==> suggestion"; words to ignore would go into pyproject.toml."""
    for name, text in texts.items():
        place = folder / f"{name}.txt"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    command = [sys.executable, "-m", "codespell_lib", "--toml", str(ROOT / "pyproject.toml"), "."]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert not done.stderr, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    """Everything, by its path in the repository."""
    paths = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    paths += [p for folder in CODE for p in (ROOT / folder).rglob("*.py")]
    paths += [p for folder in BOOKS for p in (ROOT / folder).glob("*.ipynb")]
    return {str(p.relative_to(ROOT)): prose(p) for p in paths}


def test_words_are_spelt_right(texts, tmp_path):
    assert misspelt(texts, tmp_path) == []


def test_there_is_something_to_read(texts):
    assert len(texts) > 100 and len(" ".join(texts.values()).split()) > 30_000


def test_misspelt_words_are_found(tmp_path):
    """In pages, in markdown cells, in docstrings and comments; not in code."""
    wrong = "rec" + "ieve"
    book = nbformat.v4.new_notebook()
    book.cells = [nbformat.v4.new_code_cell(f"{wrong} = 1"), nbformat.v4.new_markdown_cell(f"we {wrong} it")]
    code = f'{wrong} = 1\n\n\ndef f():\n    """Says\n\n    {wrong}.\n    """\n    # {wrong}\n    return {wrong!r}\n'
    files = {"a.md": f"fine\n{wrong}\n", "b.ipynb": nbformat.writes(book), "c.py": code}
    found = {}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        found[name] = prose(tmp_path / name)
    places = [line.split(" ")[0] for line in misspelt(found, tmp_path / "texts")]
    assert sorted(places) == ["./a.md.txt:2:", "./b.ipynb.txt:1:", "./c.py.txt:7:", "./c.py.txt:9:"]
