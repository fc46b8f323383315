"""ckcontrol in other people's evaluation frameworks: lm-evaluation-harness and Inspect.

Neither framework is imported until a function that needs it is called.
"""

from .harness import export_harness
from .harness_model import harness_model
from .inspection import inspect_samples, inspect_scorer, inspect_solver, inspect_task

__all__ = [
    "export_harness",
    "harness_model",
    "inspect_samples",
    "inspect_scorer",
    "inspect_solver",
    "inspect_task",
]
