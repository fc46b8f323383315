"""The playground as a person uses it, in headless Chromium, whichever server shows it. Fixtures: conftest.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

WIDE, PHONE = {"width": 1200, "height": 900}, {"width": 360, "height": 740}


class Page:
    """An open playground, and every address that it asked for."""

    def __init__(self, page: Any, url: str) -> None:
        self.page, self.url = page, url
        self.asked: list[str] = []
        self.wrong: list[str] = []
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("console", lambda told: self.wrong.append(told.text) if "Content Security" in told.text else None)
        page.set_default_timeout(120_000)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.page, name)

    def open(self) -> Page:
        self.page.goto(self.url)
        self.page.wait_for_selector("#about:not(:has-text('Asking'))")
        return self

    def done(self) -> Page:
        self.page.wait_for_selector("#stop:disabled")
        self.page.wait_for_selector("#answers:not(:has(.waiting))")
        return self

    def ask(
        self, question: str = "Which river?", passages: tuple[str, ...] = ("The Tellin.",), tokens: int = 12
    ) -> Page:
        while self.page.locator("#passages li").count():
            self.page.locator("#passages button").first.click()
        for text in passages:
            self.page.click("#add")
            self.page.locator("#passages textarea").last.fill(text)
        self.page.fill("#question", question)
        self.page.fill("#tokens", str(tokens))
        self.page.click("#ask")
        return self.done()

    def turn(self, key: str) -> Page:
        """Press a key on the dial, and wait for the answer that follows; it must be one that the page has not kept."""
        self.page.focus("#alpha")
        with self.page.expect_request("**/v1/chat/completions"):  # some time after the key
            self.page.keyboard.press(key)
        return self.done()

    def tab_to(self, name: str) -> None:
        for _ in range(60):
            if self.page.evaluate("document.activeElement.id") == name:
                return
            self.page.keyboard.press("Tab")
        raise AssertionError(f"Tab never comes to {name}")

    def shown(self, text: str) -> str:
        """What the page makes of an answer: characters that hide or reorder it are named."""
        return str(self.page.evaluate("async text => (await import('./why.js')).shown(text)", text)).strip()

    def scrolls(self) -> bool:
        return bool(self.page.evaluate("document.documentElement.scrollWidth > innerWidth"))


@contextmanager
def posts(page: Page) -> Iterator[list[dict[str, Any]]]:
    """Collect the bodies that the page sends."""
    bodies: list[dict[str, Any]] = []
    page.on("request", lambda request: bodies.append(request.post_data_json) if request.method == "POST" else None)
    yield bodies


def text_of(page: Page, arm: str) -> str:
    """The answer as the tokens hold it, without the mark of its end."""
    return str(
        page.evaluate(
            "arm => { const e = document.querySelector(`.${arm} .answer`).cloneNode(true);"
            " e.querySelectorAll('.t.end').forEach(one => one.remove()); return e.textContent; }",
            arm,
        )
    )
