"""Retrieval, measured: quality on SciFact, kinds of index at a million vectors, and what a search costs over raw FAISS.

    python benchmarks/retrieval.py scifact --data FOLDER     nDCG@10, recall@10 of dense, BM25, hybrid (BEIR layout)
    python benchmarks/retrieval.py questions [--data FOLDER] what questions written by a model add: hit@1, hit@5, MRR
    python benchmarks/retrieval.py kinds [--rows 1000000]    build time, memory, latency, recall of each kind
    python benchmarks/retrieval.py overhead                  search latency, ours / raw FAISS on the same index

Each prints a table; ``--json FILE`` also adds its figures to FILE. The synthetic vectors of `kinds` have the mean, the
spectrum and the distances to nearest neighbours that all-MiniLM-L6-v2 gives SciFact abstracts.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from desk_questions import desk

import ckcontrol as ck
import ckcontrol.demo
from ckcontrol.eval.figures.intervals import difference
from ckcontrol.eval.items.states import rank
from ckcontrol.retrieval import Document, Embedder, Index, Passage, write_questions
from ckcontrol.retrieval.store import vectors

DIM = 384


# --- SciFact ------------------------------------------------------------------------------------------------------


def scifact(data: Path, work: Path, cut: bool) -> list[dict[str, Any]]:
    docs = [json.loads(line) for line in (data / "corpus.jsonl").open(encoding="utf-8")]
    questions = {q["_id"]: q["text"] for q in map(json.loads, (data / "queries.jsonl").open(encoding="utf-8"))}
    relevant: dict[str, set[str]] = defaultdict(set)
    for line in (data / "qrels" / "test.tsv").read_text().splitlines()[1:]:
        question, doc, _ = line.split("\t")
        relevant[question].add(doc)
    embedder = Embedder("demo", batch_size=64)

    def spaced(text: str) -> str:
        """Put back the spaces between sentences that the shared conversion lost."""
        return re.sub(r"(?<=[a-z0-9)%])\.(?=[A-Z])", ". ", text)

    variants: dict[str, Callable[[dict[str, str]], Passage | Document]] = {
        "whole, cut at 256 tokens": lambda d: Passage(d["_id"], d["title"] + "\n" + d["text"]),
        "in passages of up to 254 tokens": lambda d: Document(d["_id"], d["title"] + "\n" + spaced(d["text"])),
    }
    rows = []
    for number, (name, make) in enumerate(variants.items()):
        if number and not cut:
            break
        folder = work / f"scifact-{number}"
        if (folder / "CURRENT").exists():
            index = Index.open(folder, embedder)
        else:
            index = Index.build(map(make, docs), embedder, folder)
        for mode in ("dense", "bm25", "hybrid"):
            hits = index.search(list(questions.values()), k=50, mode=mode)
            found = {
                question: list(dict.fromkeys(h.passage.metadata.get("document", h.passage.id) for h in row))[:10]
                for question, row in zip(questions, hits, strict=True)
            }
            rows.append(
                {
                    "texts": name,
                    "passages": len(index),
                    "mode": mode,
                    "ndcg@10": round(float(np.mean([_ndcg(found[q], relevant[q]) for q in relevant])), 4),
                    "recall@10": round(
                        float(np.mean([len(set(found[q]) & relevant[q]) / len(relevant[q]) for q in relevant])), 4
                    ),
                }
            )
            _print(rows[-1])
    return rows


def _ndcg(found: Sequence[str], relevant: set[str]) -> float:
    gain = sum(1 / math.log2(place + 2) for place, doc in enumerate(found) if doc in relevant)
    return gain / sum(1 / math.log2(place + 2) for place in range(min(10, len(relevant))))


# --- atomic questions ---------------------------------------------------------------------------------------------


def sets(data: Path | None, limit: int) -> dict[str, tuple[list[Passage], list[tuple[str, str, set[str]]]]]:
    """Name -> passages, and questions as (topic, text, ids of what answers it)."""
    here = Path(ckcontrol.demo.__file__ or "").parent
    corpus = [json.loads(line) for line in (here / "corpus.jsonl").open(encoding="utf-8")]
    asked = [json.loads(line) for line in (here / "questions.jsonl").open(encoding="utf-8")]
    demo = [Passage(each["id"], each["text"]) for each in corpus]
    found = {"demo": (demo, [(q["passage_id"], q["question"], {q["passage_id"]}) for q in asked])}
    office = [record for record in desk() if record.id.endswith("/one")]
    passages = {record.group: Passage(record.group, record.passages[0]) for record in office}  # one filling each
    wordings = {(record.group, record.question) for record in office}
    found["desk"] = (list(passages.values()), [(topic, text, {topic}) for topic, text in sorted(wordings)])
    if data is not None:
        claims = {q["_id"]: q["text"] for q in map(json.loads, (data / "queries.jsonl").open(encoding="utf-8"))}
        relevant: dict[str, set[str]] = defaultdict(set)
        for line in (data / "qrels" / "test.tsv").read_text().splitlines()[1:]:
            claim, doc, _ = line.split("\t")
            relevant[claim].add(doc)
        kept: set[str] = set()
        claimed = []
        for claim in sorted(relevant, key=lambda claim: rank(0, claim)):
            if len(kept | relevant[claim]) <= limit:
                kept |= relevant[claim]
                claimed.append((claim, claims[claim], relevant[claim]))
        docs = [json.loads(line) for line in (data / "corpus.jsonl").open(encoding="utf-8")]
        found["scifact"] = (
            [Passage(d["_id"], d["title"] + "\n" + d["text"]) for d in docs if d["_id"] in kept],
            claimed,
        )
    return found


def questions(data: Path | None, work: Path, model: str, dtype: str, limit: int) -> list[dict[str, Any]]:
    embedder, rows = Embedder("demo"), []
    write = ck.question_writer(*ck.load(model, device="cpu", dtype=dtype))
    for name, (passages, asked) in sets(data, limit).items():
        folder = work / name
        index = (
            Index.open(folder, embedder) if (folder / "CURRENT").exists() else Index.build(passages, embedder, folder)
        )
        texts, topics = [text for _, text, _ in asked], [topic for topic, _, _ in asked]

        def places(index: Index, texts: list[str] = texts, asked: Any = asked) -> np.ndarray:
            found = index.search(texts, k=min(100, len(index)))
            pairs = zip(found, asked, strict=True)
            return np.array(
                [min((h.rank for h in hits if h.passage.id in ids), default=10**9) for hits, (_, _, ids) in pairs]
            )

        with Index.build(passages, embedder) as bare:
            without = places(bare)
        began = time.process_time()
        change = write_questions(index, write)
        seconds = time.process_time() - began
        found = places(index)
        row: dict[str, Any] = {"set": name, "passages": len(index), "asked": len(asked), "model": model}
        row |= {"questions": index.info()["questions"], "without": change.without, "cpu_s": round(seconds)}
        for what, value in (("hit@1", lambda at: at <= 1), ("hit@5", lambda at: at <= 5), ("mrr", lambda at: 1 / at)):
            gap = difference(value(found) * 1.0, value(without) * 1.0, topics)
            row[what] = [round(100 * x, 1) for x in (gap.b, gap.a, gap.value, gap.low, gap.high)]
        rows.append(row)
        _print(row)
    return rows


# --- kinds --------------------------------------------------------------------------------------------------------


def synthetic(rows: int, seed: int, topics: int) -> np.ndarray:
    """Unit vectors about `topics` topics in 40 areas: area, topic and the rest have .11, .39 and .5 of the variance.

    At 15 vectors a topic this looks like SciFact abstracts to an index: the cosines to the 1st, 2nd, 10th and 100th
    neighbour are 0.64, 0.61, 0.51, 0.32 (SciFact 0.67, 0.62, 0.50, 0.36), and an IVF of 72 lists finds of the first
    ten, at 1, 2, 4, 8 and 16 probes, .64, .73, .83, .90, .96 (SciFact .61, .76, .86, .93, .97).
    """
    place = np.arange(DIM)
    spread = (place + 1.0) ** -0.72 * np.exp(-((place / 230) ** 3))
    scale = np.sqrt(spread * (1 - 0.32**2) / spread.sum()).astype(np.float32)
    fixed = np.random.default_rng(99)
    areas = fixed.standard_normal((40, DIM), dtype=np.float32) * 0.11**0.5
    centres = fixed.standard_normal((topics, DIM), dtype=np.float32) * 0.39**0.5
    rng = np.random.default_rng(seed)
    out = np.empty((rows, DIM), np.float32)
    for start in range(0, rows, 100_000):
        block = out[start : start + 100_000]
        topic = rng.integers(0, topics, len(block))
        block[:] = rng.standard_normal(block.shape, dtype=np.float32) * 0.5**0.5
        block += centres[topic] + areas[topic % 40]
        block *= scale
        block[:, 0] += 0.32
        block /= np.linalg.norm(block, axis=1, keepdims=True)
    return out


def kinds(count: int, work: Path, searches: int) -> list[dict[str, Any]]:
    faiss = vectors.faiss_module()
    questions = synthetic(searches, 1, count // 15)
    rows, truth = [], None
    for dtype in ("float32", "float16"):
        exact = vectors.new_exact(DIM, dtype)
        start = time.perf_counter()
        data = synthetic(count, 0, count // 15)
        made = time.perf_counter()
        exact.add(data)
        added = time.perf_counter() - made
        print(f"{count:,} vectors made in {made - start:.0f} s", file=sys.stderr, flush=True)
        if truth is None:
            truth = exact.search(questions, 10)[1]
        del data
        for kind in vectors.KINDS:
            if dtype == "float16" and kind == "hnsw":
                continue  # the graph takes most of an hour; its float32 row is the one that counts
            folder = work / f"{kind}-{dtype}-{count}"
            folder.mkdir(parents=True, exist_ok=True)
            built = folder / "seconds.json"
            if not built.exists():
                start = time.perf_counter()
                faiss.write_index(exact, str(folder / vectors.EXACT))
                if kind != "flat":
                    ann, _ = vectors.build_ann(kind, exact, dtype)
                    faiss.write_index(ann, str(folder / vectors.ANN))
                    del ann
                built.write_text(json.dumps(time.perf_counter() - start + added))
            seconds = json.loads(built.read_text())
            np.save(folder / "questions.npy", questions)
            np.save(folder / "truth.npy", truth)
            done = subprocess.run(
                [sys.executable, __file__, "--one", str(folder), "--kind", kind], capture_output=True, text=True
            )
            if done.returncode:
                raise SystemExit(done.stderr)
            for measured in json.loads(done.stdout):
                row = {"rows": count, "kind": kind, "dtype": dtype, "build_s": round(seconds, 1), **measured}
                row["auto"] = kind == vectors.choose("auto", count, DIM, dtype)
                rows.append(row)
                _print(row)
    return rows


def one(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Open a kind in this fresh process and search it; resident memory counts what was touched of mapped files."""
    questions, truth = np.load(folder / "questions.npy"), np.load(folder / "truth.npy")
    before = _resident()
    opened = vectors.Vectors(folder, kind, "cosine")
    rows = vectors.Rows(opened.exact.ntotal, None)
    found = []
    for effort in {"flat": [None], "hnsw": [None, 64, 1024]}.get(kind, [None, 64]):
        seconds, hits = [], []
        for number in range(len(questions)):
            start = time.perf_counter()
            hits.append(opened.search(questions[number : number + 1], 10, rows, effort)[0])
            seconds.append(time.perf_counter() - start)
        recall = np.mean([len({n for n, _ in row} & set(t)) / 10 for row, t in zip(hits, truth.tolist(), strict=True)])
        found.append(
            {
                "effort": effort or "default",
                "p50_ms": round(1e3 * float(np.percentile(seconds, 50)), 2),
                "p95_ms": round(1e3 * float(np.percentile(seconds, 95)), 2),
                "recall@10": round(float(recall), 4),
                "resident_mb": round((_resident() - before) / 1e6),
                "disk_mb": round(sum(f.stat().st_size for f in folder.glob("*.faiss")) / 1e6),
            }
        )
    return found


def _resident() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmRSS:\s+(\d+)", status)[1])  # type: ignore[index]


# --- overhead -----------------------------------------------------------------------------------------------------


class Drawn:
    """An embedder whose vectors are drawn beforehand: texts begin with their number."""

    dim = DIM
    name = "drawn"

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows

    def encode(self, texts: Sequence[str], *, query: bool = False, progress: bool = False) -> np.ndarray:
        first = [text.split()[0] for text in texts]
        return self.rows[[int(word) if word.isdigit() else 0 for word in first]]


def overhead(count: int, work: Path, searches: int) -> list[dict[str, Any]]:
    faiss = vectors.faiss_module()
    rng = np.random.default_rng(2)
    words = [f"word{number}" for number in range(5000)]
    embedder = Drawn(synthetic(count, 0, count // 15))
    rows = []
    for kind, dtype in (("auto", "float32"), ("auto", "float16"), ("hnsw", "float32"), ("ivfpq", "float32")):
        folder = work / f"overhead-{kind}-{dtype}"
        texts = (Passage(str(n), f"{n} " + " ".join(rng.choice(words, 60)), "source", {"n": n}) for n in range(count))
        index = Index.build(texts, embedder, folder, kind=kind, dtype=dtype, overwrite=True)
        used = index.info()["kind"]
        raw: Any = faiss.read_index(str(index.path / "1" / (vectors.EXACT if used == "flat" else vectors.ANN)))
        params = None
        if used == "hnsw":
            params = faiss.SearchParametersHNSW(efSearch=256)
        elif used == "ivfpq":
            params = faiss.SearchParametersIVF(nprobe=max(16, raw.nlist // 8))
        ours, theirs = [], []
        for number in range(searches):
            vector = embedder.rows[number : number + 1]
            start = time.perf_counter()
            raw.search(vector, 5, params=params)
            middle = time.perf_counter()
            index.search(f"{number} asks", 5)
            ours.append(time.perf_counter() - middle)
            theirs.append(middle - start)
        p50, raw50 = (1e3 * float(np.percentile(times, 50)) for times in (ours, theirs))
        rows.append(
            {
                "passages": count,
                "kind": used if kind != "auto" else f"auto ({used})",
                "dtype": dtype,
                "p50_ms": round(p50, 3),
                "raw_p50_ms": round(raw50, 3),
                "ratio": round(p50 / raw50, 3),
                "extra_ms": round(p50 - raw50, 3),
            }
        )
        _print(rows[-1])
        index.close()
    return rows


def _print(row: dict[str, Any]) -> None:
    print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", nargs="?", choices=["scifact", "questions", "kinds", "overhead"], default="overhead")
    parser.add_argument("--data", type=Path, help="scifact: the folder with corpus.jsonl, queries.jsonl, qrels/")
    parser.add_argument("--cut", action="store_true", help="scifact: also with abstracts cut into passages")
    parser.add_argument("--model", default="demo", help="questions: who writes them; --rows: most SciFact abstracts")
    parser.add_argument("--dtype", default="float32", help="questions: of the writer's weights")
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--searches", type=int, default=200)
    parser.add_argument("--work", type=Path, help="keep the indexes here, and use those that are there")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.one, args.kind)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        if args.what == "scifact":
            if not args.data:
                parser.error("scifact needs --data")
            rows = scifact(args.data, work, args.cut)
        elif args.what == "questions":
            rows = questions(args.data, work, args.model, args.dtype, args.rows or 100)
        elif args.what == "kinds":
            rows = kinds(args.rows or 1_000_000, work, args.searches)
        else:
            rows = overhead(args.rows or 100_000, work, args.searches)
    if args.json:
        saved = json.loads(args.json.read_text()) if args.json.exists() else {}
        saved[args.what] = {"date": date.today().isoformat(), "rows": rows}
        args.json.write_text(json.dumps(saved, indent=1) + "\n")


if __name__ == "__main__":
    main()
