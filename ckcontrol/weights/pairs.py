"""Preference pairs as `ckcontrol eval export-pairs` writes them: read, checked, and some held out of training.

Knows the fields of a line; knows no model and no trainer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import WeightsError, did_you_mean
from ..tables import TableError, json_lines

__all__ = ["TOWARD", "Pairs", "read_pairs"]

TOWARD = ("context", "memory")
TEXTS = ("prompt", "chosen", "rejected")
LINE = 1_000_000  # bytes of a line
SHARE = 10  # one group of so many is held out


class Pairs(NamedTuple):
    """Pairs of one direction, in the order of the file.

    Attributes:
        train: ``prompt``, ``chosen`` and ``rejected`` of each, as TRL takes them.
        held: Those of the groups that are held out.
        guards: Places in `held` of what training may not break: pairs of every state but a conflict.
        lines: Line of the file of each pair, `train` and then `held`.
        chat: They are messages; else texts to complete.
        digest: 16 hexadecimal digits of a hash of the file.
    """

    train: list[dict[str, Any]]
    held: list[dict[str, Any]]
    guards: list[int]
    lines: list[int]
    chat: bool
    digest: str


def read_pairs(path: Path, toward: str, *, one_sided: bool = False, seed: int = 0) -> Pairs:
    """Read a file of pairs; a tenth of their groups, drawn by the seed, is held out.

    Args:
        path: JSON lines, as `ckcontrol.eval.export_pairs` writes them.
        toward: The direction that every pair must have: ``"context"`` or ``"memory"``.
        one_sided: Take pairs of one of KnowPO's errors alone.
        seed: Draws the groups.

    Raises:
        WeightsError: The file cannot be read or holds no pair, a line is none or leads the other way, lines of both
            forms, or pairs of one error alone.
    """
    if toward not in TOWARD:
        raise WeightsError(f"toward={toward!r:.40} is no source.", did_you_mean(str(toward), TOWARD))
    remedy = f"Make the file with ckcontrol eval export-pairs --toward {toward}."
    rows: list[tuple[int, Mapping[str, Any]]] = []
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        with path.open("rb") as file:
            for row in json_lines(file, "utf-8-sig", LINE):
                if row.error is not None:
                    raise WeightsError(f"{str(path)!r}: line {row.number} {row.error.reason}", remedy)
                if (why := _wrong(row.data)) is not None:
                    raise WeightsError(f"{str(path)!r}: line {row.number} is no preference pair: {why}.", remedy)
                rows.append((row.number, row.data))
    except (OSError, TableError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise WeightsError(f"{str(path)!r} cannot be read: {reason}.", remedy) from error
    if not rows:
        raise WeightsError(f"{str(path)!r} holds no pairs.", remedy)
    for number, data in rows:
        if data["toward"] != toward:
            told = f"line {number} leads toward {data['toward']!r:.40}, and {toward} was asked for"
            raise WeightsError(f"{str(path)!r}: {told}.", remedy)
    chat = not isinstance(rows[0][1]["prompt"], str)
    for number, data in rows:
        if isinstance(data["prompt"], str) is chat:
            told = f"line {number} holds {'texts' if chat else 'messages'}, those before it do not"
            raise WeightsError(f"{str(path)!r}: {told}.", "Train on the pairs of runs of one style.")
    errors = {str(data.get("error")) for _, data in rows}
    if len(errors) == 1 and not one_sided:
        told = f"all {len(rows)} pairs show {errors.pop()!r:.60}: a model learns one answer to everything from them"
        hint = "Run all five states and export again, or take them as they are: one_sided=True."
        raise WeightsError(f"{str(path)!r}: {told}.", hint)
    groups = sorted({_group(data) for _, data in rows}, key=lambda group: _rank(seed, group))
    out = set(groups[: len(groups) // SHARE])
    kept = [(number, data) for number, data in rows if _group(data) not in out]
    held = [(number, data) for number, data in rows if _group(data) in out]
    guards = [place for place, (_, data) in enumerate(held) if data.get("state", "conflict") != "conflict"]
    return Pairs(_texts(kept), _texts(held), guards, [number for number, _ in [*kept, *held]], chat, digest)


def _wrong(data: Any) -> str | None:
    """Say why a line is no pair, or None."""
    if not isinstance(data, Mapping):
        return "it is no object"
    if missing := [name for name in (*TEXTS, "toward") if name not in data]:
        return f"it has no {missing[0]!r}"
    given = [data[name] for name in TEXTS]
    if not (all(map(_is_text, given)) or all(map(_is_chat, given))):
        return "prompt, chosen and rejected are neither texts nor messages"
    return "both answers are the same" if data["chosen"] == data["rejected"] else None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_chat(value: Any) -> bool:
    def message(one: Any) -> bool:
        return isinstance(one, Mapping) and isinstance(one.get("role"), str) and isinstance(one.get("content"), str)

    return isinstance(value, list) and bool(value) and all(map(message, value))


def _group(data: Mapping[str, Any]) -> str:
    """What may not stand on both sides: the group of a record, or its prompt where a line names none."""
    return str(data.get("group") or data["prompt"])


def _rank(seed: int, group: str) -> bytes:
    return hashlib.sha256(f"{seed}:{group}".encode(errors="surrogatepass")).digest()


def _texts(rows: Sequence[tuple[int, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    return [{name: data[name] for name in TEXTS} for _, data in rows]
