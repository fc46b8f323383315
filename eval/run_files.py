"""The files of a run: appended pass by pass, cut back to the last whole pass after a crash, never rewritten.

    run.json        what was asked, and of which model and data; a run goes on only where all of it is the same
    items.jsonl     the records, in order
    samples.jsonl   one line per answer; after those of a pass one line that closes it (``{"pass": key, ...}``)
    results.json    the figures (aggregate.py)

Knows files and JSON; knows nothing of models or scores.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from filelock import FileLock, Timeout

from ckcontrol.errors import EvalError

__all__ = [
    "Sample",
    "SampleFile",
    "check_same",
    "lines",
    "read_json",
    "sample_files",
    "samples",
    "write_bytes",
    "write_json",
]

# One answer as samples.jsonl holds it: text, n, finish, tokens; or scores, lengths, choice; or error alone.
Sample = dict[str, Any]
Line = dict[str, Any]  # any line of a run's files
_FREE = {"started"}  # fields of run.json that may differ between the two halves of an interrupted run


class SampleFile:
    """One file of samples, open for appending. Use it as a context manager: it is locked meanwhile.

    Args:
        path: Created if missing. What follows its last whole pass is cut off.

    Attributes:
        done: Keys of the passes it holds, each with the closing line.

    Raises:
        EvalError: Another process is writing it, or a line inside it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: dict[str, Line] = {}
        self._lock = FileLock(f"{path}.lock")
        self._file: IO[bytes]

    def __enter__(self) -> SampleFile:
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise EvalError(f"{self.path} is being written by another process.", "Wait, or use --shard.") from None
        try:
            end = 0
            if self.path.exists():
                end, self.done = _whole_passes(self.path)
            self._file = open(self.path, "ab")
            self._file.truncate(end)
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._lock.release()

    def append(self, key: str, made: Sequence[Line], **about: Any) -> None:
        """Write the samples of a pass and close it; on return they are on disk."""
        closing = {"pass": key, "samples": len(made), **about}
        text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in (*made, closing))
        self._file.write(text.encode("utf-8", errors="surrogatepass"))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.done[key] = closing


def _whole_passes(path: Path) -> tuple[int, dict[str, Line]]:
    """Return where the last whole pass ends, in bytes, and the closing lines."""
    done: dict[str, Line] = {}
    end = place = 0
    damaged: int | None = None
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            place += len(raw)
            try:
                line = json.loads(raw) if raw.endswith(b"\n") else None
            except ValueError:
                line = None
            if not isinstance(line, dict):
                damaged = damaged or number
            elif "pass" in line:
                if damaged:
                    hint = "Delete the file, or run into another folder."
                    raise EvalError(f"{path}: line {damaged} is damaged.", hint)
                done[line["pass"]] = line
                end = place
    return end, done


def lines(path: Path) -> Iterator[Line]:
    r"""Yield the objects of a JSON lines file; only "\n" ends a line, and a last line cut short is left out.

    Raises:
        EvalError: No such file, or a damaged line before the last.
    """
    if not path.is_file():
        raise EvalError(f"{path} does not exist.", "Is this the folder of a run?")
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                line = json.loads(raw.decode("utf-8", errors="surrogatepass"))
            except ValueError as error:
                if not raw.endswith(b"\n"):
                    return
                raise EvalError(f"{path}: line {number} is damaged.", "Run again into another folder.") from error
            yield line


def sample_files(folder: Path) -> list[Path]:
    """Return the files of samples of a run, one per shard, in order of their names."""
    return sorted(folder.glob("samples*.jsonl"))


def samples(folder: Path) -> Iterator[Line]:
    """Yield the samples of a run, of all its shards, without the lines that close the passes.

    Raises:
        EvalError: There are none, or a file is damaged.
    """
    files = sample_files(folder)
    if not files:
        raise EvalError(f"{folder} holds no samples.", "Run `ckcontrol eval run` first.")
    for path in files:
        for line in lines(path):
            if "pass" not in line:
                yield line


def check_same(folder: Path, card: Mapping[str, Any]) -> None:
    """Write run.json, or compare it with what is there.

    Raises:
        EvalError: The run in this folder is another one; the message names the first field that differs.
    """
    path = folder / "run.json"
    if not path.exists():
        write_json(path, card)
        return
    there, here = read_json(path), json.loads(json.dumps(card))
    for name in sorted({*there, *here} - _FREE):
        if there.get(name) != here.get(name):
            what = _difference(name, there.get(name), here.get(name))
            raise EvalError(f"{folder} holds another run: {what}.", "Give this one its own --out.")


def _difference(name: str, there: Any, here: Any) -> str:
    if isinstance(there, dict) and isinstance(here, dict):
        key = next(k for k in sorted({*there, *here}) if there.get(k) != here.get(k))
        return _difference(f"{name}.{key}", there.get(key), here.get(key))
    shown = [text if len(text) < 80 else text[:77] + "..." for text in (repr(there), repr(here))]
    return f"{name} is {shown[0]} there and {shown[1]} here"


def read_json(path: Path, *, errors: str = "strict") -> dict[str, Any]:
    """Read a JSON file of a run: one object.

    Args:
        path: The file.
        errors: What happens to bytes that are not UTF-8, as in `bytes.decode`; strict refuses them.

    Raises:
        EvalError: It is missing, damaged, or holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8", errors=errors))
    except FileNotFoundError as error:
        raise EvalError(f"{path} does not exist.", "Give a run directory; score an unfinished run first.") from error
    except (OSError, ValueError) as error:
        raise EvalError(f"{path} cannot be read: {error}.", "Score the run again.") from error
    if not isinstance(found, dict):
        raise EvalError(f"{path} holds {type(found).__name__}, not an object.", "Score the run again.")
    return found


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file so that it is there whole or not at all."""
    text = json.dumps(data, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    write_bytes(path, text.encode("utf-8", errors="surrogatepass"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with open(aside, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
