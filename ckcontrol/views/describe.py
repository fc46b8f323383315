"""Puts records into words and figures: what both views (terminal and HTML) print.

Knows records by their shape; knows nothing of colours, terminals or HTML.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from ..rates import count
from .safe_text import clean
from .shape import AnswerShape, DraftShape, HitShape, MarkedToken, RunningText, SentenceShape, TokenShape

__all__ = [
    "MARK",
    "Shown",
    "cited_line",
    "control_label",
    "draft_lines",
    "excerpt",
    "facts",
    "figures",
    "hit_label",
    "hit_metadata",
    "legend_words",
    "number",
    "probability",
    "shown",
    "summary_line",
    "warning",
]

T = TypeVar("T", bound=MarkedToken)
MARK = "▸"
MISSING = "–"

legend_words = {
    "confused": "the passages confused the model",
    "surer": "the passages made it surer",
    "switched": "switched: the policy acted on this token",
}


def number(value: float | None, digits: int = 2, *, signed: bool = False) -> str:
    """Return a figure for display: a true minus sign, ∞ for infinities, a dash for what was not recorded."""
    if value is None or math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if abs(value) >= 100:  # the cap of tau is 10,000
        digits = 0
    text = f"{value:+,.{digits}f}" if signed else f"{value:,.{digits}f}"
    return text.lstrip("+-") if not text.strip("+-0.") else text.replace("-", "−")


def probability(logp: float | None) -> str:
    """Return exp(logp) as a percentage with two significant places at the low end."""
    if logp is None or math.isnan(logp):
        return MISSING
    share = 100 * math.exp(min(logp, 0.0))
    return "<0.01%" if 0 < share < 0.01 else f"{share:.2f}%" if share < 1 else f"{share:.1f}%"


@dataclass(frozen=True)
class Shown(Generic[T]):
    """A token as it is displayed.

    Attributes:
        token: Its record.
        lead: Whitespace before the visible text; stays unmarked.
        body: Visible text in the running answer; ``‹end›`` for an end token, ``‹·›`` for part of a character.
        name: The token on one line, for tables and cards.
        plain: False for the two stand-ins above.
    """

    token: T
    lead: str
    body: str
    name: str
    plain: bool = True


def shown(answer: RunningText[T]) -> list[Shown[T]]:
    """Return every token of an answer, ready for display."""
    end = _end(answer)
    return [_shown(token, end=token is end) for token in answer.tokens]


def _end(answer: RunningText[T]) -> T | None:
    """Return the end token, if the answer closes with one: its text is not part of the answer's."""
    if answer.finish_reason != "stop" or not answer.tokens:
        return None
    last = answer.tokens[-1]
    return None if last.text.strip() and answer.text.rstrip().endswith(last.text.strip()) else last


def _shown(token: T, *, end: bool) -> Shown[T]:
    text, name = clean(token.text), clean(token.text, 60).replace("\n", "↵").replace("\t", "⇥")
    if end or not text:
        body = "‹end›" if end else "‹·›"
        return Shown(token, "", body, name or body, plain=False)
    body = text.lstrip()
    if not body:
        return Shown(token, "", "↵" * text.count("\n") + text, name if name.strip(" ") else "␣" * len(text))
    return Shown(token, text[: len(text) - len(body)], body, name)


def _verdict(gain: float | None) -> str:
    """Say what a gain means."""
    if gain is None:
        return "not traced"
    if abs(gain) < 0.005:
        return "the passages changed nothing"
    return "the passages made the model surer" if gain > 0 else "the passages confused the model"


def facts(token: TokenShape) -> list[tuple[str, str]]:
    """Return the label and value of every figure of a token, for a card."""
    return [
        ("gain", f"{number(token.gain, signed=True)} nats: {_verdict(token.gain)}"),
        ("entropy", f"memory {number(token.h_par)} · with passages {number(token.h_ctx)} nats"),
        ("tau", f"{number(token.tau)}: {_tau_words(token.tau)}{' · switched' if token.switched else ''}"),
        ("rank", f"memory {_rank(token.rank_par)} · with passages {_rank(token.rank_ctx)} (0 = favourite)"),
        (
            "probability",
            f"memory {probability(token.logp_par)} · with passages {probability(token.logp_ctx)}"
            f" · drawn at {probability(token.logp_final)}",
        ),
    ]


def figures(token: TokenShape) -> list[str]:
    """Return the cells of a token's table row: gain, entropies, tau, ranks, probabilities."""
    return [
        number(token.gain, signed=True),
        number(token.h_par),
        number(token.h_ctx),
        number(token.tau),
        _rank(token.rank_par),
        _rank(token.rank_ctx),
        probability(token.logp_par),
        probability(token.logp_ctx),
        probability(token.logp_final),
    ]


def _tau_words(tau: float) -> str:
    if abs(tau - 1) < 5e-4:
        return "plain context"
    if abs(tau) < 5e-4:
        return "memory alone"
    return "context amplified" if tau > 1 else "leans to memory"


def _rank(rank: int | None) -> str:
    return MISSING if rank is None else f"{rank:,}"


def control_label(answer: AnswerShape) -> str:
    """Return the control in one short line: the method and what was set away from its defaults."""
    defaults = {"method": answer.control.method, "alpha": None, "candidates": 10, "candidate_ratio": 0.01}
    changed = {k: v for k, v in answer.control.to_dict().items() if k not in defaults or v != defaults[k]}
    return clean(" ".join([answer.control.method, *(f"{k}={v}" for k, v in changed.items())]))


def summary_line(answer: AnswerShape) -> str:
    """Return one line: tokens, switched, shares that follow each stream, range of tau, why it stopped."""
    summary = answer.summary()
    parts = [count(len(answer.token_ids), "token")]
    if answer.tokens:
        taus = [token.tau for token in answer.tokens]
        low, high = number(min(taus)), number(max(taus))
        parts.append(f"{summary['switched']} switched")
        for name in ("context", "memory"):
            share = summary[f"follows_{name}"]
            if isinstance(share, float):
                parts.append(f"follows {name} {100 * share:.0f}%")
        parts.append(f"tau {low}" if low == high else f"tau {low} to {high}")
    parts.append("ended by itself" if answer.finish_reason == "stop" else "cut at max_new_tokens")
    return " · ".join(parts)


def draft_lines(answer: AnswerShape) -> list[tuple[str, str, str]]:
    """Return for each draft who wrote it, its text on one line, and how it surprised both streams. Cleaned.

    Where an answer was decided by segments, the first also says of which segment, from 1.
    """
    several = any(draft.segment for draft in answer.drafts)
    return [
        (
            f"{f'segment {draft.segment + 1}, ' if several else ''}{MARK if draft.given else ''}{draft.name}",
            " ".join(clean(draft.text, 200).split()),
            f"{'stopped, as it could not be given; ' if draft.stopped else ''}"
            f"surprise {number(draft.surprise_ctx)} with passages, {number(draft.surprise_par)} without",
        )
        for draft in answer.drafts
    ]


def warning(answer: AnswerShape) -> str | None:
    """Return a line that says why the control changed nothing; None where it did, or was not to."""
    if not answer.tokens:
        return "No tokens were traced (trace=False): nothing to show per token." if answer.token_ids else None
    if answer.drafts:
        return _unmoved(answer.drafts)
    if answer.switched or answer.control.policy().neutral:
        return None
    reason = "no token met its condition" if answer.passages else "there were no passages"
    return f"The policy acted on 0 of {len(answer.tokens)} tokens: {reason}. This is the unmodified answer."


def _unmoved(drafts: Sequence[DraftShape]) -> str | None:
    """Return why a choice between drafts changed nothing; None where it did, or the sources' table tells."""
    begins = [i for i, draft in enumerate(drafts) if not i or draft.segment != drafts[i - 1].segment]
    segments = [drafts[i:end] for i, end in zip(begins, [*begins[1:], len(drafts)], strict=True)]
    if all(draft.text == segment[0].text for segment in segments for draft in segment):
        return "Both streams write the same answer, so the dial has nothing to choose here: its alpha changes nothing."
    if drafts[0].name != "unmodified" or not all(segment[0].given for segment in segments):
        return None
    other = drafts[1]
    if len(segments) > 1 or other.evidence is None:
        return "No other draft was given. This is the unmodified answer."
    if other.idle:
        lacks, side = ("adds nothing from a passage that is about the question", "below")
        if other.name == "memory":
            lacks, side = "gives no answer of its own", "above"
        return f"The draft of {other.name} {lacks}, so no alpha {side} 0.5 gives it. This is the unmodified answer."
    return (
        f"Too little speaks for the draft of {other.name} at this setting (evidence {number(other.evidence)}): the "
        "further from 0.5, the less it takes. This is the unmodified answer."
    )


def hit_label(hit: HitShape) -> str:
    """Return how a passage is cited, on one line: rank, score, source and, where it says more, its id."""
    passage = hit.passage
    name = passage.source or passage.id
    if "document" in passage.metadata:  # cut from a document: the id says which piece
        name = passage.id if passage.id.startswith(passage.source) else f"{passage.source} · {passage.id}"
    return f"[{hit.rank}] {number(hit.score, 4)}  {' '.join(clean(name, 200).split())}"


def cited_line(sentences: Sequence[SentenceShape], place: int) -> str:
    """Return which sentences of an answer a passage supports, for its caption; empty where there are none."""
    if not sentences:
        return ""
    told = [number for number, sentence in enumerate(sentences, 1) if place in sentence.passages]
    if len(sentences) == 1:
        return "cited" if told else "not cited"
    which = f"sentence{'s' * (len(told) > 1)} {', '.join(map(str, told))}"
    return f"cited for {which}" if told else "not cited"


def hit_metadata(hit: HitShape) -> str:
    """Return a passage's metadata on one line, without its place in the document and what repeats its source."""
    passage = hit.passage
    shown = {k: v for k, v in passage.metadata.items() if k not in ("document", "start", "end") and v != passage.source}
    return " ".join(clean(" ".join(f"{name}={value}" for name, value in shown.items()), 200).split())


def excerpt(text: str, query: str, width: int) -> str:
    """Return one line of at most `width` characters: the stretch of `text` that holds most words of the query.

    Begins at the passage's beginning when that is as good. Cut ends show an ellipsis. Cleaned.
    """
    line = " ".join(clean(text, None).split())
    if len(line) <= width:
        return line
    room = max(width - 2, 1)  # an ellipsis on each side
    wanted = {word for word in re.findall(r"\w+", query.lower()) if len(word) > 2}
    found = [(hit.start(), hit.group().lower()) for hit in re.finditer(r"\w+", line[:20_000])]
    starts = [0] + [place for place, word in found if word in wanted]

    def words(start: int) -> int:
        return len({word for place, word in found if start <= place and place + len(word) <= start + room} & wanted)

    start = max(starts[:200], key=lambda place: (words(place), -place))
    start = min(start, max(len(line) - room, 0))
    start = max([place for place, _ in found if place <= start], default=start) if start else 0
    end = start + room + (start == 0)
    if end < len(line):
        shorter = line.rfind(" ", start, end + 1)
        end = shorter if shorter > start + room // 2 else end
    return ("…" if start else "") + line[start:end].strip() + ("…" if end < len(line) else "")
