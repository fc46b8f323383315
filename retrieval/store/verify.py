"""The checks of an index that are too slow to run at every opening: what is inside the files, not only their digests.

Knows all the parts; changes nothing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ckcontrol.errors import RetrievalError
from ckcontrol.rates import count

from . import generations
from .snapshot import Snapshot
from .vectors import BLOCK

__all__ = ["CheckResult", "verify"]


class CheckResult(NamedTuple):
    """The outcome of one check.

    Attributes:
        check: What was looked at.
        ok: Whether it is as it must be.
        detail: What was found, in words.
    """

    check: str
    ok: bool
    detail: str


def verify(path: Path) -> list[CheckResult]:
    """Check an index inside and out. Stops after the digests when one is wrong: nothing damaged is parsed.

    Returns:
        One result per check; the index is sound when all are `ok`. A damaged index raises nothing.
    """
    try:
        snapshot = Snapshot(path)
    except RetrievalError as error:
        return [CheckResult("files", False, str(error))]
    manifest = snapshot.manifest
    size = sum(entry["bytes"] for entry in manifest.files.values())
    findings = [CheckResult("files", True, f"{count(len(manifest.files), 'file')}, {size:,} bytes, every sha256 right")]
    if extra := generations.added(path, manifest.generation, manifest.files):
        named = ", ".join(map(repr, extra[:5])) + (f" and {len(extra) - 5} more" if len(extra) > 5 else "")
        findings = [CheckResult("files", False, f"not of this index: {named}. Take them out of its folder.")]
    checks: list[tuple[str, Callable[[Snapshot], str]]] = [
        ("texts", _texts),
        ("words", _words),
        ("counts", _counts),
        ("vectors", _vectors),
    ]
    try:
        for name, check in checks:
            try:
                findings.append(CheckResult(name, True, check(snapshot)))
            except (ValueError, sqlite3.Error, RuntimeError) as error:
                findings.append(CheckResult(name, False, str(error)))
    finally:
        snapshot.close()
    if snapshot.questions is not None:
        inside = verify(path / generations.QUESTIONS)
        findings += [found._replace(check=f"{generations.QUESTIONS}: {found.check}") for found in inside]
    return findings


def _texts(snapshot: Snapshot) -> str:
    with snapshot.texts.connection() as link:
        found = [row[0] for row in link.execute("PRAGMA integrity_check(3)")]
        lost = link.execute("SELECT count(*) FROM passages WHERE num NOT IN (SELECT num FROM texts)").fetchone()[0]
        idle = link.execute("SELECT count(*) FROM texts WHERE num NOT IN (SELECT num FROM passages)").fetchone()[0]
    if found != ["ok"]:
        raise ValueError("; ".join(found))
    if lost or idle:
        raise ValueError(f"{count(lost, 'passage')} without a text, {count(idle, 'text')} without a passage")
    return "SQLite is sound; every passage has a text, every text a passage"


def _words(snapshot: Snapshot) -> str:
    with snapshot.texts.connection() as link:  # a copy: FTS5 checks itself through a write
        copy = sqlite3.connect(":memory:")
        try:
            link.backup(copy)
            copy.execute("INSERT INTO words(words, rank) VALUES ('integrity-check', 1)")
        finally:
            copy.close()
    return "the word index agrees with the texts"


def _counts(snapshot: Snapshot) -> str:
    manifest = snapshot.manifest
    with snapshot.texts.connection() as link:
        for table in ("texts", "passages", "documents"):
            found = link.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            if found != getattr(manifest, table):
                raise ValueError(f"{found} {table}, the manifest says {getattr(manifest, table)}")
        last = link.execute("SELECT max(num) FROM texts").fetchone()[0]
    if last is not None and last >= manifest.rows:
        raise ValueError(f"text {last} has no vector; there are {manifest.rows}")
    return ", ".join(count(getattr(manifest, f"{noun}s"), noun) for noun in ("document", "passage", "text"))


def _vectors(snapshot: Snapshot) -> str:
    manifest, exact = snapshot.manifest, snapshot.vectors.exact
    for start in range(0, manifest.rows, BLOCK):
        rows = exact.reconstruct_n(start, min(BLOCK, manifest.rows - start))
        if not np.isfinite(rows).all():
            raise ValueError(f"a vector after row {start} is not finite")
        lengths = np.linalg.norm(rows, axis=1)
        if manifest.settings.metric == "cosine" and not ((abs(lengths - 1) < 1e-2) | (lengths == 0)).all():
            raise ValueError(f"a vector after row {start} does not have length 1")
    return f"{count(manifest.rows, 'finite vector')} of {manifest.embedder['dim']}, kind {manifest.kind}"
