"""Files of records, whatever they are about: our own format, and FlashRAG's in and out.

Ours is one canonical record per line, as `Record.to_dict` specifies it. FlashRAG's (Jin et al., 2024, arXiv 2405.13576)
is id, question, golden_answers, metadata: golden answers are `ctx_answers`; context and `par_answers` travel under
metadata.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..items.readers import Row
from ..records import Record
from .base import Adapter, Converted, converted, row_id, text, with_answer

__all__ = ["FLASHRAG", "JSONL", "export_flashrag"]


def export_flashrag(records: Iterable[Record], path: str | Path) -> int:
    """Write records in FlashRAG's format and return their number; `load_task("flashrag=...")` reads them back.

    Records without contextual answers (closed book) get the parametric ones as golden answers.
    """
    lines = []
    for record in records:
        whole = record.to_dict()
        metadata = {**whole["meta"], "context": whole["context"], "par_answers": whole["par_answers"]}
        golden = whole["ctx_answers"] or whole["par_answers"]
        line = {"id": record.id, "question": record.question, "golden_answers": golden, "metadata": metadata}
        lines.append(json.dumps(line, ensure_ascii=False))
    Path(path).write_bytes("".join(f"{line}\n" for line in lines).encode())
    return len(lines)


def _canonical(rows: Iterable[Row], options: Mapping[str, str]) -> Converted:
    def convert(row: Row) -> Converted:
        data: Any = row.data
        if isinstance(data, Mapping) and data.get("id") is None:
            data = {**data, "id": row_id(row)}
        yield Record.from_dict(data)

    return converted(rows, convert)


def _flashrag(rows: Iterable[Row], options: Mapping[str, str]) -> Converted:
    def convert(row: Row) -> Converted:
        data = row.data
        meta: dict[str, Any] = dict(data.get("metadata") or {})
        context = meta.pop("context", "")
        golden = with_answer(data["golden_answers"])
        parametric = with_answer(meta.pop("par_answers", None))
        open_book = bool(context or meta.get("docs"))
        meta.setdefault("state", "conflict" if open_book and parametric else "plain" if open_book else "closed")
        yield Record.from_dict(
            {
                "id": str(data.get("id") or row_id(row)),
                "question": text(data, "question"),
                "context": context,
                "ctx_answers": list(golden),
                "par_answers": list(parametric or golden),
                "meta": meta,
            }
        )

    return converted(rows, convert)


# Cleaned by words: what people write themselves has short answers more often than not.
JSONL = Adapter(
    name="jsonl",
    convert=_canonical,
    source="a file of the user's own",
    licence="as the file's owner says",
    clean="words",
    supported=False,
)
FLASHRAG = replace(
    JSONL, name="flashrag", convert=_flashrag, source="a file in the format of GitHub RUC-NLPIR/FlashRAG"
)
