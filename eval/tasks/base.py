"""What every adapter is made of: its name card, and helpers that turn one row's faults into a rejection.

Knows rows and records; knows no file and no particular data set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ckcontrol.errors import EvalError

from ..items.readers import Data, Row
from ..records import Record, Rejected, texts

__all__ = ["Adapter", "Converted", "converted", "row_id", "text", "with_answer"]

Converted = Iterable[Record | Rejected]


@dataclass(frozen=True)
class Adapter:
    """How one family of data sets is read.

    Attributes:
        name: What the data set is called in a task's name.
        convert: Rows and options to records, in order.
        source: Where the data comes from.
        licence: The terms, as its publishers state them.
        hub: Hugging Face id to fetch if no path is given; empty: a path is needed.
        pattern: Which files of the data set on the Hub.
        options: Option names and their defaults.
        clean: How `unclean` compares; empty: every record is kept.
        supported: The context of a clean conflict states the contextual answer.
        load: Reads a place that is not a single path; None: `readers.read`.
    """

    name: str
    convert: Callable[[Iterable[Row], Mapping[str, str]], Converted]
    source: str
    licence: str
    hub: str = ""
    pattern: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    clean: str = "substring"
    supported: bool = True
    load: Callable[[str, Mapping[str, str]], Data] | None = None


def converted(rows: Iterable[Row], convert: Callable[[Row], Converted]) -> Iterator[Record | Rejected]:
    """Yield what `convert` makes of each row; a row that it cannot read becomes one rejection, "malformed"."""
    for row in rows:
        try:
            made = list(convert(row))
        except EvalError as error:
            made = [Rejected(row_id(row), "malformed", str(error))]
        except KeyError as error:
            made = [Rejected(row_id(row), "malformed", f"field {error} is missing.")]
        except (AttributeError, IndexError, SyntaxError, TypeError, ValueError, RecursionError, MemoryError) as error:
            made = [Rejected(row_id(row), "malformed", f"{type(error).__name__}: {error}")]
        yield from made


def row_id(row: Row) -> str:
    """Return ``file:row``, the id of a row that has none of its own."""
    return f"{row.file}:{row.number}"


def text(data: Mapping[str, Any], key: str) -> str:
    """Return a field that must be a text with something in it.

    Raises:
        EvalError: It is missing, blank or not a text, or `data` is not an object.
    """
    if not isinstance(data, Mapping):
        raise EvalError(f"the row is a {type(data).__name__}, not an object.", "Check what the file holds.")
    value = data.get(key)
    if not isinstance(value, str) or not value.strip():
        raise EvalError(f"field {key!r} is {value!r}, not a text.", f"The row has: {', '.join(map(str, data))[:200]}.")
    return value


def with_answer(answer: Any, aliases: Any = None) -> tuple[str, ...]:
    """Return an answer (or several) followed by its aliases, stripped; null and text-for-list are fine.

    Example:
        >>> with_answer(" Paris", ["City of Light", "Paris"])
        ('Paris', 'City of Light')
    """
    both = [item.strip() for item in (*texts(answer, "answer"), *texts(aliases, "aliases"))]
    return tuple(dict.fromkeys(both))
