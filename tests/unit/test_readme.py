"""The README's tables are what the committed results say; its answers are what the demo model says today."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from ..warm import Warm

ROOT = Path(__file__).resolve().parents[2]


def test_tables_match_the_results():
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "readme.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.real
def test_the_three_answers_are_real(real):
    import ckcontrol as ck

    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from readme import PASSAGE, QUESTION
    finally:
        sys.path.pop(0)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for alpha in (0.0, 0.5, 1.0):
        answer = ck.generate(
            *real, QUESTION, [PASSAGE], control=ck.Control(alpha=alpha), max_new_tokens=24, trace=False
        )
        assert f"alpha {alpha:<4} {answer.text}" in text


# --- everything a reader types ----------------------------------------------------------------------------------------


def blocks(kind: str) -> str:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.findall(rf"^```{kind}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(found) == 1
    return str(found[0])


def environment(warm: Warm) -> dict[str, str]:
    """The reader's: the commands of this installation, and no network."""
    path = f"{warm.bin}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}


@pytest.mark.real
def test_the_shell_lines_run_in_an_empty_folder(real, warm: Warm, tmp_path: Path) -> None:
    typed = [line.split("  #")[0].strip() for line in blocks("sh").splitlines()]
    assert typed[0] == "ckcontrol demo" and "serve" in typed[-1]  # the first in tests/demo's way; the last never ends
    said = ""
    for line in typed[1:-1]:
        done = subprocess.run(
            line, shell=True, cwd=tmp_path, env=environment(warm), capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        said += done.stdout
    assert "Lisbon office" in said and "[1]" in said
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    served = subprocess.Popen(
        [*shlex.split(typed[-1]), "--port", str(port)],
        cwd=tmp_path,
        env=environment(warm),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        for _ in range(300):
            assert served.poll() is None, served.stderr.read()  # type: ignore[union-attr]
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as reply:
                assert reply.status == 200
                break
            time.sleep(0.5)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as page:
            assert b"<html" in page.read()
    finally:
        served.terminate()
        served.communicate(timeout=60)


@pytest.mark.real
def test_the_python_prints_what_the_picture_says(real, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(blocks("python"), "README.md", "exec"), {})
    said = capsys.readouterr().out
    assert "0 Lyon is the seat of the French government." in said and "1 The capital of France is Paris." in said


def test_it_is_short_and_its_links_are_files() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    prose = re.sub(r"```.*?```|\]\([^)]*\)", " ", text, flags=re.DOTALL)
    assert len([word for word in prose.split() if re.search("[A-Za-z]", word)]) <= 900
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if "://" not in target:
            assert (ROOT / target.split("#")[0]).exists(), target
