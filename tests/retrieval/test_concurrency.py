"""Many readers and a writer: every answer comes from one generation, and nothing is kept longer than it is used.

Each write replaces every text, and each text names its generation, so that a mixture would show.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ckcontrol.errors import IndexLocked
from ckcontrol.retrieval import Index

from .hashes import PASSAGES, Hashes, corpus, generation, look, state

WRITES = 10

READER = """
import json, os, sys, threading
sys.path.insert(0, {tests!r})
from hashes import Hashes, look
from ckcontrol.retrieval import Index

seen, errors, stop = set(), [], threading.Event()

def read(index):
    try:
        while not stop.is_set():
            seen.add(look(index))
            index.refresh()
            with Index.open({path!r}, Hashes()) as own:
                seen.add(look(own))
    except BaseException as error:
        errors.append(repr(error))

with Index.open({path!r}, Hashes()) as index:
    look(index)
    before = len(os.listdir("/proc/self/fd"))
    threads = [threading.Thread(target=read, args=[index]) for _ in range(2)]
    for thread in threads: thread.start()
    print("ready", flush=True)
    sys.stdin.readline()
    stop.set()
    for thread in threads: thread.join()
    index.refresh()
    last = look(index)
    after = len(os.listdir("/proc/self/fd"))
print(json.dumps([sorted(seen), errors, last, after - before]))
"""


def numbers(path: Path) -> list[int]:
    return sorted(int(item.name) for item in path.iterdir() if item.name.isdigit())


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc")
def test_processes_and_threads_read_while_another_writes(tmp_path: Path) -> None:
    path = tmp_path / "index"
    Index.build(generation(0), Hashes(), path).close()
    code = READER.format(tests=str(Path(__file__).parent), path=str(path))
    readers = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for reader in readers:
        assert reader.stdout
        assert reader.stdout.readline() == "ready\n"
    with Index.open(path, Hashes()) as index:
        for number in range(1, WRITES + 1):
            assert index.add(generation(number)).replaced == PASSAGES
            assert look(index) == number
    assert len(numbers(path)) <= 2 + 2 * 3 + 1, "held are the current one and one a reader"
    for reader in readers:
        output, _ = reader.communicate("stop\n", timeout=60)
        seen, errors, last, leaked = json.loads(output)
        assert errors == []
        assert last == WRITES
        assert set(seen) <= set(range(WRITES + 1))
        assert len(seen) >= 2
        assert leaked <= 1, "a thread's own connection to the texts"
    with Index.open(path, Hashes()) as index:
        index.add(generation(99))
    assert numbers(path) == [WRITES + 2]
    assert all(finding.ok for finding in Index.verify(path))


def together(*work: Callable[[], object]) -> list[BaseException]:
    """Run in threads, at once; return what went wrong."""
    errors: list[BaseException] = []
    gate = threading.Barrier(len(work))

    def one(task: Callable[[], object]) -> None:
        gate.wait()
        try:
            task()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=[task]) for task in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_threads_share_one_index(kind: str) -> None:
    """Twenty threads get what one gets, filters and their memory included."""
    with Index.build(corpus(0, 1500), Hashes(), kind=kind) as index:
        alone = state(index)
        index.remove(passages=["p1499"])
        index.add(corpus(1499, 1500))
        found = []
        assert together(*[lambda: found.append(state(index))] * 20) == []
        assert len(found) == 20
        if kind == "flat":
            assert found == [alone] * 20
        assert all(one == found[0] for one in found)


def test_threads_of_one_index_cannot_write_at_once(tmp_path: Path) -> None:
    with Index.build(corpus(0, 20), Hashes(), tmp_path) as index:
        errors = together(*[lambda n=n: index.add(corpus(100 * n, 100 * n + 9)) for n in range(1, 9)])
        assert {type(error) for error in errors} <= {IndexLocked}
        assert len(errors) < 8
        assert index.info()["passages"] == 20 + 9 * (8 - len(errors))
    assert all(finding.ok for finding in Index.verify(tmp_path))


def test_a_search_outlives_the_swap_beneath_it(tmp_path: Path) -> None:
    """The embedder is the slow part of a search; what it started on, it ends on."""

    class Slow(Hashes):
        def encode(self, texts, *, query=False, progress=False):  # type: ignore[no-untyped-def]
            if texts == ["common"] and query:
                started.set()
                assert gate.wait(10)
            return super().encode(texts, query=query)

    started, gate = threading.Event(), threading.Event()
    Index.build(generation(0), Hashes(), tmp_path).close()
    with Index.open(tmp_path, Slow()) as index:
        found: list[int] = []
        reader = threading.Thread(
            target=lambda: found.extend(h.passage.metadata["g"] for h in index.search("common", k=99))
        )
        reader.start()
        assert started.wait(10)
        index.add(generation(1))
        index.add(generation(2))
        gate.set()
        reader.join()
        assert len(found) == PASSAGES
        assert len(set(found)) == 1
    assert numbers(tmp_path)[-1] == 3


def test_old_generations_go_when_nobody_holds_them(tmp_path: Path) -> None:
    holders = [Index.build(generation(0), Hashes(), tmp_path)]
    with Index.open(tmp_path, Hashes()) as writer:
        for number in range(1, 5):
            writer.add(generation(number))
            holders.append(Index.open(tmp_path, Hashes()))
        assert numbers(tmp_path) == [1, 2, 3, 4, 5]
        assert [look(holder) for holder in holders] == [0, 1, 2, 3, 4]
        holders[1].close()
        holders[2].refresh()
        del holders[3]
        writer.add(generation(5))
        assert numbers(tmp_path) == [1, 5, 6]
        for holder in holders:
            holder.close()
        writer.add(generation(6))
        assert numbers(tmp_path) == [7]
