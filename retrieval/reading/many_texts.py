"""Files of many texts to documents: JSON lines, CSV and TSV, Parquet. One record is in memory at a time.

Knows formats; what a field means is in `records`. A reader takes an open file and yields documents and `Skipped`; a
`RetrievalError` means that the rest of the file is no use.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from ckcontrol.errors import MissingExtra, RetrievalError

from ..types import Document, Skipped
from .fields import TEXT_FIELDS, find_text, kind_of, plain_cell, plain_value, record_document
from .one_text import Source, marked_encoding

__all__ = ["read_csv", "read_jsonl", "read_parquet"]

LIMIT = 50_000_000  # characters of a line or a cell
BATCH = 64  # rows of a Parquet file in memory
BUFFER = 1_000_000  # bytes of one of its columns
BAD_BYTE = re.compile("[\udc80-\udcff]")  # how the "surrogateescape" of Python shows a byte it could not decode


# --- JSON lines -------------------------------------------------------------------------------------------------


def read_jsonl(file: BinaryIO, source: Source) -> Iterator[Document | Skipped]:
    """Yield the object of every line; its number is its line's. Blank lines are passed over.

    Raises:
        RetrievalError: The encoding breaks in a way that leaves no later line readable, or there is no line.
    """
    blank = True
    for number, line in enumerate(_lines(file, source.encoding, "\n"), 1):
        if not line.strip():
            continue
        blank = False
        try:
            record = _object(_clean(line.rstrip("\r\n"), source.encoding))
            yield record_document(source, number, record, plain_value)
        except RetrievalError as error:
            yield Skipped(f"{source.name} line {number}", str(error))
    if blank:
        raise RetrievalError("holds no records.", "Give one JSON object a line.")


def _object(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except RecursionError as error:
        raise RetrievalError("is nested too deeply.", "Flatten it.") from error
    except ValueError as error:
        what = f"character {error.pos}: {error.msg}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise RetrievalError(f"is not JSON ({what}).", "Give one object a line.") from error
    if not isinstance(record, dict):
        raise RetrievalError(f"is {kind_of(record)}, not an object.", 'Give one object a line: {"text": "..."}')
    return record


# --- CSV --------------------------------------------------------------------------------------------------------


def read_csv(file: BinaryIO, source: Source) -> Iterator[Document | Skipped]:
    """Yield the rows below the header, numbered from 1; blank lines are passed over.

    A .tsv is parted by tabs; a .csv by the one of comma, semicolon, tab and bar that gives its header a text field,
    else the most columns. A column without a name is called ``column_<n>``.

    Raises:
        RetrievalError: No header, a name twice in it, no column for the text, no rows, or a broken encoding.
    """
    csv.field_size_limit(max(csv.field_size_limit(), LIMIT))  # of the process; there is no other
    delimiter = "\t" if source.name.lower().endswith(".tsv") else _delimiter(file, source)
    rows = csv.reader(_whole_lines(file, source.encoding), delimiter=delimiter, strict=True)
    try:
        header = [_clean(cell, source.encoding).strip() for cell in next(rows, [])]
    except csv.Error as error:
        raise RetrievalError(f"its header is not CSV ({error}).", "Repair it.") from error
    header = [name or f"column_{number}" for number, name in enumerate(header, 1)]
    twice = [name for number, name in enumerate(header) if name in header[:number]]
    if not header or twice:
        what = f"its header names {twice[0]!r} twice." if twice else "holds no header."
        raise RetrievalError(what, "Give every column a name of its own in the first line.")
    find_text(dict.fromkeys(header, ""), source.text_field)
    number = 0
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            number += 1
            yield Skipped(f"{source.name} row {number}", f"is not CSV ({error}). Check its quotes.")
            continue
        if row is None:
            break
        number += bool(row)  # blank lines are rows without cells
        try:
            if row:
                yield _row(row, header, number, source)
        except RetrievalError as error:
            yield Skipped(f"{source.name} row {number}", str(error))
    if not number:
        raise RetrievalError("holds no rows below its header.", "Leave it out.")


def _row(row: list[str], header: list[str], number: int, source: Source) -> Document:
    if len(row) != len(header):
        raise RetrievalError(f"has {len(row)} cells where the header has {len(header)}.", "Quote its cells.")
    record = {name: _clean(cell, source.encoding) for name, cell in zip(header, row, strict=True)}
    return record_document(source, number, record, plain_cell)


def _delimiter(file: BinaryIO, source: Source) -> str:
    start = file.read(65536)
    file.seek(0)
    sample = start.decode(marked_encoding(start) or source.encoding, "replace")
    best, delimiter = (False, 0), ","
    for candidate in ",;\t|":
        try:
            header = next(csv.reader(io.StringIO(sample, newline=""), delimiter=candidate), [])
        except csv.Error:
            continue
        names = {name.strip() for name in header}
        score = (bool(names & ({source.text_field} if source.text_field else set(TEXT_FIELDS))), len(header))
        if score > best:
            best, delimiter = score, candidate
    return delimiter


# --- Parquet ----------------------------------------------------------------------------------------------------


def read_parquet(file: BinaryIO, source: Source) -> Iterator[Document | Skipped]:
    """Yield the rows, numbered from 1. Columns of bytes and of vectors are not read; times become texts.

    Raises:
        RetrievalError: Broken, no column for the text, or no rows.
        MissingExtra: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtra("pyarrow", "retrieval") from error
    try:
        table = pq.ParquetFile(file, pre_buffer=False, buffer_size=BUFFER)  # else whole row groups are read at once
        schema = table.schema_arrow
    except Exception as error:  # pyarrow raises its own errors, OSError and ValueError over broken files
        raise RetrievalError(f"is not a readable Parquet file ({_first_line(error)}).", "Write it again.") from error
    find_text(dict.fromkeys(schema.names, ""), source.text_field)
    if not table.metadata.num_rows:
        raise RetrievalError("holds no rows.", "Leave it out.")
    kept = [field.name for field in schema if not _heavy(pa, field.type)]
    number = 0
    batches = table.iter_batches(batch_size=BATCH, columns=kept, use_threads=False)
    while True:
        try:
            batch = next(batches, None)
            rows = [] if batch is None else _rows(pa, batch)
        except Exception as error:
            what = f"the rows from {number + 1} on cannot be read ({_first_line(error)})."
            raise RetrievalError(what, "Write the file again.") from error
        if batch is None:
            return
        for row in rows:
            number += 1
            try:
                yield record_document(source, number, row, plain_value)
            except RetrievalError as error:
                yield Skipped(f"{source.name} row {number}", str(error))


def _heavy(pa: Any, kind: Any) -> bool:
    types = pa.types
    nested = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return bool((nested and types.is_floating(kind.value_type)) or "binary" in str(kind))


def _rows(pa: Any, batch: Any) -> list[dict[str, Any]]:
    columns = [
        (column.cast(pa.string()) if pa.types.is_temporal(column.type) else column).to_pylist()
        for column in batch.columns
    ]
    return [dict(zip(batch.schema.names, values, strict=True)) for values in zip(*columns, strict=True)]


# --- shared -----------------------------------------------------------------------------------------------------


def _lines(file: BinaryIO, encoding: str, newline: str) -> Iterator[str]:
    """Yield lines with their ends. One longer than `LIMIT` is cut to a character more; the rest of it is dropped."""
    start = file.read(4)
    file.seek(0)
    name = marked_encoding(start) or encoding
    text = io.TextIOWrapper(file, encoding=name, errors="surrogateescape", newline=newline)
    try:
        while line := text.readline(LIMIT + 1):
            yield line
            while len(line) > LIMIT and not line.endswith("\n"):
                line = text.readline(LIMIT + 1)
    except UnicodeError as error:
        raise RetrievalError(f"is not {name} from some line on ({error}).", "Convert the file.") from error
    finally:
        if not file.closed:  # whoever opened it closes it
            text.detach()


def _whole_lines(file: BinaryIO, encoding: str) -> Iterator[str]:
    for line in _lines(file, encoding, ""):
        if len(line) > LIMIT:
            raise RetrievalError(f"a line is longer than {LIMIT // 1_000_000} million characters.", "Split the file.")
        yield line


def _clean(text: str, encoding: str) -> str:
    if len(text) > LIMIT:
        raise RetrievalError(f"is longer than {LIMIT // 1_000_000} million characters.", "Split it.")
    bad = None if text.isascii() else BAD_BYTE.search(text)
    if bad:
        byte = f"0x{ord(bad[0]) - 0xDC00:02x}"
        raise RetrievalError(f"byte {byte} at character {bad.start()} is not {encoding}.", "Name its encoding.")
    return text


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0][:120].rstrip(".")
