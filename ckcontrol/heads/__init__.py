"""Attention heads that speak for memory or for the context: find, prune, choose and export them (PH3 on any decoder).

Names are resolved on first use, so importing this package loads neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# name -> module that defines it, and its name there where that is another
_WHERE = {
    "Direction": ".directions.direction",
    "Fingerprint": ".fingerprint",
    "HeadLayout": ".families",
    "HeadMask": ".mask",
    "HeadScores": ".finding.scores",
    "Panel": ".choosing.panel",
    "Record": ".finding.conflict_prompts:ConflictRecord",
    "added": ".directions.apply",
    "build_records": ".finding.conflict_prompts",
    "describe": ".families",
    "export_checkpoint": ".export",
    "export_lora": ".export",
    "find_direction": ".directions.find:find",
    "mask_for": ".choosing.select",
    "pruned": ".apply",
    "read_facts": ".finding.facts",
}

if TYPE_CHECKING:
    from .apply import pruned
    from .choosing.panel import Panel
    from .choosing.select import mask_for
    from .directions.apply import added
    from .directions.direction import Direction
    from .directions.find import find as find_direction
    from .export import export_checkpoint, export_lora
    from .families import HeadLayout, describe
    from .finding.conflict_prompts import ConflictRecord as Record
    from .finding.conflict_prompts import build_records
    from .finding.facts import read_facts
    from .finding.scores import HeadScores
    from .fingerprint import Fingerprint
    from .mask import HeadMask

__all__ = [
    "Direction",
    "Fingerprint",
    "HeadLayout",
    "HeadMask",
    "HeadScores",
    "Panel",
    "Record",
    "added",
    "build_records",
    "describe",
    "export_checkpoint",
    "export_lora",
    "find_direction",
    "mask_for",
    "pruned",
    "read_facts",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'ckcontrol.heads' has no attribute {name!r}")
    module, _, inside = _WHERE[name].partition(":")
    value = getattr(import_module(module, __name__), inside or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
