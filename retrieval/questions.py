"""Questions that the texts of an index answer, kept beside it: a question finds a text by the question it was asked.

PIKE-RAG's atomic questions (Wang et al., arXiv 2501.11551). They are an index of their own, in the folder ``questions``
of the other one; each belongs to a text by its digest, so it holds as long as a passage has that text, whatever else
changes, and is never asked anew. Knows texts and questions; who writes them is the caller's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ckcontrol.errors import IndexMismatch, RetrievalError

from .embed import AsQueries
from .index import Index
from .store import generations
from .store.texts import ANSWERED, digest_text
from .types import Passage, check_count
from .where import is_text

__all__ = ["MOST", "QuestionChange", "QuestionWriter", "write_questions"]

MOST = 5  # questions of one text that are kept
LONGEST = 1_000  # characters of one
OFTEN = 30.0  # seconds between two writes: each copies the questions there are
QuestionWriter = Callable[[Sequence[str]], Sequence[Sequence[str]]]


@dataclass(frozen=True)
class QuestionChange:
    """What a write of questions did.

    Attributes:
        texts: Texts there are.
        asked: Texts whose questions were written now.
        without: Those of them of which no question came.
        written: Questions that were added.
        removed: Questions that were left from texts that are gone.
    """

    texts: int
    asked: int
    without: int
    written: int
    removed: int


def write_questions(
    index: Index,
    write: QuestionWriter,
    *,
    batch_size: int = 8,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> QuestionChange:
    """Have the questions written that texts of an index lack, and drop those whose text is gone.

    They are kept every half a minute and when the call ends, however it ends: the same call goes on after the last
    batch. A text of which no question came is noted, and not asked of again.

    Args:
        index: What is open elsewhere sees the questions from `Index.refresh` on.
        write: Texts to their questions, a list of questions per text; see `ckcontrol.question_writer`.
        batch_size: Texts per call of `write`.
        on_progress: Called with ("Questions", texts done, texts there are).

    Raises:
        RetrievalError: `write` did not give a list of texts for each text; or a `MilvusIndex`, which has none.
        IndexLocked: Another process is writing questions of this index.
    """
    check_count("batch_size", batch_size)
    if not isinstance(index, Index):
        raise RetrievalError(f"questions are kept beside an Index, not beside {type(index).__name__}.", "Build one.")
    store = _Store(index)
    with generations.write_lock(index.path, generations.QUESTIONS_LOCK):
        store.open()
        digests = {digest_text(passage.text).hex() for passage in index.passages()}
        removed = store.drop(store.known - digests)
        done, asked, without, written = len(digests & store.known), 0, 0, 0
        try:
            for batch in _batches(index, store.known, batch_size):
                given = [list(each) for each in write(list(batch.values()))]
                if len(given) != len(batch) or not all(isinstance(q, str) for each in given for q in each):
                    raise RetrievalError(
                        f"{len(given)} lists of questions came back for {len(batch)} texts, or not of texts.",
                        "Return one list of texts per text.",
                    )
                questions = dict(zip(batch, map(_fit, given), strict=True))
                store.take(questions)
                asked += len(batch)
                without += sum(not each for each in questions.values())
                written += sum(map(len, questions.values()))
                if on_progress is not None:
                    on_progress("Questions", done + asked, len(digests))
        finally:
            store.close()
    index.refresh()
    return QuestionChange(len(digests), asked, without, written, removed)


class _Store:
    """The questions beside an index, while they are written: kept every half a minute, and at the end."""

    def __init__(self, index: Index) -> None:
        self._root, self._none = index.path / generations.QUESTIONS, index.path / generations.UNASKED
        self._asker = AsQueries(index.embedder)
        self._index: Index | None = None
        self._gathered: dict[str, list[str]] = {}
        self._kept = time.monotonic()
        self.known: set[str] = set()  # digests of texts that were asked of

    def open(self) -> None:
        """Read what there is; questions of another embedder are embedded again, not asked again."""
        if self._none.exists():
            self.known |= set(self._none.read_text(encoding="ascii", errors="replace").split())
        if not (self._root / generations.CURRENT).exists():
            return
        try:
            self._index = Index.open(self._root, self._asker)
        except IndexMismatch as error:
            if error.field not in ("dim", "fingerprint"):
                raise
            with Index.open(self._root) as old:
                passages = list(old.passages())
            self._index = Index.build(passages, self._asker, self._root, overwrite=True)
        self.known |= {passage.metadata[ANSWERED] for passage in self._index.passages()}

    def drop(self, gone: set[str]) -> int:
        """Remove the questions of texts that are gone; return how many."""
        if self._index is None:
            return 0
        stale = [passage.id for passage in self._index.passages() if passage.metadata[ANSWERED] in gone]
        return self._index.remove(passages=stale).removed if stale else 0

    def take(self, questions: dict[str, list[str]]) -> None:
        self._gathered |= questions
        if time.monotonic() - self._kept > OFTEN:
            self._keep()

    def _keep(self) -> None:
        gathered, self._gathered = self._gathered, {}
        items = [
            Passage(f"{digest}.{number}", question, "", {ANSWERED: digest})
            for digest, questions in gathered.items()
            for number, question in enumerate(questions)
        ]
        if items and self._index is None:
            self._index = Index.build(items, self._asker, self._root)
        elif items and self._index is not None:
            self._index.add(items)
        if none := [digest for digest, questions in gathered.items() if not questions]:
            with generations.storing(self._none.parent), self._none.open("a", encoding="ascii") as file:
                file.write("".join(f"{digest}\n" for digest in none))
        self._kept = time.monotonic()

    def close(self) -> None:
        """Keep what was gathered."""
        self._keep()
        if self._index is not None:
            self._index.close()


def _fit(questions: Sequence[str]) -> list[str]:
    """Return those that can be kept, each once: with a character, none that texts may not hold, and not too long."""
    folded = (" ".join(each.split()) for each in questions)
    return list(dict.fromkeys(each for each in folded if each and is_text(each) and len(each) <= LONGEST))[:MOST]


def _batches(index: Index, known: set[str], size: int) -> Iterator[dict[str, str]]:
    """Yield texts without questions by digest, each once, in corpus order."""
    seen, batch = set(known), dict[str, str]()
    for passage in index.passages():
        digest = digest_text(passage.text).hex()
        if digest in seen:
            continue
        seen.add(digest)
        batch[digest] = passage.text
        if len(batch) == size:
            yield batch
            batch = {}
    if batch:
        yield batch
