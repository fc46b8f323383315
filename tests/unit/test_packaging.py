"""Packaging, flags and documentation that must agree with the code; the guards on the code are in test_repository."""

from __future__ import annotations

import fnmatch
import json
import re
import site
import subprocess
import sys
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path

import pytest

import ckcontrol as ck
from ckcontrol.errors import MissingExtra, installable, require

from .test_repository import ROOT, TREES, python

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with pytest there

# --- packaging ------------------------------------------------------------------------------------------------------


@cache
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_package_list_is_the_tree() -> None:
    on_disk = {
        ".".join([prefix, *path.parent.relative_to(folder).parts])
        for prefix, folder in TREES.items()
        for path in folder.rglob("*")  # folders of data count too: setuptools calls them packages
        if path.is_file() and "__pycache__" not in path.parts
    }
    listed = project()["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(on_disk) and len(listed) == len(set(listed))
    mapped = project()["tool"]["setuptools"]["package-dir"]
    assert {name: ROOT / folder for name, folder in mapped.items()} == TREES


def test_a_clone_can_be_imported_as_it_lies() -> None:
    """By a Python that has another ckcontrol, or none: -S leaves out the finder of an editable installation."""
    code = (
        f"import sys; sys.path[:0] = {[str(ROOT), *site.getsitepackages()]!r}\n"
        "import ckcontrol.eval, ckcontrol.retrieval.types\n"
        "from ckcontrol.retrieval import Passage\n"
        "print(ckcontrol.eval.__file__, sys.modules['ckcontrol.retrieval'].__path__[0])"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == [str(ROOT / "eval" / "__init__.py"), str(ROOT / "retrieval")], done.stderr


def test_every_data_file_is_packaged() -> None:
    data = project()["tool"]["setuptools"]["package-data"]
    packages = sorted(project()["tool"]["setuptools"]["packages"], key=len)
    for prefix, folder in TREES.items():
        for path in folder.rglob("*"):
            if path.is_dir() or path.suffix == ".py" or "__pycache__" in path.parts:
                continue
            inside = path.relative_to(folder)
            owner = max(
                (p for p in packages if ".".join([prefix, *inside.parent.parts]).startswith(p)),
                key=len,
            )
            depth = len(owner.split(".")) - len(prefix.split("."))
            name = "/".join(inside.parts[depth:])
            assert any(fnmatch.fnmatch(name, pattern) for pattern in data.get(owner, [])), path.relative_to(ROOT)


def test_versions_agree() -> None:
    assert "version" in project()["project"]["dynamic"]
    assert project()["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "ckcontrol.__version__"}
    headings = re.findall(r"(?m)^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    requirement = (ROOT / "hub" / "ck-plug" / "custom_generate" / "requirements.txt").read_text(encoding="utf-8")
    assert ck.__version__ in headings[:2] and headings[0] in (ck.__version__, "Unreleased")
    assert re.search(rf'(?m)^version: "?{re.escape(ck.__version__)}"?$', citation)
    assert requirement == f"ckcontrol>={ck.__version__}\n"


def test_a_missing_extra_is_named_as_this_installation_can_add_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone, info = tmp_path / "my clone", tmp_path / "site" / "ckcontrol-9.dist-info"
    clone.mkdir()
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Name: ckcontrol\nVersion: 9\n")
    monkeypatch.syspath_prepend(str(info.parent))
    assert installable("serve") == '"ckcontrol[serve]"', "from an index"
    came = {"url": clone.as_uri(), "dir_info": {}}
    (info / "direct_url.json").write_text(json.dumps(came))
    assert installable("serve") == f'"{clone}[serve]"'
    (info / "direct_url.json").write_text(json.dumps({**came, "dir_info": {"editable": True}}))
    assert installable("serve") == f'-e "{clone}[serve]"'
    clone.rmdir()
    assert installable("serve") == '"ckcontrol[serve]"', "the clone is gone"
    (info / "direct_url.json").write_text("[1]")
    assert f"Run: pip install {installable('serve')}" in str(MissingExtra("uvicorn", "serve"))


def test_a_command_says_at_once_all_that_it_lacks() -> None:
    require("demo", json="json")
    with pytest.raises(MissingExtra, match=r"no-such and none-such are not installed\. Run: pip install .*\[demo\]"):
        require("demo", json="json", no_such="no-such", none_such="none-such")
    with pytest.raises(MissingExtra, match=r"^no-such is not installed"):
        require("demo", no_such="no-such")


# --- behaviour that a flag could switch off -------------------------------------------------------------------------


def test_bad_input_is_refused_without_asserts() -> None:
    """`python -O` strips assert statements: refusals must not be made of them."""
    done = python(
        "import ckcontrol as ck\n"
        "from ckcontrol.errors import ControlError, PromptError\n"
        "from ckcontrol.models.tiny import tiny_tokenizer\n"
        "for bad in (2, -0.1, float('nan'), True, '0.5'):\n"
        "    try: ck.Control(alpha=bad)\n"
        "    except ControlError: print('refused', bad)\n"
        "try: ck.build_pair(tiny_tokenizer(), '', ['p'])\n"
        "except PromptError: print('refused a question')\n"
        "print(__debug__)",
        "-O",
    )
    assert done.stdout.splitlines() == [
        "refused 2",
        "refused -0.1",
        "refused nan",
        "refused True",
        "refused 0.5",
        "refused a question",
        "False",
    ], done.stderr


# --- documentation that must agree with the code --------------------------------------------------------------------


def methods_page() -> str:
    return (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")


def test_the_methods_page_lists_every_policy_with_its_parameters_and_defaults() -> None:
    from ckcontrol.policies import base

    rows = {row.split("|")[1].strip(" `"): row for row in methods_page().splitlines() if row.startswith("| `")}
    shipped = {name: policy for name, policy in base._REGISTRY.items() if policy.__module__.startswith("ckcontrol.")}
    assert rows.keys() >= shipped.keys()
    for name, policy in shipped.items():
        given = set(re.findall(r"`(\w+ = [^`]+)`", rows[name].split("|")[3]))
        actual = {f"{f.name} = {f.default!r}" for f in fields(policy) if f.default is not MISSING}
        assert given == actual, name


def test_the_contributors_page_lists_every_room_and_file() -> None:
    page = (ROOT / "AGENTS.md").read_text(encoding="utf-8")
    places = re.findall(r"(?m)^ *- `([^`]+)`", page)
    files = {name for names in re.findall(r"(?m)^ +Files: (.+)\.$", page) for name in names.split(", ")}
    for folder in TREES.values():
        for path in folder.rglob("*.py"):
            room = f"{path.parent.relative_to(ROOT).as_posix()}/"
            alone = path.relative_to(ROOT).as_posix()
            assert room in places or alone in places or room == "ckcontrol/", alone
            assert path.stem in files or alone in places or path.name in ("__init__.py", "__main__.py"), alone


def test_the_methods_page_lists_what_is_refused() -> None:
    from ckcontrol.decoding.refusals import REFUSED

    listed = re.findall(r"(?m)^\| ([^|`].*?) \| (.+) \|$", methods_page().split("<!-- refused -->")[1])
    assert dict(listed[1:]) == {what: instead for what, (_, instead) in REFUSED.items()}


def test_the_methods_page_lists_the_families_that_share_a_forward() -> None:
    from ckcontrol.decoding.pair_cache import SHARED_FORWARD

    (line,) = [text for text in methods_page().splitlines() if text.startswith("Shared forward:")]
    assert set(re.findall(r"`(\w+)`", line)) == SHARED_FORWARD
