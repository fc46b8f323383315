"""Files of many texts to documents: JSON lines, CSV and TSV, Parquet. One record is in memory at a time.

Knows which rows become documents; how rows are read is in `ckcontrol.tables`, what a field means in `fields`. A reader
takes an open file and yields documents and `Skipped`; a `RetrievalError` or `TableError` means that the rest of the
file is no use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

from ckcontrol import tables
from ckcontrol.errors import RetrievalError

from ..types import Document, Skipped
from .fields import TEXT_FIELDS, find_text, kind_of, plain_cell, plain_value, record_document
from .one_text import Source

__all__ = ["read_csv", "read_jsonl", "read_parquet"]

LIMIT = 50_000_000  # characters of a line or a cell


def read_jsonl(file: BinaryIO, source: Source) -> Iterator[Document | Skipped]:
    """Yield the object of every line; its number is its line's. Blank lines are passed over.

    Raises:
        RetrievalError: There is no line.
        TableError: The encoding breaks in a way that leaves no later line readable.
    """
    rows = tables.json_lines(file, _encoding(file, source), LIMIT)
    yield from _documents(rows, source, "line", plain_value, "holds no records.", "Give one JSON object per line.")


def read_csv(file: BinaryIO, source: Source) -> Iterator[Document | Skipped]:
    """Yield the rows below the header, numbered from 1; blank lines are passed over.

    A .tsv is parted by tabs; a .csv by the one of comma, semicolon, tab and bar that gives its header a text field,
    else the most columns. A column without a name is called ``column_<n>``.

    Raises:
        RetrievalError: No column for the text, or no rows.
        TableError: No header, a name twice in it, or a broken encoding.
    """
    encoding = _encoding(file, source)
    wanted = (source.text_field,) if source.text_field else TEXT_FIELDS
    tabs = source.name.lower().endswith(".tsv")
    rows = tables.csv_rows(
        tables.text_lines(file, encoding, "", LIMIT),
        delimiter="\t" if tabs else tables.best_delimiter(file, encoding, wanted),
        limit=LIMIT,
        strict=True,
        encoding=encoding,
        on_names=_text_among(source),
    )
    yield from _documents(rows, source, "row", plain_cell, "holds no rows below its header.", "Leave it out.")


def read_parquet(file: BinaryIO, source: Source) -> Iterator[Document | Skipped]:
    """Yield the rows, numbered from 1. Columns of bytes and of vectors are not read; times become texts.

    Raises:
        RetrievalError: No column for the text, or no rows.
        TableError: Broken.
        MissingExtra: pyarrow is not installed.
    """
    rows = tables.parquet_rows(file, light=True, on_names=_text_among(source))
    yield from _documents(rows, source, "row", plain_value, "holds no rows.", "Leave it out.")


def _text_among(source: Source) -> Callable[[list[str]], object]:
    """Return what refuses columns of which none holds the text."""
    return lambda names: find_text(dict.fromkeys(names, ""), source.text_field)


def _encoding(file: BinaryIO, source: Source) -> str:
    start = file.read(4)
    file.seek(0)
    return tables.marked_encoding(start) or source.encoding


def _documents(
    rows: Iterable[tables.TableRow],
    source: Source,
    unit: str,
    plain: Callable[[Any], Any],
    *nothing: str,
) -> Iterator[Document | Skipped]:
    """Yield each row as a document, or as `Skipped` with the reason; `nothing` is the error of a file without rows."""
    empty = True
    for row in rows:
        empty = False
        try:
            if row.error:
                raise row.error
            if not isinstance(row.data, dict):
                what = f"is {kind_of(row.data)}, not an object."
                raise RetrievalError(what, 'Give one object per line: {"text": "..."}')
            item: Document | Skipped = record_document(source, row.number, row.data, plain)
        except (RetrievalError, tables.TableError) as error:
            item = Skipped(f"{source.name} {unit} {row.number}", str(error))
        yield item
    if empty:
        raise RetrievalError(*nothing)
