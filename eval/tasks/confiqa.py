"""ConFiQA: passages with one or several counterfactual hops (QA, MR, MC).

Bi et al., 2024, "Context-DPO: Aligning Language Models for Context-Faithfulness" (arXiv 2412.15280). Entities
are replaced literally, so partial names of the old one survive in the passages: the clean check matters here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ..items.readers import Row
from ..records import Record
from .base import Adapter, Converted, converted, row_id, text, with_answer

__all__ = ["ADAPTER"]


def _records(rows: Iterable[Row], options: Mapping[str, str]) -> Converted:
    def convert(row: Row) -> Converted:
        data = row.data
        meta = {"org_context": text(data, "orig_context")}
        variant = re.search(r"(?<![A-Za-z])(QA|MR|MC)(?![A-Za-z])", row.file)
        if variant:
            meta["variant"] = variant[1]
        yield Record(
            id=row_id(row),
            question=text(data, "question"),
            passages=(text(data, "cf_context"),),
            ctx_answers=with_answer(text(data, "cf_answer"), data.get("cf_alias")),
            par_answers=with_answer(text(data, "orig_answer"), data.get("orig_alias")),
            meta=meta,
        )

    return converted(rows, convert)


ADAPTER = Adapter(
    name="confiqa",
    convert=_records,
    source="GitHub byronBBL/Context-DPO, ConFiQA/ConFiQA-QA.json, -MR.json, -MC.json; arXiv 2412.15280",
    licence="none stated: not to be redistributed; passages written by GPT-4",
)
