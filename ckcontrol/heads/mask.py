"""`HeadMask`: one factor per attention head, and the model it belongs to, as frozen data and as a JSON file.

Factor 1 leaves a head alone, 0 prunes it, anything else scales it (1.5 amplifies by half). Knows plain numbers and the
model's fingerprint; apply.py makes a mask act on a model, export.py writes it into weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..errors import HeadsError
from .fingerprint import Fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Head", "HeadMask"]

SCHEMA = 1
KIND = "ckcontrol head mask"
LIMIT = 50_000_000  # bytes, of a mask file
LARGEST = 100.0  # a factor beyond this is a mistake

Head = tuple[int, int]  # (layer, query head), both from 0


@dataclass(frozen=True)
class HeadMask:
    """Factors for the heads of one model. Heads that are not named have factor 1.

    The factor multiplies the head's slice of the output projection's input, at every position, in prefill and decode.

    Attributes:
        model: Fingerprint of the model it was made for.
        factors: (layer, query head) -> factor, sorted; only those that differ from 1.
        note: Where it comes from: plain JSON values, not interpreted.

    Raises:
        HeadsError: A head the model does not have, or a factor that is not a finite number up to 100.

    Example:
        >>> from ckcontrol.models.tiny import tiny_model
        >>> mask = HeadMask.of(tiny_model()[0], [(0, 1), (1, 3)])
        >>> mask.heads, mask.factor(0, 1), mask.factor(0, 0)
        (((0, 1), (1, 3)), 0.0, 1.0)
    """

    model: Fingerprint
    factors: Mapping[Head, float]
    note: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        kept = {}
        for head, factor in sorted(self.factors.items()):
            _check(self.model, head, factor)
            if factor != 1:
                kept[head] = float(factor)
        object.__setattr__(self, "factors", MappingProxyType(kept))
        object.__setattr__(self, "note", MappingProxyType(dict(self.note)))

    @classmethod
    def of(cls, model: PreTrainedModel, heads: Iterable[Head] = (), factor: float = 0.0, **note: Any) -> HeadMask:
        """Make a mask that gives one factor to some heads; without heads it is the identity."""
        return cls(Fingerprint.of(model), {(int(layer), int(head)): factor for layer, head in heads}, note)

    @property
    def heads(self) -> tuple[Head, ...]:
        """The heads whose factor is not 1, by layer and head."""
        return tuple(self.factors)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that have such a head, lowest first."""
        return tuple(sorted({layer for layer, _ in self.factors}))

    def factor(self, layer: int, head: int) -> float:
        """Return the factor of one head."""
        return self.factors.get((layer, head), 1.0)

    def row(self, layer: int) -> list[float]:
        """Return the factors of a layer's heads, [H]."""
        return [self.factor(layer, head) for head in range(self.model.heads)]

    def __mul__(self, other: HeadMask) -> HeadMask:
        """Combine two masks of one model; factors multiply, as nested `pruned` blocks do."""
        found = self.model.differs(other.model)
        if found is not None:
            raise HeadsError(
                f"masks of different models cannot be combined: {found[0]} is {found[1]!r} and {found[2]!r}."
            )
        heads = {*self.factors, *other.factors}
        return HeadMask(self.model, {h: self.factor(*h) * other.factor(*h) for h in heads}, {**self.note, **other.note})

    def __hash__(self) -> int:
        return hash((self.model, tuple(self.factors.items())))

    def __reduce__(self) -> tuple[Any, ...]:
        return (HeadMask, (self.model, dict(self.factors), dict(self.note)))

    def __repr__(self) -> str:
        names = ", ".join(f"{layer}.{head}" + (f"×{f:g}" if f else "") for (layer, head), f in self.factors.items())
        return f"HeadMask({self.model.family} {self.model.layers}×{self.model.heads}: {names or 'identity'})"

    def check(self, model: PreTrainedModel, *, strict: bool = True) -> None:
        """Refuse a model this mask was not made for.

        Args:
            model: The model at hand.
            strict: Compare the digest of the weights too. False admits a fine-tuned sibling of the same shape.

        Raises:
            HeadsError: Names the differing field and both values.
        """
        self.model.check(model, "the mask", weights=strict)

    # --- the file -------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "kind": KIND,
            "schema": SCHEMA,
            "model": self.model.to_dict(),
            "heads": [{"layer": layer, "head": head, "factor": f} for (layer, head), f in self.factors.items()],
            "note": dict(self.note),
        }

    @classmethod
    def from_dict(cls, data: Any) -> HeadMask:
        """Rebuild from `to_dict`.

        Raises:
            HeadsError: Not a mask, of another schema, or damaged; the message says what is wrong.
        """
        if not isinstance(data, Mapping) or data.get("kind") != KIND:
            raise HeadsError("this is not a head mask.", f'A mask file says "kind": "{KIND}".')
        if data.get("schema") != SCHEMA:
            raise HeadsError(
                f"mask schema {data.get('schema')!r} is not known.", f"This version reads schema {SCHEMA}."
            )
        entries, note = data.get("heads"), data.get("note", {})
        if not isinstance(entries, list) or not isinstance(note, Mapping):
            raise HeadsError("the mask's heads are not a list, or its note is not an object.", "The file is damaged.")
        model = Fingerprint.from_dict(data.get("model"))
        factors: dict[Head, float] = {}
        for entry in entries:
            if not isinstance(entry, Mapping) or set(entry) != {"layer", "head", "factor"}:
                raise HeadsError(f"{entry!r} in a mask is not a head.", "Give layer, head and factor.")
            head = (entry["layer"], entry["head"])
            _check(model, head, entry["factor"])
            if head in factors:
                raise HeadsError(f"head {head} is in the mask twice.", "Keep one.")
            factors[head] = entry["factor"]
        return cls(model, factors, note)

    def save(self, path: str | Path) -> None:
        """Write the mask as JSON, UTF-8."""
        text = json.dumps(self.to_dict(), ensure_ascii=False, indent=1, allow_nan=False)
        Path(path).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> HeadMask:
        """Read a mask written by `save`.

        Raises:
            HeadsError: The file is not a mask.
            OSError: The file cannot be read.
        """
        return cls.from_dict(read_json(path))


def read_json(path: str | Path) -> Any:
    """Read one JSON document of at most 50 MB.

    Raises:
        HeadsError: Too large, not UTF-8 or not JSON; names the file.
        OSError: The file cannot be read.
    """
    with Path(path).open("rb") as file:
        data = file.read(LIMIT + 1)
    if len(data) > LIMIT:
        raise HeadsError(f"{str(path)!r} is larger than {LIMIT // 1_000_000} MB.", "ckcontrol writes no such file.")
    try:
        return json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise HeadsError(f"{str(path)!r} is not JSON: {error}.", "Give a file that ckcontrol wrote.") from error


def _check(model: Fingerprint, head: Any, factor: Any) -> None:
    pair = isinstance(head, tuple) and len(head) == 2 and all(type(i) is int for i in head)
    if not pair or not (0 <= head[0] < model.layers and 0 <= head[1] < model.heads):
        raise HeadsError(
            f"head {head!r} does not exist.",
            f"Layers are 0 to {model.layers - 1}, query heads 0 to {model.heads - 1}.",
        )
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not abs(factor) <= LARGEST:
        raise HeadsError(f"factor {factor!r} of head {head} is not valid.", "Give a number; 0 prunes, 1 leaves alone.")
