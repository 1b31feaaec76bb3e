"""Errors that name the field, the value and what would be right."""

import difflib
from collections.abc import Iterable


class ItpoError(ValueError):
    """Bad input or a state that the library refuses to work on."""


class DialogueFailed(Exception):
    """A user or judge could not answer; the dialogue is left out of the gradient and counted."""


def unknown_name(kind: str, name: object, choices: Iterable[str]) -> ItpoError:
    """The error for a name that is in no registry: what exists, and the closest spelling."""
    choices = sorted(choices)
    close = difflib.get_close_matches(str(name), choices, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return ItpoError(f"unknown {kind} {name!r}: choose one of {', '.join(choices)}.{hint}")


def type_names(kinds: Iterable[type]) -> str:
    """Plain types in words: "float or none"."""
    return " or ".join(sorted("none" if kind is type(None) else kind.__name__ for kind in kinds))


def require(condition: bool, message: str) -> None:
    """Raise `ItpoError(message)` unless `condition` holds."""
    if not condition:
        raise ItpoError(message)
