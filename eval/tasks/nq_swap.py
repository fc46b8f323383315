"""NQ-Swap: Natural Questions whose passage names another entity instead of the answer.

Longpre et al., 2021, "Entity-Based Knowledge Conflicts in Question Answering" (arXiv 2109.05052).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ..items.readers import Row
from ..records import Record
from .base import Adapter, Converted, converted, row_id, text, with_answer

__all__ = ["ADAPTER", "without_tags"]

_TAG = re.compile(r"</?(?:P|Ul|Ol|Li|Dl|Dt|Dd|Table|Tr|Td|Th)\b[^<>]*>")


def without_tags(passage: str) -> str:
    """Return a Natural Questions passage without its tags, white space folded; its tokenised spacing stays.

    Example:
        >>> without_tags('<Table> <Td colspan="2"> 23 < 25 </Td> </Table>')
        '23 < 25'
    """
    return " ".join(_TAG.sub(" ", passage).split())


def _records(rows: Iterable[Row], options: Mapping[str, str]) -> Converted:
    def convert(row: Row) -> Converted:
        data = row.data
        yield Record(
            id=row_id(row),
            question=text(data, "question"),
            passages=(without_tags(text(data, "sub_context")),),
            ctx_answers=with_answer(data["sub_answer"]),
            par_answers=with_answer(data["org_answer"]),
            meta={"org_context": without_tags(text(data, "org_context"))},
        )

    return converted(rows, convert)


ADAPTER = Adapter(
    name="nq_swap",
    convert=_records,
    source="Hugging Face pminervini/NQ-Swap, split dev; method of arXiv 2109.05052",
    licence="card: MIT; passages: Wikipedia through Natural Questions, CC BY-SA 3.0",
    hub="pminervini/NQ-Swap",
    pattern="*dev*.parquet",
)
