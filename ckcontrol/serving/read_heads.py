"""Reads the head mask of a request: entries of layer, query head and factor. Knows JSON values; knows no model."""

from __future__ import annotations

from typing import Any

from ..errors import ServingError
from ..heads.mask import KIND, LARGEST
from .json_values import integer, kind, shown

__all__ = ["Entries", "read_heads"]

Entries = tuple[tuple[int, int, float], ...]  # (layer, query head, factor), in order, no factor of 1
_HIGHEST = 1023  # layers and heads of a layer


def read_heads(value: Any, most: int) -> Entries:
    """Return the entries of ``ck.heads``.

    Args:
        value: A list of ``{"layer": l, "head": h, "factor": f}`` (the factor may be left out: 0 prunes), or a whole
            mask document as `HeadMask.save` writes it, of which only the entries are used. None is no mask.
        most: Most entries that are allowed.

    Raises:
        ServingError: Anything else; the message names the entry.
    """
    if isinstance(value, dict):
        if value.get("kind") != KIND or value.get("schema") != 1:
            raise ServingError("ck.heads is an object, but not a head mask of schema 1.", "Give a mask file's content.")
        value = value.get("heads")
    elif value is None:
        return ()
    if not isinstance(value, list):
        raise ServingError(f"ck.heads is {kind(value)}.", 'Like [{"layer": 5, "head": 2}], with "factor" to scale.')
    if len(value) > most:
        raise ServingError(f"ck.heads holds {len(value)} entries.", f"At most {most} are taken.")
    found: dict[tuple[int, int], float] = {}
    for i, entry in enumerate(value):
        if not isinstance(entry, dict) or not {"layer", "head"} <= set(entry) <= {"layer", "head", "factor"}:
            raise ServingError(f"ck.heads[{i}] is not a head.", "Give layer and head, and optionally factor.")
        layer = integer(f"ck.heads[{i}].layer", entry["layer"], 0, _HIGHEST)
        head = integer(f"ck.heads[{i}].head", entry["head"], 0, _HIGHEST)
        factor = entry.get("factor", 0)
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not abs(factor) <= LARGEST:
            raise ServingError(f"ck.heads[{i}].factor={shown(factor)}.", f"Give a number up to {LARGEST:g}; 0 prunes.")
        if (layer, head) in found:
            raise ServingError(f"ck.heads names head {layer}.{head} twice.", "Keep one.")
        found[layer, head] = float(factor)
    return tuple((layer, head, factor) for (layer, head), factor in sorted(found.items()) if factor != 1)
