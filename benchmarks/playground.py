"""Pictures of the playground: the demo model and the demo's corpus behind ``ckcontrol serve``, in headless Chromium.

    python benchmarks/playground.py --out docs/pictures            # that of README.md and docs/serve.md
    python benchmarks/playground.py --out FOLDER --all             # also 360 px wide, dark, and the whole page

Asks the demo's first question with the passage that the index finds, at alpha 0.8, and shows tokens, drafts and what
each sentence rests on. Needs the extras ``serve``, ``retrieval`` and ``dev``, and Chromium.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import threading
import time
from itertools import product
from pathlib import Path

import uvicorn
from playwright.sync_api import sync_playwright

import ckcontrol
from ckcontrol.models.load import load
from ckcontrol.retrieval import Embedder, Index, read
from ckcontrol.serving.app import create_app

QUESTION = "Who painted The Starry Night?"


def served(port: int) -> uvicorn.Server:
    """Return a running server of the demo."""
    os.chdir(Path(ckcontrol.__file__).with_name("demo"))  # a source is the path as given: no folder of this machine
    index = Index.build(read("corpus.jsonl"), Embedder("demo"))
    app = create_app(*load("demo", device="cpu"), name="demo", index=index)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", ws="none"))
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.05)
    return server


def main() -> None:
    """Take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder")
    parser.add_argument("--all", action="store_true", help="every size and theme, the whole page")
    args = parser.parse_args()
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = served(port)
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 1180})
        page.set_default_timeout(600_000)
        page.goto(f"http://127.0.0.1:{port}/")
        page.wait_for_selector("#about:not(:has-text('Asking'))")
        page.fill("#question", QUESTION)
        page.fill("#k", "1")
        page.click("#find")
        page.wait_for_selector("#passages li")
        page.fill("#tokens", "16")
        page.fill("#alpha", "0.8")
        page.click("#ask")
        page.wait_for_selector("#stop:disabled")
        page.wait_for_selector("#answers:not(:has(.waiting))")
        page.locator(".plain .answer .t").nth(6).hover()
        page.screenshot(path=args.out / "playground.png")
        for width, scheme in product((1200, 360), ("light", "dark")) if args.all else ():
            page.emulate_media(color_scheme=scheme)
            page.set_viewport_size({"width": width, "height": 900})
            height = page.evaluate("document.documentElement.scrollHeight")
            page.set_viewport_size({"width": width, "height": height})  # else what sticks to the screen lies in between
            page.screenshot(path=args.out / f"playground-{width}-{scheme}.png")
        browser.close()
    server.should_exit = True


if __name__ == "__main__":
    main()
