"""HTML views: an `Answer` as a fragment for notebooks, and whole pages that need no network and no script.

Knows `Answer` records and strings. What a model or a passage wrote is cleaned and escaped (`text_safety`);
besides, a page forbids every load by its own policy. A hostile token is text and nothing else.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from ..answer import Answer
from . import describe, palette
from .html_css import stylesheet
from .safe_text import escape

__all__ = [
    "answer_html",
    "answer_page",
    "legend_html",
    "page",
    "passages_html",
    "table",
    "token_table",
    "tokens_html",
]

POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def answer_html(answer: Answer, *, style: bool = True) -> str:
    """Return the token view as a self-contained fragment.

    Args:
        answer: What to draw.
        style: Put the style sheet into the fragment; False inside `page`, which has it already.
    """
    parts = [
        f"<style>{stylesheet()}</style>" if style else "",
        f'<div class="ck ck-answer{" ck-alone" if style else ""}">',
        f'<p class="ck-q"><bdi>{escape(answer.question)}</bdi> '
        f'<span class="ck-c">{escape(describe.control_label(answer))}</span></p>',
        tokens_html(answer),
        legend_html() if answer.tokens else "",
        "</div>",
    ]
    return "\n".join(part for part in parts if part)


def tokens_html(answer: Answer) -> str:
    """Return the running text, its summary and perhaps a warning, without heading or legend."""
    tokens = "".join(_token(shown) for shown in describe.shown(answer)) or escape(answer.text, None)
    notice = describe.warning(answer)
    summary = f'<p class="ck-sum">{escape(describe.summary_line(answer))}</p>'
    if answer.drafts:
        rows = [[f"<span>{escape(cell)}</span>" for cell in line] for line in describe.draft_lines(answer)]
        summary += table(["draft", "answer", "surprise, nats"], rows, caption="Chosen between whole answers.")
    ending = f'\n<p class="ck-warn">! {escape(notice)}</p>' if notice else ""
    return f'<div class="ck-tokens">{tokens}</div>\n{summary}{ending}'


def _shade(gain: float | None) -> str:
    return f"ck-g{palette.step(gain) + palette.STEPS}"


def _token(shown: describe.Shown) -> str:
    names = ["ck-t", _shade(shown.token.gain)]
    names += ["ck-on"] * shown.token.switched + ["ck-empty"] * (not shown.plain)
    rows = "".join(
        f'<span class="ck-f"><span>{label}</span><span>{html.escape(value)}</span></span>'
        for label, value in [("token", f"“{shown.name}”"), *describe.facts(shown.token)]
    )
    card = f'<span class="ck-card" role="tooltip">{rows}</span>'
    opening = f'{html.escape(shown.lead)}<span class="{" ".join(names)}" tabindex="0">'
    return f"{opening}<bdi>{html.escape(shown.body)}</bdi>{card}</span>"


def legend_html() -> str:
    """Return the line that explains colours and marks."""
    scale = "".join(
        f'<span class="ck-t {_shade(gain)}">{label}</span>'
        for gain, label in ((-3.0, "≤−3"), (-1.5, "−1.5"), (0.0, "0"), (1.5, "+1.5"), (3.0, "≥+3"))
    )
    texts = describe.legend_words
    return (
        f'<p class="ck-legend"><span>gain, nats {scale}</span> '
        f"<span>orange: {texts['confused']}</span> <span>blue: {texts['surer']}</span> "
        f'<span><span class="ck-t ck-on"><bdi>word</bdi></span> {texts["switched"]}</span> '
        "<span>Point at a token, or tab to it, for its figures.</span></p>"
    )


def token_table(answer: Answer) -> str:
    """Return every recorded figure, one row per token, as a semantic table."""
    heads = "token,switched,gain,H par,H ctx,tau,rank par,rank ctx,p par,p ctx,p final".split(",")
    rows = [
        [
            f'<span class="ck-t {_shade(shown.token.gain)}"><bdi>{html.escape(shown.name)}</bdi></span>',
            f"{describe.MARK} yes" if shown.token.switched else "no",
            *(html.escape(value) for value in describe.figures(shown.token)),
        ]
        for shown in describe.shown(answer)
    ]
    caption = "Entropies H and gain in nats; rank 0 is the stream's favourite. par: memory. ctx: with the passages."
    return f'<div class="ck-scroll" tabindex="0">{table(heads, rows, caption=caption, kind="ck-num")}</div>'


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, caption: str = "", kind: str = "ck-stack") -> str:
    """Return a semantic table; the first cell of a row is its header.

    Args:
        heads: Column names, plain text.
        rows: Cells as HTML; the caller has escaped what others wrote.
        caption: Plain text above the table.
        kind: ``ck-stack`` turns rows into cards on narrow screens; ``ck-num`` aligns figures.
    """
    columns = "".join(f'<th scope="col">{html.escape(head)}</th>' for head in heads)
    lines = []
    for first, *others in rows:
        cells = "".join(
            f'<td data-label="{html.escape(head, quote=True)}"><div>{cell}</div></td>'
            for head, cell in zip(heads[1:], others, strict=True)
        )
        lines.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
    title = f"<caption><span>{html.escape(caption)}</span></caption>" if caption else ""
    head, body = f"<thead><tr>{columns}</tr></thead>", "\n".join(lines)
    return f'<table class="ck-table {kind}">{title}{head}\n<tbody>\n{body}\n</tbody></table>'


def page(title: str, sections: Sequence[tuple[str, str]], *, lead: str = "") -> str:
    """Return one HTML file that loads nothing and runs nothing.

    Args:
        title: Plain text, the page's heading.
        sections: Pairs of a plain heading (may be empty) and an HTML body made by this module.
        lead: HTML under the title.
    """
    blocks = [
        "<section>" + (f"<h2>{escape(heading)}</h2>\n" if heading else "\n") + f"{body}\n</section>"
        for heading, body in sections
    ]
    return "\n".join(
        (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{escape(title)}</title>\n<style>{stylesheet()}</style>\n</head>",
            f'<body class="ck">\n<main class="ck-page">\n<h1>{escape(title)}</h1>\n{lead}',
            *blocks,
            "</main>\n</body>\n</html>\n",
        )
    )


def answer_page(answer: Answer, captions: Sequence[str] = (), *, notice: str | None = None) -> str:
    """Return a page with one answer: its tokens, its passages and every recorded figure.

    Args:
        answer: What to draw.
        captions: Plain text over each passage, e.g. where it comes from; none, or one a passage.
        notice: A plain sentence under the passages.
    """
    sections = [
        ("", answer_html(answer, style=False)),
        ("Passages", passages_html(answer, captions, notice=notice)),
    ]
    if answer.tokens:
        sections.append(("Token by token", token_table(answer)))
    return page("Why each token was chosen", sections)


def passages_html(answer: Answer, captions: Sequence[str] = (), *, notice: str | None = None) -> str:
    """Return the passages as they stood in the prompt, each under its caption; see `answer_page`."""
    above = [f'<p class="ck-note"><bdi>{escape(caption)}</bdi></p>' for caption in captions]
    quotes = [f"<blockquote><bdi>{escape(text, 4000)}</bdi></blockquote>" for text in answer.passages]
    lines = [part for pair in zip(above, quotes, strict=True) for part in pair] if above else quotes
    if not quotes and not notice:
        lines = ['<p class="ck-note">None: the question was asked closed book.</p>']
    return "\n".join([*lines, f'<p class="ck-warn">! {escape(notice)}</p>' if notice else ""]).strip()
