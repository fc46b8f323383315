"""The docs site: what Sphinx must know to make it of these pages, which are written to be read in the repository too.

``make docs`` builds it into build/docs, without a network and with every warning an error. Three things are made on the
way and are in no commit: the reference (`docs/reference`, from the docstrings and the tree of commands), copies of the
pages at the root of the repository (`docs/project`), and the menu, which is the links of index.md by their headings.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent

# Pages at the root of the repository, and what the site calls them.
ROOT_PAGES = ("CONTRIBUTING.md", "AGENTS.md", "SECURITY.md", "CHANGELOG.md")
PROJECT_PAGES = {name: f"project/{Path(name).stem.lower()}.md" for name in ROOT_PAGES}
# What a page of the reference shows, by its name; the command line is one more.
PACKAGES = ("ckcontrol", "ckcontrol.retrieval", "ckcontrol.eval", "ckcontrol.vllm")
MODULES = {name: f"reference/{name}.rst" for name in PACKAGES}
CLI = "reference/cli.md"
MADE = [*PROJECT_PAGES.values(), *MODULES.values(), CLI]

project = "ckcontrol"
author = "The ckcontrol authors"
html_show_copyright = False
smartquotes = False  # two dashes begin an option
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "ckcontrol"
html_static_path = ["site"]
html_css_files = ["site.css"]
html_copy_source = False

myst_heading_anchors = 4  # the anchors that links in the repository use
suppress_warnings = ["myst.header"]  # docs/results: reports that begin below the first level

default_role = "code"  # docstrings say `name` for code, as Markdown does
autodoc_mock_imports = ["vllm"]  # an engine with an environment of its own
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

REFERENCE = "## Reference\n\nMade from docstrings and commands when the site is built (`make docs`), and:\n\n"
ENTRY = re.compile(r"\[([^\]]+)\]\(([^)#]+\.(?:md|rst))\)")
LINK = re.compile(r"(?<=\]\()(?!\w+:)([^)#\s]+)((?:#[^)\s]*)?)(?=\))")


def menu(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each heading of index.md that has a list of links, with the pages it names."""
    for section in re.split(r"(?m)^## ", text)[1:]:
        title, _, rest = section.partition("\n")
        pages = [page for line in re.findall(r"(?m)^- .*", rest) for _, page in ENTRY.findall(line)]
        if pages:
            yield title, pages


def on_site(page: str, text: str) -> str:
    """Return a page with its links to files of the repository turned to where the site has them."""
    made = {target: name for name, target in PROJECT_PAGES.items()}
    home = (ROOT / made[page] if page in made else DOCS / page).parent

    def place(link: re.Match[str]) -> str:
        target = (home / link[1]).resolve()
        name = target.relative_to(ROOT).as_posix()
        found = DOCS / PROJECT_PAGES[name] if name in PROJECT_PAGES else target
        return os.path.relpath(found, (DOCS / page).parent) + link[2]

    if page == "index.md":
        made_pages = {**MODULES, "Command line": CLI}
        lines = "".join(f"- [{name}]({target})\n" for name, target in made_pages.items())
        text = text.replace(REFERENCE, f"## Reference\n\n{lines}")
    return LINK.sub(place, text)


def commands() -> str:
    """Return the page of the command line: every command, its arguments and options, by typer's own writer."""
    import typer
    from typer.cli import get_docs_for_click

    from ckcontrol.cli.main import app

    tree: Any = typer.main.get_command(app)
    parts = ["# Command line\n", "What `ckcontrol COMMAND --help` says.\n"]
    with tree.make_context("ckcontrol", [], resilient_parsing=True) as context:
        for name in tree.commands:
            command = tree.commands[name]
            with command.make_context(name, [], parent=context, resilient_parsing=True) as inside:
                parts.append(get_docs_for_click(obj=command, ctx=inside, indent=1, name=name, call_prefix="ckcontrol"))
    return "\n".join(parts)


def _write(page: str, text: str) -> None:
    path = DOCS / page
    path.parent.mkdir(exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:  # else Sphinx would build it again
        path.write_text(text, encoding="utf-8")


def _make(app: Any) -> None:
    for name, page in PROJECT_PAGES.items():
        _write(page, (ROOT / name).read_text(encoding="utf-8"))
    for name, page in MODULES.items():
        _write(page, f"{name}\n{'=' * len(name)}\n\n.. automodule:: {name}\n   :members:\n   :imported-members:\n")
    _write(CLI, commands())


def _read(app: Any, docname: str, source: list[str]) -> None:
    page = docname + ".md"
    if not (DOCS / page).exists():
        return
    source[0] = on_site(page, source[0])
    if not source[0].startswith("# "):  # a table that a command writes: index.md has its title
        titles = {name: title for title, name in ENTRY.findall((DOCS / "index.md").read_text(encoding="utf-8"))}
        source[0] = f"# {titles[page]}\n\n{source[0]}"
    if docname == "index":
        for title, pages in menu(source[0]):
            source[0] += "\n".join(["", "```{toctree}", ":hidden:", f":caption: {title}", "", *pages, "```", ""])


def setup(app: Any) -> None:
    """Connect the steps above."""
    app.connect("builder-inited", _make)
    app.connect("source-read", _read)
