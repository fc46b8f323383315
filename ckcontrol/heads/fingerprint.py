"""Which model a score or a mask belongs to: its shape in numbers, and a digest of a sample of its weights.

The digest reads the embedding and the output projections rounded to bfloat16, so a checkpoint has the same fingerprint
whether it is loaded in bfloat16 or float32, and on any device. Knows models only through `families.describe`; knows
nothing of prompts or of what heads do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from ..errors import HeadsError
from .families import HeadLayout, describe

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

__all__ = ["Fingerprint", "Shape", "unlike"]

SAMPLE = 512  # values read from each matrix
Shape = tuple[str, int, int, int]  # family, layers, query heads per layer, width of the residual stream


@dataclass(frozen=True)
class Fingerprint:
    """The identity of a model, as far as heads are concerned.

    Attributes:
        family: `config.model_type`.
        layers: Number of layers.
        heads: Query heads per layer (not key-value heads).
        head_dim: Width of a head.
        hidden: Width of the residual stream.
        vocabulary: Rows of the input embedding.
        weights: 16 hexadecimal digits of a hash over a sample of the weights.
    """

    family: str
    layers: int
    heads: int
    head_dim: int
    hidden: int
    vocabulary: int
    weights: str

    @property
    def shape(self) -> Shape:
        """What an engine's configuration says of a model too."""
        return self.family, self.layers, self.heads, self.hidden

    @classmethod
    def of(cls, model: PreTrainedModel, layout: HeadLayout | None = None, *, digest: bool = True) -> Fingerprint:
        """Read the fingerprint of a model; about a millisecond per layer.

        Args:
            model: A model of a known family.
            layout: What `describe` returned for it, where that is at hand.
            digest: Read the weights; False leaves `weights` empty and reads none.

        Raises:
            HeadsError: The family is unknown, or weights are not in memory.
        """
        layout = layout or describe(model)
        embedding: Any = model.get_input_embeddings().weight
        matrices = (embedding, *(layout.weight(layer) for layer in range(layout.layers)))
        if any(matrix.is_meta for matrix in matrices):
            raise HeadsError(
                "some weights are not in memory (offloaded by accelerate, or on the meta device).",
                "Load the model without offloading: heads are found and checked by their weights.",
            )
        read = hashlib.sha256()
        for matrix in matrices if digest else ():
            read.update(_sample(matrix))
        return cls(
            family=layout.family,
            layers=layout.layers,
            heads=layout.heads,
            head_dim=layout.head_dim,
            hidden=layout.hidden,
            vocabulary=int(embedding.shape[0]),
            weights=read.hexdigest()[:16] if digest else "",
        )

    def differs(self, other: Fingerprint, *, weights: bool = True) -> tuple[str, Any, Any] | None:
        """Return the first differing field as (name, this value, the other's), or None. Counts come first.

        Args:
            other: What to compare with.
            weights: Compare the digest too; False compares only counts and widths.
        """
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if mine != theirs and (weights or field.name != "weights"):
                return field.name, mine, theirs
        return None

    def check(self, model: PreTrainedModel, what: str, *, weights: bool = True) -> None:
        """Refuse a model other than this one.

        Args:
            model: The model at hand.
            what: What was made for this fingerprint, for the message, e.g. ``"the mask"``.
            weights: As in `differs`.

        Raises:
            HeadsError: Names the differing field and both values.
        """
        found = self.differs(Fingerprint.of(model, digest=weights), weights=weights)
        if found is None:
            return
        name, mine, theirs = found
        if name == "weights":
            hint = "Load the checkpoint it was made with. For a fine-tuned sibling on purpose: strict=False."
        else:
            hint = "Heads of different models are unrelated: score this model anew."
        raise HeadsError(f"{what} is for another model: {name} is {mine!r} there and {theirs!r} here.", hint)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Any) -> Fingerprint:
        """Rebuild from `to_dict`.

        Raises:
            HeadsError: A field is missing, unknown or of the wrong type.
        """
        kinds: dict[str, type] = {f.name: (str if f.name in ("family", "weights") else int) for f in fields(cls)}
        if not isinstance(data, Mapping) or set(data) != set(kinds):
            raise HeadsError(
                f"a model fingerprint needs exactly the fields {', '.join(kinds)}.", "The file is damaged."
            )
        for name, kind in kinds.items():
            value: Any = data[name]
            fits = isinstance(value, kind) and not isinstance(value, bool)
            if not fits or (kind is int and not 0 < int(value) < 2**31):
                raise HeadsError(f"{name}={value!r} in a model fingerprint is not valid.", "The file is damaged.")
        return cls(**data)


def unlike(shape: Shape, config: Any) -> str:
    """Return how a model's text configuration differs from a shape, "is for ..., and ..."; empty if it does not.

    For engines whose weights cannot be read: those are not compared.
    """
    here = (config.model_type, config.num_hidden_layers, config.num_attention_heads, config.hidden_size)
    if (mine := tuple(shape)) == here:
        return ""
    return f"is for {mine}, and the model is {here} (family, layers, heads, width)."


def _sample(matrix: Tensor) -> bytes:
    """The bytes of up to `SAMPLE` evenly spaced values, as bfloat16; a transposed view gives the same."""
    import torch

    rows, columns = matrix.shape
    count = min(SAMPLE, rows * columns)
    index = torch.arange(count, dtype=torch.long) * (rows * columns) // count
    picked = matrix.detach()[(index // columns).to(matrix.device), (index % columns).to(matrix.device)]
    return picked.to(torch.bfloat16).view(torch.int16).cpu().numpy().astype("<i2").tobytes()
