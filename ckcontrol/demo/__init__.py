"""The demo: a small corpus with false passages, retrieval, one model, four settings of the dial.

`run.py` computes, `result.py` records and judges, `view.py` draws. Knows every layer below; none knows it.
"""

from __future__ import annotations

from .result import DemoResult, Item, judge
from .result import DemoRow as Row
from .run import run_demo

__all__ = ["DemoResult", "Item", "Row", "judge", "run_demo"]
