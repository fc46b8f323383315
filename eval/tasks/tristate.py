"""TriState-Bench: contexts that are right or wrong, screened for one model whose memory is right or wrong.

Jiang et al., 2026, "From Context-Aware to Conflict-Aware" (arXiv 2606.10298). Two rows an item, the prompt with the
passage (``assigned_process`` 0) and the one without. C_wrong_P_right is the paper's resistance (conflict),
C_right_P_wrong correction (helpful), C_right_P_right agreement. A file is screened for the model it is named after: for
another, screen the facts again (`ckcontrol eval build-conflicts --screen`), which `fact` reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ckcontrol.errors import EvalError, did_you_mean

from ..items.readers import Row
from ..metrics import mentions
from ..records import Record, texts
from .base import Adapter, Converted, converted, text, with_answer

__all__ = ["ADAPTER", "fact"]

_STATES = {"C_wrong_P_right": "conflict", "C_right_P_wrong": "helpful", "C_right_P_right": "agree"}
_PROMPT = re.compile(
    r"(?P<passage>.+?)\s*\nUsing only the references listed above, answer the following question:\s*\n"
    r"Question:\s*(?P<question>.+?)[\s?]*\nAnswer:\s*",
    re.DOTALL,
)


def _records(rows: Iterable[Row], options: Mapping[str, str]) -> Converted:
    def convert(row: Row) -> Converted:
        data = row.data
        if data["assigned_process"] != 0:
            return
        kind = text(data, "benchmark")
        if kind not in _STATES:
            raise EvalError(f"benchmark {kind!r} is unknown.", did_you_mean(kind, _STATES))
        found = _PROMPT.fullmatch(text(data, "context_string"))
        if found is None:
            raise EvalError("context_string is no passage with a question.", "Is this a file of TriState-Bench?")
        right, name = with_answer(data["original_answer"], data["gold_answers"]), text(data, "fact_id")
        yield Record(
            id=f"{name}/{_STATES[kind]}",
            question=f"{found['question'].rstrip(' ?')}?",
            passages=(found["passage"],),
            ctx_answers=with_answer(data["wrong_answer"]) if kind == "C_wrong_P_right" else right,
            par_answers=right,
            state=_STATES[kind],
            group=name,
            meta={"fact": name, "relation": str(data.get("answer_type", "")), "known": kind != "C_right_P_wrong"},
        )

    return converted(rows, convert)


def fact(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a row of facts in the form of `StateFact.from_dict`; a row that is not TriState's as it is.

    The benchmark's passages were written by a language model; here one is made of the last wording and the answer.

    Example:
        >>> row = {"fact_id": "l1", "answer": "Peru", "questions": ["Where is Lima?", "Which land has Lima?"]}
        >>> fact(row)["context_template"], fact(row)["wordings"]
        ('Which land has Lima? It is {answer}.', ['Which land has Lima?'])
    """
    if not isinstance(data, Mapping) or "fact_id" not in data or "questions" not in data:
        return data
    answers = with_answer(data.get("answer"), data.get("aliases"))
    asked = [question for question in texts(data["questions"], "questions") if not mentions(question, answers)]
    if not answers or not asked:
        raise EvalError(
            f"fact {str(data['fact_id'])!r:.40} has no question that does not answer itself.", "Leave it out."
        )
    plain = asked[-1].replace("{", "(").replace("}", ")")
    return {
        "id": data["fact_id"],
        "relation": data.get("answer_type") or "fact",
        "subject": data["fact_id"],
        "question": asked[0],
        "wordings": asked[1:],
        "answer": answers[0],
        "aliases": list(answers[1:]),
        "context_template": f"{plain} It is {{answer}}.",
    }


ADAPTER = Adapter(
    name="tristate",
    convert=_records,
    source="GitHub keith-Jiang/conflict-aware-decoding (Gated-Reversal-Decoding), data/TriState; arXiv 2606.10298",
    licence="its README states MIT; the repository holds no licence file",
)
