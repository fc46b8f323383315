"""The docs site: every page is in its menu, and every link between pages, to files and to headings leads somewhere.

Read without Sphinx and without a network; `make docs` builds the site, and every warning of it is an error.
"""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path

import pytest

from .test_packaging import project
from .test_repository import ROOT, tracked

DOCS = ROOT / "docs"
_spec = importlib.util.spec_from_file_location("site_conf", DOCS / "conf.py")
assert _spec is not None and _spec.loader is not None
conf = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(conf)
PAGES = [path for path in tracked() if path.suffix == ".md"]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def prose(path: Path) -> str:
    """A page without its code, in which brackets are no links."""
    text = re.sub(r"(?ms)^```.*?^```$", "", path.read_text(encoding="utf-8"))
    return re.sub(r"(?m)^ {4}.*$|`[^`\n]*`", lambda found: "x" if found[0].startswith("`") else "", text)


@cache
def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site write them."""
    text = re.sub(r"(?ms)^```.*?^```$", "", path.read_text(encoding="utf-8"))
    titles = re.findall(r"(?m)^#{1,4} +(.+?)\s*$", text)
    slugs = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
    return {slug if not slugs[:i].count(slug) else f"{slug}-{slugs[:i].count(slug)}" for i, slug in enumerate(slugs)}


def broken(path: Path) -> list[str]:
    """The links of a page that lead nowhere."""
    found = []
    for link in LINK.findall(prose(path)):
        if re.match(r"\w+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        inside = not name or target == ROOT or ROOT in target.parents
        if not inside or not target.exists() or (anchor and anchor not in anchors(target)):
            found.append(link)
    return found


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path: Path) -> None:
    assert broken(path) == []


def test_the_checker_sees(tmp_path: Path) -> None:
    page = DOCS / "methods.md"
    assert "order-of-operations" in anchors(page) and "nothing" not in anchors(page)
    wrong = tmp_path / "page.md"
    wrong.write_text("[a](#here) [b](gone.md) [c](https://x.example) [d](#gone)\n# Here\n", encoding="utf-8")
    assert broken(wrong) == ["gone.md", "#gone"]


def test_every_page_is_in_the_menu_once() -> None:
    index = conf.on_site("index.md", (DOCS / "index.md").read_text(encoding="utf-8"))
    listed = [page for _, pages in conf.menu(index) for page in pages]
    written = {path.relative_to(DOCS).as_posix() for path in PAGES if DOCS in path.parents}
    assert sorted(listed) == sorted({*written - {"index.md"}, *conf.MADE})


@pytest.mark.parametrize("path", [p for p in PAGES if DOCS in p.parents], ids=lambda path: path.name)
def test_links_out_of_the_docs_become_links_of_the_site(path: Path) -> None:
    page = path.relative_to(DOCS).as_posix()
    for link in LINK.findall(conf.on_site(page, prose(path))):
        if not re.match(r"\w+:|#", link):
            target = (path.parent / link.partition("#")[0]).resolve()
            assert target.is_file() or target.relative_to(DOCS).as_posix() in conf.MADE, link


def test_what_is_made_is_not_committed_and_what_makes_it_is_pinned() -> None:
    assert not [
        path for path in tracked() if path.relative_to(ROOT).as_posix().startswith(("docs/reference", "docs/project"))
    ]
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    for wanted in project()["project"]["optional-dependencies"]["docs"]:
        assert re.search(rf"(?m)^{re.split('[>=<]', wanted)[0]}==", pins), wanted
