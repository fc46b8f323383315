"""The Natural Questions protocol of CK-PLUG: an original and a conflict file, paired by index.

Zhou et al., 2023, "Context-faithful Prompting" (arXiv 2303.11315) made the conflict file; the CK-PLUG scripts take
rows 600 to 800 of both. Question, passage and contextual answer come from the conflict file, the parametric answer
from the original one. With NQ-Swap in place of the conflict file, passages are looked up by question and original
passage: a surrogate, whose substituted answers may differ from the authors'. Never report it as a reproduction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ckcontrol.errors import EvalError

from ..items.readers import Data, Row, read, sha256
from ..records import Record, Rejected, squad, texts
from .base import Adapter, Converted, converted, text, with_answer
from .nq_swap import without_tags

__all__ = ["ADAPTER"]

SURROGATE = "surrogate: passages and substituted answers from NQ-Swap, not the authors' conflict file"


def _load(place: str, options: Mapping[str, str]) -> Data:
    """Return one row per question: {"original": row, "conflict": row, "surrogate": bool}."""
    parts = place.split("+")
    if len(parts) != 2:
        raise EvalError(
            f"context_faithful_nq needs two files, not {place!r}.",
            "Write context_faithful_nq=orig_dev_filtered.json+conflict_dev_filtered.json",
        )
    original, conflict = (read(part, file=options["file"], revision=options["revision"]) for part in parts)
    if any(isinstance(row.data, Mapping) and "sub_context" in row.data for row in conflict.rows[:1]):
        rows = _from_nq_swap(original, conflict)
    else:
        left, right = ({row.number: row for row in data.rows} for data in (original, conflict))
        if max(left, default=-1) != max(right, default=-1):
            raise EvalError(
                f"{parts[0]!r} ends with row {max(left, default=-1)}, {parts[1]!r} with {max(right, default=-1)}.",
                "Rows are paired by index, so both files need the same ones.",
            )
        both = [n for n in sorted(left) if n in right]
        name = conflict.rows[0].file
        rows = [Row(name, n, {"original": left[n].data, "conflict": right[n].data}) for n in both]
    files = {**original.files, **conflict.files}
    total = sha256(f"{original.sha256}\n{conflict.sha256}\n".encode())
    return Data(tuple(rows), (*original.rejected, *conflict.rejected), total, files, f"{parts[0]} and {parts[1]}")


def _from_nq_swap(original: Data, swapped: Data) -> list[Row]:
    waiting: dict[tuple[str, str], list[Row]] = {}
    for row in swapped.rows:
        waiting.setdefault(_key(row.data, "org_context"), []).append(row)
    rows = []
    for row in original.rows:
        found = waiting.get(_key(row.data, "context")) if isinstance(row.data, Mapping) else None
        conflict = None
        if found:
            # Each swap serves one row; where the original file repeats a question more often, the last serves again.
            swap = found.pop(0) if len(found) > 1 else found[0]
            conflict = {"context": swap.data["sub_context"], "answer": swap.data["sub_answer"]}
            conflict["question"] = swap.data["question"]
        rows.append(Row(row.file, row.number, {"original": row.data, "conflict": conflict, "surrogate": True}))
    return rows


def _key(data: Mapping[str, object], context: str) -> tuple[str, str]:
    return squad(str(data.get("question"))), squad(without_tags(str(data.get(context))))


def _records(rows: Iterable[Row], options: Mapping[str, str]) -> Converted:
    chosen = list(rows)
    if options["slice"]:
        try:
            start, stop = (int(part) for part in options["slice"].split(":"))
        except ValueError as error:
            raise EvalError(f"slice={options['slice']!r} is not START:STOP.", "For example slice=600:800.") from error
        chosen = [row for row in chosen if start <= row.number < stop]

    def convert(row: Row) -> Converted:
        original, conflict = row.data["original"], row.data["conflict"]
        if conflict is None:
            yield Rejected(str(row.number), "no surrogate", "NQ-Swap has no such question and passage.")
            return
        if not texts(original["answer"]):
            yield Rejected(str(row.number), "original answer is null", text(conflict, "question"))
            return
        meta = {"org_context": without_tags(text(original, "context"))}
        yield Record(
            id=str(row.number),
            question=text(conflict, "question"),
            passages=(without_tags(text(conflict, "context")),),
            ctx_answers=with_answer(conflict["answer"]),
            par_answers=with_answer(original["answer"]),
            meta=meta | ({"note": SURROGATE} if row.data.get("surrogate") else {}),
        )

    return converted(chosen, convert)


ADAPTER = Adapter(
    name="context_faithful_nq",
    convert=_records,
    source="conflict_dev_filtered.json of arXiv 2303.11315 and orig_dev_filtered.json of the CK-PLUG repository",
    licence="none stated; passages: Wikipedia through Natural Questions, CC BY-SA 3.0",
    options={"slice": ""},
    load=_load,
)
