"""Values against what a dataclass says of its fields: names, types and bounds."""

from __future__ import annotations

import difflib
import math
import operator
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from .errors import ItpoError, require

SIGNS = {">": operator.gt, ">=": operator.ge, "<=": operator.le}


def check_types(kind: type, values: Mapping[str, Any], where: str = "") -> None:
    """Refuse names that the dataclass `kind` has no field for, and values of another type than the field's."""
    hints = typing.get_type_hints(kind)
    for name, value in values.items():
        if name not in hints:
            close = difflib.get_close_matches(name, hints, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "`itpo train --help` lists the common ones"
            raise ItpoError(f"{where}{kind.__name__} has no field {name!r}; {hint}")
        check_type(f"{where}{name}", value, hints[name])


def check_type(name: str, value: Any, hint: Any) -> None:
    """Refuse a value of another type; an int is a float too, a bool or a text is no number. NumPy's count as Python's."""
    value = value.item() if isinstance(value, np.generic) else value
    try:
        TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value, strict=True)
    except ValidationError:
        wanted = hint.__name__ if isinstance(hint, type) else re.sub(r"\w+\.", "", str(hint))
        wanted = wanted.replace(" | ", " or ").replace("None", "null")
        told = "; write true or false" if wanted.startswith("bool") else ""
        raise ItpoError(f"{name} must be {wanted}, got {value!r} ({type(value).__name__}){told}") from None


def check_bounds(owner: Any, bounds: Mapping[str, Sequence[str]]) -> None:
    """Refuse numbers out of `bounds`, "> 0" or "> 0 or infinite" and the like, with the fields that each holds for."""
    for bound, names in bounds.items():
        sign, limit, *endless = bound.split()
        for name in names:
            value = getattr(owner, name)
            known = value is None or math.isfinite(value) or (bool(endless) and not math.isnan(value))
            fits = value is None or (known and SIGNS[sign](value, float(limit)))
            require(fits, f"{name} must be {bound if known else f'finite and {bound}'}, got {value}")
