"""What one sample contributes to each metric: a numerator and a weight, so that every figure is a ratio of sums.

Knows a record and its sample; knows no other sample, no arm and no interval. `METRICS` is the list of what is measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ckcontrol.errors import EvalError
from ckcontrol.word_spans import words

from ..metrics import normalize
from ..records import Record
from .verdict import Verdict, exact_match, set_match, verdict

__all__ = [
    "METRICS",
    "UNDEFINED",
    "Contribution",
    "MetricRule",
    "ended",
    "ignorance",
    "is_right",
    "measure",
    "over_inclusion",
    "repeated_ngrams",
    "surprise",
]

Contribution = tuple[float, float]


@dataclass(frozen=True)
class MetricRule:
    """How a metric is averaged and compared.

    Attributes:
        bounded: It lies in [0, 1].
        logarithmic: What is averaged is a logarithm; value and interval are its exponential.
        compared: Arms are compared by it.
        ratio: Its weights are counts of something, not 1: two arms are compared on all samples that both have.
    """

    bounded: bool = True
    logarithmic: bool = False
    compared: bool = True
    ratio: bool = False


UNDEFINED = {  # why a metric has no figure although there are answers
    "accuracy": "the records have no par_answers, or no answer_index",
    "mr": "no answer names one of two sides that differ",
    "parr": "the records' two sides do not differ",
    "conr": "the records' two sides do not differ",
}
METRICS: dict[str, MetricRule] = {
    # which source, strict: parr + conr + neither = 1
    "parr": MetricRule(),
    "conr": MetricRule(),
    "mr": MetricRule(ratio=True),
    "both": MetricRule(),
    "neither": MetricRule(),
    "hit": MetricRule(),
    "accuracy": MetricRule(),
    "set_em": MetricRule(),
    # as published
    "em": MetricRule(),
    "ckplug_parr": MetricRule(),
    "ckplug_conr": MetricRule(),
    "ckplug_mr": MetricRule(ratio=True),
    # taking up the context (KnowPO)
    "ignorance": MetricRule(),
    "over_inclusion": MetricRule(),
    # choices
    "accuracy_norm": MetricRule(),
    "margin": MetricRule(bounded=False),
    # how it was decoded and how it reads
    "gate": MetricRule(compared=False, ratio=True),
    "gate_answer": MetricRule(compared=False, ratio=True),
    "ppl_closed": MetricRule(bounded=False, logarithmic=True, compared=False, ratio=True),
    "repeat4": MetricRule(),
    "length": MetricRule(bounded=False),
    "eos": MetricRule(),
}


def is_right(record: Record, said: Verdict) -> bool | None:
    """Whether an answer gives the truth: `par_answers`, or in agree and helpful, whose passages are right, theirs.

    Args:
        record: What was asked.
        said: What the answer names first.

    Returns:
        None where the record does not tell the truth.
    """
    if record.par_answers:
        return said.source in ("parametric", "both")
    if record.ctx_answers and record.state in ("agree", "helpful"):
        return said.source == "contextual"
    return None


def measure(record: Record, sample: Mapping[str, Any]) -> dict[str, Contribution]:
    """Return ``{metric: (numerator, weight)}`` of what can be said about one sample; the rest is left out.

    - ``parr conr mr both neither ckplug_*``: records with different answers on the two sides, outside agree and
      helpful. In strict mode `both` says that both are named somewhere without negation; `neither`, that no answer of
      one side alone is given.
    - Of choices, ``parr conr mr neither`` by the role (``meta.roles``) of the one with the highest score.
    - ``accuracy``: `is_right`; of choices, the wanted one has the highest score.
    - ``accuracy_norm``: the same with scores divided by tokens; ``margin``: its score above the best other one, nats.
    - ``set_em``: records with ``meta.multi_gold``.
    - ``ignorance`` in agree and helpful, ``over_inclusion`` in irrelevant.
    - ``gate``: share of tokens the policy acted on; ``gate_answer``: among those that spell the named answer.

    Raises:
        EvalError: The sample has neither text nor scores, or its scores do not match the choices.
    """
    if record.choices:
        return _of_choices(record, sample)
    text = sample.get("text")
    if not isinstance(text, str):
        raise EvalError(f"sample {sample.get('id')!r} has no text.", "Samples of questions hold a text or an error.")
    strict = verdict(text, record.ctx_answers, record.par_answers)
    found = _sources(record, text, strict)
    right_passages = record.state in ("agree", "helpful")
    if (right := is_right(record, strict)) is not None:
        found["accuracy"] = right
    if record.par_answers or record.ctx_answers:
        found["hit"] = strict.source != "neither"
    if record.ctx_answers:
        found["em"] = exact_match(text, record.ctx_answers)
        if right_passages:
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


# --- what single metrics are made of -------------------------------------------------------------------------------


def repeated_ngrams(text: str, size: int = 4) -> float | None:
    """Return the share of n-grams of words that occurred before in `text`; None if there is no n-gram.

    ``1 - distinct / all``, on words without case, so tokenizers can be compared (Welleck et al., 2020, take tokens).

    Raises:
        ValueError: `size` is below 1.

    Example:
        >>> repeated_ngrams("so it is and so it is and so it is"), repeated_ngrams("Rome")
        (0.5, None)
    """
    if size < 1:
        raise ValueError(f"size={size} is not the length of an n-gram. Give 1 or more.")
    said = [word.forms[0] for word in words(text)]
    grams = list(zip(*(said[shift:] for shift in range(size)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else None


def surprise(tokens: Mapping[str, Any] | None, stream: str = "logp_par") -> tuple[float, int]:
    """Return the summed negative log-probability (nats) and the number of tokens it is the sum of.

    ``exp(sum / number)`` is the perplexity of an answer, by default in the model's own closed-book stream, which the
    published comparisons lack. Tokens without a finite value (an untraced stream) are left out; (0, 0) if none is left.
    """
    values = [value for value in (tokens or {}).get(stream, ()) if value is not None and abs(value) < float("inf")]
    return -float(sum(values)), len(values)


def ended(sample: Mapping[str, Any]) -> bool:
    """Tell whether an answer ended by itself rather than at the limit of tokens."""
    return bool(sample["finish"] == "stop")


def ignorance(found: Verdict) -> bool:
    """Contextual ignorance (KnowPO, Zhang et al., 2024): the passages were right and the answer is not theirs.

    Meant for the states helpful and agree.
    """
    return found.source not in ("contextual", "both")


def over_inclusion(found: Verdict) -> bool:
    """Contextual over-inclusion (KnowPO, Zhang et al., 2024): an answer from passages that do not bear on the question.

    Meant for the state irrelevant, where the contextual answers are those of the passages to another question.
    """
    return found.source == "contextual"
