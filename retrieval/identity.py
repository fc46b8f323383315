"""Which embedder made the vectors, told by what it does rather than by what it is called.

A fingerprint is the embedder's vectors of two fixed texts, one embedded as a query and one as a passage. It survives
another path, device or precision of the same model, and catches another checkpoint, pooling, prompt or window that a
name or a dimension would let through. Knows the `TextEncoder` protocol only.
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Any

import numpy as np

from ckcontrol.errors import IndexMismatch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .embed import TextEncoder

__all__ = ["check_identity", "identify"]

QUERY = "Which river runs through the old city, and where does the king keep his gold?"
PASSAGE = "The committee crossed the bridge at dawn; salt, maps and letters for the moon expedition were in bag 27."
CLOSE = 0.995  # cosine that two runs of one model exceed in any precision, and two models do not


def identify(embedder: TextEncoder) -> dict[str, Any]:
    """Return name, revision, dim and fingerprint of an embedder, as the manifest keeps them."""
    return {
        "name": str(getattr(embedder, "name", type(embedder).__name__)),
        "revision": str(getattr(embedder, "revision", None) or ""),
        "dim": int(embedder.dim),
        "fingerprint": base64.b64encode(_probe(embedder).tobytes()).decode(),
    }


def _probe(embedder: TextEncoder) -> NDArray[np.float16]:
    rows = [embedder.encode([QUERY], query=True), embedder.encode([PASSAGE])]
    return np.concatenate([np.asarray(row, np.float32) for row in rows]).astype(np.float16)


def check_identity(embedder: TextEncoder, saved: dict[str, Any]) -> None:
    """Refuse an embedder that did not make the index.

    Raises:
        IndexMismatch: `field` is "dim" or "fingerprint".
    """
    name, dim = getattr(embedder, "name", type(embedder).__name__), int(embedder.dim)
    hint = f"Use the embedder {saved['name']!r}, or build the index again with this one."
    if dim != saved["dim"]:
        raise IndexMismatch("dim", f"the embedder {name!r} has dim {dim}, the index {saved['dim']}.", hint)
    try:
        old = np.frombuffer(base64.b64decode(saved["fingerprint"], validate=True), np.float16).reshape(2, dim)
    except (binascii.Error, ValueError) as error:
        raise IndexMismatch("fingerprint", "the manifest's fingerprint cannot be read.", hint) from error
    for kind, one, other in zip(("queries", "passages"), _probe(embedder), old, strict=True):
        cosine = _cosine(one.astype(np.float64), other.astype(np.float64))
        if not cosine >= CLOSE:
            raise IndexMismatch(
                "fingerprint",
                f"the embedder {name!r} embeds {kind} differently from the one that made the index "
                f"(cosine {cosine:.3f}).",
                hint,
            )


def _cosine(one: Any, other: Any) -> float:
    lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / lengths if lengths else float(np.array_equal(one, other))
