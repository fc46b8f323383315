"""A second look at what a search found: a cross-encoder reads question and passage together and orders them anew.

Knows texts, hits and one sentence-transformers cross-encoder; knows nothing of indexes or vectors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from ckcontrol.errors import MissingExtra, RetrievalError

from .embed import no_bar
from .types import Hit, check_count

__all__ = ["Reranker", "TextScorer", "rerank"]


class TextScorer(Protocol):
    """What can say how well each of some texts answers a question."""

    def score(self, query: str, texts: Sequence[str]) -> Sequence[float]:
        """Return one finite number a text, in order; higher is better."""


class Reranker:
    """A sentence-transformers cross-encoder. Code shipped with a checkpoint is never run, pickles are never read.

    Args:
        name_or_path: A model folder or a Hugging Face id. It must have one output a pair.
        device: None lets sentence-transformers choose.
        batch_size: Pairs per forward.

    Raises:
        MissingExtra: sentence-transformers is not installed.
        RetrievalError: The model cannot be found or loaded, or has more than one output.
    """

    def __init__(self, name_or_path: str, device: str | None = None, *, batch_size: int = 32) -> None:
        try:
            from sentence_transformers import CrossEncoder
        except ImportError as error:
            raise MissingExtra("sentence-transformers", "retrieval") from error
        from ckcontrol.models.load import hub_answers

        try:
            with no_bar(name_or_path):
                self._model: Any = CrossEncoder(
                    name_or_path,
                    device=device,
                    trust_remote_code=False,
                    local_files_only=not hub_answers(name_or_path),
                    model_kwargs={"use_safetensors": True},
                )
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split()).partition(". ")[0].rstrip(".")
            raise RetrievalError(
                f"the re-ranker {name_or_path!r} could not be loaded: {reason}.",
                "Give a cross-encoder folder or a Hugging Face id, and check the network.",
            ) from error
        if self._model.num_labels != 1:
            raise RetrievalError(
                f"the model {name_or_path!r} has {self._model.num_labels} outputs, a re-ranker one.",
                "Give a cross-encoder trained for ranking, not for classification.",
            )
        self.name = name_or_path
        self.batch_size = batch_size

    def score(self, query: str, texts: Sequence[str]) -> list[float]:
        """Return how well each text answers the question, in order; higher is better.

        A pair longer than the model's window is cut off by its tokenizer. The scale is the model's own: most give a
        probability, some a logit.
        """
        if not texts:
            return []
        pairs = [(query, text) for text in texts]
        scores = self._model.predict(pairs, batch_size=self.batch_size, show_progress_bar=False, convert_to_numpy=True)
        return [float(score) for score in scores]


def rerank(query: str, hits: Sequence[Hit], scorer: TextScorer, k: int | None = None) -> list[Hit]:
    """Return the hits by `scorer`'s score, best first; equal scores keep their order.

    Args:
        query: The question the hits belong to.
        hits: What a search found; give more than `k`, or there is nothing to choose from.
        scorer: A `Reranker`, or anything with its `score`.
        k: How many to keep; None keeps all.

    Returns:
        Hits with the same passages, the scorer's scores and new ranks.

    Raises:
        RetrievalError: `k` is not a positive whole number, or the scorer gives NaN, an infinity, or not one number
            a text.
    """
    if k is not None:
        check_count("k", k)
    if not hits:
        return []
    scores = [float(score) for score in scorer.score(query, [hit.passage.text for hit in hits])]
    name = type(scorer).__name__
    if len(scores) != len(hits):
        raise RetrievalError(f"{name} gave {len(scores)} scores for {len(hits)} texts.", "It must give one a text.")
    for hit, score in zip(hits, scores, strict=True):
        if not math.isfinite(score):
            raise RetrievalError(
                f"{name} scored passage {hit.passage.id!r} {score}.", "Load the model in float32; check its weights."
            )
    order = sorted(range(len(hits)), key=lambda place: -scores[place])  # sorted is stable
    return [replace(hits[place], score=scores[place], rank=rank) for rank, place in enumerate(order[:k], 1)]
