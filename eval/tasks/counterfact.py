"""COUNTERFACT in the shapes it is passed around in: ROME, comp-mech, counterfact-tracing and CUB.

Meng et al., 2022, "Locating and Editing Factual Associations in GPT" (arXiv 2202.05262). Ortu et al., 2024,
"Competition of Mechanisms" (arXiv 2402.11655): "Redefine: {statement}. {prompt}". Hagstrom et al., 2025, "CUB"
(arXiv 2505.16518), brings contexts of its own. The fields of a row tell its shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ckcontrol.errors import EvalError, did_you_mean

from ..items.readers import Row
from ..records import Record
from .base import Adapter, Converted, converted, row_id, text, with_answer

__all__ = ["ADAPTER"]

FORMS = ("auto", "statement", "redefine")
SCORES = ("mention", "choices")
CUB_STATES = {"gold": "agree", "edited": "conflict", "conflicting": "conflict", "irrelevant": "irrelevant"}


class _Edit(NamedTuple):
    prompt: str
    true: str
    new: str
    redefine: bool = False  # how the publishers of this shape word the context
    context: str = ""
    state: str = "conflict"


def _edit(data: Mapping[str, Any]) -> _Edit:
    rewrite = data.get("requested_rewrite")
    if rewrite:
        prompt = text(rewrite, "prompt").replace("{}", text(rewrite, "subject"))
        return _Edit(prompt, text(rewrite["target_true"], "str"), text(rewrite["target_new"], "str"))
    prompt = text(data, "base_prompt" if data.get("base_prompt") else "prompt")
    true = text(data, "target_true")
    if data.get("context"):
        kind = str(data.get("context_type") or data.get("type") or "edited").lower()
        if kind not in CUB_STATES:
            raise EvalError(f"context type {kind!r} is unknown.", did_you_mean(kind, CUB_STATES))
        return _Edit(prompt, true, text(data, "target_new"), False, text(data, "context"), CUB_STATES[kind])
    if "target_false" in data:
        return _Edit(prompt, true, text(data, "target_false"))
    return _Edit(prompt, true, text(data, "target_new"), True)


def _records(rows: Iterable[Row], options: Mapping[str, str]) -> Converted:
    for key, known in (("context", FORMS), ("score", SCORES)):
        if options[key] not in known:
            raise EvalError(f"{key}={options[key]!r} is unknown.", did_you_mean(options[key], known))

    def convert(row: Row) -> Converted:
        edit = _edit(row.data)
        prompt, true, new = edit.prompt.strip(), edit.true.strip(), edit.new.strip()
        redefine = edit.redefine if options["context"] == "auto" else options["context"] == "redefine"
        stated = edit.context or f"{'Redefine: ' if redefine else ''}{prompt} {new}."
        meta = {
            key: row.data[key] for key in ("subject", "relation", "relation_id") if isinstance(row.data.get(key), str)
        }
        by_choice = options["score"] == "choices"
        yield Record(
            id=str(row.data.get("case_id", row_id(row))),
            question=prompt,
            passages=(stated,),
            ctx_answers=with_answer(true if edit.state == "agree" else new),
            par_answers=with_answer(true),
            state=edit.state,
            choices=(f" {new}", f" {true}") if by_choice else (),
            answer_index=int(edit.state != "conflict") if by_choice else None,
            cloze=True,
            meta=meta | ({"roles": ["contextual", "parametric"]} if by_choice else {}),
        )

    return converted(rows, convert)


ADAPTER = Adapter(
    name="counterfact",
    convert=_records,
    source="COUNTERFACT (rome.baulab.info; GitHub francescortu/comp-mech; Hugging Face NeelNanda/counterfact-tracing)",
    licence="MIT; facts from ParaRel/T-REx (Wikidata), whose LAMA packaging is CC BY-NC",
    hub="NeelNanda/counterfact-tracing",
    pattern="*.parquet",
    options={"context": "auto", "score": "mention"},
)
