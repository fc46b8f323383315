"""MQuAKE: multi-hop questions whose answer changes when single facts are edited; the context lists the edits.

Zhong et al., 2023, "MQuAKE: Assessing Knowledge Editing in Language Models via Multi-Hop Questions"
(arXiv 2305.14795). The context does not state the final answer, only what leads to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ckcontrol.errors import EvalError, did_you_mean

from ..items.readers import Row
from ..records import Record, texts
from .base import Adapter, Converted, converted, text, with_answer

__all__ = ["ADAPTER", "edit_sentence"]


def edit_sentence(rewrite: Mapping[str, Any]) -> str:
    """Return what one `requested_rewrite` states: its prompt with the subject, then the new target.

    Example:
        >>> edit_sentence({"prompt": "{} lives in", "subject": "Ada", "target_new": {"str": "Bonn"}})
        'Ada lives in Bonn.'
    """
    return f"{text(rewrite, 'prompt').replace('{}', text(rewrite, 'subject'))} {text(rewrite['target_new'], 'str')}."


def _records(rows: Iterable[Row], options: Mapping[str, str]) -> Converted:
    which = options["questions"]
    if which not in ("first", "all"):
        raise EvalError(f"questions={which!r} is neither first nor all.", did_you_mean(which, ("first", "all")))

    def convert(row: Row) -> Converted:
        data = row.data
        questions = texts(data["questions"], "questions")
        name = str(data.get("case_id", row.number))
        for number, question in enumerate(questions if which == "all" else questions[:1]):
            yield Record(
                id=f"{name}/{number}",
                question=question,
                passages=(" ".join(edit_sentence(rewrite) for rewrite in data["requested_rewrite"]),),
                ctx_answers=with_answer(text(data, "new_answer"), data.get("new_answer_alias")),
                par_answers=(
                    *with_answer(text(data, "answer"), data.get("answer_alias")),
                    *with_answer(data.get("answer_extended")),
                ),
                group=f"case {name}" if which == "all" else "",
                meta={"hops": len(data["single_hops"])} if data.get("single_hops") else {},
            )
        if not questions:
            raise EvalError("field 'questions' is empty.", "A case has three.")

    return converted(rows, convert)


ADAPTER = Adapter(
    name="mquake",
    convert=_records,
    source="GitHub princeton-nlp/MQuAKE, datasets/MQuAKE-CF-3k-v2.json and others; arXiv 2305.14795",
    licence="MIT",
    options={"questions": "first"},
    supported=False,
)
