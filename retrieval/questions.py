"""Questions that the texts of an index answer, kept beside it: a question finds a text by the question it was asked.

PIKE-RAG's atomic questions (Wang et al., arXiv 2501.11551). They are an index of their own, in the folder ``questions``
of the other one; each belongs to a text by its digest, so it holds as long as a passage has that text, whatever else
changes, and is never asked anew. Knows texts and questions; who writes them is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from ckcontrol.errors import IndexMismatch, RetrievalError

from .embed import AsQueries
from .index import Index
from .store import generations
from .store.asked import ANSWERED
from .store.texts import digest_text
from .types import Passage, check_count

__all__ = ["MOST", "QuestionChange", "QuestionWriter", "write_questions"]

MOST = 5  # questions of one text that are kept
QuestionWriter = Callable[[Sequence[str]], Sequence[Sequence[str]]]


class QuestionChange(NamedTuple):
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

    Every batch is kept when it is done: interrupted, the same call goes on after the last one.

    Args:
        index: Of whatever kind; searches of it see the questions from `Index.refresh` on.
        write: Texts to their questions, a list of questions per text; see `ckcontrol.question_writer`.
        batch_size: Texts per call of `write`.
        on_progress: Called with ("Questions", texts done, texts there are).

    Raises:
        RetrievalError: `write` did not give a list of texts for each text.
        IndexLocked: Another process is writing questions of this index.
    """
    check_count("batch_size", batch_size)
    root = index.path / generations.QUESTIONS
    asker = AsQueries(index.embedder)
    with generations.write_lock(index.path, generations.QUESTIONS_LOCK):
        kept = _kept(root, asker)
        known = {passage.metadata[ANSWERED] for passage in kept.passages()} if kept is not None else set()
        digests = {digest_text(passage.text).hex() for passage in index.passages()}
        removed = asked = without = written = 0
        if kept is not None and (gone := known - digests):
            stale = [passage.id for passage in kept.passages() if passage.metadata[ANSWERED] in gone]
            removed = kept.remove(passages=stale).removed
        done = len(digests & known)
        for batch in _batches(index, known, batch_size):
            texts = list(batch.values())
            questions = [list(each) for each in write(texts)]
            if len(questions) != len(texts) or not all(isinstance(q, str) for each in questions for q in each):
                raise RetrievalError(
                    f"{len(questions)} lists of questions came back for {len(texts)} texts, or not of texts.",
                    "Return one list of texts per text.",
                )
            items = [
                Passage(f"{digest}.{number}", question, "", {ANSWERED: digest})
                for digest, each in zip(batch, questions, strict=True)
                for number, question in enumerate(_fit(each))
            ]
            if items and kept is None:
                kept = Index.build(items, asker, root)
            elif items and kept is not None:
                kept.add(items)
            asked += len(batch)
            without += sum(not _fit(each) for each in questions)
            written += len(items)
            if on_progress is not None:
                on_progress("Questions", done + asked, len(digests))
        if kept is not None:
            kept.close()
    index.refresh()
    return QuestionChange(len(digests), asked, without, written, removed)


def _fit(questions: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(" ".join(each.split()) for each in questions if each.strip()))[:MOST]


def _kept(root: Path, asker: AsQueries) -> Index | None:
    """Return the questions there are; those of another embedder are embedded again, not asked again."""
    if not (root / generations.CURRENT).exists():
        return None
    try:
        return Index.open(root, asker)
    except IndexMismatch as error:
        if error.field not in ("dim", "fingerprint"):
            raise
    with closing(Index.open(root)) as old:
        passages = list(old.passages())
    return Index.build(passages, asker, root, overwrite=True)


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
