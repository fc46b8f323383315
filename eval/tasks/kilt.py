"""KILT and files of its kind: a query, gold answers and the passages some retriever found. No conflict is claimed.

Petroni et al., 2021, "KILT: a Benchmark for Knowledge Intensive Language Tasks" (arXiv 2009.02252).
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from typing import Any

from ckcontrol.errors import EvalError

from ..items.readers import Row
from ..records import Record
from .base import Adapter, Converted, converted, row_id, text, with_answer

__all__ = ["ADAPTER"]

# Of those that a row has, the last in this order wins: that is how the published scripts read them.
GOLDS = ("reference", "output", "answers", "answer", "possible_answers", "answerKey", "AnswerKey", "golds")


def _golds(data: Mapping[str, Any]) -> tuple[str, ...]:
    for key in reversed(GOLDS):
        value = data.get(key)
        if value is None:
            continue
        if key == "possible_answers" and isinstance(value, str):
            value = ast.literal_eval(value)
        items = value if isinstance(value, list) else [value]
        answers = [item.get("answer") if isinstance(item, Mapping) else item for item in items]
        return with_answer([item for item in answers if item is not None])
    return ()


def _passages(data: Mapping[str, Any], top: int) -> tuple[str, ...]:
    for key in ("passage", "docs", "rerank_passage"):
        found = data.get(key)
        if found:
            listed = found if isinstance(found, list) else [found]
            return tuple(item if isinstance(item, str) else _passage(item) for item in listed[: top or None])
    return ()


def _passage(item: Mapping[str, Any]) -> str:
    return text(item, next((key for key in ("text", "passage_text", "segment") if item.get(key)), "text"))


def _records(rows: Iterable[Row], options: Mapping[str, str]) -> Converted:
    if not options["top"].isdecimal():
        raise EvalError(f"top={options['top']!r} is not a number of passages.", "0 keeps all of them.")

    def convert(row: Row) -> Converted:
        data = row.data
        query = next((key for key in ("instruction", "question", "input", "query") if data.get(key)), "input")
        golds = _golds(data)
        if not golds:
            raise EvalError(f"no gold answer in any of {', '.join(GOLDS)}.", "Test files have none: take dev.")
        passages = _passages(data, int(options["top"]))
        yield Record(
            id=str(data.get("id") or row_id(row)),
            question=text(data, query),
            passages=passages,
            ctx_answers=golds,
            par_answers=golds,
            state="plain" if passages else "closed",
        )

    return converted(rows, convert)


ADAPTER = Adapter(
    name="kilt",
    convert=_records,
    source="KILT dev files (facebookresearch/KILT), with passages retrieved by their user",
    licence="code MIT; each data set under its own terms",
    options={"top": "0"},
)
