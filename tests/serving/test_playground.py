"""The playground in headless Chromium, against the real server: every test asks it as a person would."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ckcontrol
from ckcontrol.retrieval import Index, Passage
from ckcontrol.views.palette import SATURATION, STEPS, ink_rules, palette_rules

from ..browser import PHONE, WIDE, Page, posts, text_of
from ..retrieval.hashes import Hashes
from .served import Held, Served, serve

STANCES = {"supports": "✓ the same", "contradicts": "✗ another", "silent": "– not counted"}
PAGE = Path(ckcontrol.__file__).parent / "serving" / "playground"
HOSTILE = (
    '<img src=//evil.invalid/x onerror="window.hit=1"><script src=//evil.invalid></script></textarea>'
    "<svg onload='hit=1'><style>@import '//evil.invalid'</style> javascript:hit=1 ${hit} {{hit}} \u202egnp.exe"
)
QUOTES = "Who said 'it''s \"done\"', $(touch x) `id` \\n \\\\ and\nwent? ünd 漢字 🎈 </script>"


@pytest.fixture(scope="module")
def plain(model: Any) -> Iterator[Served]:
    with serve(*model, limits={"passages": 3}) as server:
        yield server


@pytest.fixture(scope="module")
def indexed(model: Any) -> Iterator[Served]:
    texts = ["The Tellin runs through Orvendale.", "Orvendale lies in the north.", HOSTILE]
    found = [Passage(str(i), text, source=f"<b>{i}</b>.txt") for i, text in enumerate(texts)]
    with Index.build(found, Hashes()) as index, serve(*model, index=index) as server:
        yield server


def answer_of(server: Served, question: str, tokens: int, **ck: Any) -> str:
    body = {"messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": tokens, "ck": ck}
    return str(server.post(body).json()["choices"][0]["message"]["content"])


def test_three_settings_answer_what_the_server_answers_for_each(plain: Served, visit: Callable[..., Page]) -> None:
    page = visit(plain)
    assert sorted(url.removeprefix(plain.url) for url in page.asked) == [
        "/",
        "/code.js",
        "/playground.css",
        "/playground.js",
        "/v1/models",
        "/why.js",
    ]
    with posts(page) as bodies:
        page.ask("Which river?", ("The Tellin.", "It is long."), tokens=20)
    for arm, more in {
        "chosen": {"passages": ["The Tellin.", "It is long."], "method": "dial", "alpha": 0.75},
        "plain": {"passages": ["The Tellin.", "It is long."], "method": "off"},
        "closed": {"passages": [], "method": "off"},
    }.items():
        expected = answer_of(plain, "Which river?", 20, **more)
        assert expected and page.locator(f".{arm} [role=group]").get_attribute("aria-label")
        assert text_of(page, arm).strip() == page.shown(expected)
    assert [body["ck"] for body in bodies] == [
        {"passages": ["The Tellin.", "It is long."], "method": "dial", "alpha": 0.75, "trace": True},
        {"passages": ["The Tellin.", "It is long."], "method": "off", "trace": True},
        {"passages": [], "method": "off", "trace": True},
    ]
    assert all(body["stream"] for body in bodies) and not page.wrong


def test_a_passage_that_is_switched_off_is_not_sent(plain: Served, visit: Callable[..., Page]) -> None:
    page = visit(plain)
    page.ask(passages=("one", "two"))
    page.locator("#passages [role=switch]").first.uncheck()
    with posts(page) as bodies:
        page.click("#ask")
        page.done()
    assert bodies[0]["ck"]["passages"] == ["two"] and "1 of 2" in page.inner_text("#passages-note")


def test_an_answer_arrives_piece_by_piece(
    plain: Served, visit: Callable[..., Page], monkeypatch: pytest.MonkeyPatch
) -> None:
    page, held = visit(plain), Held(monkeypatch)
    size = "document.querySelector('.plain .answer').textContent.length"
    page.fill("#tokens", "120")
    page.click("#ask")
    shown, end = 0, time.monotonic() + 120
    for _ in range(4):  # the server stands still until the page has shown what it made
        held.let(24)
        while page.evaluate(size) <= shown:
            assert time.monotonic() < end
            page.wait_for_timeout(20)
        shown = page.evaluate(size)
    assert page.locator(".plain.waiting").count() == 1
    held.open = True
    page.done()
    assert page.evaluate(size) > shown


def test_the_dial_moves_by_keyboard_and_asks_again(plain: Served, visit: Callable[..., Page]) -> None:
    page = visit(plain)
    page.tab_to("question")
    page.keyboard.press("Control+A")
    page.keyboard.type("Which river?")
    page.tab_to("alpha")
    assert (
        page.get_attribute("#alpha", "aria-valuetext") == "0.75. Leans to memory: what the passages changed is damped."
    )
    page.keyboard.press("End")
    assert page.get_attribute("#alpha", "aria-valuetext") == "1.00. Memory counts, the passages do not."
    assert "rotate(90deg)" in page.get_attribute("#needle", "style")
    page.tab_to("ask")
    with posts(page) as bodies:
        page.keyboard.press("Enter")
        page.done()
    assert [body["ck"].get("alpha") for body in bodies] == [1, None, None]
    with posts(page) as bodies:
        page.turn("Home")
    assert bodies[0]["ck"]["alpha"] == 0 and len(bodies) == 1  # the other two do not depend on the dial
    assert "rotate(-90deg)" in page.get_attribute("#needle", "style")
    assert page.locator("#settings li").count() == 2 and page.locator("#seen circle").count() == 2
    page.evaluate("document.querySelector('.chosen [role=group]').focus()")
    page.keyboard.press("ArrowRight")
    assert re.search(r"gain [−+]\d", page.inner_text("#figures"))


def test_the_dial_is_dragged(plain: Served, visit: Callable[..., Page]) -> None:
    page = visit(plain)
    box = page.locator("#dial .track").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 12)
    page.mouse.down()
    assert page.input_value("#alpha") == "0.5"
    page.mouse.move(box["x"] + 12, box["y"] + box["height"])
    page.mouse.up()
    assert float(page.input_value("#alpha")) < 0.1


def test_drafts_are_shown_with_both_surprises_and_where_the_answer_changes(
    plain: Served, visit: Callable[..., Page]
) -> None:
    page = visit(plain)
    page.ask(tokens=16)
    reply = plain.post(
        {
            "messages": [{"role": "user", "content": "Which river?"}],
            "temperature": 0,
            "max_tokens": 16,
            "ck": {"passages": ["The Tellin."], "method": "dial", "alpha": 0.75},
        }
    ).json()
    drafts = reply["ck"]["drafts"]
    table = page.inner_text("#drafts table")
    assert len(drafts) == 2
    for draft in drafts:
        assert f"{draft['surprise_ctx']:.2f}" in table and f"{draft['surprise_par']:.2f}" in table
    assert page.locator("#drafts .given").count() == 1
    changes = re.search(r"changes at alpha = (0\.\d+)", page.inner_text("#drafts"))
    if changes:  # the server agrees, on both sides of the place that the page names
        given = [
            next(
                d["name"]
                for d in plain.post(
                    {
                        "messages": [{"role": "user", "content": "Which river?"}],
                        "temperature": 0,
                        "max_tokens": 16,
                        "ck": {"passages": ["The Tellin."], "method": "dial", "alpha": float(changes[1]) + step},
                    }
                ).json()["ck"]["drafts"]
                if d["given"]
            )
            for step in (-0.011, 0.011)
        ]
        assert given == ["unmodified", "memory"]
    assert page.is_visible("#flip") == bool(changes)


def test_every_passage_says_what_it_makes_of_the_answer(plain: Served, visit: Callable[..., Page]) -> None:
    page = visit(plain)
    passages = ("The Tellin runs through Orvendale.", "Nothing.", "The Vess runs through Orvendale.")
    page.ask("Which river runs through Orvendale?", passages, tokens=12)
    page.locator("#passages input[role=switch]").nth(1).uncheck()
    page.check("#each")
    with posts(page) as bodies:
        page.click("#ask")
        page.done()
    assert [body["ck"].get("sources") for body in bodies] == ["each", None]  # the closed book was asked before
    told = plain.post(bodies[0] | {"stream": False}).json()["ck"]["sources"]
    rows = [row.inner_text() for row in page.locator("#drafts tbody tr").all()]
    names = ["Memory", "Passage 1", "Passage 3", "All together"]
    assert len(rows) == len(told) == 4
    for row, name, one in zip(rows, names, told, strict=True):
        assert row.startswith(name) and f"{one['surprise']:.2f}" in row and STANCES[one["stance"]] in row
    page.select_option("#method", "cad")
    assert page.locator("#each").is_hidden()
    with posts(page) as bodies:
        page.click("#ask")
        page.done()
    assert "sources" not in bodies[0]["ck"]


def test_what_was_switched_stands_in_a_table(plain: Served, visit: Callable[..., Page]) -> None:
    page = visit(plain)
    page.select_option("#method", "cad")
    page.ask(tokens=8)
    assert "acted on" in page.inner_text("#switched caption") and page.locator("#switched tbody tr").count() > 3
    page.select_option("#method", "adacad")
    assert page.is_disabled("#alpha") and "chooses by itself" in page.inner_text("#lean-text")


def test_the_whole_dial_is_asked_at_once(plain: Served, visit: Callable[..., Page]) -> None:
    page = visit(plain)
    page.ask(tokens=6)
    page.click("#sweep")
    page.wait_for_selector("#sweep:enabled")
    assert page.locator("#settings button").all_inner_texts() == ["0.00", "0.25", "0.50", "0.75", "1.00"]


def test_gain_is_never_colour_alone(plain: Served, visit: Callable[..., Page]) -> None:
    page = visit(plain)
    page.ask(tokens=40)
    style = (
        "element => { const style = getComputedStyle(element);"
        " return [style.backgroundColor, style.textDecorationStyle, style.textDecorationLine]; }"
    )
    seen = {kind: page.locator(f"#legend .{kind}").first.evaluate(style) for kind in ("surer", "confused")}
    assert seen["surer"][0] != seen["confused"][0]
    assert seen["surer"][1:] == ["solid", "underline"] and seen["confused"][1:] == ["wavy", "underline"]
    page.uncheck("#colours")
    assert page.locator(".answer .t").first.evaluate(style)[0] == "rgba(0, 0, 0, 0)"


def test_passages_are_found_with_score_and_source(indexed: Served, visit: Callable[..., Page]) -> None:
    page = visit(indexed)
    page.fill("#question", "The Tellin runs through Orvendale.")
    page.fill("#k", "2")
    page.select_option("#mode", "bm25")
    page.click("#find")
    page.wait_for_selector("#passages li")
    assert page.locator("#passages textarea").first.input_value() == "The Tellin runs through Orvendale."
    assert re.fullmatch(r"<b>0</b>\.txt · score \d+\.\d{3}", page.locator("#passages .source").first.inner_text())


def test_hostile_texts_execute_nothing_and_load_nothing(indexed: Served, visit: Callable[..., Page]) -> None:
    page = visit(indexed)

    def spoken(route: Any) -> None:
        """The server's own reply, as if the model had said the worst."""
        reply = route.fetch()
        events = []
        for data in re.findall(r"^data: (.*)$", reply.text(), re.M):
            part = data if data == "[DONE]" else json.loads(data)
            if part != "[DONE]" and part["choices"]:
                part["choices"][0]["delta"]["content"] = HOSTILE if part["choices"][0]["finish_reason"] else ""
                for token in part.get("ck", {}).get("trace", []):
                    token["text"] = HOSTILE
                for draft in part.get("ck", {}).get("drafts", []):
                    draft["text"] = draft["name"] = HOSTILE
            events.append(f"data: {part if part == '[DONE]' else json.dumps(part)}\n\n")
        route.fulfill(response=reply, body="".join(events))

    page.fill("#question", HOSTILE)
    page.fill("#k", "3")
    page.click("#find")
    page.wait_for_selector("#passages li")
    page.route("**/v1/chat/completions", spoken)
    for method in ("dial", "cad"):
        page.select_option("#method", method)
        page.click("#ask")
        page.done()
        assert "onerror" in page.inner_text(".chosen .answer") and "⟨U+202E⟩gnp.exe" in page.inner_text(
            ".chosen .answer"
        )
    page.evaluate("fetch('v1/models')")  # whatever was to be loaded has been asked for by now
    assert page.evaluate("window.hit") is None
    assert page.locator("main :is(img, script, iframe, style, b, [onload], [onerror])").count() == 0
    assert all(url.startswith(indexed.url) for url in page.asked) and not page.wrong
    refused = page.evaluate(
        "() => { const s = document.createElement('script'); s.textContent = 'window.hit = 1'; document.body.append(s);"
        " return window.hit; }"
    )
    assert refused is None


@pytest.mark.parametrize("tool", ["curl", "python"])
def test_the_copied_request_gives_the_answer_of_the_page(
    plain: Served, visit: Callable[..., Page], tool: str, tmp_path: Path
) -> None:
    if tool == "curl" and not shutil.which("curl"):
        pytest.skip("there is no curl on this machine")
    page = visit(plain)
    page.ask(QUOTES, (QUOTES, HOSTILE), tokens=10)
    code = page.text_content(f"#{tool}")
    run = ["sh", "-c", code] if tool == "curl" else [sys.executable, "-c", code]
    utf8 = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(run, capture_output=True, cwd=tmp_path, timeout=300, env=utf8)
    assert done.returncode == 0, done.stderr.decode()
    told = done.stdout.decode()
    more = {"passages": [QUOTES, HOSTILE], "method": "dial", "alpha": 0.75}
    expected = answer_of(plain, QUOTES, 10, **more)
    if tool == "curl":
        assert json.loads(told)["choices"][0]["message"]["content"] == expected
    else:
        assert told.startswith(expected)
    assert not list(tmp_path.iterdir())


def test_errors_are_sentences_beside_their_field(plain: Served, visit: Callable[..., Page]) -> None:
    page = visit(plain)
    page.ask(question=" ")
    assert page.inner_text("#question-error").endswith("Write a question first.")
    page.ask(passages=("1", "2", "3", "4"))
    assert "At most 3" in page.inner_text("#passages-error")
    page.ask(tokens=0)
    assert "max_tokens" in page.inner_text("#ask-error")
    page.ask()
    assert page.locator(".error:visible").count() == 0


def test_a_key_is_asked_for_and_never_shown(model: Any, visit: Callable[..., Page]) -> None:
    with Index.build([Passage("0", "Here.")], Hashes()) as index, serve(*model, key="s3cret", index=index) as server:
        page = visit(server)
        assert "API key" in page.inner_text("#about")
        assert "$CKCONTROL_API_KEY" in page.text_content("#curl")
        assert 'os.environ["CKCONTROL_API_KEY"]' in page.text_content("#python")
        page.fill("#key", "wrong")
        page.keyboard.press("Tab")
        page.wait_for_selector("#key-error:has-text('does not take this key')")
        page.fill("#key", "s3cret")
        page.keyboard.press("Tab")
        page.wait_for_selector("#about:has-text('tiny')")
        assert page.locator("#passages li").count() == 0  # no example's, which would stand in for what is found
        page.ask(tokens=4)
        assert text_of(page, "chosen")
        assert "s3cret" not in page.content() and "$CKCONTROL_API_KEY" in page.inner_text("#curl")


def test_stop_ends_the_answers(plain: Served, visit: Callable[..., Page], monkeypatch: pytest.MonkeyPatch) -> None:
    page, held = visit(plain), Held(monkeypatch)
    page.fill("#tokens", "1000")
    page.click("#ask")
    page.click("#stop")
    page.done()
    plain.until("requests_running", 0)
    held.open = True
    assert page.locator(".arm:has-text('Stopped.')").count() == 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_every_size_and_theme_is_accessible(
    indexed: Served, visit: Callable[..., Page], size: dict[str, int], scheme: str
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page = visit(indexed, size, scheme)
    page.ask(passages=(HOSTILE, "x" * 300), tokens=24)
    assert not page.scrolls()
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 22, 26)")
    page.check("#each")
    for method in ("dial", "cad", "adacad"):
        page.select_option("#method", method)
        page.click("#ask")
        page.done()
        found = axe.Axe().run(page.page).response["violations"]
        assert not found, [(one["id"], one["nodes"][0]["html"], one["nodes"][0]["failureSummary"]) for one in found]
        assert not page.scrolls()


def test_nothing_moves_for_who_asks_for_that(plain: Served, visit: Callable[..., Page]) -> None:
    page = visit(plain)
    moves = "getComputedStyle(document.querySelector('#needle')).transitionDuration"
    assert page.evaluate(moves) != "0s"
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate(moves) == "0s"


def test_the_page_has_the_colours_of_the_palette_and_asks_nobody() -> None:
    css, html = (PAGE / "playground.css").read_text("utf-8"), (PAGE / "index.html").read_text("utf-8")
    assert palette_rules() in css and "\n".join(ink_rules().splitlines()[:2]) in css
    assert f"SATURATION = {SATURATION:g}, STEPS = {STEPS};" in (PAGE / "why.js").read_text("utf-8")
    scripts = "".join(path.read_text("utf-8") for path in PAGE.glob("*.js"))
    addresses = [
        url for url in re.findall(r"https?://[^\s\"'`]+", css + html + scripts) if "www.w3.org/2000/svg" not in url
    ]
    assert not addresses
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|Function\(|style=|onclick", html + scripts
    )
