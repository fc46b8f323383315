"""Where an index lives on disk, and how it changes all at once.

    index/
      CURRENT        "3 <sha256 of 3/manifest.json>": the only file ever replaced, by an atomic rename
      3/             generation 3: manifest.json and the files it names, never changed after they are published
      unfinished     embeddings of a write that was interrupted (`unfinished.py`)
      lock           held by the one writer
      questions/     an index of its own: what this one's texts answer (`retrieval/questions.py`)

A write makes a new numbered folder, complete, flushed to disk, and then replaces ``CURRENT``. Killed before that, the
index is the old one; after it, the new one. A reader holds a shared lock on its manifest for as long as it is open, and
a writer deletes no generation that is held. Knows files and locks; knows nothing of what is in them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import sqlite3
from collections.abc import Collection, Iterator
from pathlib import Path

from ckcontrol.errors import CKError, IndexLocked, IndexMismatch, MissingExtra, NoIndex, RetrievalError

from .manifest import NAME, Manifest, check_files

try:
    import fcntl
except ImportError:  # Windows: open files cannot be deleted there, so no lock is needed to keep them
    fcntl = None  # type: ignore[assignment]

__all__ = ["Generation", "clean", "open_current", "publish", "write_lock"]

CURRENT = "CURRENT"
UNFINISHED = "unfinished"
LOCK = "lock"
QUESTIONS = "questions"
QUESTIONS_LOCK = "questions.lock"
UNASKED = "questions.none"  # digests of texts of which no question came
OURS = (CURRENT, CURRENT + ".new", UNFINISHED, LOCK, QUESTIONS, QUESTIONS_LOCK, UNASKED)
NUMBER = re.compile(r"[1-9]\d{0,11}", re.ASCII)
FILES = {NAME, "texts.sqlite", "vectors.faiss", "ann.faiss", "overrides.json"}  # what a generation may hold
POINTER = re.compile(rb"([1-9]\d{0,11}) ([0-9a-f]{64})\n")


class Generation:
    """A published generation, its files checked. Holds its folder against deletion until `close`."""

    def __init__(self, folder: Path, manifest: Manifest, descriptor: int) -> None:
        self.folder = folder
        self.manifest = manifest
        self._descriptor = descriptor

    def close(self) -> None:
        """Let go of the folder."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    __del__ = close


def pointer(root: Path) -> tuple[int, str] | None:
    """Return the number and the manifest digest that ``CURRENT`` names; None when nothing was published yet.

    Raises:
        IndexMismatch: ``CURRENT`` is not what was written.
    """
    try:
        data = (root / CURRENT).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    match = POINTER.fullmatch(data)
    if match is None:
        raise IndexMismatch(CURRENT, f"{CURRENT} is damaged.", "Restore it from a copy or build the index again.")
    return int(match[1]), match[2].decode()


def open_current(root: Path) -> Generation:
    """Check and hold the published generation. Nothing is parsed before its digest has been checked.

    Raises:
        NoIndex: There is none here.
        IndexMismatch: A file is missing, truncated or changed; `field` names it.
    """
    for _ in range(100):  # a writer may publish and clean between two lines of this
        found = pointer(root)
        if found is None:
            raise NoIndex(f"there is no index at {str(root)!r}.", _nothing(root))
        number, digest = found
        folder = root / str(number)
        try:
            descriptor = os.open(folder / NAME, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except (FileNotFoundError, NotADirectoryError) as error:
            if pointer(root) == found:
                raise IndexMismatch(
                    NAME, f"{CURRENT} names {number}/{NAME}, which is missing.", "Restore it or build again."
                ) from error
            continue
        try:
            if fcntl:
                fcntl.flock(descriptor, fcntl.LOCK_SH)
            if pointer(root) != found and not (folder / NAME).exists():
                os.close(descriptor)
                continue
            with os.fdopen(os.dup(descriptor), "rb") as file:
                data = file.read()
            if hashlib.sha256(data).hexdigest() != digest:
                raise IndexMismatch(
                    NAME,
                    f"the content of {number}/{NAME} is not what {CURRENT} says.",
                    "The index is damaged: restore it from a copy or build it again.",
                )
            manifest = Manifest.from_bytes(data)
            check_files(folder, manifest.files)
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(descriptor)
            raise
        return Generation(folder, manifest, descriptor)
    raise IndexLocked(f"{str(root)!r} is rewritten faster than it can be opened.", "Open it again.")


def _nothing(root: Path) -> str:
    if (root / LOCK).exists():
        try:
            with write_lock(root):
                pass
        except IndexLocked as error:
            return f"One is being built here. {error.hint}"
        except CKError:  # it cannot be locked: nobody builds there
            pass
    if (root / UNFINISHED).exists():
        return "A build was interrupted here: run it again, it goes on where it stopped."
    return "Build one first: ckcontrol index build."


@contextlib.contextmanager
def write_lock(root: Path, name: str = LOCK) -> Iterator[None]:
    """Hold the index as its only writer, or as the only one who has its questions written.

    Raises:
        IndexLocked: Another process, or another thread of this one, is writing.
        MissingExtra: filelock is not installed.
    """
    try:
        from filelock import FileLock, Timeout
    except ImportError as error:
        raise MissingExtra("filelock", "retrieval") from error
    with storing(root):
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / name, thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise IndexLocked(f"{str(root)!r} is being written by another process.", "Wait for it to end.") from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def storing(root: Path) -> Iterator[None]:
    """Say what failed when files are written.

    Raises:
        RetrievalError: The disk is full, or the folder cannot be written.
    """
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        raise RetrievalError(
            f"the index at {str(root)!r} could not be written: {error}.",
            "Make room or allow writing there, and do it again; what was published before is intact.",
        ) from error


def foreign(root: Path) -> str:
    """Return the name of something in the folder that no index puts there, or ""."""
    there = sorted(root.iterdir()) if root.exists() else []
    return next((path.name for path in there if path.name not in OURS and not _is_generation(path)), "")


def added(root: Path, number: int, names: Collection[str]) -> list[str]:
    """Return what somebody put into the folder of an index, or into a generation, beside what belongs there.

    Args:
        root: The index's folder.
        number: The current generation.
        names: The files that its manifest names. Another generation is one that a reader holds, or half of a write.
    """
    found = []
    for path in sorted(root.iterdir()):
        if path.name == str(number):
            found += [f"{number}/{inner.name}" for inner in sorted(path.iterdir()) if inner.name not in {NAME, *names}]
        elif path.name not in OURS and not _is_generation(path):
            found.append(path.name)
    return found


def _is_generation(path: Path) -> bool:
    """Tell a generation, whole or not, from somebody's folder called 2024."""
    if not NUMBER.fullmatch(path.name) or path.is_symlink() or not path.is_dir():
        return False
    return all(inner.name in FILES and inner.is_file() for inner in path.iterdir())


def fresh_folder(root: Path, number: int) -> Path:
    """Return an empty folder for generation `number`; what a killed writer left there is removed.

    Raises:
        OSError: Something else has that name.
    """
    folder = root / str(number)
    if _is_generation(folder):
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder


def publish(root: Path, folder: Path, manifest: Manifest) -> None:
    """Make a complete folder the current generation: flush everything, then replace ``CURRENT``."""
    data = manifest.to_bytes()
    (folder / NAME).write_bytes(data)
    for name in (*manifest.files, NAME):
        _flush(folder / name)
    _flush(folder)
    temporary = root / (CURRENT + ".new")
    temporary.write_bytes(f"{manifest.generation} {hashlib.sha256(data).hexdigest()}\n".encode())
    _flush(temporary)
    _flush(root)
    os.replace(temporary, root / CURRENT)
    _flush(root)


def clean(root: Path) -> None:
    """Delete generations that are not current and that no reader holds. Needs the write lock."""
    found = pointer(root)
    for folder in root.iterdir():
        if not _is_generation(folder) or (found is not None and folder.name == str(found[0])):
            continue
        with contextlib.suppress(OSError):
            descriptor = os.open(folder / NAME, os.O_RDONLY)
            try:
                if fcntl:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held by a reader: OSError, left
                (folder / NAME).unlink()  # first, so that nobody opens half of it
            finally:
                os.close(descriptor)
        if not (folder / NAME).exists():
            shutil.rmtree(folder, ignore_errors=True)


def _flush(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
