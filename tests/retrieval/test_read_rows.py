"""JSON lines, CSV, TSV and Parquet: every record becomes a document or is named with the reason."""

from __future__ import annotations

import datetime
import decimal
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckcontrol.errors import RetrievalError
from ckcontrol.retrieval.reading import many_texts as rows
from ckcontrol.retrieval.reading.read import read
from ckcontrol.retrieval.types import Document, Skipped


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def take(name: str, data: bytes | str, **options: str) -> tuple[list[Document], dict[str, str]]:
    Path(name).write_bytes(data if isinstance(data, bytes) else data.encode())
    skipped: list[Skipped] = []
    documents = list(read(name, on_skip=skipped.append, **options))  # type: ignore[arg-type]
    return documents, {item.name: item.reason for item in skipped}


def one(record: Mapping[str, Any], **options: str) -> Document:
    documents, skipped = take("a.jsonl", json.dumps(record), **options)
    assert not skipped
    return documents[0]


# --- what the fields mean ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["text", "contents", "content", "page_content", "body"])
def test_text_fields(field: str) -> None:
    assert one({"n": 1, field: "x"}) == Document("a.jsonl#1", "x", "a.jsonl", {"path": "a.jsonl", "n": 1})
    assert one({"text": None, field: "x"}).text == "x"


def test_another_text_field() -> None:
    document = one({"text": "no", "abstract": "yes"}, text_field="abstract")
    assert (document.text, document.metadata["text"]) == ("yes", "no")
    _, skipped = take("a.jsonl", '{"text": "no"}', text_field="abstract")
    assert "no field 'abstract'; its fields: 'text'. Name the one" in skipped["a.jsonl line 1"]


@pytest.mark.parametrize(("field", "value", "own"), [("id", "d1", "d1"), ("_id", 7, "7"), ("doc_id", "x/y", "x/y")])
def test_ids(field: str, value: object, own: str) -> None:
    document = one({field: value, "text": "x"})
    assert document.id == own and field not in document.metadata
    assert one({"id": None, field: value, "text": "x"}).id == own
    assert one({"id": " ", "text": "x"}).id == one({"id": {"$oid": 1}, "text": "x"}).id == "a.jsonl#1"


def test_titles() -> None:
    assert one({"title": "Salt", "text": "A mineral."}).text == "Salt\nA mineral."
    assert one({"title": "Salt", "text": "Salt is a mineral."}).text == "Salt is a mineral."
    assert one({"title": " A \n b ", "text": "x"}).metadata["title"] == "A b"
    assert one({"title": "", "text": "x"}).metadata == {"path": "a.jsonl"}


def test_sources() -> None:
    assert one({"source": "Book", "url": "http://a", "text": "x"}).source == "Book"
    assert one({"source": "Book", "url": "http://a", "text": "x"}).metadata["url"] == "http://a"
    assert one({"url": "http://a", "text": "x"}).source == "http://a"
    assert one({"page_content": "x", "metadata": {"source": "b.pdf", "page": 3}}) == Document(
        "a.jsonl#1", "x", "b.pdf", {"path": "a.jsonl", "page": 3}
    )


def test_metadata_holds_plain_values() -> None:
    record = {"text": "x", "i": 1, "f": 0.5, "b": True, "s": "é", "none": None, "list": ["a", 1], "big": 2**70}
    record |= {"nan": float("nan"), "long": "y" * 5000, "vector": [0.1] * 5000, "meta": {"deep": {"er": 1}, "i": 9}}
    metadata = {"i": 1, "f": 0.5, "b": True, "s": "é", "list": '["a", 1]', "big": str(2**70), "deep": '{"er": 1}'}
    assert one(record).metadata == {"path": "a.jsonl", **metadata}
    assert json.loads(json.dumps(dict(one(record).metadata), allow_nan=False)) == one(record).metadata


def test_names_that_an_index_uses_are_moved_aside() -> None:
    document = one({"text": "x", "_id": "d", "id": None, "start": 3, "end": 9, "document": "y", "path": "z"})
    moved = {"start_": 3, "end_": 9, "document_": "y", "path_": "z"}
    assert document == Document("d", "x", "a.jsonl", {"path": "a.jsonl", **moved})


# --- JSON lines -------------------------------------------------------------------------------------------------


def test_every_bad_line_is_named() -> None:
    lines: list[bytes] = [
        b'\xef\xbb\xbf{"text": "good"}\r',
        b"",
        b'{"text": "cut',
        b"[1, 2]",
        b'"text"',
        b'{"text": ["a"]}',
        b'{"text": null}',
        b'{"text": "  "}',
        b'{"body_text": "x"}',
        b'{"text": "Z\xfcrich"}',
        b'{"text": "nul \\u0000"}',
        b'{"text": "half \\ud83d"}',
        b'{"text": "x", "tag": "half \\ude00"}',
        b'{"text": ' + b"[" * 200_000,
        b'{"n": ' + b"9" * 5000 + b', "text": "x"}',
        b'{"text": "last, without an end"}',
    ]
    documents, skipped = take("a.ndjson", b"\n".join(lines))
    assert [(document.id, document.text) for document in documents] == [
        ("a.ndjson#1", "good"),
        ("a.ndjson#16", "last, without an end"),
    ]
    expected = {
        3: "is not JSON (character 9: Unterminated string",
        4: "is a list, not an object",
        5: "is a text, not an object",
        6: "the field 'text' is a list, not a text",
        7: "the field 'text' is null, not a text",
        8: "holds no text",
        9: "no field for the text (text, contents, content, page_content, body); its fields: 'body_text'",
        10: "byte 0xfc at character 11 is not utf-8",
        11: "character 4 is NUL",
        12: "is half a surrogate pair",
        13: "is half a surrogate pair",
        14: "is nested too deeply",
        15: "is not JSON (Exceeds the limit",
    }
    assert list(skipped) == [f"a.ndjson line {number}" for number in expected]
    for number, reason in expected.items():
        assert reason in skipped[f"a.ndjson line {number}"]


def test_jsonl_in_other_encodings() -> None:
    line = '{"text": "Zürich"}\n'
    assert [d.text for d in take("a.jsonl", (line * 2).encode("utf-16"))[0]] == ["Zürich"] * 2
    assert [d.text for d in take("a.jsonl", (line * 2).encode("latin-1"), encoding="latin-1")[0]] == ["Zürich"] * 2
    documents, skipped = take("a.jsonl", (line * 2).encode("utf-16")[:-1])
    assert len(documents) == 1 and "is not utf-16 from some line on" in skipped["a.jsonl"]


def test_an_empty_jsonl() -> None:
    assert take("a.jsonl", "") == ([], {"a.jsonl": "holds no records. Give one JSON object per line."})
    assert take("a.jsonl", "\n \n")[1].keys() == {"a.jsonl"}


def test_a_line_without_end_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "LIMIT", 1000)
    data = '{"text": "a"}\n' + "x" * 5000 + "\n" + "y" * 1000 + "\n" + '{"text": "b"}\n'
    documents, skipped = take("a.jsonl", data)
    assert [document.id for document in documents] == ["a.jsonl#1", "a.jsonl#4"]
    assert "is longer than" in skipped["a.jsonl line 2"]
    assert "a line is longer than" in take("a.csv", "text\nx\n" + "y" * 3000)[1]["a.csv"]


def test_without_on_skip_a_bad_line_raises() -> None:
    Path("a.jsonl").write_text('{"text": "x"}\n{}')
    with pytest.raises(RetrievalError, match=r"a\.jsonl line 2: no field for the text .* its fields: none"):
        list(read("a.jsonl"))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200) | st.text(alphabet='{}[]":,text\\u0d8\n 1é', max_size=80).map(str.encode))
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "a.tsv", "a.parquet", "a.html", "a.pdf", "a.txt"])
def test_any_bytes_are_a_document_or_a_reason(name: str, data: bytes) -> None:
    documents, skipped = take(name, data)
    assert documents or skipped
    for document in documents:
        json.dumps([document.id, document.text, dict(document.metadata)], ensure_ascii=False, allow_nan=False).encode()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_json_array_of_objects_or_of_texts(encoding: str) -> None:
    data = '[\n {"id": "d", "text": "Zürich", "n": 1},\n "plain", "", 3, null, "nul \\u0000"]'
    documents, skipped = take("a.json", data.encode(encoding))
    assert documents == [
        Document("d", "Zürich", "a.json", {"path": "a.json", "n": 1}),
        Document("a.json#2", "plain", "a.json", {"path": "a.json"}),
    ]
    assert list(skipped) == [f"a.json item {number}" for number in (3, 4, 5, 6)]
    assert "holds no text" in skipped["a.json item 3"] and "NUL" in skipped["a.json item 6"]
    assert [d.text for d in take("a.json", '["x", {"y": "z"}]', text_field="y")[0]] == ["x", "z"]


def test_other_json_files() -> None:
    assert [d.text for d in take("a.json", '{\n"text": "x"\n}')[0]] == ["x"]
    assert [d.text for d in take("a.json", '{"text": "x"}\n{"text": "y"}\n')[0]] == ["x", "y"]
    for data, reason in {"": "holds no records", "[]": "holds no records", '[{"text": "x"}': "cut short"}.items():
        documents, skipped = take("a.json", data)
        assert not documents and reason in skipped["a.json"]
    assert "byte 0xfc" in take("a.json", b'["Z\xfcrich"]')[1]["a.json"]
    assert take("a.json", b'["Z\xfcrich"]', encoding="latin-1")[0][0].text == "Zürich"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (json.dumps([{"text": "x", "n": 1}] * 300, indent=2), "is one JSON array over several lines"),
        ("\n[" + ",\n".join(['{"text": "x"}'] * 300) + "]", "is one JSON array over several lines"),
        (json.dumps({"text": "x", "n": 1}, indent=2), "is one JSON object over several lines"),
        ("id,text\n" + "1,x\n" * 300, "none of its first 20 lines is JSON (line 1 is not JSON"),
    ],
)
def test_a_file_that_is_not_json_lines_is_named_once(data: str, reason: str) -> None:
    documents, skipped = take("a.jsonl", data)
    assert not documents and list(skipped) == ["a.jsonl"] and reason in skipped["a.jsonl"]


# --- CSV --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "mark"), [("a.csv", ","), ("a.csv", ";"), ("a.csv", "|"), ("a.csv", "\t"), ("a.tsv", "\t")]
)
def test_csv_delimiters(name: str, mark: str) -> None:
    rows = [["id", "text", "year"], ["1", '"a, b; ""c""|d\n\te"', "1900"], ["2", "x", "1901"]]
    documents, skipped = take(name, "\ufeff" + "\r\n".join(mark.join(row) for row in rows) + "\r\n\r\n")
    assert not skipped
    assert documents[0] == Document("1", 'a, b; "c"|d\n\te', name, {"path": name, "year": 1900})
    assert len(documents) == 2


def test_csv_cells() -> None:
    cells = {"int": "12", "neg": "-3", "float": "1.50", "zip": "007", "exp": "1e5", "plus": "+1", "date": "2020-01-01"}
    data = ",".join(["text", "title", *cells, "blank", ""]) + "\n" + ",".join(["x", "1984", *cells.values(), " ", "u"])
    ((document,), skipped) = take("a.csv", data)
    assert not skipped and document.text == "1984\nx"
    changed = {"int": 12, "neg": -3, "float": 1.5, "column_11": "u", "title": "1984", "path": "a.csv"}
    assert document.metadata == cells | changed


def test_csv_rows_that_do_not_fit() -> None:
    data = b'id,text\n1,good\n2\n3,x,y\n4,"a"b\n5,Z\xfcrich\n6,\n7,good again\n8,"never closed\n9,x\n'
    documents, skipped = take("a.csv", data)
    assert [document.id for document in documents] == ["1", "7"]
    assert list(skipped) == [f"a.csv row {number}" for number in (2, 3, 4, 5, 6, 8)]
    reasons = list(skipped.values())
    assert "has 1 cell where the header has 2" in reasons[0] and "missing ones" in reasons[0]
    assert "has 3 cells where the header has 2" in reasons[1] and "Quote" in reasons[1]
    assert "Quote" not in reasons[0] and "is not CSV" in reasons[2]
    assert "0xfc" in reasons[3] and "holds no text" in reasons[4] and "unexpected end of data" in reasons[5]


@pytest.mark.parametrize("later", [None, 20, 50])
def test_an_open_quote_costs_its_own_row(later: int | None) -> None:
    """Below it every line is a whole row; a second quote, in a later row, would close it in the middle."""
    rows = [f'{n},"row {n}' if n == 2 else f'{n},"row {n}"' if n == later else f"{n},row {n}" for n in range(1, 51)]
    documents, skipped = take("a.csv", "id,text\n" + "\n".join(rows) + "\n")
    assert [document.id for document in documents] == [str(n) for n in range(1, 51) if n != 2]
    assert documents[-1].text == "row 50"
    ((name, reason),) = skipped.items()
    assert name == "a.csv row 2" and "a quote opens in line 3" in reason


def test_an_open_quote_over_what_may_be_prose_names_all_it_costs() -> None:
    documents, skipped = take("a.csv", 'id,text\n1,good\n2,"a poem\nof two lines, and\nno end\n')
    assert [document.id for document in documents] == ["1"]
    assert "opens in line 3" in skipped["a.csv row 2"] and "all 3 lines from there to the end" in skipped["a.csv row 2"]


def test_open_quotes_in_every_line_take_no_quadratic_time() -> None:
    for line in ('a","c\n', '"a,b\n', 'a,"b\n', 'a,b\n"c\n'):
        take("a.csv", "id,text\n" + line * 50_000)


@pytest.mark.parametrize("start", ["sep=;\n", '"sep=;"\r\n', "\ufeffSEP=;\n"])
def test_the_first_line_of_excel_names_the_delimiter(start: str) -> None:
    assert [d.text for d in take("a.csv", f"{start}id;text\n1;a,b,c\n")[0]] == ["a,b,c"]


def test_a_wide_header_takes_no_quadratic_time() -> None:
    columns = 100_000
    data = ",".join(f"c{n}" for n in range(columns)) + ",text\n" + "1," * columns + "x\n"
    ((document,), skipped) = take("a.csv", data)
    assert document.text == "x" and len(document.metadata) == columns + 1 and not skipped
    assert "names 'text' twice" in take("a.csv", f"text,{data}")[1]["a.csv"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("", "holds no header"),
        ("text,text\na,b", "its header names 'text' twice"),
        ("id,name\n1,x", "no field for the text"),
        ("id,text\n", "holds no rows"),
        (b"id,t\xe9xt\n1,x", "byte 0xe9"),
    ],
)
def test_csv_headers(data: bytes | str, reason: str) -> None:
    documents, skipped = take("a.csv", data)
    assert not documents and reason in skipped["a.csv"]


# --- Parquet ----------------------------------------------------------------------------------------------------


def parquet(**columns: object) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, row_group_size=100)
    return bytes(sink.getvalue().to_pybytes())


def test_parquet_rows() -> None:
    data = parquet(
        text=["a", None, "c"],
        _id=[10, 11, 12],
        day=pa.array([datetime.date(2020, 1, 2), None, None]),
        late=pa.array([3_000_000] * 3, pa.date32()),
        at=pa.array([1, 2, 3], pa.timestamp("ns")),
        price=pa.array([decimal.Decimal("1.50"), None, None]),
        kind=pa.array(["p", "q", "p"]).dictionary_encode(),
        tags=[["x"], [], None],
        metadata=[{"lang": "en", "source": "Book"}] * 3,
        blob=[b"\0"] * 3,
        vector=[[0.5] * 8] * 3,
    )
    documents, skipped = take("a.parquet", data)
    assert skipped == {"a.parquet row 2": "the field 'text' is null, not a text. Name another with text_field=."}
    assert [document.id for document in documents] == ["10", "12"]
    assert (documents[0].text, documents[0].source) == ("a", "Book")
    assert documents[0].metadata == {
        "path": "a.parquet",
        "day": "2020-01-02",
        "late": "10183-09-21",
        "at": "1970-01-01 00:00:00.000000001",
        "price": 1.5,
        "kind": "p",
        "tags": '["x"]',
        "lang": "en",
    }


def test_parquet_of_several_groups_keeps_count() -> None:
    documents, _ = take("a.parquet", parquet(**{"te.xt": [f"n{n}" for n in range(250)]}), text_field="te.xt")
    assert [(d.id, d.text) for d in documents] == [(f"a.parquet#{n + 1}", f"n{n}") for n in range(250)]


def test_parquet_that_is_broken() -> None:
    data = parquet(text=[f"a long enough text {n}" * 20 for n in range(250)])
    for piece in (b"", b"PAR1", data[:100], data[:-20], b"no parquet at all"):
        assert "is not a readable Parquet file" in take("a.parquet", piece)[1]["a.parquet"]
    torn = bytearray(data)
    torn[8:40] = b"\xff" * 32
    assert "the rows from 1 on cannot be read" in take("a.parquet", bytes(torn))[1]["a.parquet"]
    assert "no field for the text" in take("a.parquet", parquet(name=["x"]))[1]["a.parquet"]
    assert "holds no rows" in take("a.parquet", parquet(text=pa.array([], pa.string())))[1]["a.parquet"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is measured as Linux counts it")
def test_parquet_is_never_whole_in_memory() -> None:
    """One row group of 120 MB, as pyarrow writes by default; read as pyarrow reads by default, it is all held."""
    text = ("x" * 999 + " ") * 2
    table = pa.table({"text": pa.array([text]).take(pa.array([0] * 60_000))})
    pq.write_table(table, "a.parquet", compression="none", use_dictionary=False)
    code = (
        "import pyarrow.parquet; from ckcontrol.retrieval.reading.read import read\n"
        "peak = lambda: int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) // 1000\n"
        "before = peak(); assert sum(1 for _ in read('a.parquet')) == 60_000; print(peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 60
