"""Files of many texts to documents: JSON, JSON lines, CSV and TSV, Parquet.

Knows which field is the text, which the id, and what becomes metadata; how rows are read is in `ckcontrol.tables`. A
reader takes an open file and yields documents and `Skipped`; a `RetrievalError` or `TableError` means that the rest of
the file is of no use. One record is in memory at a time, but for JSON, which is read whole.
"""

from __future__ import annotations

import datetime
import decimal
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, BinaryIO

from ckcontrol import tables
from ckcontrol.errors import RetrievalError

from ..types import Document, Skipped
from .one_text import Source, fit
from .triples import is_triple, triple_record

__all__ = ["read_csv", "read_json", "read_jsonl", "read_parquet"]

LIMIT = 50_000_000  # characters of a line or a cell
JSON_LIMIT = 100_000_000  # bytes of a JSON file, which is read whole
TRIED = 20  # lines of which one must be JSON
VALUE_LIMIT = 4_000  # characters of one metadata value: every passage of the document repeats it
TEXT_FIELDS = ("text", "contents", "content", "page_content", "body")
ID_FIELDS = ("id", "_id", "doc_id")
SOURCE_FIELDS = ("source", "url")
NESTED_FIELDS = ("metadata", "meta")
TAKEN = {"id", "source", "document", "start", "end", "path"}  # names that mean something else in an index
NUMBER = re.compile(r"-?(0|[1-9]\d{0,17})(\.\d{1,17})?")


def read_json(file: BinaryIO, source: Source) -> Iterator[Document | Skipped]:
    """Yield the items of a JSON array, objects or texts, numbered from 1; of another value, that value.

    What is not JSON as a whole is read as JSON lines.

    Raises:
        RetrievalError: Too large, or nothing in it.
        TableError: Not in its encoding, or not JSON.
    """
    data = file.read(JSON_LIMIT + 1)
    if len(data) > JSON_LIMIT:
        raise RetrievalError(f"is larger than {JSON_LIMIT // 1_000_000} MB.", "Write it as JSON lines (.jsonl).")
    encoding = tables.marked_encoding(data) or source.encoding or "utf-8"
    rows = tables.json_rows(tables.decode(data, encoding).encode(), LIMIT) if data.strip() else []
    field = source.text_field or TEXT_FIELDS[0]
    rows = [row._replace(data={field: row.data}) if isinstance(row.data, str) else row for row in rows]
    yield from _documents(rows, source, "item", plain_value, "holds no records.", "Give an array of objects.")


def read_jsonl(file: BinaryIO, source: Source) -> Iterator[Document | Skipped]:
    """Yield the object of every line; its number is that of its line. Blank lines are passed over.

    Raises:
        RetrievalError: There is no line, or it is something else: JSON over several lines, or no JSON at all.
        TableError: The encoding breaks in a way that leaves no later line readable.
    """
    encoding = _encoding(file, source)
    start = file.read(65_536).decode(encoding, "replace").lstrip().partition("\n")[0].rstrip()
    file.seek(0)
    rows = _checked(tables.json_lines(file, encoding, LIMIT), start)
    yield from _documents(rows, source, "line", plain_value, "holds no records.", "Give one JSON object per line.")


def _checked(rows: Iterator[tables.TableRow], start: str) -> Iterator[tables.TableRow]:
    """Pass the rows on, unless none of the first is JSON: then what is wrong is the file, and is said once.

    `start` is the first line that is not blank.
    """
    first: list[tables.TableRow] = []
    for row in rows:
        first.append(row)
        if row.error is None or len(first) == TRIED:
            break
    if first and first[0].error and (start[:1] == "[" or start == "{"):
        kind = "array" if start[0] == "[" else "object"
        raise RetrievalError(f"is one JSON {kind} over several lines, not JSON lines.", "Name it .json.")
    if len(first) == TRIED and first[-1].error and first[0].error:
        why = first[0].error.reason.rstrip(".")
        what = f"is not JSON lines: none of its first {TRIED} lines is JSON (line {first[0].number} {why})."
        raise RetrievalError(what, "Name it by what it is.")
    yield from first
    yield from rows


def read_csv(file: BinaryIO, source: Source) -> Iterator[Document | Skipped]:
    """Yield the rows below the header, numbered from 1; blank lines are passed over.

    Cells are separated by tabs in a .tsv; in a .csv by the one of comma, semicolon, tab and bar that gives its header a
    text field, else the most columns. A column without a name is called ``column_<n>``.

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
    return lambda names: _is_triple(names, source.text_field) or find_text(dict.fromkeys(names, ""), source.text_field)


def _encoding(file: BinaryIO, source: Source) -> str:
    start = file.read(4)
    file.seek(0)
    return tables.marked_encoding(start) or source.encoding or "utf-8"


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


# --- fields -----------------------------------------------------------------------------------------------------


def record_document(source: Source, number: int, record: Mapping[str, Any], plain: Callable[[Any], Any]) -> Document:
    """Turn the fields of a record into a document.

    text: `source.text_field`, else the first of text, contents, content, page_content, body that is not null, else the
        sentence that subject, predicate (or relation) and object make; see `triple_record`. A title the text does not
        start with is put on a line before it, and kept as metadata.
    id: the first of id, _id, doc_id that is a text or a number, else ``<file>#<number>``.
    source: the first of source, url that is a text, else the file.
    metadata: every other field, and the members of an object named metadata or meta; see `plain_value`. A name that an
        index uses itself (id, source, document, start, end, path) gets a ``_`` behind it.

    Args:
        source: The file.
        number: The record's, from 1.
        record: Names to values.
        plain: Makes a value fit for metadata; None leaves it out.

    Raises:
        RetrievalError: No such field, or it is not text, or `fit` refuses it.
    """
    fields = dict(record)
    if _is_triple(fields, source.text_field):
        text, fields = triple_record(fields)
    else:
        text_field = find_text(fields, source.text_field)
        text = fields.pop(text_field)
    if not isinstance(text, str):
        raise RetrievalError(
            f"the field {text_field!r} is {kind_of(text)}, not a text.", "Name another with text_field=."
        )
    name = next(
        (f for f in ID_FIELDS if kind_of(fields.get(f)) in ("a text", "a number") and str(fields[f]).strip()), None
    )
    own = str(fields.pop(name)) if name else f"{source.name}#{number}"
    for nested in NESTED_FIELDS:
        if isinstance(fields.get(nested), Mapping):
            inner = fields.pop(nested)
            fields = {**inner, **fields}
    name = next((f for f in SOURCE_FIELDS if isinstance(fields.get(f), str) and fields[f].strip()), None)
    where = fields.pop(name) if name else source.name
    title = fields.pop("title") if isinstance(fields.get("title"), str) else ""
    metadata: dict[str, Any] = {"path": source.name}
    if title.strip():
        title = " ".join(title.split())
        metadata["title"] = title[:VALUE_LIMIT]
        if text.strip() and not text.lstrip().startswith(title):
            text = f"{title}\n{text}"
    for key, value in fields.items():
        kept = plain(value)
        if kept is not None:
            metadata[f"{key}_" if key in TAKEN else str(key)] = kept
    return fit(Document(own, text, where, metadata))


def _is_triple(names: Iterable[str], wanted: str | None) -> bool:
    """Return whether a record has no text of its own, and is a triple."""
    return wanted is None and is_triple(names) and not any(field in names for field in TEXT_FIELDS)


def find_text(names: Mapping[str, Any], wanted: str | None) -> str:
    """Return which field holds the text.

    Raises:
        RetrievalError: None does.
    """
    looked = (wanted,) if wanted else TEXT_FIELDS
    there = [field for field in looked if field in names]
    if there:
        return next((field for field in there if names[field] is not None), there[0])
    listed = ", ".join(map(repr, list(names)[:12])) or "none"
    missing = f"no field {wanted!r}" if wanted else f"no field for the text ({', '.join(TEXT_FIELDS)})"
    raise RetrievalError(f"{missing}; its fields: {listed}.", "Name the one that holds the text with text_field=.")


def plain_value(value: Any) -> Any:
    """Return a value as metadata holds it: a text, number or boolean; None leaves it out.

    Dates become ISO texts, decimals numbers, whole numbers beyond 64 bits texts, lists and objects JSON. Left out are
    null, NaN, infinity, bytes, and whatever is longer than 4,000 characters.
    """
    if isinstance(value, (bool, float)):
        return value if math.isfinite(value) else None
    if isinstance(value, int):
        return value if abs(value) < 2**63 else plain_value(str(value))
    if isinstance(value, decimal.Decimal):
        return plain_value(float(value) if value % 1 else int(value)) if value.is_finite() else None
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (list, tuple, dict)) and len(value) <= VALUE_LIMIT // 3:
        try:
            value = json.dumps(value, ensure_ascii=False, default=str)
        except (TypeError, ValueError, RecursionError):
            return None
    return value if isinstance(value, str) and len(value) <= VALUE_LIMIT else None


def plain_cell(cell: Any) -> Any:
    """Return a CSV cell as metadata: what reads as a number is one, ``007`` and ``1e5`` stay texts, blank is None."""
    if not isinstance(cell, str) or not cell.strip():
        return plain_value(cell) if not isinstance(cell, str) else None
    found = NUMBER.fullmatch(cell)
    return plain_value((float(cell) if found[2] else int(cell)) if found else cell)


def kind_of(value: Any) -> str:
    """Return what a value is, in words for a message."""
    kinds = ((type(None), "null"), (bool, "a boolean"), ((int, float), "a number"), (str, "a text"), (list, "a list"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "an object")
