"""Grade a folder of submissions without a database: `itpo grade`. Student code runs in confined processes only."""

from .grader import Limits, grade

__all__ = ["Limits", "grade"]
