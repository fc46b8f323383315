"""ParaConflict: clozes of several relations, each with a bare and an elaborate conflicting context.

Li et al., 2025, "Taming Knowledge Conflicts in Language Models" (JuICE). The published contexts may end with the
cloze itself, which is removed here: a record's question is the cloze, and prompts are put together elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ckcontrol.errors import EvalError, did_you_mean

from ..items.readers import Row
from ..records import Record
from .base import Adapter, Converted, converted, row_id, text, with_answer

__all__ = ["ADAPTER"]

FORMS = {"substitution": "Substitution Conflict", "coherent": "Coherent Conflict"}


def _flat(rows: Iterable[Row]) -> Iterator[Row]:
    """Yield one row per item, with its relation: files are mappings of lists, lists of those, or flat lists."""
    number = 0
    for row in rows:
        lists = isinstance(row.data, Mapping) and all(isinstance(items, list) for items in row.data.values())
        groups: Iterable[tuple[str, Any]] = row.data.items() if lists else [("", [row.data])]
        for relation, items in groups:
            for item in items:
                extra = {"relation": relation} if relation and isinstance(item, Mapping) else {}
                yield Row(row.file, number, {**extra, **item} if isinstance(item, Mapping) else item)
                number += 1


def _records(rows: Iterable[Row], options: Mapping[str, str]) -> Converted:
    form = options["form"]
    if form not in FORMS:
        raise EvalError(f"form={form!r} is unknown.", did_you_mean(form, FORMS))

    def convert(row: Row) -> Converted:
        data = row.data
        prompt = text(data, "Clean Prompt").strip()
        passage = text(data, FORMS[form]).strip().removesuffix(prompt).strip()
        yield Record(
            id=row_id(row),
            question=prompt,
            passages=(passage,),
            ctx_answers=with_answer(data["Distracted Token"]),
            par_answers=with_answer(data["Answer"]),
            cloze=True,
            meta={"subject": text(data, "Subject"), "relation": data.get("relation") or ""},
        )

    return converted(_flat(rows), convert)


ADAPTER = Adapter(
    name="paraconflict",
    convert=_records,
    source="ParaConflict, published with JuICE (Taming Knowledge Conflicts in Language Models, 2025)",
    licence="not checked: see the publisher; not to be redistributed",
    options={"form": "substitution"},
)
