"""Preference pairs as `ckcontrol eval export-pairs` writes them: read, checked, and some held out of training.

Knows the fields of a line, and which answer to a held-out one is right; knows no model and no trainer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import WeightsError, did_you_mean
from ..tables import TableError, json_lines
from ..word_spans import mentions

__all__ = ["GUARD", "TOWARD", "Asked", "Pairs", "read_pairs"]

TOWARD = ("context", "memory")
TEXTS = ("prompt", "chosen", "rejected")
LINE = 1_000_000  # bytes of a line
SHARE = 10  # one group of so many is held out
ASKED = 48  # most held-out pairs whose answers are read at a checkpoint; and as many of a guard
GUARD = "guard: "  # what stands before the state of a guard's question

Line = tuple[int, Mapping[str, Any]]  # its number in the file, and what it holds


class Asked(NamedTuple):
    """A held-out pair that is answered at every checkpoint.

    Attributes:
        place: Its place in `Pairs.held`.
        state: What its passage has to do with memory; behind `GUARD`, if it is a guard's.
        right: Names of which a right answer gives one.
        wrong: Names of which it gives none.
    """

    place: int
    state: str
    right: tuple[str, ...]
    wrong: tuple[str, ...]

    def is_right(self, text: str) -> bool:
        """Tell whether an answer gives a right name and no wrong one.

        Example:
            >>> asked = Asked(0, "conflict", ("Oslo",), ("Rome",))
            >>> asked.is_right("It is Oslo."), asked.is_right("Oslo or Rome"), asked.is_right("It is")
            (True, False, False)
        """
        return mentions(text, self.right) and not mentions(text, self.wrong)


class Pairs(NamedTuple):
    """Pairs of one direction, in the order of the file.

    Attributes:
        train: ``prompt`` and, chosen, ``completion`` of each, as TRL takes them.
        held: Those of the groups that are held out, and those of the guard that are asked.
        asked: Those of `held` that say what a right answer names, as many of each state as there are, `ASKED` in all;
            and likewise of the guard.
        lines: Where each pair stands, `train` and then `held`.
        chat: They are messages; else texts to complete.
        digest: 16 hexadecimal digits of a hash of the file.
        guard: Those of the guard's; empty without one.
    """

    train: list[dict[str, Any]]
    held: list[dict[str, Any]]
    asked: list[Asked]
    lines: list[str]
    chat: bool
    digest: str
    guard: str = ""


def read_pairs(path: Path, toward: str, *, one_sided: bool = False, seed: int = 0, guard: Path | None = None) -> Pairs:
    """Read a file of pairs; a tenth of their groups, drawn by the seed, is held out.

    Args:
        path: JSON lines, as `ckcontrol.eval.export_pairs` writes them.
        toward: The direction that every pair must have: ``"context"`` or ``"memory"``.
        one_sided: Take pairs of one of KnowPO's errors alone.
        seed: Draws the groups.
        guard: A file of further pairs, all of which are held out: questions in other words than those of `path`.

    Raises:
        WeightsError: A file cannot be read or holds no pair, a line is none or leads the other way, lines of both
            forms, pairs of one error alone, or a guard that does not say what is right, has conflicts alone, or is
            trained on.
    """
    if toward not in TOWARD:
        raise WeightsError(f"toward={toward!r:.40} is no source.", did_you_mean(str(toward), TOWARD))
    rows, digest = _rows(path, toward)
    chat = not isinstance(rows[0][1]["prompt"], str)
    errors = {str(data.get("error")) for _, data in rows}
    if len(errors) == 1 and not one_sided:
        told = f"all {len(rows)} pairs show {errors.pop()!r:.60}: a model learns one answer to everything from them"
        hint = "Run all five states and export again, or take them as they are: one_sided=True."
        raise WeightsError(f"{str(path)!r}: {told}.", hint)
    groups = sorted({_group(data) for _, data in rows}, key=lambda group: _rank(seed, group))
    out = set(groups[: len(groups) // SHARE])
    kept = [row for row in rows if _group(row[1]) not in out]
    held = [row for row in rows if _group(row[1]) in out]
    asked, lines, of = _asked(held, seed), [f"line {number}" for number, _ in [*kept, *held]], ""
    if guard is not None:
        others, of = _rows(guard, toward)
        guards = _asked(others, seed)
        if why := _no_guard(guards, others, kept):
            hint = "Export it from a run of the same style, in all states, on other questions."
            raise WeightsError(f"the guard {str(guard)!r} {why}.", hint)
        for one in guards:
            asked.append(one._replace(place=len(held), state=GUARD + one.state))
            held.append(others[one.place])
            lines.append(f"line {others[one.place][0]} of {str(guard)!r}")
    return Pairs(_texts(kept), _texts(held), asked, lines, chat, digest, of)


def _no_guard(guards: Sequence[Asked], rows: Sequence[Line], kept: Sequence[Line]) -> str:
    """Say why rows guard nothing of a training on those kept; empty if they do."""
    if not guards:
        return "does not say what is right"
    if isinstance(rows[0][1]["prompt"], str) is not isinstance(kept[0][1]["prompt"], str):
        return "holds messages, or texts, where the pairs hold the other"
    if all(one.state == "conflict" for one in guards):
        return "has questions with a conflict alone, and harm is what happens to the others"
    trained = {json.dumps(data["prompt"]) for _, data in kept}
    found = next((number for number, data in rows if json.dumps(data["prompt"]) in trained), None)
    return "" if found is None else f"is trained on: the prompt of its line {found} is one of the pairs'"


def _rows(path: Path, toward: str) -> tuple[list[Line], str]:
    """Return the lines of a file with their numbers, checked one by one, and 16 digits of a hash of the file."""
    remedy = f"Make the file with ckcontrol eval export-pairs --toward {toward}."
    rows: list[Line] = []
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
    chat = not isinstance(rows[0][1]["prompt"], str)
    for number, data in rows:
        if data["toward"] != toward:
            told = f"line {number} leads toward {data['toward']!r:.40}, and {toward} was asked for"
            raise WeightsError(f"{str(path)!r}: {told}.", remedy)
        if isinstance(data["prompt"], str) is chat:
            told = f"line {number} holds {'texts' if chat else 'messages'}, those before it do not"
            raise WeightsError(f"{str(path)!r}: {told}.", "Train on the pairs of runs of one style.")
    return rows, digest


def _asked(held: Sequence[Line], seed: int) -> list[Asked]:
    """Return what is asked, one of each state in turn until there is enough; in order of place."""
    by_state: dict[str, list[Asked]] = {}
    for place in sorted(range(len(held)), key=lambda place: _rank(seed, _group(held[place][1]))):
        data = held[place][1]
        right, wrong = (tuple(data.get(name, ())) for name in ("right", "wrong"))
        if right:
            one = Asked(place, str(data.get("state", "conflict")), right, wrong)
            by_state.setdefault(one.state, []).append(one)
    turns = sorted((i, state) for state, found in by_state.items() for i in range(len(found)))
    return sorted(by_state[state][i] for i, state in turns[:ASKED])


def _wrong(data: Any) -> str | None:
    """Say why a line is no pair, or None."""
    if not isinstance(data, Mapping):
        return "it is no object"
    if missing := [name for name in (*TEXTS, "toward") if name not in data]:
        return f"it has no {missing[0]!r}"
    given = [data[name] for name in TEXTS]
    if not (all(map(_is_text, given)) or all(map(_is_chat, given))):
        return "prompt, chosen and rejected are neither texts nor messages"
    if data["chosen"] == data["rejected"]:
        return "both answers are the same"
    try:
        json.dumps(given, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return "a text holds half a character"
    names = [data.get(name, []) for name in ("right", "wrong")]
    return None if all(map(_is_names, names)) else "right and wrong are no lists of names"


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_chat(value: Any) -> bool:
    def message(one: Any) -> bool:
        return isinstance(one, Mapping) and isinstance(one.get("role"), str) and isinstance(one.get("content"), str)

    return isinstance(value, list) and bool(value) and all(map(message, value))


def _group(data: Mapping[str, Any]) -> str:
    """What may not stand on both sides: the group of a record, or its prompt where a line names none."""
    return str(data.get("group") or data["prompt"])


def _rank(seed: int, group: str) -> bytes:
    return hashlib.sha256(f"{seed}:{group}".encode(errors="surrogatepass")).digest()


def _texts(rows: Sequence[Line]) -> list[dict[str, Any]]:
    return [{"prompt": data["prompt"], "completion": data["chosen"]} for _, data in rows]
