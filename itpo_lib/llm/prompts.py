"""Prompts from versioned files, and the fence around every text that comes from somewhere else.

Quoted lines start with "| " and stand between two lines with a marker that is drawn anew for each
call. So no quoted text can look like the end of the quotation, like a speaker's name or like an order.
"""

from __future__ import annotations

import functools
import re
import secrets
import string
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..dialogue import Message
from ..errors import ItpoError, unknown_name

FOLDER = Path(__file__).parent / "prompts"
VERSION_LINE = re.compile(r"<!-- version: (\d+) -->")
HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn"}  # Unicode's controls, invisible and unassigned characters
BRACKETS = frozenset("<>[]{}|")
TAG_OPENERS = re.compile(r"<(?=\S)|\[(?=[\[/A-Za-z_])")


@dataclass(frozen=True)
class Prompt:
    """A prompt file: a version, and one template for each message, the system's first."""

    name: str
    version: int
    system: str
    user: str

    def messages(self, **values: str) -> list[Message]:
        """The two messages with every $placeholder filled in; a missing one is an error."""
        templates = {"system": self.system, "user": self.user}
        return [{"role": role, "content": string.Template(text).substitute(values)} for role, text in templates.items()]


@functools.cache
def prompt(name: str) -> Prompt:
    """The prompt in `prompts/<name>.md`: a version line, the system message, a line ---, the user message."""
    path = FOLDER / f"{name}.md"
    if not path.exists():
        raise unknown_name("prompt", name, [p.stem for p in FOLDER.glob("*.md")])
    first, _, rest = path.read_text(encoding="utf-8").partition("\n")
    version = VERSION_LINE.fullmatch(first)
    if version is None:
        raise ItpoError(f"prompt file {path.name} must begin with <!-- version: N -->, got {first!r}")
    system, _, user = rest.partition("\n---\n")
    return Prompt(name, int(version[1]), system.strip(), user.strip())


def new_marker() -> str:
    """A word that no text written before this call can contain."""
    return secrets.token_hex(6)


def fence(label: str, text: str, marker: str) -> str:
    """Lines that are quoted already, between two lines with the marker."""
    return f"BEGIN {marker} {label}\n{text}\nEND {marker} {label}"


def quoted(text: str) -> str:
    """A text in which every line is quoted and nothing has power over a chat template."""
    return "\n".join(f"| {line}" for line in harmless(text).split("\n"))


def transcript(messages: Sequence[Message]) -> str:
    """Who said what, each turn's text quoted. System messages are left out."""
    spoken, turn = [], 0
    for message in messages:
        if message["role"] == "assistant":
            turn += 1
            spoken.append(f"assistant, turn {turn}:\n{quoted(message['content'])}")
        elif message["role"] == "user":
            spoken.append(f"user:\n{quoted(message['content'])}")
    return "\n".join(spoken)


def harmless(text: str) -> str:
    r"""The text as a reader sees it, without hidden characters and with tags broken open by a space.

    Servers find control tokens such as <|im_end|> in the rendered prompt, wherever they come from, so
    `<` and the brackets of [INST] or [[...]] are parted from what follows. Wide look-alikes of brackets
    are written as plain ones first. Line breaks of every kind become "\n".
    """
    text = "\n".join(text.splitlines())
    text = "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in HIDDEN)
    text = "".join(n if (n := unicodedata.normalize("NFKC", c)) in BRACKETS else c for c in text)
    return TAG_OPENERS.sub(lambda match: f"{match[0]} ", text)
