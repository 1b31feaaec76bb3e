"""Widgets to look inside. What each shows is computed by a `Scene`, which needs neither kernel nor browser."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .recording import PRMRecorder, Recording, record_inspection

if TYPE_CHECKING:
    from .panel import CreditExplorer, PlayRoom, TrainingDashboard, TurnInspector

__all__ = [
    "CreditExplorer",
    "PRMRecorder",
    "PlayRoom",
    "Recording",
    "TrainingDashboard",
    "TurnInspector",
    "record_inspection",
]


def __getattr__(name: str) -> Any:
    """Import the widgets on first use, so that scenes and recordings work where ipywidgets is not installed."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import panel

    return getattr(panel, name)
