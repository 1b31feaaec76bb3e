"""HTML from templates that escape everything, and the controls, view and static twin of a scene."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from ..errors import ItpoError, require

FOLDER = Path(__file__).parent
STYLE_FILE, SCRIPT_FILE = FOLDER / "static" / "panel.css", FOLDER / "static" / "panel.js"


@cache
def _templates() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(FOLDER / "templates")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def render(template: str, **context: Any) -> str:
    """Fill a template of this package. Every value is escaped unless it came out of a template itself."""
    from markupsafe import Markup

    return Markup(_templates().get_template(template).render(**context))


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign, "+0.25" or "−0.25"; what rounds to zero has none."""
    text = f"{value:+.{digits}f}".replace("-", "−")
    return text[1:] if float(f"{value:.{digits}f}") == 0 else text


@dataclass(frozen=True)
class Bar:
    """A signed number with a bar that grows from the middle; `width` is its percentage of half the room."""

    value: float
    text: str
    width: float


def bars(values: Sequence[float], scale: float) -> list[Bar]:
    """One bar per number; `scale` fills the room."""
    room = max(scale, 1e-12)
    return [Bar(v, signed(v), min(100.0, 100 * abs(v) / room)) for v in values]


@dataclass(frozen=True)
class Control:
    """One thing that a reader can move.

    `kind`: select, slider (both over `options`, pairs of value and label), number, checkbox, text or
    button. `group` puts controls of the same group into one frame. With `lenient`, a value that is no
    longer among the options becomes the first of them.
    """

    name: str
    label: str
    kind: str
    value: Any = None
    options: tuple[tuple[Any, str], ...] = ()
    low: float = 0.0
    high: float = 1.0
    step: float = 1.0
    group: str = ""
    lenient: bool = False
    disabled: bool = False

    @property
    def choices(self) -> str:
        """The options as JSON, for the slider's script."""
        return json.dumps(self.options)

    def checked(self, value: Any) -> Any:
        """`value` as this control would hold it, or an error that says what would be right."""
        if self.kind in ("select", "slider"):
            found = [choice for choice, _ in self.options if choice == value or str(choice) == str(value)]
            if found or (self.lenient and self.options):
                return found[0] if found else self.options[0][0]
            known = ", ".join(str(choice) for choice, _ in self.options)
            raise ItpoError(f"{self.name} has no value {value!r}: choose one of {known}")
        if self.kind == "number":
            inside = isinstance(value, int | float) and self.low <= value <= self.high
            require(inside, f"{self.name} must be a number from {self.low:g} to {self.high:g}, got {value!r}")
            return float(value)
        return bool(value) if self.kind == "checkbox" else value

    def shown(self, value: Any) -> str:
        """A value as the reader sees it."""
        if self.kind == "checkbox":
            return "yes" if value else "no"
        return dict(self.options).get(value, f"{value:g}" if isinstance(value, float) else str(value))


@dataclass(frozen=True)
class View:
    """What is to be seen: a fragment of HTML, and one line that a screen reader announces."""

    html: str
    status: str


class Scene:
    """A picture with controls, without any browser: values in, `View` out.

    Subclasses give `title`, `controls` and `view`; those with buttons also `press`.
    """

    title = ""

    def controls(self, values: Mapping[str, Any]) -> list[Control]:
        """The controls as they are for these values (all of them may be missing)."""
        raise NotImplementedError

    def view(self, values: Mapping[str, Any]) -> View:
        """The picture for a complete set of values."""
        raise NotImplementedError

    def press(self, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """React to a button; returns the values that it changes."""
        raise ItpoError(f"{self.title} has no button {name!r}")

    def settle(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """A complete set of values: each checked by its control, the missing ones at their default."""
        holding = [c for c in self.controls(values) if c.kind != "button"]
        unknown = set(values) - {c.name for c in holding}
        known = ", ".join(c.name for c in holding)
        require(not unknown, f"{self.title} has no control {', '.join(sorted(unknown))}: there are {known}")
        return {c.name: c.checked(values.get(c.name, c.value)) for c in holding}

    def controls_html(self, values: Mapping[str, Any]) -> str:
        """The controls as HTML, without their values: the script fills those in."""
        groups = [(name, list(members)) for name, members in groupby(self.controls(values), key=lambda c: c.group)]
        return render("controls.html", groups=groups)

    def static_html(self, values: Mapping[str, Any], whole_page: bool = False) -> str:
        """The picture as it stands, with its settings, in HTML that needs nothing else."""
        values = self.settle(values)
        plain = [c for c in self.controls(values) if c.name in values and not c.group and c.kind != "text"]
        settings = [(c.label, c.shown(values[c.name])) for c in plain]
        view = self.view(values)
        style = STYLE_FILE.read_text()
        return render("static.html", title=self.title, style=style, settings=settings, view=view, whole=whole_page)

    def to_html(self, path: str | Path, **values: Any) -> Path:
        """Write the static twin, one file that works offline."""
        path = Path(path)
        path.write_text(self.static_html(values, whole_page=True), encoding="utf-8")
        return path
