"""What one sample contributes to each metric: a numerator and a weight, so that every figure is a ratio of sums.

Knows a record and its sample; knows no other sample, no arm and no interval. `METRICS` is the list of what is measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ckcontrol.errors import EvalError

from ..metrics import normalize
from ..records import Record
from .fluency import ended, ignorance, over_inclusion, repeated_ngrams, surprise
from .verdict import Verdict, exact_match, set_match, verdict

__all__ = ["METRICS", "Contribution", "Metric", "measure"]

Contribution = tuple[float, float]


@dataclass(frozen=True)
class Metric:
    """How a metric is averaged and compared.

    Attributes:
        bounded: It lies in [0, 1].
        logarithmic: What is averaged is a logarithm; value and interval are its exponential.
        compared: It gets rows among the pairs.
        ratio: Its weights are counts of something, not 1: both arms of a pair keep all common samples.
    """

    bounded: bool = True
    logarithmic: bool = False
    compared: bool = True
    ratio: bool = False


METRICS: dict[str, Metric] = {
    # which source, strict: parr + conr + neither = 1
    "parr": Metric(),
    "conr": Metric(),
    "mr": Metric(ratio=True),
    "both": Metric(),
    "neither": Metric(),
    "hit": Metric(),
    "accuracy": Metric(),
    "set_em": Metric(),
    # as published
    "em": Metric(),
    "ckplug_parr": Metric(),
    "ckplug_conr": Metric(),
    "ckplug_mr": Metric(ratio=True),
    # taking up the context (KnowPO)
    "ignorance": Metric(),
    "over_inclusion": Metric(),
    # choices
    "accuracy_norm": Metric(),
    "margin": Metric(bounded=False),
    # how it was decoded and how it reads
    "gate": Metric(compared=False, ratio=True),
    "gate_answer": Metric(compared=False, ratio=True),
    "ppl_closed": Metric(bounded=False, logarithmic=True, compared=False, ratio=True),
    "repeat4": Metric(),
    "length": Metric(bounded=False),
    "eos": Metric(),
}


def measure(record: Record, sample: Mapping[str, Any]) -> dict[str, Contribution]:
    """Return ``{metric: (numerator, weight)}`` of what can be said of one sample; the rest is left out.

    - ``parr conr mr both neither ckplug_*``: records with answers on both sides that are not the same ones, outside
      agree and helpful. In strict mode `both` tells that both are named somewhere without negation; `neither` that no
      answer of one side alone is.
    - Of choices, ``parr conr mr neither`` by the role (``meta.roles``) of the one with the highest score.
    - ``accuracy``: the truth is the first that is named; of choices, the wanted one has the highest score.
    - ``accuracy_norm``: likewise with scores divided by tokens; ``margin``: its score above the best other, nats.
    - ``set_em``: records with ``meta.multi_gold``.
    - ``ignorance`` in agree and helpful, ``over_inclusion`` in irrelevant.
    - ``gate``: share of tokens the policy acted on; ``gate_answer``: among those that spell the named answer.

    Raises:
        EvalError: The sample has neither text nor scores, or its scores do not fit the choices.
    """
    if record.choices:
        return _of_choices(record, sample)
    text = sample.get("text")
    if not isinstance(text, str):
        raise EvalError(f"sample {sample.get('id')!r} has no text.", "Samples of questions hold text, or an error.")
    strict = verdict(text, record.ctx_answers, record.par_answers)
    found = _sources(record, text, strict)
    if record.par_answers:
        found["accuracy"] = strict.source in ("parametric", "both")
    if record.par_answers or record.ctx_answers:
        found["hit"] = strict.source != "neither"
    if record.ctx_answers:
        found["em"] = exact_match(text, record.ctx_answers)
        if record.state in ("agree", "helpful"):
            found["ignorance"] = ignorance(strict)
        if record.state == "irrelevant":
            found["over_inclusion"] = over_inclusion(strict)
    if record.meta.get("multi_gold"):
        found["set_em"] = set_match(text, record.par_answers, record.ctx_answers)
    out = {name: (float(value), 1.0) for name, value in found.items()}
    if strict.source in ("parametric", "contextual") and "parr" in out:
        out["mr"] = (float(strict.source == "parametric"), 1.0)
    if "ckplug_parr" in out:
        po, ps = out["ckplug_parr"][0], out["ckplug_conr"][0]
        out["ckplug_mr"] = (po, po + ps)
    return out | _of_tokens(text, sample, strict)


def _sources(record: Record, text: str, strict: Verdict) -> dict[str, bool]:
    sides = [{normalize(a) for a in answers} for answers in (record.ctx_answers, record.par_answers)]
    if not all(sides) or sides[0] == sides[1] or record.state in ("agree", "helpful"):
        return {}
    loose = verdict(text, record.ctx_answers, record.par_answers, "ckplug")
    return {
        "parr": strict.source == "parametric",
        "conr": strict.source == "contextual",
        "both": strict.parametric and strict.contextual,
        "neither": strict.source in ("neither", "both"),
        "ckplug_parr": loose.parametric,
        "ckplug_conr": loose.contextual,
    }


def _of_tokens(text: str, sample: Mapping[str, Any], strict: Verdict) -> dict[str, Contribution]:
    out: dict[str, Contribution] = {}
    if "n" in sample:
        out["length"] = (float(sample["n"]), 1.0)
    if "finish" in sample:
        out["eos"] = (float(ended(sample)), 1.0)
    repeated = repeated_ngrams(text)
    if repeated is not None:
        out["repeat4"] = (repeated, 1.0)
    tokens = sample.get("tokens") or {}
    nats, number = surprise(tokens)
    if number:
        out["ppl_closed"] = (nats, float(number))
    switched = tokens.get("switched") or ()
    if switched:
        out["gate"] = (float(sum(switched)), float(len(switched)))
        spelled = [switched[at] for at in _spelling(text, tokens["text"], strict.span)]
        if spelled:
            out["gate_answer"] = (float(sum(spelled)), float(len(spelled)))
    return out


def _spelling(text: str, pieces: Sequence[str], span: tuple[int, int] | None) -> list[int]:
    """Return which tokens share a character with ``text[start:end]``; `text` is what they spell, stripped."""
    shift = "".join(pieces).find(text)
    if span is None or shift < 0:
        return []
    start, end = span[0] + shift, span[1] + shift
    found, at = [], 0
    for place, piece in enumerate(pieces):
        if at < end and at + len(piece) > start:
            found.append(place)
        at += len(piece)
    return found


def _of_choices(record: Record, sample: Mapping[str, Any]) -> dict[str, Contribution]:
    scores, lengths = sample.get("scores"), sample.get("lengths")
    if not scores or not lengths or not len(scores) == len(lengths) == len(record.choices) > 1:
        raise EvalError(f"sample {sample.get('id')!r} does not score {len(record.choices)} choices.")
    out = _of_roles(record.meta.get("roles"), scores)
    wanted = record.answer_index
    if wanted is None:
        return out
    each = [score / length for score, length in zip(scores, lengths, strict=True)]
    others = max(score for place, score in enumerate(scores) if place != wanted)
    return out | {
        "accuracy": (float(scores[wanted] > others), 1.0),
        "accuracy_norm": (float(all(each[wanted] > e for place, e in enumerate(each) if place != wanted)), 1.0),
        "margin": (float(scores[wanted] - others), 1.0),
    }


def _of_roles(roles: Sequence[str] | None, scores: Sequence[float]) -> dict[str, Contribution]:
    if not roles or len(roles) != len(scores) or not {"parametric", "contextual"} <= set(roles):
        return {}
    role = roles[max(range(len(scores)), key=scores.__getitem__)]
    par, ctx = float(role == "parametric"), float(role == "contextual")
    out = {"parr": (par, 1.0), "conr": (ctx, 1.0), "neither": (1.0 - par - ctx, 1.0)}
    return out | ({"mr": (par, 1.0)} if par or ctx else {})
