"""Readers: every format by its content, every fault by its row, and never a crash or a silent loss."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
from pathlib import Path

import pytest

from ckcontrol.errors import EvalError, MissingExtra
from ckcontrol.eval.items import readers
from ckcontrol.eval.items.readers import Row, parse, read
from ckcontrol.eval.records import Rejected

from .data import fixture


def rows(data: bytes, name: str = "f.json") -> list:
    return [row.data if isinstance(row, Row) else row for row in parse(data, name)]


@pytest.mark.parametrize("name", ["f.json", "f.jsonl", "f.txt"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[{"a": 1}, {"a": 2}]', [{"a": 1}, {"a": 2}]),
        ('{"a": 1}\n{"a": 2}\n', [{"a": 1}, {"a": 2}]),
        ('{"a": 1}\r\n\r\n{"a": 2}', [{"a": 1}, {"a": 2}]),
        ('{\n "a": 1\n}', [{"a": 1}]),
        ("\ufeff[1, 2]", [1, 2]),
        ('\ufeff{"a": 1}\n{"a": 2}', [{"a": 1}, {"a": 2}]),
        ('{"a": "x\u2028y\u2029z\x85"}\n{"a": "\u2028"}', [{"a": "x\u2028y\u2029z\x85"}, {"a": "\u2028"}]),
    ],
)
def test_json_and_json_lines_are_told_apart_by_content(name: str, text: str, expected: list) -> None:
    assert rows(text.encode(), name) == expected
    assert rows(gzip.compress(text.encode()), f"{name}.gz") == expected
    assert rows(gzip.compress(text.encode()), name) == expected, "packed, whatever it is called"


def test_a_bad_line_is_rejected_and_the_others_keep_their_numbers() -> None:
    found = list(parse(b'{"a": 1}\n{"a": \n\xff\xfe\n' + b"[" * 100_000 + b'\n{"a": 5}\n', "f.jsonl"))
    assert [row.number for row in found if isinstance(row, Row)] == [0, 4]
    bad = [row for row in found if isinstance(row, Rejected)]
    assert [(row.id, row.reason) for row in bad] == [(f"f.jsonl:{n}", "malformed") for n in (1, 2, 3)]
    assert all(row.detail for row in bad)


@pytest.mark.parametrize(
    ("data", "name", "words"),
    [
        (b"", "f.json", "is empty"),
        (b" \n", "f.json", "is empty"),
        (b'[{"a": 1}, {"a"', "f.json", "cut short"),
        (b"plain words\nand more", "f.json", "in no known format: not JSON"),
        (b"\xff\xfe\x00", "f.json", "in no known format: not JSON"),
        (b"\x1f\x8bbroken", "f.gz", "broken gzip"),
        (gzip.compress(b'{"a": 1}' * 99, mtime=0)[:-12], "f.gz", "broken gzip"),
        (b"a,b\n\xff,1\n", "f.csv", "byte 0xff at position 4 is not utf-8"),
        (b"PAR1 and no more", "f.parquet", "not a readable Parquet file"),
    ],
)
def test_a_file_that_is_no_use_says_why(data: bytes, name: str, words: str) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    with pytest.raises(EvalError, match=words):
        list(parse(data, name))


def test_too_large_when_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "LIMIT", 1000)
    with pytest.raises(EvalError, match="unpacks to more than"):
        list(parse(gzip.compress(b"[" + b" " * 2000 + b"]"), "f.gz"))


def test_csv_with_a_mark_line_breaks_and_big_fields() -> None:
    big = "x" * 200_000
    text = f'\ufeffprompt,classes\r\n"two\nlines, ""quoted""",1\r\n\r\n{big},2\r\nshort\r\n1,2,3\r\nlast,3\r\n'
    found = rows(text.encode(), "f.csv")
    assert [row["prompt"] for row in found if isinstance(row, dict)] == ['two\nlines, "quoted"', big, "last"]
    bad = [row for row in found if isinstance(row, Rejected)]
    assert [(row.id, row.detail) for row in bad] == [
        ("f.csv:2", "has 1 cell where the header has 2"),
        ("f.csv:3", "has 3 cells where the header has 2"),
    ]
    assert rows(b"a\tb\n1,5\t2\n", "f.tsv") == [{"a": "1,5", "b": "2"}]
    assert rows(gzip.compress(b"a,b\n1,2\n"), "f.csv.gz") == [{"a": "1", "b": "2"}]


@pytest.mark.parametrize("later", ["3,c", '3,"c"'])
def test_an_open_quote_takes_in_no_other_row(later: str) -> None:
    found = rows(f'q,a\n1,a\n2,"b\n{later}\n4,d\n5,e\n'.encode(), "f.csv")
    assert [row["q"] for row in found if isinstance(row, dict)] == ["1", "3", "4", "5"]
    (bad,) = (row for row in found if isinstance(row, Rejected))
    assert bad.id == "f.csv:1" and "a quote opens in line 3" in bad.detail


def test_the_first_line_of_excel_names_the_delimiter() -> None:
    assert rows(b"sep=;\r\nq;a\r\n1;x,y\r\n", "f.csv") == [{"q": "1", "a": "x,y"}]


def test_parquet() -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    sink = io.BytesIO()
    parquet.write_table(pyarrow.table({"q": ["a\u2028", "b"], "answers": [["x", "y"], None]}), sink)
    expected = [{"q": "a\u2028", "answers": ["x", "y"]}, {"q": "b", "answers": None}]
    assert rows(sink.getvalue(), "no_suffix") == expected


def test_parquet_without_pyarrow_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r'pip install (-e )?".*\[retrieval\]"'):
        list(parse(b"PAR1....", "f.parquet"))


def test_the_sum_is_that_of_the_bytes_on_disk(tmp_path: Path) -> None:
    packed = gzip.compress(b'{"a": 1}\n{"a": 2}\n')
    (tmp_path / "f.json.gz").write_bytes(packed)
    data = read(tmp_path / "f.json.gz")
    assert data.sha256 == hashlib.sha256(packed).hexdigest() == data.files["f.json.gz"]


def test_a_folder_is_read_in_the_order_of_names_and_only_its_data(tmp_path: Path) -> None:
    for name, text in {
        "b.jsonl": '{"a": 2}\n{"a": 3}',
        "a.json": '[{"a": 1}]',
        "sub/c.csv": "a\n4\n",
        "README.md": "no data",
        ".hidden.json": "[9]",
        ".cache/d.json": "[9]",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    data = read(tmp_path)
    assert [(row.file, row.number) for row in data.rows] == [
        ("a.json", 0),
        ("b.jsonl", 0),
        ("b.jsonl", 1),
        ("sub/c.csv", 0),
    ]
    listing = "".join(
        f"{hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()}  {name}\n"
        for name in ("a.json", "b.jsonl", "sub/c.csv")
    )
    assert data.sha256 == hashlib.sha256(listing.encode()).hexdigest()
    assert [row.file for row in read(tmp_path, file="*.csv").rows] == ["sub/c.csv"]
    with pytest.raises(EvalError, match=r"matches '\*\.parquet'.*a\.json, b\.jsonl"):
        read(tmp_path, file="*.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(EvalError, match="holds no data file"):
        read(tmp_path / "empty")


def test_nothing_there() -> None:
    with pytest.raises(EvalError, match=r"there is no 'no/such/file\.json'"):
        read("no/such/file.json")


def test_a_hub_id_without_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(EvalError, match=r"could not be fetched.*Download its file by hand"):
        read("nobody/nothing-of-the-kind")


def test_a_hub_id_without_huggingface_hub_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(EvalError, match="needs huggingface_hub"):
        read("nobody/nothing-of-the-kind")


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    path.write_text("[1]", encoding="utf-8")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(EvalError, match="cannot be read"):
        read(path)


def test_the_fixture_with_other_line_separators_keeps_its_rows() -> None:
    data = read(fixture("canonical.jsonl"))
    assert len(data.rows) == 8
    assert [item.id for item in data.rejected] == ["canonical.jsonl:3"]
    assert "\u2028" in data.rows[0].data["context"]
    assert json.dumps(data.files)
