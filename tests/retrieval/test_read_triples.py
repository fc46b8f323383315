"""Triples as a source: sentences, names, dates that can be filtered on, and files that mean harm."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from ckcontrol.errors import MissingExtra, RetrievalError
from ckcontrol.retrieval import Document, Index, Passage, Skipped, read
from ckcontrol.retrieval.reading.triples import dates_of, sentence

from .hashes import Hashes

PREFIXES = """@prefix e: <http://e.org/> .
@prefix rdf: <http://www.w3.org/1999/02/22-rdf-syntax-ns#> .
@prefix rdfs: <http://www.w3.org/2000/01/rdf-schema#> .
"""


def documents(path: Path, text: str) -> tuple[dict[str, Document], list[Skipped]]:
    path.write_text(text, encoding="utf-8")
    skipped: list[Skipped] = []
    return {document.text: document for document in read(path, on_skip=skipped.append)}, skipped


def test_the_rows_of_a_csv_file_become_sentences_with_dates(tmp_path: Path) -> None:
    rows = (
        "subject,predicate,object,valid_from,valid_to,source\n"
        "Ada,was born in,London,,,register\n"
        "Rishi Sunak,position held,prime minister,2022-10-25,2024-07,gov.uk\n"
        "Keir Starmer,position held,prime minister,2024-07-05,,gov.uk\n"
        "X,is,y,May 2020,,\n"
        "X,is,,,,\n"
    )
    found, skipped = documents(tmp_path / "facts.csv", rows)
    assert list(found) == [
        "Ada was born in London.",
        "Rishi Sunak, position held: prime minister (from 2022-10-25 to 2024-07).",
        "Keir Starmer, position held: prime minister (from 2024-07-05).",
    ]
    ada, sunak, starmer = found.values()
    assert "valid_from" not in ada.metadata and ada.source == "register"
    assert (sunak.metadata["valid_from"], sunak.metadata["valid_to"]) == ("2022-10-25", "2024-07-31")
    assert starmer.metadata["valid_to"] == "9999-12-31"
    assert [item.name.rpartition(" ")[2] for item in skipped] == ["4", "5"]
    assert "'May 2020' is not a date" in skipped[0].reason and "object" in skipped[1].reason


def test_a_text_field_outranks_the_triple(tmp_path: Path) -> None:
    found, _ = documents(tmp_path / "f.jsonl", '{"text": "Whole.", "subject": "a", "predicate": "b", "object": "c"}')
    assert list(found) == ["Whole."]
    found, _ = documents(tmp_path / "g.jsonl", '{"subject": "http://e.org/New_York", "relation": "part of", "object": 5}')
    assert list(found) == ["New York part of 5."]


def test_a_day_is_found_among_dates(tmp_path: Path) -> None:
    path = tmp_path / "facts.tsv"
    path.write_text("subject\tpredicate\tobject\tvalid_from\tvalid_to\nA\theld\tx\t2020\t2021\nB\theld\tx\t2022\t\n")
    day = {"valid_from": {"$lte": "2021-06-30"}, "valid_to": {"$gte": "2021-06-30"}}
    passages = [Passage(found.id, found.text, found.source, found.metadata) for found in read(path)]
    with Index.build(passages, Hashes()) as index:
        assert [hit.passage.text for hit in index.search("who held x", where=day)] == ["A, held: x (from 2020 to 2021)."]


@pytest.mark.parametrize("text", ["2021-13", "2021-02-30", "0000", "yesterday", "21-1-1"])
def test_what_is_no_date_is_refused(text: str) -> None:
    with pytest.raises(RetrievalError, match=text):
        dates_of({"valid_from": text})


def test_a_sentence_ends_once() -> None:
    assert sentence("A", "motto", "Go!") == "A, motto: Go!"


def test_without_rdflib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rdflib", None)
    for name in ("a.nt", "a.ttl"):
        with pytest.raises(MissingExtra, match=r"ckcontrol\[rdf\]"):
            documents(tmp_path / name, "")


def test_turtle_is_read_by_its_labels(tmp_path: Path) -> None:
    pytest.importorskip("rdflib")
    text = f"""{PREFIXES}
e:Q64 rdfs:label "Berlin (Stadt)"@de, "Berlin"@en ; e:capitalOf e:Germany ; a e:BigCity ; e:motto "Sei Berlin"@de .
e:capitalOf rdfs:label e:loop . e:loop rdfs:label e:capitalOf .
[] a rdf:Statement ; rdf:subject e:Q64 ; rdf:predicate e:mayor ; rdf:object "Kai Wegner" ;
   e:validFrom "2023-04" ; e:source "Senate" .
[] e:knows e:Q64 .
"""
    found, skipped = documents(tmp_path / "a.ttl", text)
    wanted = {
        "Berlin capital of Germany.",
        "Berlin is a Big City.",
        "Berlin, motto: Sei Berlin.",
        "Berlin, label: Berlin (Stadt).",
        "Berlin, mayor: Kai Wegner (from 2023-04).",
    }
    assert wanted < set(found)
    assert found["Berlin, motto: Sei Berlin."].metadata["language"] == "de"
    mayor = found["Berlin, mayor: Kai Wegner (from 2023-04)."]
    assert mayor.source == "Senate" and mayor.metadata["valid_from"] == "2023-04-01"
    assert mayor.metadata["subject"] == "http://e.org/Q64"
    assert "1 of its triples" in skipped[0].reason
    again, _ = documents(tmp_path / "a.ttl", text + "e:New e:is e:there .")
    assert {document.id for document in found.values()} < {document.id for document in again.values()}


def test_a_bad_line_of_ntriples_costs_itself_alone(tmp_path: Path) -> None:
    pytest.importorskip("rdflib")
    lines = '<http://e/A> <http://e/ownedBy> <http://e/B> .\nnonsense\n# note\n<http://e/A> <http://e/n> "5\\n6" .\n'
    found, skipped = documents(tmp_path / "a.nt", lines)
    assert set(found) == {"A owned by B.", "A, n: 5 6."}
    assert skipped[0].name.endswith("line 2")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"{PREFIXES}\ne:a e:b e:c ;\n e:d \"x .\n", "line 6"),
        (f"{PREFIXES}e:a e:b {'[ e:b ' * 3000}", "line 4 is more than 100 brackets deep"),
        (f"{PREFIXES}e:a e:b {'(' * 3000}", "brackets deep"),
        ("e:a e:b e:c .", "line 1"),
        ("", "no triples"),
    ],
)
def test_hostile_turtle_is_refused_with_its_line(tmp_path: Path, text: str, reason: str) -> None:
    pytest.importorskip("rdflib")
    found, skipped = documents(tmp_path / "a.ttl", text)
    assert not found and reason in skipped[0].reason


def test_nothing_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rdflib")

    def refuse(*_: object, **__: object) -> None:
        raise OSError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    text = "@base <http://e.org/base> . @prefix owl: <http://www.w3.org/2002/07/owl#> . <> owl:imports <http://e.org/x> ."
    found, skipped = documents(tmp_path / "a.ttl", text)
    assert set(found) == {"base, imports: x."} and not skipped
