"""Killed at any moment, an index is the old one or the new one; the same call again goes on from there.

Writers run as processes of their own and die by SIGKILL: some by the clock, over the whole of their time, some at a
line of the code that publishes.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ckcontrol.errors import IndexLocked, RetrievalError
from ckcontrol.retrieval import Index

from .hashes import Hashes, corpus, new_items, run, state

PAUSE = 0.02  # seconds a batch: most of the time passes while embeddings are made, as it does with a model
CLOCK, LINES = 6, 4  # kills of each command; twenty in all
RECORD = 32 + 16 * 4 + 4  # bytes of an embedding in the file of an unfinished write

pytestmark = pytest.mark.skipif(os.name == "nt", reason="SIGKILL")


class Plan(NamedTuple):
    """What a command does when nobody kills it."""

    command: str
    start: Path  # the folder it starts from
    old: list[Any] | None
    new: list[Any]
    seconds: float
    lines: int


def spawn(command: str, path: Path, *arguments: object) -> subprocess.Popen[str]:
    program = [sys.executable, str(Path(__file__).with_name("hashes.py")), command, str(path), *map(str, arguments)]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "start\n"
    return process


def finish(process: subprocess.Popen[str]) -> list[str]:
    output, _ = process.communicate(timeout=60)
    return output.split()


@pytest.fixture(scope="module", params=["build", "add"])
def plan(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder = tmp_path_factory.mktemp(request.param)
    start, old = folder / "start", None
    if request.param == "build":
        start.mkdir()
    else:
        with Index.build(corpus(0, 1500), Hashes(), start) as index:
            old = state(index)
    shutil.copytree(start, folder / "timed")
    process = spawn(request.param, folder / "timed", PAUSE)
    began = time.perf_counter()
    assert finish(process)[0] == "done"
    seconds = time.perf_counter() - began
    shutil.copytree(start, folder / "traced")
    lines = int(finish(spawn(request.param, folder / "traced", 0, 0))[1])
    with Index.open(folder / "timed", Hashes()) as index:
        new = state(index)
    assert new != old
    assert lines > 100
    return Plan(request.param, start, old, new, seconds, lines)


@pytest.mark.parametrize("point", range(CLOCK + LINES))
def test_killed_at_a_random_point(plan: Plan, point: int, tmp_path: Path) -> None:
    chance = random.Random(f"{plan.command} {point}")
    path = tmp_path / "index"
    shutil.copytree(plan.start, path)
    if point < CLOCK:
        process = spawn(plan.command, path, PAUSE)
        time.sleep(plan.seconds * (point + chance.random()) / CLOCK)
        process.kill()
    else:
        part = plan.lines / LINES
        process = spawn(plan.command, path, 0, int((point - CLOCK) * part + chance.random() * part) + 1)
    finish(process)
    assert process.returncode in (-signal.SIGKILL, 0 if point < CLOCK else -signal.SIGKILL)

    unfinished = path / "unfinished"
    flushed = (unfinished.stat().st_size // RECORD) if unfinished.exists() else 0  # the header is shorter than two
    published = check_old_or_new(plan, path)
    resume_and_compare(plan, path, published, flushed)


def check_old_or_new(plan: Plan, path: Path) -> bool:
    """Return whether it is the new one; nothing half."""
    findings = Index.verify(path)
    if plan.old is None and not (path / "CURRENT").exists():
        assert [finding.ok for finding in findings] == [False]
        with pytest.raises(RetrievalError, match="there is no index"):
            Index.open(path)
        return False
    assert all(finding.ok for finding in findings), findings
    with Index.open(path, Hashes()) as index:
        found = state(index)
    assert found in (plan.old, plan.new)
    return found == plan.new


def resume_and_compare(plan: Plan, path: Path, published: bool, flushed: int) -> None:
    if published and plan.command == "build":
        with pytest.raises(RetrievalError, match="there is an index"):
            run("build", path)
        Index.open(path, Hashes()).add([*corpus(0, 3000)])
    else:
        with run(plan.command, path) as index:
            assert index.change is not None
            assert state(index) == plan.new
            if published:
                assert not index.change.any
            elif flushed > 8:
                assert flushed - 8 <= index.change.reused <= flushed
                assert index.change.embedded + index.change.reused == embeddings(plan)
    names = {item.name for item in path.iterdir()}
    assert len([name for name in names if name.isdigit()]) == 1 or published
    assert "unfinished" not in names
    assert all(finding.ok for finding in Index.verify(path))


def embeddings(plan: Plan) -> int:
    """How many texts there are to embed."""
    if plan.command == "build":
        return len({passage.text for passage in corpus(0, 3000)})
    there = {passage.text for passage in corpus(0, 1500)}
    return len({passage.text for passage in new_items()} - there)


def test_a_second_writer_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    path = tmp_path / "index"
    Index.build(corpus(0, 100), Hashes(), path).close()
    process = spawn("add", path, 5)
    while not (path / "2").exists():
        assert process.poll() is None
        time.sleep(0.01)
    with Index.open(path, Hashes()) as index:
        for write in (
            lambda: index.add(corpus(200, 300)),
            lambda: index.remove(passages=["p1"]),
            lambda: Index.build(corpus(0, 5), Hashes(), path, overwrite=True),
        ):
            with pytest.raises(IndexLocked, match="written by another process"):
                write()
        process.kill()
        finish(process)
        assert index.add(corpus(200, 300)).added == 100
        assert len(index) == len({passage.text for passage in [*corpus(0, 100), *corpus(200, 300)]})
