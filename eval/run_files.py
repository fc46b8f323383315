"""The files of a run: appended pass by pass, cut back to the last whole pass after a crash, never rewritten.

    run.json        what was asked, and of which model and data; a run goes on only where all of it is the same
    items.jsonl     the records, in order
    samples.jsonl   one line per answer; after those of a pass one line that closes it (``{"pass": key, ...}``)
    results.json    the figures (aggregate.py)

What was damaged is refused by file and line before a figure is made of it. Knows files, JSON and records; knows nothing
of models or scores.
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

from .records import Record

__all__ = [
    "Sample",
    "SampleFile",
    "check_same",
    "items",
    "lines",
    "misshapen",
    "parsed",
    "read_card",
    "read_json",
    "sample_files",
    "samples",
    "whole_passes",
    "write_bytes",
    "write_json",
]

# One answer as samples.jsonl holds it: text, n, finish, tokens; or scores, lengths, choice; or error alone.
Sample = dict[str, Any]
Line = dict[str, Any]  # any line of a run's files
# Fields of run.json that may differ between the two halves of an interrupted run; "waves" counts the arms that the run
# began with, and those that each later call added; "unread" tells of rows that are no records.
_FREE = {"started", "waves", "unread"}
_AFRESH = "Restore the file, or run into another folder."
# What a sample's fields hold, and what the lists among them hold.
_FIELDS: dict[str, type | tuple[type, ...]] = {"task": str, "id": str, "arm": str, "error": str, "text": str, "n": int}
_FIELDS |= {"finish": str, "tokens": dict, "scores": list, "lengths": list, "choice": int}
_NUMBER = (int, float, type(None))


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
                for place, closing, _ in whole_passes(self.path):
                    end, self.done[closing["pass"]] = place, closing
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


def whole_passes(path: Path) -> Iterator[tuple[int, Line, list[Sample]]]:
    """Yield the whole passes of a file of samples: where each ends, in bytes, the line that closes it, and its samples.

    What follows the last of them was cut short, and is left out.

    Raises:
        EvalError: Inside a pass a line is damaged or no sample, a sample is missing or is there twice, or the pass is.
    """
    seen: set[str] = set()
    found: list[Sample] = []
    fault = ""
    place = 0
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            place += len(raw)
            line = parsed(raw) if raw.endswith(b"\n") else None
            if line is None or "pass" not in line:
                fault = fault or (f"line {number} {why}" if (why := misshapen(line)) else "")
                found.append(line or {})
                continue
            key, told = line["pass"], line.get("samples")
            if not fault and (not isinstance(key, str) or not isinstance(told, int) or isinstance(told, bool)):
                fault = f"line {number} is damaged"
            elif not fault and key in seen:
                fault = f"line {number} closes a pass that is there twice"
            elif not fault and told != len(found):
                fault = f"the pass that line {number} closes holds {len(found)} samples, not {told}"
            elif not fault and len({(sample["task"], sample["id"], sample["arm"]) for sample in found}) < len(found):
                fault = f"the pass that line {number} closes holds a sample twice"
            if fault:
                raise EvalError(f"{path}: {fault}.", _AFRESH)
            seen.add(key)
            yield place, line, found
            found = []


def parsed(raw: bytes) -> Line | None:
    """Return the object that a line holds; None for anything else: no UTF-8, NaN, nesting without end."""

    def refuse(text: str) -> None:
        raise ValueError(text)

    try:
        line = json.loads(raw.decode("utf-8", errors="surrogatepass"), parse_constant=refuse)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) else None


def misshapen(line: Line | None) -> str:
    """Return why a line is not a sample, or nothing."""
    if line is None:
        return "is damaged"
    for name, kind in _FIELDS.items():
        value = line.get(name)
        if name in ("task", "id", "arm") and value is None:
            return f"has no {name!r}"
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            return f"holds a wrong {name!r}"
    if all(line.get(name) is None for name in ("text", "scores", "error")):
        return "has neither text, scores nor error"
    listed = {name: line.get(name) or [] for name in ("scores", "lengths")} | (line.get("tokens") or {})
    for name, values in listed.items():
        kinds: Any = str if name == "text" else _NUMBER
        if not isinstance(values, list) or not all(isinstance(value, kinds) for value in values):
            return f"holds wrong {name!r}"
    if any(value is None for value in listed["scores"]) or not all(value and value > 0 for value in listed["lengths"]):
        return "holds wrong 'scores'"
    if len({len(values) for name, values in listed.items() if name not in ("scores", "lengths")}) > 1:
        return "holds tokens of different lengths"
    return ""


def lines(path: Path) -> Iterator[Line]:
    r"""Yield the objects of a JSON lines file; only "\n" ends a line, and a last line cut short is left out.

    Raises:
        EvalError: No such file, or a damaged line before the last.
    """
    if not path.is_file():
        raise EvalError(f"{path} does not exist.", "Is this the folder of a run?")
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            line = parsed(raw)
            if line is None and raw.endswith(b"\n"):
                raise EvalError(f"{path}: line {number} is damaged.", _AFRESH)
            if line is not None:
                yield line


def items(folder: Path) -> Iterator[Line]:
    """Yield the records of a run as items.jsonl holds them, each with its "task".

    Raises:
        EvalError: The file is missing or damaged, or a line is no record, or one that is there already.
    """
    path = folder / "items.jsonl"
    seen: set[tuple[str, str]] = set()
    for number, line in enumerate(lines(path), 1):
        task = line.get("task")
        try:
            record = Record.from_dict(line)
        except EvalError as error:
            raise EvalError(f"{path}: line {number}: {error}", _AFRESH) from error
        if not isinstance(task, str) or (task, record.id) in seen:
            why = "is there twice" if isinstance(task, str) else "has no task"
            raise EvalError(f"{path}: line {number}: the record {record.id!r} {why}.", _AFRESH)
        seen.add((task, record.id))
        yield line


def sample_files(folder: Path) -> list[Path]:
    """Return the files of samples of a run, one per shard, in order of their names."""
    return sorted(folder.glob("samples*.jsonl"))


def samples(folder: Path) -> Iterator[Line]:
    """Yield the samples of a run, of all its shards: those of whole passes, or all of a file that knows no passes.

    Raises:
        EvalError: There are none, or a file is damaged.
    """
    files = sample_files(folder)
    if not files:
        raise EvalError(f"{folder} holds no samples.", "Run `ckcontrol eval run` first.")
    for path in files:
        cut = False
        for _, _, found in whole_passes(path):
            cut = True
            yield from found
        for number, line in enumerate(() if cut else lines(path), 1):
            if why := misshapen(line):
                raise EvalError(f"{path}: line {number} {why}.", _AFRESH)
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
    there, here = read_card(folder), json.loads(json.dumps(card))
    for name in sorted({*there, *here} - _FREE):
        if there.get(name) != here.get(name):
            what = _difference(name, there.get(name), here.get(name))
            raise EvalError(f"{folder} holds another run: {what}.", "Give this one its own --out.")


def _difference(name: str, there: Any, here: Any) -> str:
    """Return what differs, down to the one entry or the part of a text that does."""
    if isinstance(there, dict) and isinstance(here, dict):
        key = next(k for k in sorted({*there, *here}) if there.get(k) != here.get(k))
        return _difference(f"{name}.{key}", there.get(key), here.get(key))
    at = 0
    if isinstance(there, (list, str)) and type(there) is type(here):
        pairs = enumerate(zip(there, here, strict=False))
        at = next((i for i, (one, other) in pairs if one != other), min(len(there), len(here)))
        if isinstance(there, list) and at < min(len(there), len(here)):
            return _difference(f"{name}[{at}]", there[at], here[at])
        if isinstance(there, list):
            more, where = (there, "there") if len(there) > at else (here, "here")
            return f"{name} goes on {where} with {_around(more[at], 0)}"
    return f"{name} is {_around(there, at)} there and {_around(here, at)} here"


def _around(value: Any, at: int) -> str:
    """Return a value for a message; of a long text what stands around `at`."""
    if isinstance(value, str) and len(value) > 77:
        begin = max(0, at - 20)
        return ("..." if begin else "") + repr(value[begin : begin + 60]) + ("..." if begin + 60 < len(value) else "")
    text = repr(value)
    return text if len(text) < 80 else text[:77] + "..."


def read_card(folder: Path, *, errors: str = "strict") -> dict[str, Any]:
    """Read run.json, and check that it says what every reader of a run needs.

    Raises:
        EvalError: As `read_json`; or arms, tasks or options are missing or are something else.
    """
    path = folder / "run.json"
    card = read_json(path, errors=errors)
    arms = card.get("arms")
    named = isinstance(arms, list) and all(
        isinstance(arm, dict)
        and all(isinstance(arm.get(key), str) for key in ("name", "method", "prompt"))
        and isinstance(arm.get("alpha"), _NUMBER)
        for arm in arms
    )
    tasks = card.get("tasks")
    wrong = {
        "arms": not named or len({arm["name"] for arm in arms or ()}) < len(arms or ()),
        "tasks": not isinstance(tasks, dict) or not all(isinstance(task, dict) for task in tasks.values()),
        "options": not isinstance(card.get("options"), dict),
    }
    for name in (name for name, bad in wrong.items() if bad):
        raise EvalError(f"{path} holds wrong {name}, or none.", "Is this the card of a run? Run into another folder.")
    return card


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
    except NotADirectoryError as error:
        raise EvalError(f"{path.parent} is not a folder.", "Give a run directory.") from error
    except (OSError, ValueError, RecursionError) as error:
        why = getattr(error, "strerror", None) or error
        raise EvalError(f"{path} cannot be read: {why}.", "Score the run again.") from error
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
