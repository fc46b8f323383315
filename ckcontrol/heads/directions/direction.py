"""`Direction`: one vector of a layer's residual stream, from context to memory: frozen data, and a safetensors file.

Knows plain numbers and the model's fingerprint; find.py finds one, apply.py makes it act on a model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...arguments import check_number
from ...errors import HeadsError
from ..fingerprint import Fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Direction"]

SCHEMA = "1"
KIND = "ckcontrol direction"
LIMIT = 10_000_000  # bytes, of a direction file
LARGEST = 1e6  # a strength beyond this is a mistake
_FIELDS = {"layer", "context", "memory", "note", "model"}


@dataclass(frozen=True, eq=False)
class Direction:
    """A direction v in the residual stream that leaves one layer, and how far to go along it.

    At a dial of alpha, v times `coefficient(alpha)` is added to the stream: nothing at 0.5, ``-context * v`` at 0,
    ``memory * v`` at 1, and linear between. One vector for both ways is the finding of Minder et al. 2024,
    "Controllable Context Sensitivity and the Knob Behind It" (arXiv 2411.07404), who set the value along v; here it is
    added to, as in Rimsky et al. 2024, "Steering Llama 2 via Contrastive Activation Addition" (arXiv 2312.06681).

    Attributes:
        model: Fingerprint of the model it was found on.
        layer: Whose output is changed, from 0.
        vector: v, [d] float32 on the CPU; scaled to length 1 on construction.
        context: Strength at alpha = 0, in units of the residual stream; 0 where no strength was found to help.
        memory: Strength at alpha = 1.
        note: Where it comes from: plain JSON values, not interpreted.

    Raises:
        HeadsError: A layer the model does not have, a vector of another width, without length or not finite, or a
            strength that is not a number from 0 to a million.

    Example:
        >>> from ckcontrol.models.tiny import tiny_model
        >>> model = tiny_model()[0]
        >>> found = Direction(Fingerprint.of(model), 1, torch.ones(model.config.hidden_size), context=4.0, memory=2.0)
        >>> [found.coefficient(alpha) for alpha in (0, 0.25, 0.5, 1)]
        [-4.0, -2.0, 0.0, 2.0]
    """

    model: Fingerprint
    layer: int
    vector: Tensor
    context: float
    memory: float
    note: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if type(self.layer) is not int or not 0 <= self.layer < self.model.layers:
            raise HeadsError(f"layer {self.layer!r} does not exist.", f"Layers are 0 to {self.model.layers - 1}.")
        vector = self.vector.detach().to(device="cpu", dtype=torch.float32)
        if vector.shape != (self.model.hidden,):
            raise HeadsError(
                f"the vector has shape {list(vector.shape)}, and the residual stream is {self.model.hidden} wide.",
                "The file is damaged, or of another model.",
            )
        length = float(vector.norm())
        if not 0 < length < float("inf"):  # false for NaN
            raise HeadsError(f"the vector's length is {length:g}.", "A direction has finite values, not all 0.")
        for name in ("context", "memory"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= LARGEST:
                raise HeadsError(f"strength {name}={value!r} is not valid.", f"Give a number from 0 to {LARGEST:g}.")
        object.__setattr__(self, "vector", vector / length)
        object.__setattr__(self, "note", MappingProxyType(dict(self.note)))

    def coefficient(self, alpha: float) -> float:
        """Return what v is multiplied by at a dial of `alpha`.

        Raises:
            ControlError: alpha is not a number from 0 to 1.
            HeadsError: The direction has no strength on that side.
        """
        alpha = check_number("alpha", alpha, 0, 1)
        if alpha == 0.5:
            return 0.0
        side = "context" if alpha < 0.5 else "memory"
        strength: float = getattr(self, side)
        if not strength:
            raise HeadsError(
                f"this direction does not lead toward the {side}: on the facts it was found with, no strength helped.",
                "Stay on the other side of alpha = 0.5, or find a direction on other facts.",
            )
        return (2 * alpha - 1) * strength

    def check(self, model: PreTrainedModel, *, strict: bool = True) -> None:
        """Refuse a model this direction was not found on.

        Args:
            model: The model at hand.
            strict: Compare the digest of the weights too. False admits a fine-tuned sibling of the same shape.

        Raises:
            HeadsError: Names the differing field and both values.
        """
        self.model.check(model, "the direction", weights=strict)

    def __repr__(self) -> str:
        shape = f"{self.model.family} {self.model.layers}×{self.model.hidden}"
        return f"Direction({shape}: layer {self.layer}, context {self.context:g}, memory {self.memory:g})"

    def save(self, path: str | Path) -> None:
        """Write the vector as safetensors; everything else is JSON in the file's metadata."""
        from safetensors.torch import save_file

        told = {
            "model": self.model.to_dict(),
            "layer": self.layer,
            "context": self.context,
            "memory": self.memory,
            "note": dict(self.note),
        }
        text = json.dumps(told, ensure_ascii=False, allow_nan=False)
        save_file({"vector": self.vector.contiguous()}, path, metadata={"kind": KIND, "schema": SCHEMA, "json": text})

    @classmethod
    def load(cls, path: str | Path) -> Direction:
        """Read a direction written by `save`.

        Raises:
            HeadsError: Not a direction, of another schema, or damaged; the message says what is wrong.
            OSError: The file cannot be read.
        """
        from safetensors import SafetensorError, safe_open

        name = repr(str(path))
        if Path(path).stat().st_size > LIMIT:
            raise HeadsError(f"{name} is larger than {LIMIT // 1_000_000} MB.", "A direction is one vector.")
        try:
            with safe_open(path, framework="pt") as file:
                about, tensors = file.metadata() or {}, list(file.keys())
                vector: Tensor | None = file.get_tensor("vector") if tensors == ["vector"] else None
            told = json.loads(about.get("json", "null"))
        except (SafetensorError, ValueError, RecursionError) as error:
            raise HeadsError(f"{name} cannot be read: {error}.", "Give a file that `steer find` wrote.") from error
        if about.get("kind") != KIND or about.get("schema") != SCHEMA:
            raise HeadsError(f"{name} is not a direction of schema {SCHEMA}.", "Give a file that `steer find` wrote.")
        if vector is None or not isinstance(told, dict) or set(told) != _FIELDS or not isinstance(told["note"], dict):
            raise HeadsError(f"{name} has missing or unknown parts.", "The file is damaged.")
        return cls(**{**told, "model": Fingerprint.from_dict(told["model"])}, vector=vector)
