"""A record as other frameworks need it: a row with its prompt as one text, and its verdicts as numbers.

Knows records, prompt templates and the scorer; knows no framework and no tokenizer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ckcontrol.errors import EvalError

from ..judging.verdict import exact_match, verdict
from ..records import Record

if TYPE_CHECKING:
    from ckcontrol.decoding.prompts import PromptTemplate

__all__ = [
    "RATES",
    "as_message",
    "loaded",
    "prompt_text",
    "row_of",
    "template_for",
    "template_json",
    "unique",
    "verdicts",
]

RATES = ("parr", "conr", "neither", "mr", "em", "ckplug_parr", "ckplug_conr")  # what `verdicts` gives


def template_for(record: Record, template: PromptTemplate | None = None) -> PromptTemplate:
    """Return `template` (None: the default wording); a record that is a text to complete has a form of its own."""
    from ckcontrol.decoding.prompts import PromptTemplate

    from ..running.prompt_styles import raw

    return raw(record) if record.cloze else template or PromptTemplate()


def prompt_text(template: PromptTemplate, question: str, passages: Sequence[str]) -> str:
    r"""Return the prompt that `build_pair` builds for a model without a chat template, as text.

    Example:
        >>> from ckcontrol import PromptTemplate
        >>> prompt_text(PromptTemplate(), "Where is Oslo?", ["Oslo is in Chile."])
        'Answer the question in a few words.\n\nBackground:\nOslo is in Chile.\n\nQuestion: Where is Oslo?\nAnswer:'
    """
    texts = [" ".join(text.split()) if template.fold else text.strip() for text in passages]
    blocks = [template.passage.format(number=number, text=text) for number, text in enumerate(texts, 1)]
    intro = template.intro if blocks else ""
    question = template.question.format(question=question.strip())
    return "".join([template.instruction, intro, *blocks, question, template.answer])


def as_message(template: PromptTemplate) -> PromptTemplate:
    """Return the template whose chat prompt is one message of the user: what `prompt_text` returns.

    A framework that knows nothing of templates puts the whole text, answer opening included, into the message.
    """
    opening = template.answer.replace("{", "{{").replace("}", "}}")
    return replace(template, question=template.question + opening, answer="", chat=True, system=None)


def template_json(template: PromptTemplate) -> str:
    """Return the template as one JSON object; ``PromptTemplate(**json.loads(...))`` reads it back."""
    return json.dumps(template.to_dict(), ensure_ascii=False)


def row_of(record: Record, template: PromptTemplate) -> dict[str, Any]:
    """Return what another framework must know of a record: the prompt as a text, and what it is made of."""
    return {
        "id": record.id,
        "group": record.group,
        "state": record.state,
        "question": record.question,
        "passages": list(record.passages),
        "template": template_json(template),  # an engine with two streams builds the same prompts with it
        "prompt": prompt_text(template, record.question, record.passages),
        "ctx_answers": list(record.ctx_answers),
        "par_answers": list(record.par_answers),
    }


def loaded(model: Any, tokenizer: Any, name: str = "model", **how: Any) -> tuple[Any, Any]:
    """Return a model and its tokenizer, loaded by name or given.

    Args:
        model: A name as in `ckcontrol.load`, or a loaded model.
        tokenizer: That of a loaded model.
        name: What the caller's argument is called.
        **how: Further arguments of `ckcontrol.load`, for a name.

    Raises:
        EvalError: A loaded model without its tokenizer.
    """
    if isinstance(model, str):
        from ckcontrol.models.load import load

        return load(model, **how)
    if tokenizer is None:
        raise EvalError(f"{name} is a loaded model without its tokenizer.", "Pass tokenizer as well.")
    return model, tokenizer


def verdicts(text: str, ctx_answers: Sequence[str], par_answers: Sequence[str]) -> dict[str, float]:
    """Return what one answer counts towards each of `RATES`: 0 or 1, and NaN where it does not count.

    ``parr``, ``conr`` and ``neither`` are strict: exclusive, they add up to 1, except for a name that belongs to both
    sides (agreement), which counts in both. The mean of ``mr`` over all but NaN is the memorisation ratio. ``em``
    compares the first line with the contextual answers. ``ckplug_parr`` and ``ckplug_conr`` follow the published
    scripts and may both be 1.

    Example:
        >>> found = verdicts("It is Rome.", ["Paris"], ["Rome"])
        >>> found["parr"], found["conr"], found["neither"], found["mr"]
        (1.0, 0.0, 0.0, 1.0)
    """
    strict = verdict(text, ctx_answers, par_answers)
    loose = verdict(text, ctx_answers, par_answers, "ckplug")
    par, ctx = strict.source in ("parametric", "both"), strict.source in ("contextual", "both")
    return {
        "parr": float(par),
        "conr": float(ctx),
        "neither": float(not (par or ctx)),
        "mr": par / (par + ctx) if par or ctx else math.nan,
        "em": float(exact_match(text, ctx_answers)),
        "ckplug_parr": float(loose.parametric),
        "ckplug_conr": float(loose.contextual),
    }


def unique(records: Sequence[Record]) -> list[Record]:
    """Return the records as a list, after checking that there are some and that no id occurs twice.

    Raises:
        EvalError: No records, or an id that occurs twice.
    """
    if not records:
        raise EvalError("there are no records.", "Load a task with at least one.")
    seen: set[str] = set()
    for record in records:
        if record.id in seen:
            raise EvalError(f"the id {record.id!r} occurs twice.", "Ids must be unique in a task.")
        seen.add(record.id)
    return list(records)
