"""ConflictQA: a model's own wrong or right belief against a generated counter-evidence, as a three-way choice.

Xie et al., 2023, "Adaptive Chameleon or Stubborn Sloth" (arXiv 2305.13300). Answers are whole sentences, so they become
lettered options (counter, memory, uncertain; in an order that depends on the row), and the letters are compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..items.readers import Row
from ..items.states import rank
from ..records import Record, texts
from .base import Adapter, Converted, converted, row_id, text, with_answer

__all__ = ["ADAPTER"]

ROLES = ("contextual", "parametric", "uncertain")


def _records(rows: Iterable[Row], options: Mapping[str, str]) -> Converted:
    def convert(row: Row) -> Converted:
        data = row.data
        said = {
            "contextual": text(data, "counter_answer").strip(),
            "parametric": text(data, "memory_answer").strip(),
            "uncertain": "Uncertain.",
        }
        question = text(data, "question").strip()
        roles = sorted(ROLES, key=lambda role: rank(0, question, role))
        listed = "\n".join(f"{letter}. {said[role]}" for letter, role in zip("ABC", roles, strict=True))
        yield Record(
            id=row_id(row),
            question=f"{question}\n{listed}",
            passages=(text(data, "counter_memory").strip(),),
            ctx_answers=with_answer(said["contextual"]),
            par_answers=with_answer(said["parametric"]),
            choices=(" A", " B", " C"),
            answer_index=roles.index("contextual"),
            meta={"roles": roles, "ground_truth": list(texts(data.get("ground_truth"), "ground_truth"))},
        )

    return converted(rows, convert)


ADAPTER = Adapter(
    name="conflictqa",
    convert=_records,
    source="Hugging Face osunlp/ConflictQA; arXiv 2305.13300; each file holds the beliefs of the model in its name",
    licence="Apache-2.0 (tag and repository)",
)
