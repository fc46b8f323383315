"""FlashRAG's format, in and out: id, question, golden_answers, metadata.

Jin et al., 2024, "FlashRAG" (arXiv 2405.13576). Golden answers are `ctx_answers`; context and `par_answers` travel
under metadata.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..items.readers import Row
from ..records import Record
from .base import Adapter, Made, converted, row_id, text, with_answer

__all__ = ["ADAPTER", "export_flashrag"]


def export_flashrag(records: Iterable[Record], path: str | Path) -> int:
    """Write records in FlashRAG's format and return how many; `load_task("flashrag=...")` reads them back.

    Records without contextual answers (closed book) get the parametric ones as golden.
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


def _records(rows: Iterable[Row], options: Mapping[str, str]) -> Made:
    def convert(row: Row) -> Made:
        data = row.data
        meta: dict[str, Any] = dict(data.get("metadata") or {})
        context = meta.pop("context", "")
        golden = with_answer(data["golden_answers"])
        parametric = with_answer(meta.pop("par_answers", None))
        told = bool(context or meta.get("docs"))
        meta.setdefault("state", "conflict" if told and parametric else "plain" if told else "closed")
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


ADAPTER = Adapter(
    name="flashrag",
    convert=_records,
    source="a file in the format of GitHub RUC-NLPIR/FlashRAG",
    licence="as the file's owner says",
    clean="words",
    supported=False,
)
