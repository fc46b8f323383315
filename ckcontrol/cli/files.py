"""What commands read besides options: passage files, ``name=value`` parameters and ``--where`` conditions.

Files are limited in size and must be UTF-8; every refusal names the file, as it does where a command cannot write.
Knows no model.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ControlError, PromptError

__all__ = ["check_writable", "parse_params", "parse_where", "read_passages"]

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
        PromptError: A file is missing, unreadable, over 10 MB, empty or not UTF-8; or stdin is named twice.
    """
    if list(files).count("-") > 1:
        raise PromptError("'-' was given more than once.", "stdin can be read once.")
    return [_read(name) for name in files] + list(texts)


def _read(name: str) -> str:
    label = "stdin" if name == "-" else repr(name)
    try:
        if name == "-":
            data = sys.stdin.buffer.read(LIMIT + 1)
        else:
            with Path(name).open("rb") as file:
                data = file.read(LIMIT + 1)
    except OSError as error:
        raise PromptError(f"passage file {label} cannot be read: {error.strerror or error}.") from error
    if len(data) > LIMIT:
        raise PromptError(f"passage file {label} is larger than {LIMIT // 1_000_000} MB.", "Split it.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptError(
            f"passage file {label} is not UTF-8 (byte {error.start}).", "Convert it, e.g. with iconv."
        ) from error
    if not text.strip():
        raise PromptError(f"passage file {label} is empty.", "Leave it out to answer closed book.")
    return text


def parse_params(pairs: Sequence[str]) -> dict[str, Any]:
    """Turn ``name=value`` texts into typed values: true/false, a whole number, a number, else text.

    Raises:
        ControlError: No ``=``, an empty or repeated name, or a name that has an option of its own.
    """
    params: dict[str, Any] = {}
    for pair in pairs:
        name, sign, text = pair.partition("=")
        name = name.strip().replace("-", "_")
        if not sign or not name.isidentifier():
            raise ControlError(f"--param {pair!r} is not NAME=VALUE.", "For example: --param gate=2")
        if name in RESERVED:
            raise ControlError(f"--param {pair!r}: {name} has its own option.", f"Use --{name}.")
        if name in params:
            raise ControlError(f"--param {name} was given twice.")
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
        value = text[1:-1] if quoted else text if name in TEXTS else _typed(text)
        tests = where.setdefault(name, {})
        if OPERATORS[sign] in tests:
            raise ControlError(f"--where {given!r}: {name}{sign} was given twice.", "All conditions must hold.")
        tests[OPERATORS[sign]] = value
    return where or None


def check_writable(path: Path) -> None:
    """Refuse an output file that cannot be made, before anything slow.

    Raises:
        ControlError: It is a folder, or its folder does not exist.
    """
    if path.is_dir():
        raise ControlError(f"{str(path)!r} is a folder.", "Name a file.")
    if not path.absolute().parent.is_dir():
        raise ControlError(f"{str(path.parent)!r} is not a folder.", "Create it, or name another file.")
