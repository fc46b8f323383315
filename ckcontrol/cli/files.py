"""What commands read besides options: passage files, policies, ``name=value`` parameters, ``--where`` conditions.

Files are limited in size and must be UTF-8; every refusal names the file, as it does where a command cannot write.
Knows no model.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ControlError, PromptError

__all__ = ["check_folder", "check_writable", "import_policies", "parse_params", "parse_where", "read_passages"]

LIMIT = 10_000_000  # bytes, of a passage file
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
RESERVED = {"method", "alpha"}
CONDITION = re.compile(r"\s*([^=!<>]*[^=!<>\s])\s*(!=|>=|<=|==?|>|<)\s*(.*?)\s*", re.DOTALL)
SURROGATE = re.compile("[\ud800-\udfff]")
OPERATORS = {"=": "$eq", "==": "$eq", "!=": "$ne", ">": "$gt", ">=": "$gte", "<": "$lt", "<=": "$lte"}
TEXTS = ("id", "source", "document")  # names whose values are texts, whatever they look like


def read_passages(files: Sequence[str], texts: Sequence[str] = ()) -> list[str]:
    """Read passage files in order, then append the texts.

    Raises:
        PromptError: A file is missing, unreadable, over 10 MB, empty or not UTF-8; a text is empty; or stdin is named
            twice, or closed.
    """
    if list(files).count("-") > 1:
        raise PromptError("'-' was given more than once.", "stdin can be read once.")
    for text in texts:
        if not text.strip():
            raise PromptError(f"--passage-text {text!r} is empty.", "Leave it out to answer closed book.")
    return [_read(name) for name in files] + list(texts)


def _read(name: str) -> str:
    what = "the passage from stdin" if name == "-" else f"passage file {name!r}"
    try:
        if name == "-":
            if sys.stdin is None:
                raise PromptError("stdin is closed, so -p - has no passage.", "Name a file, or pipe one in.")
            data = sys.stdin.buffer.read(LIMIT + 1)
        else:
            with Path(name).open("rb") as file:
                data = file.read(LIMIT + 1)
    except OSError as error:
        raise PromptError(
            f"{what} cannot be read: {error.strerror or error}.",
            "Check the path; a passage itself is given with --passage-text.",
        ) from error
    if len(data) > LIMIT:
        raise PromptError(f"{what} is larger than {LIMIT // 1_000_000} MB.", "Split it.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptError(f"{what} is not UTF-8 (byte {error.start}).", "Convert it, e.g. with iconv.") from error
    if not text.strip():
        raise PromptError(f"{what} is empty.", "Leave it out to answer closed book.")
    return text


def import_policies(names: Sequence[str]) -> None:
    """Import modules that register policies: dotted names of the installed environment, and ``.py`` files.

    The folder a command runs in is never searched for modules: code is run because its user named it.

    Raises:
        ControlError: There is no such file or module, or importing it failed.
    """
    for name in names:
        path = Path(name)
        try:
            if path.suffix == ".py":
                _import_file(path)
            else:
                _import_module(name)
        except ControlError:
            raise
        except (Exception, SystemExit) as error:
            raise ControlError(f"--import {name!r} failed: {type(error).__name__}: {error}") from error


def _import_file(path: Path) -> None:
    if not path.is_file():
        raise ControlError(f"--import {str(path)!r}: there is no such file.")
    label = f"ckcontrol_import_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    if label in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(label, path)
    if spec is None or spec.loader is None:
        raise ControlError(f"--import {str(path)!r} is no Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[label] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[label]
        raise


def _import_module(name: str) -> None:
    if not all(part.isidentifier() for part in name.split(".")):
        raise ControlError(f"--import {name!r} is no module.", "Write package.module, or path/to/file.py.")
    searched = sys.path[:]
    here = str(Path.cwd())
    if sys.path[:1] in ([""], [here]) and not getattr(sys.flags, "safe_path", False):  # put there by python -m
        del sys.path[0]
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name + ".").startswith(error.name + "."):
            raise
        raise ControlError(
            f"--import {name!r}: there is no module {error.name!r}.",
            "Install it, or write the path of its file: path/to/file.py.",
        ) from error
    finally:
        sys.path[:] = searched


def parse_params(pairs: Sequence[str], option: str = "--param", example: str = "gate=2") -> dict[str, Any]:
    """Turn ``name=value`` texts into typed values: true/false, a whole number, a number, else text.

    Raises:
        ControlError: No ``=``, an empty or repeated name, or a name that has an option of its own.
    """
    params: dict[str, Any] = {}
    for pair in pairs:
        name, sign, text = pair.partition("=")
        name = name.strip().replace("-", "_")
        if not sign or not name.isidentifier():
            raise ControlError(f"{option} {pair!r} is not NAME=VALUE.", f"For example: {option} {example}")
        if option == "--param" and name in RESERVED:
            raise ControlError(f"--param {pair!r}: {name} has its own option.", f"Use --{name}.")
        if name in params:
            raise ControlError(f"{option} {name} was given twice.")
        params[name] = _typed(text.strip())
    return params


def _typed(text: str) -> bool | int | float | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if re.fullmatch(r"[+-]?\d{1,18}", text):
        return int(text)
    return float(text) if NUMBER.fullmatch(text) else text


def parse_where(conditions: Sequence[str]) -> dict[str, Any] | None:
    """Turn ``year>=2000`` and the like into the mapping that a search takes; None when there are none.

    Values are typed like those of parameters; ``"in quotes"`` they are texts, and so are those of id, source and
    document.

    Raises:
        ControlError: Not a condition, one with NUL or bytes that are not UTF-8, or the same comparison of the same name
            twice.
    """
    where: dict[str, dict[str, Any]] = {}
    for given in conditions:
        if "\0" in given or SURROGATE.search(given):
            raise ControlError(f"--where {given!a} has NUL or broken UTF-8 in it.", "Type the condition anew.")
        match = CONDITION.fullmatch(given)
        if match is None:
            raise ControlError(f"--where {given!r} is not a condition.", "For example: --where 'year>=2000'")
        name, sign, text = match.groups()
        quoted = len(text) > 1 and text[0] == text[-1] == '"'
        if text[:1] in tuple("=!<>"):  # year>>2, year=>2, year<>2
            raise ControlError(
                f"--where {given!r}: behind {sign} stands {text!r}, which begins as a comparison does.",
                f'Known: = != > >= < <=. A text that begins so stands in quotes: {name}{sign}"{text}"',
            )
        value = text[1:-1] if quoted else text if name in TEXTS else _typed(text)
        tests = where.setdefault(name, {})
        if OPERATORS[sign] in tests:
            raise ControlError(f"--where {given!r}: {name}{sign} was given twice.", "All conditions must hold.")
        tests[OPERATORS[sign]] = value
    return where or None


def check_folder(path: Path) -> None:
    """Refuse an output folder that cannot be made, before anything slow; folders above it are made with it.

    Raises:
        ControlError: It, or what should be a folder above it, is a file.
    """
    there = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    if not there.is_dir():
        raise ControlError(f"{str(path)!r} cannot be a folder: {str(there)!r} is a file.", "Name another folder.")


def check_writable(path: Path) -> None:
    """Refuse an output file that cannot be made, before anything slow.

    Raises:
        ControlError: It is a folder, or its folder does not exist.
    """
    if path.is_dir():
        raise ControlError(f"{str(path)!r} is a folder.", "Name a file.")
    if not path.absolute().parent.is_dir():
        what = f"{str(path)!r} cannot be written: {str(path.parent)!r} is not a folder."
        raise ControlError(what, "Create it, or name another file.")
