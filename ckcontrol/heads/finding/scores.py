"""`HeadScores`: what `find` measured, per example and head, as a JSON file and as arrays.

Importance has a sign: positive means that the head promotes its source. For memory it is -(change of memory's logit -
change of the context answer's logit) when the subject is corrupted; for the context it is the same with the answers
swapped, when the stated answer is corrupted. The difference of two logits, unlike a relative change, does not depend on
their arbitrary common offset. Knows files and numpy; knows no model (find.py measures).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import HeadsError, did_you_mean
from ..fingerprint import Fingerprint
from ..mask import Head
from .agreement import split_half
from .conflict_prompts import SPLITS, ConflictRecord
from .facts import FORMATS

__all__ = ["COLUMNS", "SOURCES", "HeadScores", "HeadStatistics", "rank"]

SCHEMA = 1
KIND = "ckcontrol head scores"
LIMIT = 2_000_000_000  # bytes, of a scores file
_MADE = "`ckcontrol heads find` writes scores."
SOURCES = ("memory", "context")
COLUMNS = ("path", "direct", "linear", "gradient")  # path = exact path patching; the others are for comparison

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class HeadStatistics:
    """Statistics over examples; all but the last two are [L, H].

    Attributes:
        mean: Mean importance; positive where the head promotes the source.
        error: Standard error of the mean; NaN for one example.
        agreement: Share of examples with the sign of the mean.
        count: Number of examples.
        split_half: Rank correlation of heads between random halves of the examples (agreement.py).
    """

    mean: Floats
    error: Floats
    agreement: Floats
    count: int
    split_half: float


@dataclass(frozen=True)
class HeadScores:
    """Scores of every head on every example.

    Attributes:
        model: Fingerprint of the scored model.
        settings: What `find` was asked for, and how many facts it left out and why.
        records: The scored records, in order.
        examples: One mapping per record: source -> format -> column -> values of all heads, layer by layer. The columns
            are "memory_logit" and "context_logit", the change of each answer's logit by path patching, and
            "direct", "linear" and "gradient", the change of their difference (memory - context).
    """

    model: Fingerprint
    settings: Mapping[str, Any]
    records: Sequence[ConflictRecord]
    examples: Sequence[Mapping[str, Any]]
    _tables: dict[tuple[str, str, str], Floats] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.records) != len(self.examples):
            raise HeadsError(f"{len(self.records)} records but {len(self.examples)} rows of scores.", _MADE)

    @property
    def formats(self) -> tuple[str, ...]:
        """The prompt formats that were scored."""
        return tuple(self.settings["formats"])

    def values(
        self,
        source: str,
        *,
        column: str = "path",
        form: str = "substitution",
        split: str | None = None,
        relations: Iterable[str] = (),
    ) -> Floats:
        """Importance of each head on each example, [N, L, H] float64.

        Args:
            source: "memory" or "context".
            column: One of `COLUMNS`.
            form: One of `formats`.
            split: Keep only records of this split; None keeps all.
            relations: Keep only records of these relations; empty keeps all.

        Raises:
            HeadsError: An unknown name, a column or format that was not scored, or no record left.
        """
        for name, value, known in (("source", source, SOURCES), ("column", column, COLUMNS), ("form", form, FORMATS)):
            if value not in known:
                raise HeadsError(f"{name}={value!r} is unknown.", did_you_mean(str(value), known))
        if split is not None and split not in SPLITS:
            raise HeadsError(f"split={split!r} is unknown.", did_you_mean(split, SPLITS))
        wanted = set(relations)
        if odd := wanted - {record.relation for record in self.records}:
            raise HeadsError(f"no scores for relations {sorted(odd)}.", "Run find with them.")
        table = self._table(source, column, form)
        keep = [
            (split is None or record.split == split) and (not wanted or record.relation in wanted)
            for record in self.records
        ]
        chosen: Floats = table[np.array(keep, dtype=bool)]
        chosen = chosen[~np.isnan(chosen).any((1, 2))]
        if not len(chosen):
            raise HeadsError(
                f"no example of source={source!r}, column={column!r}, form={form!r}, split={split!r} was scored.",
                f"Scored formats: {', '.join(self.formats)}. Columns beside path are for the first format alone.",
            )
        return chosen

    def importance(self, source: str, **where: Any) -> Floats:
        """Mean importance, [L, H]; keywords as in `values`."""
        mean: Floats = self.values(source, **where).mean(0)
        return mean

    def statistics(self, source: str, **where: Any) -> HeadStatistics:
        """Mean, standard error, sign agreement and stability; keywords as in `values`."""
        values = self.values(source, **where)
        mean = values.mean(0)
        count = len(values)
        spread = values.std(0, ddof=1) if count > 1 else np.full_like(mean, np.nan)
        return HeadStatistics(
            mean=mean,
            error=spread / np.sqrt(count),
            agreement=(np.sign(values) == np.sign(mean)).mean(0),
            count=count,
            split_half=split_half(values),
        )

    def top(self, source: str, k: int, **where: Any) -> list[Head]:
        """The k heads that promote a source most, best first; fewer where fewer have a positive mean."""
        return rank(self.importance(source, **where))[:k]

    def consistent(self, source: str, forms: Iterable[str] = (), **where: Any) -> NDArray[np.bool_]:
        """Heads that promote a source in every format, [L, H] bool: JuICE's sign filter. Empty `forms`: all scored."""
        means = [self.importance(source, form=form, **where) > 0 for form in (tuple(forms) or self.formats)]
        kept: NDArray[np.bool_] = np.logical_and.reduce(means)
        return kept

    def _table(self, source: str, column: str, form: str) -> Floats:
        key = (source, column, form)
        if key not in self._tables:
            shape = (self.model.layers, self.model.heads)
            sign = -1.0 if source == "memory" else 1.0
            rows = []
            for example in self.examples:
                found = example.get(source, {}).get(form, {})
                if column == "path" and "memory_logit" in found:
                    margin = np.subtract(found["memory_logit"], found["context_logit"])
                elif column in found:
                    margin = np.asarray(found[column], dtype=np.float64)
                else:
                    margin = np.full(shape, np.nan)
                rows.append(sign * margin.reshape(shape))
            self._tables[key] = np.array(rows).reshape(-1, *shape)
        return self._tables[key]

    # --- the file -------------------------------------------------------------------------------------------------

    def to_json(self) -> str:
        """The file's text, with one record or one row of scores per line, so that it can be read and compared."""
        head = {"kind": KIND, "schema": SCHEMA, "model": self.model.to_dict(), "settings": dict(self.settings)}
        lines = [json.dumps(head, ensure_ascii=False, sort_keys=True)[:-1] + ', "records": [']
        lines.append(",\n".join(_dump(record.to_dict()) for record in self.records))
        lines.append('], "examples": [')
        lines.append(",\n".join(_dump(example) for example in self.examples))
        lines.append("]}")
        return "\n".join(lines) + "\n"

    @classmethod
    def from_json(cls, text: str) -> HeadScores:
        """Rebuild from `to_json`.

        Raises:
            HeadsError: Not a scores file, another schema, or damaged.
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise HeadsError(f"the scores file is not JSON: {error}.", _MADE) from error
        if not isinstance(data, dict) or data.get("kind") != KIND:
            raise HeadsError("this is not a file of head scores.", f'Such a file says "kind": "{KIND}".')
        if data.get("schema") != SCHEMA:
            raise HeadsError(f"scores of schema {data.get('schema')!r} are not known.", f"This version reads {SCHEMA}.")
        model = Fingerprint.from_dict(data.get("model"))
        try:
            records = tuple(ConflictRecord.from_dict(record) for record in data["records"])
            scores = cls(model, data["settings"], records, tuple(data["examples"]))
            for source in SOURCES:
                for form in scores.formats:
                    scores._table(source, "path", form)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, HeadsError):
                raise
            raise HeadsError(f"the scores file is damaged: {error!r}.", _MADE) from error
        return scores

    @classmethod
    def load(cls, path: str | Path) -> HeadScores:
        """Read a scores file.

        Raises:
            HeadsError: Unreadable, too large, or not a scores file.
        """
        file = Path(path)
        try:
            if file.stat().st_size > LIMIT:
                raise HeadsError(f"{str(path)!r} is larger than {LIMIT // 10**9} GB.", "Scores files are smaller.")
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else f"byte {error.start} is not UTF-8"
            raise HeadsError(f"scores file {str(path)!r} cannot be read: {why}.", _MADE) from error
        try:
            return cls.from_json(text)
        except HeadsError as error:
            raise HeadsError(f"{str(path)!r}: {str(error).removesuffix(error.hint).rstrip()}", error.hint) from error


def rank(importance: Floats) -> list[Head]:
    """Heads of positive importance, best first; of equal ones the lower layer and head first."""
    order = np.argsort(-importance, axis=None, kind="stable")
    heads = [divmod(int(i), importance.shape[1]) for i in order]
    return [head for head in heads if importance[head] > 0]


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
