"""Our own format: one canonical record a line, as specified in `Record.to_dict`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..items.readers import Row
from ..records import Record
from .base import Adapter, Made, converted, row_id

__all__ = ["ADAPTER"]


def _records(rows: Iterable[Row], options: Mapping[str, str]) -> Made:
    def convert(row: Row) -> Made:
        data: Any = row.data
        if isinstance(data, Mapping) and data.get("id") is None:
            data = {**data, "id": row_id(row)}
        yield Record.from_dict(data)

    return converted(rows, convert)


ADAPTER = Adapter(
    name="jsonl",
    convert=_records,
    source="a file of the user's own",
    licence="as the file's owner says",
    clean="words",  # what people write themselves has short answers more often than not
    supported=False,
)
