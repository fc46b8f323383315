"""RAMDocs: several documents per question, some right (for different entities of one name), some wrong, some noise.

Wang et al., 2025, "Retrieval-Augmented Generation with Conflicting Evidence" (arXiv 2504.13079). A record with wrong
answers is noisy, that is right and wrong together; the others claim nothing. All gold answers have to be named.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..items.readers import Row
from ..records import Record
from .base import Adapter, Converted, converted, row_id, text, with_answer

__all__ = ["ADAPTER"]


def _records(rows: Iterable[Row], options: Mapping[str, str]) -> Converted:
    def convert(row: Row) -> Converted:
        data = row.data
        wrong = with_answer(data["wrong_answers"])
        documents = [text(document, "text") for document in data["documents"]]
        yield Record(
            id=row_id(row),
            question=text(data, "question"),
            passages=tuple(documents),
            ctx_answers=wrong,
            par_answers=with_answer(data["gold_answers"]),
            state="noisy" if wrong else "plain",
            meta={"types": [str(document["type"]) for document in data["documents"]], "multi_gold": True},
        )

    return converted(rows, convert)


ADAPTER = Adapter(
    name="ramdocs",
    convert=_records,
    source="Hugging Face HanNight/RAMDocs, RAMDocs_test.jsonl; arXiv 2504.13079",
    licence="MIT; documents partly Wikipedia, CC BY-SA",
    hub="HanNight/RAMDocs",
    pattern="*.jsonl",
)
