"""A deterministic encoder that knows no words, and writers that run as processes of their own, to be killed.

Run as a program it builds an index or adds to one, and says when it starts and when it is done.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckcontrol.retrieval import Index, Passage

PASSAGES = 30  # of a generation
QUERIES = ["alpha 17", "common", "beta 3 gamma", "delta 900", "alpha gamma"]


class Hashes:
    """Random unit vectors, told by the text alone; another `seed` is another embedder."""

    name = "hashes"

    def __init__(self, seed: str = "", dim: int = 16, pause: float = 0, norm: float = 1) -> None:
        self.seed, self.dim, self.pause, self.norm = seed, dim, pause, norm
        self.seen = 0  # texts embedded, without those of a fingerprint

    def encode(self, texts: Sequence[str], *, query: bool = False, progress: bool = False) -> NDArray[np.float32]:
        """Return one vector a text."""
        if not query and len(texts) > 1:
            self.seen += len(texts)
            time.sleep(self.pause)
        rows = np.empty((len(texts), self.dim), np.float32)
        for row, text in zip(rows, texts, strict=True):
            digest = hashlib.sha256((self.seed + text).encode()).digest()
            row[:] = np.random.default_rng(int.from_bytes(digest[:8], "little")).standard_normal(self.dim)
        return self.norm * rows / np.linalg.norm(rows, axis=1, keepdims=True)


def corpus(first: int, last: int, tag: str = "alpha") -> Iterator[Passage]:
    """Yield passages p<first> to p<last - 1>; every ninth has the text of the one before."""
    for number in range(first, last):
        text = f"{tag} {number - (number % 9 == 8)} common {'beta gamma' if number % 3 else 'delta'}"
        yield Passage(f"p{number}", text, f"s{number % 5}", {"n": number, "even": number % 2 == 0})


def state(index: Index) -> list[Any]:
    """Everything one can see of an index, the order of everything included."""
    found: list[Any] = [[(p.id, p.text, p.source, dict(p.metadata)) for p in index.passages()]]
    for mode in ("dense", "bm25", "hybrid"):
        for hits in index.search(QUERIES, k=12, mode=mode):
            found.append([(hit.passage.id, hit.score, hit.rank) for hit in hits])
    found.append([hit.passage.id for hit in index.search("alpha", k=9, where={"even": True, "n": {"$gte": 500}})])
    return found


def new_items() -> list[Passage]:
    """What `add` adds to passages 0 to 1499: some of the same, some changed, most of them new."""
    return [*corpus(900, 1100), *corpus(1100, 1400, "omega"), *corpus(1500, 3000)]


def generation(number: int) -> Iterator[Passage]:
    """Yield a corpus in which every text names its generation, so that a mixture would show."""
    for place in range(PASSAGES):
        yield Passage(f"p{place}", f"common g{number} n{place}", "store", {"g": number})


def look(index: Index) -> int:
    """Search in every way; each answer must be of one generation. Return the last that was seen."""
    number = -1
    for mode in ("dense", "bm25", "hybrid"):
        both = index.search(["common", "n3 n4"], k=99, mode=mode)
        (number,) = {hit.passage.metadata["g"] for hits in both for hit in hits}
        for hits in both:
            assert len({hit.passage.id for hit in hits}) == len(hits)
            assert all(f" g{number} " in hit.passage.text and hit.passage.metadata["g"] == number for hit in hits)
        assert [len(hits) for hits in both] == [PASSAGES, 2 if mode == "bm25" else PASSAGES]
    every = [passage.metadata["g"] for passage in index.passages()]
    assert (len(every), len(set(every))) == (PASSAGES, 1)
    return number


def run(command: str, path: str | Path, pause: float = 0) -> Index:
    """Build, or add to what is there."""
    if command == "build":
        return Index.build(corpus(0, 3000), Hashes(pause=pause), path)
    index = Index.open(path, Hashes(pause=pause))
    index.add(new_items())
    return index


def die_at(line: int, report: Callable[[int], None]) -> None:
    """Kill this process after so many lines of the package from `publish` on; 0: report how many there are."""
    count, inside = 0, False

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count, inside
        if f"{os.sep}retrieval{os.sep}" not in frame.f_code.co_filename:
            return None
        inside = inside or frame.f_code.co_name == "publish"
        count += inside and event == "line"
        if line and count == line:
            os.kill(os.getpid(), signal.SIGKILL)
        report(count)
        return trace

    sys.settrace(trace)


def main(command: str, path: str, pause: str = "0", line: str = "") -> None:
    """Run as a process of its own."""
    import faiss  # noqa: F401
    import filelock  # noqa: F401

    import ckcontrol.retrieval.store.snapshot
    import ckcontrol.retrieval.store.writer  # noqa: F401  (so that the clock starts with the work)

    reached = 0

    def report(count: int) -> None:
        nonlocal reached
        reached = count

    print("start", flush=True)
    if line:
        die_at(int(line), report)
    run(command, path, float(pause))
    sys.settrace(None)
    print("done", reached, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
