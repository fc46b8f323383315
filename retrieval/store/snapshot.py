"""One published generation, open for searching by any number of threads. Never changes.

Knows how a question becomes hits: dense, by words, or both fused by reciprocal rank. Knows nothing of embedders:
queries come with their vectors.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from ckcontrol.errors import IndexMismatch, RetrievalError

from ..overrides import Override, read_overrides
from ..types import Hit
from ..where import Condition
from .asked import Asked, Ranked
from .generations import CURRENT, QUESTIONS, Generation, open_current, pointer
from .texts import ANSWERED, TextReader
from .vectors import DECIMALS, Rows, Vectors

OVERRIDES = "overrides.json"

__all__ = ["MODES", "Snapshot", "current", "fuse_ranks"]

MODES = ("dense", "bm25", "hybrid")
CONSTANT = 60  # of reciprocal rank fusion (Cormack, Clarke, Buettcher, SIGIR 2009)
DEPTH = 100  # hits that each of the two contributes to the fusion, at least
REMEMBERED = 32  # filters whose rows are kept


class Snapshot:
    """The index as it was at one moment.

    Raises:
        NoIndex: There is none.
        IndexMismatch: A file is damaged, or does not hold what the manifest says.
    """

    def __init__(self, root: Path) -> None:
        self._generation: Generation = open_current(root)
        self.manifest = self._generation.manifest
        folder = self._generation.folder
        self.texts = TextReader(folder, self.manifest.words)
        try:
            self.vectors = Vectors(folder, self.manifest.kind, self.manifest.settings.metric)
        except RuntimeError as error:
            raise IndexMismatch("vectors", f"FAISS cannot read its file: {error}", "Build the index again.") from error
        expected = (self.manifest.rows, self.manifest.embedder["dim"])
        for index in filter(None, (self.vectors.exact, self.vectors.ann)):
            if (index.ntotal, index.d) != expected:
                raise IndexMismatch("rows", f"a FAISS file is {index.ntotal} x {index.d}, not {expected}.", "Rebuild.")
        self.overrides: list[Override] = []
        if OVERRIDES in self.manifest.files:
            try:
                facts = json.loads((folder / OVERRIDES).read_text(encoding="utf-8"))
                self.overrides = read_overrides(Override(**{**f, "prompts": tuple(f["prompts"])}) for f in facts)
            except (ValueError, TypeError, KeyError, RetrievalError) as error:
                raise IndexMismatch(OVERRIDES, f"{OVERRIDES} cannot be read: {error}", "Set them again.") from error
        self.asked: Asked | None = None
        self.checked = False  # that `asked` is of the embedder in use
        self.questions = self._open_questions(root / QUESTIONS)
        self._remembered: OrderedDict[str, Rows] = OrderedDict()
        self._lock = Lock()

    def _open_questions(self, root: Path) -> Snapshot | None:
        if not (root / CURRENT).exists():
            return None
        try:
            questions = Snapshot(root)
        except IndexMismatch as error:
            again = f"Delete the folder {str(root)!r}; ckcontrol index questions writes them again."
            raise IndexMismatch(f"{QUESTIONS}/{error.field}", f"of its questions, {error}", again) from error
        numbers = self.texts.digests()
        belongs = [(row, numbers[digest]) for row, digest in questions.texts.marked(ANSWERED) if digest in numbers]
        if belongs:
            self.asked = Asked(questions.vectors, questions.manifest.rows, belongs)
        return questions

    @property
    def number(self) -> tuple[int, int]:
        """The generation, and that of its questions; 0 without any."""
        return self.manifest.generation, 0 if self.questions is None else self.questions.manifest.generation

    def close(self) -> None:
        """Let go of the files; searches under way end first."""
        if self.questions is not None:
            self.questions.close()
        self.texts.close()
        self._generation.close()

    def search(
        self,
        queries: Sequence[str],
        vectors: Any,
        k: int,
        conditions: tuple[Condition, ...] = (),
        mode: str = "dense",
        effort: int | None = None,
        nearest: float | None = None,
    ) -> list[list[Hit]]:
        """Return the best `k` passages per query; `vectors` may be None for "bm25".

        Of a "hybrid" search only passages count whose vectors score `nearest` or more.
        """
        depth = min(k if mode != "hybrid" else max(k, DEPTH), max(self.manifest.texts, 1))
        ranked: list[list[Ranked]] = []
        if mode != "bm25":
            if len(vectors) != len(queries):
                raise RetrievalError(
                    f"the embedder gave {len(vectors)} vectors for {len(queries)} queries.",
                    "Return one per query.",
                )
            ranked.append(self._nearest(vectors, depth, self._rows(conditions), effort))
        if mode != "dense":
            ranked.append([self.texts.bm25(query, depth, conditions) for query in queries])
        if nearest is not None and len(ranked) == 2:
            for place in range(len(queries)):
                both = sorted({num for ranking in ranked for num, _ in ranking[place]})
                rows = Rows.of(both, self.manifest.rows)
                near = {
                    num
                    for num, score in self._nearest(vectors[place : place + 1], len(both), rows)[0]
                    if score >= nearest
                }
                for ranking in ranked:
                    ranking[place] = [hit for hit in ranking[place] if hit[0] in near]
        merged = ranked[0] if len(ranked) == 1 else [fuse_ranks(both)[:k] for both in zip(*ranked, strict=True)]
        wanted = sorted({num for hits in merged for num, _ in hits})
        passages = self.texts.fetch(wanted, conditions)
        return [[Hit(passages[num], score, rank) for rank, (num, score) in enumerate(hits, 1)] for hits in merged]

    def _nearest(self, vectors: Any, k: int, rows: Rows, effort: int | None = None) -> list[Ranked]:
        """Return the texts nearest to each query, by themselves or by a question they answer."""
        found = self.vectors.search(vectors, k, rows, effort)
        if self.asked is None:
            return found
        return self.asked.join(found, vectors, k, rows, self.manifest.rows, effort)

    def _rows(self, conditions: tuple[Condition, ...]) -> Rows:
        key = repr(conditions)  # not the tuple: True and 1 are equal, but not as filters
        with self._lock:
            if key in self._remembered:
                self._remembered.move_to_end(key)
                return self._remembered[key]
        if not conditions and self.manifest.texts == self.manifest.rows:
            rows = Rows(self.manifest.rows, None)
        else:
            rows = Rows.of(self.texts.nums(conditions), self.manifest.rows)
        with self._lock:
            self._remembered[key] = rows
            while len(self._remembered) > REMEMBERED:
                self._remembered.popitem(last=False)
        return rows


def fuse_ranks(rankings: Sequence[Ranked]) -> Ranked:
    """Merge rankings by reciprocal rank: each gives 1 / (60 + rank) to what it holds. Ties keep corpus order."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, (num, _) in enumerate(ranking, 1):
            scores[num] = scores.get(num, 0.0) + 1 / (CONSTANT + rank)
    return sorted(((num, round(score, DECIMALS)) for num, score in scores.items()), key=lambda hit: (-hit[1], hit[0]))


def current(root: Path) -> tuple[int, int] | None:
    """Return what `Snapshot.number` would be now; None where nothing was published."""
    found, asked = pointer(root), pointer(root / QUESTIONS)
    return None if found is None else (found[0], 0 if asked is None else asked[0])
