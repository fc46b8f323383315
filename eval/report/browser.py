"""The item browser: one <details> an item, its passages and what every arm answered, shaded by confidence gain.

Knows chosen items and the page's token marks; needs no script. Everything that a model, a data set or a file wrote is
cut to a length, cleaned and escaped, and the whole is bounded: what does not fit is counted, never dropped unseen.
"""

from __future__ import annotations

import html
from collections import Counter
from typing import Any

from ckcontrol.answer import Answer, TokenTrace
from ckcontrol.control import Control
from ckcontrol.views import describe, palette
from ckcontrol.views.safe_text import escape

from ..records import Record
from .answers import SYMBOLS, Choice, Chosen, failure
from .number_texts import count
from .runs import Run, number

__all__ = ["BYTES", "browser", "key_html"]

BYTES = 6_000_000  # of one run's items
TOKENS = 120  # shown per answer
PASSAGES, LETTERS = 5, 1500  # shown per item, and of each


def browser(run: Run, choices: list[Choice], room: int = BYTES) -> str:
    """Return the items of every task as HTML of about `room` bytes at most."""
    parts = []
    for choice in choices:
        blocks = []
        for chosen in choice.items:
            block = _item(run, chosen)
            if len(block) > room:
                break
            room -= len(block)
            blocks.append(block)
        hidden = choice.total - len(blocks)
        note = (
            f"{count(len(blocks), 'item')} of {choice.total:,}, those on which the methods disagree most, the states "
            f"in turn; {hidden:,} not shown. The methods were judged differently on {choice.disagreed:,}."
        )
        parts.append(f'<h3>{escape(choice.task)}</h3>\n<p class="ck-note">{note}</p>\n' + "\n".join(blocks))
    unread = max((choice.unread for choice in choices), default=0)
    if unread:
        parts.append(f'<p class="ck-warn">! {count(unread, "line")} of the run could not be read, and left out.</p>')
    return "\n".join(parts)


def key_html() -> str:
    """Return the line that explains symbols and shades."""
    words = " ".join(f"<span>{symbol} {word}</span>" for word, symbol in SYMBOLS.items() if word != "unjudged")
    scale = "".join(
        f'<span class="ck-t ck-g{palette.step(gain) + palette.STEPS}">{label}</span>'
        for gain, label in ((-3.0, "≤−3"), (-1.5, "−1.5"), (0.0, "0"), (1.5, "+1.5"), (3.0, "≥+3"))
    )
    texts = describe.legend_words
    return (
        f'<p class="ck-legend">{words}</p><p class="ck-legend"><span>gain, nats {scale}</span> '
        f"<span>orange: {texts['confused']}</span> <span>blue: {texts['surer']}</span> "
        f'<span><span class="ck-t ck-on"><bdi>word</bdi></span> {texts["switched"]}</span></p>'
    )


def _item(run: Run, chosen: Chosen) -> str:
    record = chosen.record
    tally = Counter(chosen.verdicts.values())
    marks = " ".join(f"{symbol}{tally[word]}" for word, symbol in SYMBOLS.items() if tally[word])
    told = ", ".join(f"{tally[word]} {word}" for word in SYMBOLS if tally[word])
    arms = [arm.name for arm in run.arms if arm.name in chosen.samples]
    arms += sorted(set(chosen.samples) - set(arms))
    answers = '<span class="ev-rule"></span>'.join(
        f'<span class="ev-name">{escape(name, 60)}</span>'
        f'<span class="ev-state{" ev-down" * (chosen.verdicts[name] in ("wrong", "failed"))}">'
        f"{SYMBOLS[chosen.verdicts[name]]} {chosen.verdicts[name]}</span>"
        f'<span class="ev-said">{_said(record, chosen.samples[name])}</span>'
        for name in arms
    )
    return (
        f'<details class="ev-item"><summary><span class="ev-state">{escape(record.state, 20)}</span>'
        f'<span class="ev-q"><bdi>{escape(record.question, 240)}</bdi></span>'
        f'<span class="ev-tally" title="{told}">{marks}</span></summary>\n<div class="ev-body">'
        f'{_wanted(record)}{_passages(record)}<div class="ev-answers">{answers}</div></div></details>'
    )


def _wanted(record: Record) -> str:
    if record.choices:
        wanted = record.choices[record.answer_index] if record.answer_index is not None else "not given"
        return f'<p class="ck-note">Wanted: <bdi>{escape(wanted, 240)}</bdi></p>'
    lines = [("True", record.par_answers)]
    if record.ctx_answers and record.ctx_answers != record.par_answers:
        lines.append(("The passages say", record.ctx_answers))
    told = [
        f"{name}: <bdi>{escape(' / '.join(texts[:6]), 240)}</bdi>{f' (+{len(texts) - 6})' if len(texts) > 6 else ''}"
        for name, texts in lines
        if texts
    ]
    return f'<p class="ck-note">{" · ".join(told)} · id <bdi>{escape(record.id, 60)}</bdi></p>'


def _passages(record: Record) -> str:
    if not record.passages:
        return '<p class="ck-note">No passages: closed book.</p>'
    quotes = "".join(f"<blockquote><bdi>{escape(t, LETTERS)}</bdi></blockquote>" for t in record.passages[:PASSAGES])
    more = len(record.passages) - PASSAGES
    return quotes + (f'<p class="ck-note">and {count(more, "more passage")}</p>' if more > 0 else "")


def _said(record: Record, sample: dict[str, Any]) -> str:
    if sample.get("error") is not None:
        return f'<span class="ck-note">{escape(failure(sample), 300)}</span>'
    if record.choices:
        place = sample.get("choice")
        if not isinstance(place, int) or not 0 <= place < len(record.choices):
            return "–"
        return f"<bdi>{escape(record.choices[place], 240)}</bdi>"
    text = str(sample.get("text", ""))
    tokens = _tokens(sample)
    if not tokens:
        return f"<bdi>{escape(text) or '‹empty›'}</bdi>"
    # `describe` knows how a token is displayed; an Answer is what it reads.
    answer = Answer(text, tuple(tokens), (), "", (), Control(), str(sample.get("finish", "length")), 0, 0)
    shown = describe.shown(answer)[:TOKENS]
    more = len(tokens) - len(shown)
    return "".join(map(_token, shown)) + (
        f' <span class="ck-note">(+{count(more, "token")})</span>' if more > 0 else ""
    )


def _tokens(sample: dict[str, Any]) -> list[TokenTrace]:
    """Rebuild the traces a view needs; a sample without a complete trace has none."""
    told = sample.get("tokens")
    if not isinstance(told, dict):
        return []
    columns = [told.get(name) for name in ("text", "gain", "tau", "switched")]
    if not all(isinstance(column, list) and len(column) == len(columns[0] or ()) for column in columns):
        return []
    texts, gains, taus, switched = (column or [] for column in columns)
    return [
        TokenTrace(id=0, text=str(text), logp_final=0.0, tau=number(tau), switched=bool(on), gain=number(gain))
        for text, gain, tau, on in zip(texts, gains, taus, switched, strict=True)
    ]


def _token(shown: describe.Shown) -> str:
    """Mark what has something to say; plain words stay plain text, which keeps the page small."""
    token = shown.token
    body = html.escape(shown.body)
    shade = palette.step(token.gain)
    if not shade and not token.switched and shown.plain:
        return f"{html.escape(shown.lead)}<bdi>{body}</bdi>"
    names = f"ck-t ck-g{shade + palette.STEPS}{' ck-on' * token.switched}{' ck-empty' * (not shown.plain)}"
    tip = f"gain {describe.number(token.gain, signed=True)}, tau {describe.number(token.tau)}"
    return f'{html.escape(shown.lead)}<span class="{names}" title="{tip}"><bdi>{body}</bdi></span>'
