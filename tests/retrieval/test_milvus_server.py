"""The index over Milvus by URL: a server in this process, one that dies, and writers that are killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("pymilvus")
pytest.importorskip("milvus_lite")

from ckcontrol.errors import IndexLocked, RetrievalError
from ckcontrol.retrieval import Passage
from ckcontrol.retrieval.milvus.index import MilvusIndex

ITEMS = [Passage(f"p{number}", f"{'gold' if number % 3 else 'salt'} {number}") for number in range(1500)]


class Letters:
    """Counts of letters and digits, normalised."""

    dim = 36

    def encode(self, texts: Sequence[str], *, query: bool = False, progress: bool = False) -> NDArray[np.float32]:
        signs = "abcdefghijklmnopqrstuvwxyz0123456789"
        counts = np.array([[text.lower().count(sign) for sign in signs] for text in texts], np.float32)
        return counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-9)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Any]:
    """A server of Milvus Lite, and its address."""
    from milvus_lite.adapter.grpc.server import start_server_in_thread

    running, database, port = start_server_in_thread(str(tmp_path / "served"))
    yield running, f"http://127.0.0.1:{port}"
    running.stop(grace=1).wait()
    database.close()


def test_by_url(server: Any) -> None:
    """Several clients at once, several collections; on servers the index is an HNSW, and finds what a flat one does."""
    _, url = server
    with MilvusIndex.build(ITEMS, Letters(), url, collection="one") as index:
        assert (index.info()["kind"], index.info()["uri"], len(index)) == ("hnsw", url, 1500)
        with MilvusIndex.build(ITEMS, Letters(), url, collection="flat", kind="flat") as exact:
            queries = [f"salt {number}" for number in range(120)]
            found = [{hit.passage.id for hit in hits} for hits in index.search(queries, k=10, effort=500)]
            truth = [{hit.passage.id for hit in hits} for hits in exact.search(queries, k=10)]
            assert np.mean([len(a & b) / 10 for a, b in zip(found, truth, strict=True)]) > 0.9
        with MilvusIndex.open(url, Letters(), collection="one") as other:
            other.remove(passages=["p0"])
            assert len(index) == len(other) == 1499
        assert index.search("salt 3", k=1, where={"id": {"$ne": "p3"}})[0].passage.id != "p3"


def test_a_server_that_goes_away(server: Any, capfd: pytest.CaptureFixture[str]) -> None:
    running, url = server
    index = MilvusIndex.build(ITEMS[:3], Letters(), url, timeout=2.0)
    running.stop(grace=0).wait()
    capfd.readouterr()
    for ask in (lambda: index.search("gold"), lambda: index.add(ITEMS[3:5]), lambda: len(index)):
        with pytest.raises(RetrievalError, match=f"Milvus at {url} failed to"):
            ask()
    assert "Traceback" not in capfd.readouterr().err
    index.close()


def test_a_writer_that_is_killed(tmp_path: Path) -> None:
    """Between batches, kill -9: what had arrived is whole, nobody is locked out, and adding again finishes it."""
    path = tmp_path / "index.db"
    code = f"""if True:
        import importlib.util, sys, time
        found = importlib.util.spec_from_file_location("test_milvus_server", {__file__!r})
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
        def told(stage, done, total):
            print(done, flush=True)
            if done == 1024: time.sleep(600)
        module.MilvusIndex.build(module.ITEMS, module.Letters(), {str(path)!r}, on_progress=told)
    """
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            if line.strip() == "1024":
                break
        with pytest.raises(IndexLocked, match="open in another process"):
            MilvusIndex.open(path, Letters())
        writer.send_signal(signal.SIGKILL)
    with MilvusIndex.open(path, Letters()) as index:
        assert len(index) == 1024
        change = index.add(ITEMS)
        assert (change.unchanged, change.added, len(index)) == (1024, 476, 1500)
        assert index.search("gold 1499", k=1)[0].passage.id == "p1499"
