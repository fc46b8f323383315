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

from ckcontrol.errors import IndexMismatch, RetrievalError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .embed import TextEncoder

__all__ = ["check_identity", "identify"]

QUERY = "Which river runs through the old city, and where does the king keep his gold?"
PASSAGE = "The committee crossed the bridge at dawn; salt, maps and letters for the moon expedition were in bag 27."
LARGEST = 60_000  # what float16 holds, nearly
CLOSE = 0.995  # cosine that two runs of one model exceed in any precision, and two models do not
ALIKE = 0.05  # by what share the lengths of one model's vectors differ at most between precisions


def identify(embedder: TextEncoder) -> dict[str, Any]:
    """Return name, revision, normalize, dim and fingerprint of an embedder, as the manifest keeps them."""
    return {
        "name": str(getattr(embedder, "name", type(embedder).__name__)),
        "revision": str(getattr(embedder, "revision", None) or ""),
        "normalize": bool(getattr(embedder, "normalize", True)),
        "dim": int(embedder.dim),
        "fingerprint": base64.b64encode(_probe(embedder).tobytes()).decode(),
    }


def _probe(embedder: TextEncoder) -> NDArray[np.float16]:
    rows = [np.asarray(row, np.float32) for row in (embedder.encode([QUERY], query=True), embedder.encode([PASSAGE]))]
    shapes, wanted = [row.shape for row in rows], (1, int(embedder.dim))
    if shapes != [wanted, wanted] or not np.isfinite(rows).all():
        name = getattr(embedder, "name", type(embedder).__name__)
        raise RetrievalError(
            f"the embedder {name!r} gives vectors of shape {shapes[0]} and {shapes[1]} for one text each, or not "
            f"finite ones; its dim asks for {wanted}.",
            "Give an embedder that returns one finite row of `dim` numbers a text.",
        )
    both = np.concatenate(rows)
    return (both / max(1.0, float(abs(both).max()) / LARGEST)).astype(np.float16)


def check_identity(embedder: TextEncoder, saved: dict[str, Any], metric: str = "cosine") -> None:
    """Refuse an embedder that did not make the index.

    Args:
        embedder: Who asks.
        saved: What `identify` gave for the one that made it.
        metric: With "ip", the lengths of its vectors count too.

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
        lengths = [float(np.linalg.norm(row.astype(np.float64))) for row in (one, other)]
        if not cosine >= CLOSE or (metric == "ip" and abs(lengths[0] - lengths[1]) > ALIKE * max(lengths)):
            raise IndexMismatch(
                "fingerprint",
                f"the embedder {name!r} embeds {kind} differently from the one that made the index "
                f"(cosine {cosine:.3f}, lengths {lengths[0]:.3f} and {lengths[1]:.3f}).",
                hint,
            )


def _cosine(one: Any, other: Any) -> float:
    lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / lengths if lengths else float(np.array_equal(one, other))
