"""Tutorial, how-to and CONTRIBUTING: every block is run as it stands, in order, in an empty folder, without a network.

A `sh` block is one shell, or commands of ours, which are called in this process; a server is left running until the
page has been read; a `text` block is what the block before it printed. What a reader installs is held to
pyproject.toml. The how-to is run on the tiny model.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import shlex
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

import ckcontrol.policies.base as registry
from ckcontrol.cli import options
from ckcontrol.cli.main import main

from ..unit.test_packaging import project
from ..warm import Warm

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(os.name == "nt", reason="the shell of POSIX")


def blocks(page: str) -> list[tuple[str, str]]:
    """The language and the text of each block of code."""
    found = re.findall(r"(?m)^```(\w+)\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    assert {language for language, _ in found} <= {"sh", "text", "python"}, "a block that nothing would run"
    return found


class Reader:
    """Somebody who types what a page says."""

    def __init__(self, folder: Path, commands: Path) -> None:
        self.folder, self.servers = folder, list[subprocess.Popen[str]]()
        self.instead: dict[str, str] = {}
        self.env = {
            **os.environ,
            "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "PIP_NO_INDEX": "1",
            "COLUMNS": "160",
        }

    def types(self, block: str) -> str:
        """Run a block; what it printed."""
        for what, other in self.instead.items():
            block = block.replace(what.replace("_", " "), other)
        if block.startswith("ckcontrol serve"):
            return self.serves(block)
        if block.startswith("ckcontrol "):  # one command a line: here, where torch has been imported
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                for line in block.splitlines():
                    _, *args = shlex.split(line)
                    assert main(args) == 0, line
            return out.getvalue()
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block], cwd=self.folder, env=self.env, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def serves(self, block: str) -> str:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        self.instead["8000"] = port
        block = f"exec {block.replace('8000', port)}"
        log = (self.folder / "server.log").open("w")
        server = subprocess.Popen(
            ["bash", "-c", block], cwd=self.folder, env=self.env, stdout=log, stderr=log, text=True
        )
        log.close()
        self.servers.append(server)
        for _ in range(2400):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health"):
                    return ""
            except OSError:
                assert server.poll() is None, (self.folder / "server.log").read_text()
                time.sleep(0.1)
        raise AssertionError(f"the server did not answer: {block}")

    def leaves(self) -> None:
        for server in self.servers:
            server.send_signal(signal.SIGINT)
            server.wait()


@pytest.fixture
def reader(tmp_path: Path, warm: Warm, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    monkeypatch.setattr(options, "load", functools.cache(options.load))  # of what is called here: once for a page
    someone = Reader(tmp_path, warm.bin)
    yield someone
    someone.leaves()


def reads(reader: Reader, page: str) -> None:
    printed = ""
    for language, text in blocks(page):
        if language == "text":
            for line in text.splitlines():
                assert line in printed.splitlines(), f"{page} shows {line!r}; it was:\n{printed}"
        elif "pip install" not in text:
            assert language == "sh"
            printed = reader.types(text)


@pytest.mark.real
@pytest.mark.usefixtures("real")
def test_the_tutorial(reader: Reader) -> None:
    reads(reader, "docs/tutorial.md")
    assert "45 days" in (reader.folder / "why.html").read_text(encoding="utf-8")


def test_research_in_one_command(reader: Reader) -> None:
    reader.instead = {"eval_run": "eval run --model tiny --device cpu --max-new-tokens 4"}
    reads(reader, "docs/howto-research.md")
    assert "halfway" in (reader.folder / "runs" / "a" / "report.md").read_text(encoding="utf-8")


SAYS = {"a method": "True", "a model family": "2 4 8", "a task": "1 {'malformed': 1}"}
PROGRAMS = dict(zip(SAYS, [text for _, text in blocks("CONTRIBUTING.md")], strict=True))


@pytest.mark.parametrize("name", SAYS)
def test_contributing(name: str, reader: Reader) -> None:
    program = PROGRAMS[name]
    assert sum(bool(line.strip()) for line in program.splitlines()) <= 20, "lines of code"
    (reader.folder / "program.py").write_text(program, encoding="utf-8")
    assert reader.types("python program.py").splitlines()[-1] == SAYS[name]


PAGES = [page for place in ("*.md", "docs/**/*.md", "hub/*/*.md") for page in sorted(ROOT.glob(place))]


@pytest.mark.parametrize(
    "page", [p for p in PAGES if "pip install" in p.read_text(encoding="utf-8")], ids=lambda p: p.name
)
def test_what_is_installed_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"pip install ['\"](?:/path/to/clone|\.)\[([\w,]+)\]", text)
    assert {extra for group in named for extra in group.split(",")} <= set(
        project()["project"]["optional-dependencies"]
    )
    assert not re.search(r"pip install [^`\n]*\bckcontrol\b", text), "it is on no package index"
