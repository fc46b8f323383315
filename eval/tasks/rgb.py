"""RGB: questions about the news, with documents that state the answer and the same documents with a wrong one.

Chen et al., 2024, "Benchmarking Large Language Models in Retrieval-Augmented Generation" (arXiv 2309.01431). Files
are JSON lines named ``.json``; only en_fact and zh_fact have wrong documents, the others claim no conflict.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..items.readers import Row
from ..records import Record
from .base import Adapter, Converted, converted, text, with_answer

__all__ = ["ADAPTER"]


def _records(rows: Iterable[Row], options: Mapping[str, str]) -> Converted:
    def convert(row: Row) -> Converted:
        data = row.data
        right = with_answer(_flat(data["answer"]))
        fake = with_answer(_flat(data.get("fakeanswer")))
        good = with_answer(_flat(data.get("positive")))
        yield Record(
            id=f"{row.file}:{data.get('id', row.number)}",
            question=text(data, "query"),
            passages=with_answer(_flat(data["positive_wrong"])) if fake else good,
            ctx_answers=fake or right,
            par_answers=right,
            state="conflict" if fake else "plain" if good else "closed",
            meta={"org_context": "\n\n".join(good)} if fake else {},
        )

    return converted(rows, convert)


def _flat(value: Any) -> list[Any]:
    return [leaf for item in value for leaf in _flat(item)] if isinstance(value, list) else [value]


ADAPTER = Adapter(
    name="rgb",
    convert=_records,
    source="GitHub chen700564/RGB, data/en_fact.json and others; arXiv 2309.01431",
    licence="CC BY-NC-SA 4.0: not for commercial use",
)
