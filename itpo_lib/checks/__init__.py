"""Checks of the exercises: `checks.check_turn_sums(turn_sums)` says what is probably wrong, never how to do it right.

One module per assignment. `seeds=checks.HIDDEN` tries more and larger cases.
"""

from . import advantages, debugging, dialogues, gradients, implicit_prm, lab, projects, shares, turns
from .core import HIDDEN, VISIBLE, Check, CheckFailed

ASSIGNMENTS = (dialogues, gradients, implicit_prm, turns, shares, advantages, debugging, projects)
CHECKS = {name: found for module in ASSIGNMENTS for name, found in vars(module).items() if name.startswith("check_")}
globals().update(CHECKS)

__all__ = ["ASSIGNMENTS", "CHECKS", "HIDDEN", "VISIBLE", "Check", "CheckFailed", "lab", *CHECKS]
