"""Paths, folders and patterns to files, in a stable order. Knows the file system; knows nothing of formats.

Every folder is visited once, so links cannot lead in circles; only regular files are returned, so a pipe cannot hang.
"""

from __future__ import annotations

import fnmatch
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from ckcontrol.errors import RetrievalError

from ..types import Skipped

__all__ = ["FoundFile", "as_paths", "find_files", "is_under", "nothing_at"]

MAGIC = frozenset("*?[")


class FoundFile(NamedTuple):
    """A regular file.

    Attributes:
        path: Where it is.
        name: Its path as given, with forward slashes.
        size: Bytes.
    """

    path: Path
    name: str
    size: int


def as_paths(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> tuple[Path, ...]:
    """Check what a caller gave and return it as paths; a single path will do.

    Raises:
        RetrievalError: Something that is not a path, or an empty one.
    """
    given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    for path in given:
        if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str):
            raise RetrievalError(f"{path!r} is not a path.", "Give texts or pathlib paths.")
        if not os.fspath(path) or "\0" in os.fspath(path):
            raise RetrievalError(f"{os.fspath(path)!r} is not a path.", "Give a file, a folder or a pattern.")
    return tuple(Path(path) for path in given)


def find_files(paths: tuple[Path, ...]) -> Iterator[FoundFile | Skipped]:
    """Yield every file that `paths` name, once, and what cannot be reached as `Skipped`.

    A folder is walked in sorted order, hidden files and folders left out. What does not exist and holds ``*``, ``?``
    or ``[`` is a pattern: ``**`` stands for any number of folders, and a folder that matches is walked.
    """
    several = len(paths) > 1
    seen: set[str] = set()
    for path in paths:
        for item in _expand(path):
            if isinstance(item, FoundFile) and several:
                if item.name in seen:
                    continue
                seen.add(item.name)
            yield item


def nothing_at(path: Path) -> Skipped | None:
    """Return why a path names no file at all; None if it names one."""
    found = list(islice(find_files((path,)), 2))
    return found[0] if len(found) == 1 and isinstance(found[0], Skipped) else None


def is_under(path: Path, source: Path) -> bool:
    """Whether a source names a file, by its path, or by a folder or pattern above it; neither need be there."""
    base, pattern = _parted(source)
    if not path.is_relative_to(base):
        return False
    parts = path.relative_to(base).parts
    return not pattern or any(_matches(parts[:length], pattern) for length in range(len(parts) + 1))


def _parted(path: Path) -> tuple[Path, tuple[str, ...]]:
    """Return the folder where a pattern begins, and the pattern; an empty one where the path is none."""
    if _is(path, os.path.lexists) or not MAGIC & set(str(path)):
        return path, ()
    fixed = next(number for number, part in enumerate(path.parts) if MAGIC & set(part))
    return Path(*path.parts[:fixed]), path.parts[fixed:]


def _expand(path: Path) -> Iterator[FoundFile | Skipped]:
    base, pattern = _parted(path)
    reason = "the folder holds no files (hidden ones are left out)."
    if pattern:
        reason = "no file matches this pattern (hidden files and folders are left out)."
    elif not _is(path, Path.is_dir):
        yield _file(path)
        return
    empty = True
    for item in _walk(base, pattern) if _is(base, Path.is_dir) else ():
        empty = False
        yield item
    if empty:
        yield Skipped(_shown(path), reason)


def _is(path: Path, what: Callable[[Path], bool]) -> bool:
    try:
        return what(path)
    except OSError:  # a name too long, for example; `_file` says so
        return False


def _walk(base: Path, pattern: tuple[str, ...]) -> Iterator[FoundFile | Skipped]:
    """Yield the files below a folder whose path from there matches; an empty pattern matches all."""
    visited: dict[tuple[int, int], str] = {}
    waiting: list[tuple[Path, tuple[str, ...]]] = [(base, ())]
    while waiting:
        path, parts = waiting.pop()
        inside = any(_matches(parts[:length], pattern) for length in range(len(parts) + 1)) if pattern else True
        try:
            folder = path.is_dir()
            if not folder:
                if inside:
                    yield _file(path)
                continue
            if not inside and "**" not in pattern and len(parts) >= len(pattern):
                continue
            info = path.stat()
            first = visited.setdefault((info.st_dev, info.st_ino), _shown(path))
            if first != _shown(path):
                if inside or "**" in pattern:
                    yield Skipped(_shown(path), f"a link to the folder {first}, which is read already.")
                continue
            names = sorted((name for name in os.listdir(path) if not name.startswith(".")), reverse=True)
        except OSError as error:
            yield Skipped(_shown(path), f"cannot be listed: {error.strerror or error}.")
            continue
        waiting += [(path / name, (*parts, name)) for name in names]


def _matches(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return _matches(parts, pattern[1:]) or (bool(parts) and _matches(parts[1:], pattern))
    return bool(parts) and fnmatch.fnmatch(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _file(path: Path) -> FoundFile | Skipped:
    name = _shown(path)
    try:
        info = path.stat()
    except FileNotFoundError:
        return Skipped(name, "a link that leads nowhere." if path.is_symlink() else "there is no such file or folder.")
    except OSError as error:
        return Skipped(name, f"cannot be read: {error.strerror or error}.")
    if not stat.S_ISREG(info.st_mode):
        return Skipped(name, "neither a regular file nor a folder.")
    if name != path.as_posix():
        return Skipped(name, "its name is not valid Unicode; rename it.")
    return FoundFile(path, name, info.st_size)


def _shown(path: Path) -> str:
    """Return the path with forward slashes; bytes of a name that are not text are written as escapes."""
    return path.as_posix().encode("utf-8", "backslashreplace").decode()
