"""Which texts have the questions nearest to a query: the vectors of questions, and which text each belongs to.

Knows rows and numbers; knows nothing of words or of where a file lies.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from .vectors import Rows, Vectors

__all__ = ["Asked"]

Ranked = list[tuple[int, float]]  # (text number, score), best first


class Asked:
    """The questions of the texts of one generation.

    Args:
        vectors: Of the questions, in the texts' own space.
        rows: How many of them there are.
        belongs: (row of a question, number of a text that answers it); a question may have several texts.
    """

    def __init__(self, vectors: Vectors, rows: int, belongs: Iterable[tuple[int, int]]) -> None:
        pairs = np.array(sorted({*belongs}), dtype=np.int64).reshape(-1, 2)
        self._vectors, self._rows = vectors, rows
        self._questions, self._texts = pairs[:, 0], pairs[:, 1]
        self._most = int(np.bincount(self._texts).max()) if len(pairs) else 0
        self._belongs: dict[int, list[int]] = {}
        for row, text in pairs.tolist():
            self._belongs.setdefault(row, []).append(text)
        self._all = Rows.of(list(self._belongs), rows)

    @property
    def counts(self) -> tuple[int, int]:
        """How many questions there are, and how many texts have one."""
        return len(self._belongs), len(np.unique(self._texts))

    def join(
        self, found: list[Ranked], queries: Any, k: int, texts: Rows, total: int, effort: int | None
    ) -> list[Ranked]:
        """Return for each query the best `k` texts, each by itself or by its nearest question, whichever is nearer.

        Args:
            found: The best `k` texts by themselves.
            queries: [n, dim].
            k: Hits per query.
            texts: Where to look.
            total: Numbers of texts there are.
            effort: As for `Vectors.search`.
        """
        rows, there = self._all, None
        if texts.mask is not None:
            there = np.unpackbits(texts.mask, count=total, bitorder="little")
            rows = Rows.of(np.unique(self._questions[there[self._texts] == 1]).tolist(), self._rows)
        if not rows.count:
            return found
        depth = min(k * self._most, rows.count)  # holds k texts at least
        asked = self._vectors.search(queries, depth, rows, effort)
        joined = []
        for plain, near in zip(found, asked, strict=True):
            best = dict(plain)
            for row, score in near:
                for text in self._belongs[row]:
                    if there is None or there[text]:
                        best[text] = max(score, best.get(text, score))
            joined.append(sorted(best.items(), key=lambda hit: (-hit[1], hit[0]))[:k])
        return joined
