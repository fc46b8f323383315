"""Files of many records to rows: JSON, JSON lines, CSV and TSV, Parquet. The one reader of tables in this library.

Knows bytes, encodings, formats and the limits that keep one line or cell from filling the memory; knows nothing of what
a field means. A row that cannot be read holds its error, a file that cannot is a `TableError`; callers raise or report
both in their own way. All readers but `json_rows` hold one record, or one small batch of them, in memory.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import threading
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple

from .errors import CKError, MissingExtra

__all__ = [
    "TableError",
    "TableRow",
    "best_delimiter",
    "csv_rows",
    "decode",
    "json_lines",
    "json_rows",
    "marked_encoding",
    "parquet_rows",
    "rows",
    "text_lines",
    "texts",
    "unpacked",
]

BATCH = 64  # rows of a Parquet file in memory
BUFFER = 1_000_000  # bytes of one of its columns
BAD_BYTE = re.compile("[\udc80-\udcff]")  # how Python's "surrogateescape" shows a byte it could not decode
BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
SEP = re.compile(r'"?sep=([^"\r\n])"?[\r\n]*', re.IGNORECASE)  # Excel's first line, which names the delimiter
SURE = 2  # lines after an open quote that are whole rows by themselves, for the quote to be taken as a slip
_CSV_LIMIT = threading.Lock()  # Python has one limit on the length of a field for the whole process


class TableError(CKError):
    """A file or a row that cannot be read. Never leaves the library: callers raise their own error in its place.

    Attributes:
        reason: What is wrong, as a sentence without its subject: ``is not JSON (...).``
    """

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(reason, hint)
        self.reason = reason


class TableRow(NamedTuple):
    """A row and where it stood.

    Attributes:
        number: From 1: the line in JSON lines, elsewhere the row, blank lines and the header not counted.
        data: What the row says: for CSV and Parquet a dict, for JSON any value.
        error: Why the row cannot be read; None when it can.
    """

    number: int
    data: Any
    error: TableError | None = None


def _row(number: int, parse: Callable[..., Any], *given: Any) -> TableRow:
    try:
        return TableRow(number, parse(*given))
    except TableError as error:
        return TableRow(number, None, error)


def rows(data: bytes, name: str, limit: int) -> Iterable[TableRow]:
    """Return the rows of a whole file: its content tells what it is, and its name where the content could be anything.

    Raises:
        TableError: Empty, packed wrongly, too large, or in no known format; while they are read, as the readers below.
        MissingExtra: It is Parquet and pyarrow is not installed.
    """
    data = unpacked(data, limit)
    if not data.strip():
        raise TableError("is empty.", "Name a file that holds records, or write them into it.")
    if data[:4] == b"PAR1":
        return parquet_rows(io.BytesIO(data))
    if re.search(r"\.(csv|tsv)(\.gz)?$", name, re.IGNORECASE):
        text = decode(data, "utf-8-sig")
        delimiter = "\t" if ".tsv" in name.lower() else ","
        return csv_rows(io.StringIO(text, newline=""), delimiter=delimiter, limit=limit, strict=False)
    return json_rows(data, limit)


def texts(value: Any, name: str) -> tuple[str, ...]:
    """Return the texts that a field holds, each once: a text or a number stands for a list of one, null for none.

    Nothing is stripped; blank texts are left out.

    Raises:
        TableError: Neither a text, a number nor a flat list of them.
    """
    listed = value if isinstance(value, (list, tuple)) else [value]
    kept = []
    for item in listed:
        if isinstance(item, bool) or not isinstance(item, (str, int, float, type(None))):
            raise TableError(f"{name}: {item!r} is not a text.", "Write a text or a list of texts.")
        if item is not None and str(item).strip():
            kept.append(str(item))
    return tuple(dict.fromkeys(kept))


# --- bytes and text -----------------------------------------------------------------------------------------------


def unpacked(data: bytes, limit: int) -> bytes:
    """Return the bytes inside a gzip file, and any other bytes as they are.

    Raises:
        TableError: Broken, or more than `limit` bytes inside.
    """
    if data[:2] != b"\x1f\x8b":
        return data
    try:
        with gzip.open(io.BytesIO(data)) as packed:
            data = packed.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise TableError(f"is a broken gzip file ({error}).", "Write or fetch it again.") from error
    if len(data) > limit:
        raise TableError(f"unpacks to more than {limit // 1_000_000} MB.", "Split it.")
    return data


def marked_encoding(data: bytes) -> str | None:
    """Return the encoding that a byte order mark at the start names, else None."""
    return next((name for mark, name in BOMS if data.startswith(mark)), None)


def decode(data: bytes, encoding: str) -> str:
    """Return the text of all bytes.

    Raises:
        TableError: A byte is not in the encoding; names it and its position.
    """
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        byte = data[error.start : error.start + 1].hex()
        what = f"byte 0x{byte} at position {error.start} is not {_shown(encoding)}."
        raise TableError(what, _remedy(encoding)) from error


def text_lines(file: BinaryIO, encoding: str, newline: str, limit: int) -> Iterator[str]:
    """Yield lines with their ends; of a line longer than `limit`, that many characters and one more.

    Bytes that are not in the encoding come as surrogates, which `csv_rows` and `json_lines` refuse row by row. What
    ends a line is `newline`, as for `open`; `limit` counts characters. The file stays open.

    Raises:
        TableError: The encoding breaks in a way that leaves no later line readable, or a line of a CSV file (newline
            "") is longer than `limit`.
    """
    text = io.TextIOWrapper(file, encoding=encoding, errors="surrogateescape", newline=newline)
    try:
        while line := text.readline(limit + 1):
            if len(line) > limit and not newline:  # what is cut may hold a quote: nothing after it can be trusted
                what = f"a line is longer than {limit // 1_000_000} million characters."
                raise TableError(what, "Split the file.")
            yield line
            while len(line) > limit and not line.endswith("\n"):
                line = text.readline(limit + 1)
    except UnicodeError as error:
        raise TableError(f"is not {_shown(encoding)} from some line on ({error}).", _remedy(encoding)) from error
    finally:
        if not file.closed:  # whoever opened it closes it
            text.detach()


def _shown(encoding: str) -> str:
    return encoding.removesuffix("-sig")


def _remedy(encoding: str) -> str:
    if encoding == "utf-8-sig":  # of a mark, or where nothing else is read: no name would help
        return "Convert it to UTF-8."
    return "Convert it to UTF-8, or name its encoding: encoding='cp1252'."


def _clean(text: str, encoding: str, limit: int) -> str:
    if len(text) > limit:
        raise TableError(f"is longer than {limit // 1_000_000} million characters.", "Split it.")
    bad = None if text.isascii() else BAD_BYTE.search(text)
    if bad:
        byte = f"0x{ord(bad[0]) - 0xDC00:02x}"
        raise TableError(f"byte {byte} at character {bad.start()} is not {_shown(encoding)}.", _remedy(encoding))
    return text


# --- JSON ---------------------------------------------------------------------------------------------------------


def json_rows(data: bytes, limit: int) -> list[TableRow]:
    """Return the rows of JSON of either sort, told apart by content: a list gives one row per item, another value one.

    What is not JSON as a whole is read by `json_lines`; only ASCII white space makes a blank line here. The data
    is UTF-8.

    Raises:
        TableError: A list that does not end or is broken inside, or no line that is JSON.
    """
    try:
        whole = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        if data.removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"[":
            raise TableError(f"is not JSON: {error}.", "It was cut short or edited; fetch it again.") from error
    else:
        values = whole if isinstance(whole, list) else [whole]
        return [TableRow(number, value) for number, value in enumerate(values, 1)]
    rows = list(json_lines(io.BytesIO(data), "utf-8-sig", limit, blank=" \t\n\r\v\f"))
    if all(row.error for row in rows):
        first = "".join(f" (line {row.number} {row.error.reason.rstrip('.')})" for row in rows[:1] if row.error)
        raise TableError(f"is in no known format: not JSON, JSON lines, CSV or Parquet{first}.", "Check what it is.")
    return rows


def json_lines(file: BinaryIO, encoding: str, limit: int, *, blank: str | None = None) -> Iterator[TableRow]:
    """Yield the JSON value of every line that is not blank.

    Only a line feed ends a line, since texts may hold U+2028 and other separators. `blank` are the characters of a
    blank line; None: all white space.

    Raises:
        TableError: As `text_lines`.
    """
    for number, line in enumerate(text_lines(file, encoding, "\n", limit), 1):
        if line.strip(blank):
            yield _row(number, _json_value, line.rstrip("\r\n"), encoding, limit)


def _json_value(line: str, encoding: str, limit: int) -> Any:
    try:
        return json.loads(_clean(line, encoding, limit))
    except RecursionError as error:
        raise TableError("is nested too deeply.", "Flatten it.") from error
    except ValueError as error:
        what = f"character {error.pos}: {error.msg}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise TableError(f"is not JSON ({what}).", "Give one object per line.") from error


# --- CSV ----------------------------------------------------------------------------------------------------------


def csv_rows(
    lines: Iterable[str],
    *,
    delimiter: str,
    limit: int,
    strict: bool,
    encoding: str = "utf-8",
    on_names: Callable[[list[str]], object] | None = None,
) -> Iterator[TableRow]:
    """Yield the rows below the header as dicts of texts; blank lines are passed over.

    A first line ``sep=;`` names the delimiter, as in Excel. A row that opens a quote and never closes it is an error
    that names its lines; the lines it took in are read again when each is a whole row by itself.

    Args:
        lines: With their ends, as `text_lines` yields them when its newline is "".
        delimiter: What separates the cells.
        limit: Characters of a cell.
        strict: Refuse quotes that do not match (in a row of several lines they always are refused) and a header that
            is missing, broken or names a column twice; blanks around names go, and a column without a name is called
            ``column_<n>``. Otherwise names stay as they are, and the last of several columns of one name counts.
        encoding: What `lines` were decoded from, for messages.
        on_names: Called with the names of the columns before the first row.

    Raises:
        TableError: The header is refused, or whatever `lines` raise.
    """
    source = _Lines(lines)
    first = SEP.fullmatch(source.peek())
    if first:
        delimiter = first[1]
        next(source)
    reader = csv.reader(source, delimiter=delimiter, strict=strict)
    header: list[str] | None = None
    number = 0
    while True:
        source.row.clear()
        try:
            cells = _next_cells(reader, limit)
            if not strict and len(source.row) > 1:  # else an open quote makes one cell of all lines to the next quote
                list(csv.reader(source.row, delimiter=delimiter, strict=True))
        except csv.Error as error:
            if strict and header is None:
                raise TableError(f"its header is not CSV ({error}).", "Repair it.") from error
            number += 1
            yield TableRow(number, None, _broken(error, source, header or [], delimiter))
            continue
        if header is None:
            header = _column_names(cells or [], encoding, limit) if strict else cells or []
            if on_names:
                on_names(header)
        elif cells:  # a blank line has none
            number += 1
            yield _row(number, _record, header, cells, encoding, limit)
        if cells is None:
            return


def best_delimiter(file: BinaryIO, encoding: str, wanted: Collection[str]) -> str:
    """Return the one of comma, semicolon, tab and bar that gives the header a wanted name, else the most columns.

    The file is read from its start and put back there.
    """
    sample = file.read(65536).decode(encoding, "replace")
    file.seek(0)
    best, delimiter = (False, 0), ","
    for candidate in ",;\t|":
        try:
            header = next(csv.reader(io.StringIO(sample, newline=""), delimiter=candidate), [])
        except csv.Error:
            continue
        score = (not {name.strip() for name in header}.isdisjoint(wanted), len(header))
        if score > best:
            best, delimiter = score, candidate
    return delimiter


class _Lines:
    """Lines that can be put back.

    Attributes:
        row: Those taken since it was cleared.
        taken: How many are taken and not put back.
        ended: The last one is taken.
    """

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = iter(lines)
        self._again: list[str] = []
        self.row: list[str] = []
        self.taken = 0
        self.ended = False

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._again.pop() if self._again else next(self._lines, None)
        if line is None:
            self.ended = True
            raise StopIteration
        self.taken += 1
        self.row.append(line)
        return line

    def peek(self) -> str:
        line = next(self, "")
        self.put_back([line] if line else [])
        return line

    def put_back(self, lines: list[str]) -> None:
        self._again += reversed(lines)
        self.taken -= len(lines)
        self.ended = self.ended and not lines


def _broken(error: csv.Error, source: _Lines, header: list[str], delimiter: str) -> TableError:
    """Return the error of a row; the lines that its open quote took in by mistake are put back."""
    last, first = source.taken, source.taken - len(source.row) + 1
    after = source.row[1:]
    if not after:
        return TableError(f"is not CSV ({error}).", "Check its quotes.")
    whole = [_is_row(line, len(header), delimiter) for line in after]
    enough = sum(whole) >= SURE or (whole[-1] and not source.ended)  # a quoted row that the open quote broke is telling
    if enough and all(whole if source.ended else whole[:-1]):
        source.put_back(after)
        what = f"a quote opens in line {first} and is not closed where its row ends; only that line is left out."
    else:
        where = "to the end" if source.ended else f"to line {last}"
        what = f"a quote opens in line {first} and is not closed where it should be ({error}); "
        what += f"all {len(after) + 1} lines from there {where} are left out."
    return TableError(what, f"Check the quotes in line {first}.")


def _is_row(line: str, columns: int, delimiter: str) -> bool:
    try:
        return columns > 1 and [len(cells) for cells in csv.reader([line], delimiter=delimiter, strict=True)] == [
            columns
        ]
    except csv.Error:
        return False


def _next_cells(reader: Iterator[list[str]], limit: int) -> list[str] | None:
    """Return the next row, None after the last. The limit of the process is as before when this returns."""
    with _CSV_LIMIT:
        before = csv.field_size_limit(min(limit, 2**31 - 1))
        try:
            return next(reader, None)
        finally:
            csv.field_size_limit(before)


def _column_names(cells: list[str], encoding: str, limit: int) -> list[str]:
    names = [_clean(cell, encoding, limit).strip() or f"column_{number}" for number, cell in enumerate(cells, 1)]
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise TableError(f"its header names {name!r} twice.", "Give every column a name of its own.")
        seen.add(name)
    if not names:
        raise TableError("holds no header.", "Give every column a name of its own in the first line.")
    return names


def _record(header: list[str], cells: list[str], encoding: str, limit: int) -> dict[str, str]:
    if len(cells) != len(header):
        short = len(cells) < len(header)
        raise TableError(
            f"has {len(cells)} cell{'' if len(cells) == 1 else 's'} where the header has {len(header)}.",
            "Give it the missing ones, if only empty." if short else "Quote the cells that hold a delimiter.",
        )
    return {name: _clean(cell, encoding, limit) for name, cell in zip(header, cells, strict=True)}


# --- Parquet ------------------------------------------------------------------------------------------------------


def parquet_rows(
    file: BinaryIO, *, light: bool = False, on_names: Callable[[list[str]], object] | None = None
) -> Iterator[TableRow]:
    """Yield the rows as dicts; before the first, `on_names` is called with the names of all columns.

    `light` leaves out columns of bytes and of vectors, and gives dates and times as texts.

    Raises:
        TableError: Broken.
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
        what = f"is not a readable Parquet file ({_first_line(error)})."
        raise TableError(what, "Write or fetch it again.") from error
    if on_names:
        on_names(schema.names)
    kept = [field.name for field in schema if not _heavy(pa, field.type)] if light else None
    number = 0
    batches = table.iter_batches(batch_size=BATCH, columns=kept, use_threads=False)
    while True:
        try:
            batch = next(batches, None)
            rows = [] if batch is None else _dicts(pa, batch, light)
        except Exception as error:
            what = f"the rows from {number + 1} on cannot be read ({_first_line(error)})."
            raise TableError(what, "Write or fetch the file again.") from error
        if batch is None:
            return
        for row in rows:
            number += 1
            yield TableRow(number, row)


def _heavy(pa: Any, kind: Any) -> bool:
    types = pa.types
    nested = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return bool((nested and types.is_floating(kind.value_type)) or "binary" in str(kind))


def _dicts(pa: Any, batch: Any, light: bool) -> list[dict[str, Any]]:
    columns = [
        (column.cast(pa.string()) if light and pa.types.is_temporal(column.type) else column).to_pylist()
        for column in batch.columns
    ]
    return [dict(zip(batch.schema.names, values, strict=True)) for values in zip(*columns, strict=True)]


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0][:120].rstrip(".")
