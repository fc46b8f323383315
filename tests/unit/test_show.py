"""The two views: what they say without colour, that colours are readable, that hostile text is inert."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from rich.console import Console

from ckcontrol.answer import Answer, Draft, TokenTrace
from ckcontrol.control import Control
from ckcontrol.views import describe, palette
from ckcontrol.views.html import answer_html, answer_page, stylesheet, templates
from ckcontrol.views.safe_text import clean, escape, escape_json
from ckcontrol.views.terminal import answer_text, print_answer, print_table

from .test_repository import TREES

HOSTILE = {
    "script": "</script><script>alert(1)</script>",
    "style": "</style><img src=x onerror=alert(1)>",
    "attribute": "\" onfocus='alert(1)' x=\"",
    "colour": "\x1b[31mred\x1b[0m",
    "title": "\x1b]0;owned\x07after",
    "c1": "\x9b31mred",
    "bell": "a\x07b\x08c\rd",
    "override": "abc\u202egnp.exe",
    "isolate": "\u2066a\u2069\u200f",
    "surrogate": "a\ud800b",
    "tag": "a\U000e0041b",
    "markup": "[red]not markup[/red] [link=http://x]y[/link]",
}


def token(text: str = " word", gain: float = 0.0, switched: bool = False, **more: float) -> TokenTrace:
    values = {"tau": 0.0 if switched else 1.0, "logp_par": -1.0, "logp_ctx": -2.0, **more}
    return TokenTrace(
        id=1,
        text=text,
        logp_final=-0.5,
        switched=switched,
        h_par=2.0,
        h_ctx=2.0 - gain,
        gain=gain,
        rank_par=3,
        rank_ctx=0,
        **values,
    )


def answer(*tokens: TokenTrace, text: str | None = None, control: Control | None = None, **more: str) -> Answer:
    return Answer(
        text="".join(t.text for t in tokens) if text is None else text,
        tokens=tokens,
        token_ids=tuple(t.id for t in tokens),
        question=more.get("question", "Which word?"),
        passages=(more.get("passage", "A passage."),),
        control=control or Control("ck-plug", 1.0),
        finish_reason="stop",
        context_tokens=9,
        parametric_tokens=5,
    )


def printed(given: Answer, width: int = 100, **options: object) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, **options)  # type: ignore[arg-type]
    print_answer(given, console)
    print_table(given, console)
    return out.getvalue()


class Page(HTMLParser):
    """Collects what a browser would see: tags, attributes, text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += data


# --- colour ---


def test_text_on_every_colour_has_contrast() -> None:
    for theme in (palette.LIGHT, palette.DARK):
        backgrounds = [*theme.scale().values(), theme.panel]
        assert min(palette.contrast(theme.text, back) for back in backgrounds) >= 4.5
        for colour in (theme.muted, theme.warn):
            assert min(palette.contrast(colour, back) for back in (theme.surface, theme.panel)) >= 4.5
    for colour in palette.MIDDLE.values():
        assert min(palette.contrast(colour, back) for back in ("#ffffff", "#000000")) >= 3


def test_contrast_is_the_wcag_ratio() -> None:
    assert palette.contrast("#000000", "#ffffff") == pytest.approx(21)
    assert palette.contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_end_token_on_a_colour_is_not_dimmed_below_contrast() -> None:
    assert "ck-empty{color" not in stylesheet().replace(" ", "")


def test_scale_is_centred_symmetric_and_saturates() -> None:
    assert palette.step(0.0) == palette.step(None) == palette.step(float("nan")) == 0
    assert [palette.step(x) for x in (-99, -3, -1.5, 1.5, 3, 99)] == [-4, -4, -2, 2, 4, 4]
    assert palette.LIGHT.scale()[0] == palette.LIGHT.surface
    assert all(len(set(theme.scale().values())) == 9 for theme in (palette.LIGHT, palette.DARK))


def test_both_themes_are_in_the_sheet_and_nothing_is_fetched() -> None:
    css = stylesheet()
    assert "prefers-color-scheme:dark" in css
    assert palette.LIGHT.surer in css and palette.DARK.confused in css
    assert "url(" not in css and "@import" not in css and "http" not in css


# --- terminal ---


def test_monochrome_marks_switched_tokens_and_explains_the_mark() -> None:
    given = answer(token("One"), token(" two", -1.0, switched=True), token(" three"))
    out = printed(given, color_system=None)
    assert "One ▸two three" in out
    assert "\x1b" not in out
    assert describe.legend_words["switched"] in out and "orange: " not in out, "no colours, no key to them"
    assert "orange: " in printed(given, color_system="truecolor", force_terminal=True)


def test_no_color_keeps_underline_and_mark() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, no_color=True, color_system="truecolor", width=90)
    console.print(answer_text(answer(token("a", -3.0, switched=True), token("b", 3.0))))
    assert "▸a" in out.getvalue()
    assert "\x1b[1;4m" in out.getvalue()  # bold, underlined, no colour
    assert "48;2" not in out.getvalue()


def test_colours_follow_the_sign_of_the_gain() -> None:
    text = answer_text(answer(token("a", -3.0), token("b", 0.0), token("c", 3.0)))
    colours = [str(span.style.bgcolor.name) if span.style.bgcolor else "" for span in text.spans]  # type: ignore[union-attr]
    assert [colour for colour in colours if colour] == [palette.LIGHT.confused, palette.LIGHT.surer]


def test_warns_when_the_policy_never_acted() -> None:
    out = " ".join(printed(answer(token(), token())).split())
    assert "! The policy acted on 0 of 2 tokens" in out


@pytest.mark.parametrize("control", [Control("off"), Control("ck-plug", 0.5), Control("ck-plug")])
def test_neutral_controls_do_not_warn(control: Control) -> None:
    assert describe.warning(answer(token(), control=control)) is None


def test_adaptive_control_warns() -> None:
    assert describe.warning(answer(token(), control=Control("ck-plug", adaptive=True))) is not None


def test_untraced_and_empty_answers_are_drawn() -> None:
    for tokens, ids in (((), (1, 2)), ((), ())):
        given = Answer("plain text", tokens, ids, "Q?", (), Control(), "length", 3, 3)
        assert "plain text" in printed(given)
        assert "plain text" in Page(answer_page(given)).text


def test_missing_signals_are_dashes() -> None:
    bare = answer(TokenTrace(id=1, text="x", logp_final=-1.0))
    assert describe.figures(bare.tokens[0])[:3] == ["–", "–", "–"]
    assert "x" in printed(bare)


@pytest.mark.parametrize("width", [40, 80, 140])
def test_table_fits_its_console(width: int) -> None:
    given = answer(*(token(" longish-token", -2.0, switched=True, tau=1e4) for _ in range(3)))
    assert max(len(line.rstrip()) for line in printed(given, width, color_system=None).splitlines()) <= width


def test_end_token_and_part_of_a_character_have_stand_ins() -> None:
    given = answer(token("Hi"), token(""), token("<|end|>"), text="Hi")
    assert [shown.body for shown in describe.shown(given)] == ["Hi", "‹·›", "‹end›"]
    assert describe.shown(given)[2].name == "<|end|>"


def test_line_breaks_are_visible_where_a_token_is_nothing_else() -> None:
    assert describe.shown(answer(token("\n\n"), token("x")))[0].body == "↵↵\n\n"
    assert describe.shown(answer(token("  "), token("x")))[0].name == "␣␣"


def test_summary_states_the_figures() -> None:
    line = describe.summary_line(answer(token(switched=True), token()))
    assert line.startswith("2 tokens · 1 switched · follows context 100% · follows memory 0% · tau 0.00 to 1.00")
    assert line.endswith("· ended by itself")


@pytest.mark.parametrize(
    ("value", "text"),
    [(-1.239, "−1.24"), (-0.001, "0.00"), (1e4, "10,000"), (float("inf"), "∞"), (None, "–")],
)
def test_numbers(value: float | None, text: str) -> None:
    assert describe.number(value) == text


def test_control_label_names_only_what_was_set() -> None:
    assert describe.control_label(answer(control=Control("ck-plug", 0.2, gate=2.0))) == "ck-plug alpha=0.2 gate=2.0"
    assert describe.control_label(answer(control=Control("off"))) == "off"


# --- hostile text ---


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_text_is_inert_everywhere(text: str) -> None:
    given = answer(token(text), token("x", switched=True), question=text, passage=text)
    terminal = printed(given, 200, color_system=None)
    source = answer_page(given)
    for out in (terminal, source):
        assert all(char.isprintable() or char in "\n" for char in out)
    found = Page(source)
    assert "script" not in found.tags and "img" not in found.tags
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    assert found.tags.count("style") == 1
    assert clean(text) in found.text


def test_markup_is_not_interpreted_in_the_terminal() -> None:
    assert "[red]not markup[/red]" in printed(answer(token(HOSTILE["markup"]), token("x")), 200)


def test_a_megabyte_token_is_cut() -> None:
    given = answer(token("a" * 1_000_000), token("x"), question="q" * 1_000_000, passage="\x1b[" * 500_000)
    source, terminal = answer_page(given), printed(given)
    assert len(source) < 60_000 and len(terminal) < 10_000
    assert "characters)" in source and "characters)" in terminal


def test_clean_strips_sequences_whole_and_keeps_language() -> None:
    assert clean(HOSTILE["colour"]) == "red"
    assert clean(HOSTILE["title"]) == "after"
    assert clean(HOSTILE["c1"]) == "red"
    assert clean(HOSTILE["bell"]) == "abcd"
    assert clean(HOSTILE["override"]) == "abcgnp.exe"
    assert clean("line\u2028break\r\nnext\ttab") == "line\nbreak\nnext\ttab"
    for kept in ("שלום عربي", "नमस्ते", "क्\u200dष", "👩\u200d🔬", "naïve ∞ –"):
        assert clean(kept) == kept


@pytest.mark.parametrize(
    "hidden",
    [
        *("\u3164", "\uffa0", "\u115f", "\u1160", "\u034f", "\u17b4", "\u180e", "\u2065", "\ufe0f", "\ufe00"),
        *("\u200b", "\u2060", "\ufeff", "\u00ad", "\u2066", "\u061c", "\U000e0061", "\U0001d173", "\ufffe"),
        *("\u200d", "\u200c", "\U000e0100"),
    ],
)
def test_clean_drops_what_is_drawn_as_nothing(hidden: str) -> None:
    """Fillers and joiners make two texts that differ look alike, or text that is there look like none."""
    assert clean(f"pay{hidden}pal {hidden * 40}.com") == "paypal .com"
    assert hidden not in escape_json(json.dumps(f"a{hidden}", ensure_ascii=False))


def test_clean_bounds_marks_and_blanks_and_keeps_scripts() -> None:
    assert clean("Z" + "\u0301" * 500 + "!") == "Z" + "\u0301" * 5 + "!"
    assert clean("a\u2800b") == "a b"
    for kept in ("❤\ufe0f", "1\ufe0f\u20e3", "👩🏽\u200d🔬", "می\u200cخواهم", "שָׁלוֹם", "cafe\u0301", "ñ", "한국어", "ｶﾞ"):
        assert clean(kept) == kept


def test_clean_tells_how_much_was_cut() -> None:
    assert clean("abcdef", 3) == "abc… (+3 characters)"
    assert clean("a" * 9, 9) == "a" * 9
    assert clean("a" * 5000, None) == "a" * 5000


def test_escape_covers_attributes() -> None:
    assert escape("<a href='\"'>&") == "&lt;a href=&#x27;&quot;&#x27;&gt;&amp;"


@pytest.mark.parametrize("text", [*HOSTILE.values(), "plain\n\ttext", "\U000e0041", "é"])
def test_escaped_json_means_the_same_and_hides_nothing(text: str) -> None:
    source = escape_json(json.dumps({"t": text}, ensure_ascii=False))
    assert json.loads(source) == {"t": text}
    assert source.isprintable()


# --- HTML ---


def test_page_is_well_formed_and_forbids_every_load() -> None:
    source = answer_page(answer(token("One"), token(" two", -1.0, switched=True)))
    found = Page(source)
    assert found.open == []
    assert source.startswith("<!DOCTYPE html>") and '<html lang="en">' in source
    assert "default-src 'none'; style-src 'unsafe-inline'" in source
    assert "width=device-width" in source
    assert "script" not in found.tags and "link" not in found.tags and "http" not in source.replace("http-equiv", "")
    assert {"caption", "thead", "th", "tbody"} <= set(found.tags)


def test_fragment_carries_its_own_style_and_every_figure() -> None:
    source = answer_html(answer(token("One", 1.25), token(" two", -1.0, switched=True)))
    assert source.startswith("<style>")
    assert "+1.25 nats: the passages made the model surer" in source
    assert "−1.00 nats: the passages confused the model" in source
    for label in ("gain", "entropy", "tau", "rank", "probability"):
        assert f"<span>{label}</span>" in source
    assert 'class="ck-t ck-g3 ck-on" tabindex="0"><bdi>two</bdi>' in source
    assert "<style>" not in answer_html(answer(token()), style=False)


PAGE = """
{% extends "page.html" %}{% from "parts.html" import section, table %}
{% block sections %}{% call section(heading) %}{{ table(heads, rows) }}{% endcall %}{% endblock %}
"""


def test_page_escapes_titles_and_tables_label_their_cells() -> None:
    told = {"title": "a <b>", "heading": "c <d>", "heads": ["a", 'b "x"'], "rows": [["1", "2"]]}
    source = templates().from_string(PAGE).render(told)
    assert "<h1>a &lt;b&gt;</h1>" in source and "<h2>c &lt;d&gt;</h2>" in source
    assert '<th scope="row">1</th><td data-label="b &quot;x&quot;">' in source


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_whatever_a_template_prints_is_cleaned_cut_and_escaped(text: str) -> None:
    source = templates().from_string("{{ a }}{{ a|cut(3) }}<b title='{{ a }}'>{{ [a, a]|join(', ') }}</b>")
    found = Page(source.render(a=text))
    assert found.tags == ["b"] and [name for name, _ in found.attributes] == ["title"]
    assert found.text == clean(text) + clean(text, 3) + clean(f"{text}, {text}")
    assert len(source.render(a="<" * 1_000_000)) < 10_000


def test_no_template_lets_text_of_others_through() -> None:
    files = [path for tree in TREES.values() for kind in ("*.html", "*.css") for path in tree.rglob(kind)]
    assert len(files) >= 6
    for path in files:
        tags = re.findall(r"{[{%].*?[%}]}", path.read_text(encoding="utf-8"), re.DOTALL)
        assert not [tag for tag in tags if re.search(r"\|\s*(safe|e|escape|tojson)\b|\bMarkup\b|~|autoescape", tag)], (
            path
        )


def test_answer_methods_use_these_views(capsys: pytest.CaptureFixture[str]) -> None:
    given = answer(token("One", switched=True), token(" two"))
    given.show()
    assert "▸One" in capsys.readouterr().out
    assert given._repr_html_() == answer_html(given)


# --- drafts ---------------------------------------------------------------------------------------------------------


def drafted(text: str = "Oslo") -> Answer:
    drafts = (
        Draft("unmodified", (1, 2), 2.3, 13.8, False, "Minsk is the capital."),
        Draft("memory", (1,), 2.4, float("inf"), True, text),
    )
    return replace(answer(token()), control=Control("dial", alpha=0.6), drafts=drafts)


def test_both_views_show_what_was_chosen_from():
    shown = printed(drafted())
    assert "unmodified: Minsk is the capital. surprise 2.30 with passages, 13.80 without" in " ".join(shown.split())
    assert f"{describe.MARK}memory: Oslo" in shown
    assert "acted on 0" not in shown
    page = answer_html(drafted())
    assert "Minsk is the capital." in page and f"{describe.MARK}memory" in page


def test_drafts_of_segments_say_of_which():
    both = drafted().drafts
    later = [replace(draft, segment=1, given=not draft.given) for draft in both]
    several = replace(drafted(), drafts=(*both, *later))
    assert [name for name, _, _ in describe.draft_lines(several)] == [
        "segment 1, unmodified",
        f"segment 1, {describe.MARK}memory",
        f"segment 2, {describe.MARK}unmodified",
        "segment 2, memory",
    ]
    assert "segment 2, memory: Oslo" in printed(several) and "segment 2, memory" in answer_html(several)
    assert [draft["segment"] for draft in several.to_dict()["drafts"]] == [0, 0, 1, 1]
    assert "segment" not in printed(drafted()), "one decision needs no number"


def test_it_is_said_why_a_choice_between_drafts_changes_nothing():
    moved = drafted()
    assert describe.warning(moved) is None
    plain, memory = moved.drafts
    alike = replace(moved, drafts=(replace(plain, text="Oslo"), memory))
    kept = [replace(plain, given=True), replace(memory, given=False, evidence=0.4)]
    for answer_, says in (
        (alike, "Both streams write the same answer, so the dial has nothing to choose"),
        (
            replace(moved, drafts=tuple(kept)),
            "Too little speaks for the draft of memory at this setting (evidence 0.40)",
        ),
        (
            replace(moved, drafts=(kept[0], replace(kept[1], idle=True))),
            "memory gives no answer of its own, so no alpha above",
        ),
        (
            replace(moved, drafts=(kept[0], replace(kept[1], name="context", idle=True))),
            "context adds nothing from a passage that is about the question, so no alpha below 0.5",
        ),
    ):
        assert says in " ".join(printed(answer_).split()) and says in answer_html(answer_)
    later = [replace(draft, segment=1) for draft in kept]
    assert "No other draft" in str(describe.warning(replace(moved, drafts=(*kept, *later))))
    assert describe.warning(replace(moved, drafts=(*kept, *(replace(d, segment=1) for d in moved.drafts)))) is None
    names = ("memory", "passage 1", "all")  # of sources, the table tells
    apart = [replace(plain, name=name, text=name, given=name == "memory") for name in names]
    assert describe.warning(replace(moved, drafts=tuple(apart))) is None


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_drafts_are_inert(name):
    page = answer_html(drafted(HOSTILE[name]))
    assert "<script>" not in page and "<img" not in page
    assert not {"\x1b", "\x9b", "\x07", "\u202e", "\u2066"} & set(printed(drafted(HOSTILE[name])) + page)


def test_a_narrow_table_has_fewer_columns_and_none_that_is_cut():
    """Token and gain always, the rest by how much it says; what is missing is named."""
    given = answer(token(" Tokyo-and-then-some", -12.345, True, tau=10000.0), token(" ab"), token(" cd", gain=3.0))
    for width in range(24, 150):
        out = io.StringIO()
        print_table(given, Console(file=out, width=width, color_system=None), summary=False)
        table, _, missing = out.getvalue().partition("No room here for")
        assert max(len(line.rstrip()) for line in table.splitlines()) <= width
        assert "−12.35" in table and "ab" in table and ("10,000" in table) == ("tau" not in missing)
        cut = [line for line in table.splitlines() if "…" in line]
        assert all("Tokyo" in line and line.count("…") == 1 for line in cut), width
        if width == 60:
            assert " ".join(missing.split()) == "H par, H ctx, rank par, rank ctx."
            assert "60.7%" in table and "36.8%" in table and "13.5%" in table
        if width > 80:
            assert missing == ""
        if width >= 120:
            assert "confused│surer" in table and "rank par" in table


def test_without_a_terminal_there_is_no_edge(monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    print_table(answer(token(" ab")), summary=False)
    assert "confused│surer" in capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "60")
    print_table(answer(token(" ab")), summary=False)
    assert "No room here for" in capsys.readouterr().out
