"""Files to rows: JSON, JSON lines, CSV and Parquet, packed or not, from a path, a folder or the Hugging Face Hub.

Knows paths, folders and the Hub; how a file becomes rows is in `ckcontrol.tables`, and it knows no data set. A row that
cannot be read is `Rejected`; a file that cannot is an error.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ckcontrol import tables
from ckcontrol.errors import EvalError

from ..records import Rejected

__all__ = ["Data", "Row", "parse", "read", "sha256"]

LIMIT = 4_000_000_000  # bytes after unpacking
SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class Row(NamedTuple):
    """One row and where it stood.

    Attributes:
        file: Name of its file.
        number: Counts the rows of the file from 0, rejected ones included.
        data: What the row says: mostly a dict.
    """

    file: str
    number: int
    data: Any


@dataclass(frozen=True)
class Data:
    """Everything that was read.

    Attributes:
        rows: In the order of the files, which is that of their names.
        rejected: Rows that could not be read.
        sha256: Of the bytes of the file as it lies on disk; of several files, of the lines ``sha256  name``.
        files: Name to sha256.
        source: Where it came from: the path as given, or Hub id and revision.
    """

    rows: tuple[Row, ...]
    rejected: tuple[Rejected, ...]
    sha256: str
    files: dict[str, str]
    source: str


def sha256(data: bytes) -> str:
    """Return the hexadecimal SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def read(source: str | os.PathLike[str], *, file: str = "", revision: str = "") -> Data:
    """Read a file, all data files of a folder, or those of a Hugging Face data set (data files only, never code).

    Args:
        source: A path, or ``owner/name`` where no such path exists.
        file: Pattern like ``*-QA.json`` or ``*dev*`` that the path below the folder must match; default: all.
        revision: Branch, tag or commit on the Hub.

    Raises:
        EvalError: Nothing there, nothing that matches, or a file in no known format.
        MissingExtra: pyarrow is needed for Parquet, huggingface_hub for a Hub id.
    """
    path = Path(source)
    origin = str(source)
    if not path.exists() and HUB_ID.fullmatch(origin):
        path = _download(origin, file, revision)
        origin = f"https://huggingface.co/datasets/{origin} at {path.name}"
    if path.is_dir():
        inside = {p.relative_to(path).as_posix(): p for p in sorted(path.rglob("*")) if _is_data(p, path)}
        files = {name: p for name, p in inside.items() if not file or fnmatch.fnmatchcase(name, file)}
        if not files:
            what = f"no data file that matches {file!r}" if file else "no data file"
            raise EvalError(f"{str(source)!r} holds {what}.", f"There is: {', '.join(inside) or 'none'}.")
    elif path.is_file():
        files = {path.name: path}
    else:
        raise EvalError(f"there is no {str(source)!r}.", "Give a file, a folder, or a Hugging Face id like owner/name.")
    rows: list[Row] = []
    rejected: list[Rejected] = []
    sums = {}
    for name, place in files.items():
        try:
            data = place.read_bytes()
        except OSError as error:
            raise EvalError(f"{str(place)!r} cannot be read: {error.strerror}.", "Check the path.") from error
        sums[name] = sha256(data)
        for row in parse(data, name):
            if isinstance(row, Row):
                rows.append(row)
            else:
                rejected.append(row)
    listing = "".join(f"{digest}  {name}\n" for name, digest in sums.items())
    total = sha256(listing.encode()) if len(sums) > 1 else next(iter(sums.values()))
    return Data(tuple(rows), tuple(rejected), total, sums, origin)


def parse(data: bytes, name: str) -> Iterator[Row | Rejected]:
    """Yield the rows of one file; its content tells what it is, and its name where the content could be anything.

    A JSON list gives one row per item, any other JSON value one row; otherwise there is one JSON value per line.

    Raises:
        EvalError: Packed wrongly, too large, or in no known format.
        MissingExtra: It is Parquet and pyarrow is not installed.
    """
    try:
        rows = list(tables.rows(data, name, LIMIT))
    except tables.TableError as error:
        raise EvalError(f"{name!r} {error.reason}", error.hint) from error
    for number, row in enumerate(rows):
        if row.error:
            yield Rejected(f"{name}:{number}", "malformed", row.error.reason.rstrip("."))
        else:
            yield Row(name, number, row.data)


def _is_data(path: Path, root: Path) -> bool:
    below = path.relative_to(root)
    plain = below.name[:-3] if below.name.endswith(".gz") else below.name
    hidden = any(part.startswith(".") for part in below.parts)
    return not hidden and plain.lower().endswith(SUFFIXES) and path.is_file()


def _download(name: str, file: str, revision: str) -> Path:
    """Return the folder of a data set's snapshot, from the cache when offline."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise EvalError(
            f"there is no {name!r} here, and as a Hugging Face id it needs huggingface_hub, which is not installed.",
            "Run: pip install huggingface_hub, or download the file yourself and give its path.",
        ) from error
    patterns = [file] if file else [f"*{suffix}{gz}" for suffix in SUFFIXES for gz in ("", ".gz")]
    try:
        folder = huggingface_hub.snapshot_download(
            name, repo_type="dataset", revision=revision or None, allow_patterns=patterns
        )
    except Exception as error:  # the hub's own errors, the HTTP library's, and the network's
        raise EvalError(
            f"data set {name!r} is not a path here and could not be fetched from huggingface.co "
            f"({type(error).__name__}: {' '.join(str(error).split())[:120]}).",
            "Download its file by hand and give the path, for example nq_swap=dev.parquet.",
        ) from error
    return Path(folder)
