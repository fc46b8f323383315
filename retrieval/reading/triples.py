"""Triples to one-sentence documents: N-Triples and Turtle, and records with subject, predicate and object.

Knows names, sentences and dates; RDF is parsed by rdflib, which is given text and so fetches nothing. The rows of
tables are read in `many_texts`, which asks here what a triple among them says.
"""

from __future__ import annotations

import calendar
import hashlib
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO
from urllib.parse import quote, unquote

from ckcontrol.errors import MissingExtra, RetrievalError
from ckcontrol.tables import decode, marked_encoding

from ..types import Document, Skipped
from .one_text import Source, fit

__all__ = ["is_triple", "read_ntriples", "read_turtle", "sentence", "triple_record"]

LIMIT = 50_000_000  # bytes of an RDF file, whose graph is held in memory at some ten times its size
DEEPEST = 100  # brackets inside brackets in Turtle, which rdflib reads by recursion
VALUE_LIMIT = 4_000  # characters of one metadata value: every passage of the document repeats it
PREDICATES = ("predicate", "relation")
ENDS = {"valid_from": "0001-01-01", "valid_to": "9999-12-31"}  # what a missing date of a triple with dates becomes
DATE = re.compile(r"(\d{4})(?:-(\d\d)(?:-(\d\d)(?:[T ].*)?)?)?(?:Z|[+-]\d\d:\d\d)?")
IRI = re.compile(r"[a-z][a-z0-9+.-]*:[^\s]+", re.IGNORECASE)
WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[_\s]+")
CARRIES = {"is", "was", "are", "were", "has", "had"}  # a predicate that begins so is a whole clause
LINKS = {"of", "in", "by", "at", "on", "from", "to", "for", "with", "as", "into", "near"}  # or that ends so
QUOTED = re.compile(r'"""(?:[^"\\]|\\.|"(?!""))*"""|"(?:[^"\\\n]|\\.)*"|<[^<>\s]*>|#[^\n]*|[\[\](){}]', re.DOTALL)
RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
TYPE = f"{RDF}type"
PARTS = (f"{RDF}subject", f"{RDF}predicate", f"{RDF}object")
NAMES = ("http://www.w3.org/2000/01/rdf-schema#label", "http://www.w3.org/2004/02/skos/core#prefLabel")
ABOUT = {  # local names of what a statement about a triple says, folded
    **dict.fromkeys(("validfrom", "startdate", "starttime", "startedattime"), "valid_from"),
    **dict.fromkeys(("validto", "validuntil", "enddate", "endtime", "endedattime"), "valid_to"),
    **dict.fromkeys(("source", "wasderivedfrom"), "source"),
}


# --- sentences --------------------------------------------------------------------------------------------------


def sentence(subject: str, predicate: str, object: str, dates: Mapping[str, str] = {}) -> str:
    """Return a triple of readable names as one sentence, with the dates between which it held.

    >>> sentence("Rishi Sunak", "position held", "prime minister", {"valid_from": "2022-10-25"})
    'Rishi Sunak, position held: prime minister (from 2022-10-25).'
    >>> sentence("Paris", "capital of", "France")
    'Paris capital of France.'
    """
    words = predicate.split()
    whole = bool(words) and (words[0].lower() in CARRIES or words[-1].lower() in LINKS)
    link = " is a " if predicate == "type" else f" {predicate} " if whole else f", {predicate}: "
    held = " ".join(f"{'from' if name == 'valid_from' else 'to'} {dates[name]}" for name in ENDS if dates.get(name))
    said = f"{subject}{link}{object.strip()}{f' ({held})' if held else ''}"
    return said if said.endswith((".", "!", "?")) else f"{said}."


def local_name(iri: str, *, predicate: bool = False) -> str:
    """Return the readable end of an IRI: what follows the last of ``#``, ``/`` and ``:``, cut into words.

    >>> local_name("http://dbpedia.org/ontology/birthPlace", predicate=True)
    'birth place'
    >>> local_name("http://dbpedia.org/resource/New_York_City")
    'New York City'
    """
    end = re.split(r"[#/:]", iri.rstrip("#/:"))[-1] or iri
    words = " ".join(WORDS.sub(" ", unquote(end)).split()) or iri
    return words.lower() if predicate and not words.isupper() else words


def _readable(value: Any, name: str) -> str:
    """Return a cell of a triple as text: an IRI as its local name, a number as it is written."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)) or not str(value).strip():
        raise RetrievalError(f"the {name} of the triple is {value!r:.60}, not a text.", "Give all three.")
    text = " ".join(str(value).split())
    return local_name(text, predicate=name in PREDICATES) if IRI.fullmatch(text) and "//" in text else text


def is_triple(names: Iterable[str]) -> bool:
    """Return whether the fields of a record are those of a triple."""
    there = set(names)
    return {"subject", "object"} <= there and any(name in there for name in PREDICATES)


def triple_record(fields: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return what a record with subject, predicate (or relation) and object says, and its fields with dates as texts.

    Raises:
        RetrievalError: One of the three is blank or no text, or a date is none.
    """
    name = next(name for name in PREDICATES if name in fields)
    parts = {part: _readable(fields[part], part) for part in ("subject", name, "object")}
    given = {end: str(fields[end]).strip() for end in ENDS if fields.get(end) not in (None, "")}
    text = sentence(*parts.values(), given)
    return text, {**fields, **dates_of(given)}


def dates_of(given: Mapping[str, str]) -> dict[str, str]:
    """Return ``valid_from`` and ``valid_to`` as whole ISO days, which compare as texts; {} where neither is given.

    A year or a month stands for its first day in ``valid_from`` and its last in ``valid_to``. A missing end is
    ``0001-01-01`` or ``9999-12-31``, so that conditions on both find what held on a day.

    >>> dates_of({"valid_from": "2021", "valid_to": "2022-02"})
    {'valid_from': '2021-01-01', 'valid_to': '2022-02-28'}

    Raises:
        RetrievalError: Not a date.
    """
    return {name: _day(name, given[name]) if given.get(name) else ENDS[name] for name in ENDS} if given else {}


def _day(name: str, text: str) -> str:
    found = DATE.fullmatch(text)
    year, month, day = (int(part) if part else 0 for part in found.groups()) if found else (0, 0, 0)
    last = name == "valid_to"
    month = month or (12 if last else 1) if not found or not found[2] else month
    days = calendar.monthrange(year, month)[1] if year and 1 <= month <= 12 else 0
    day = (days if last else 1) if not found or not found[3] else day
    if not 1 <= day <= days:
        raise RetrievalError(f"{name} {text[:40]!r} is not a date.", "Write 2021-05-31, 2021-05 or 2021.")
    return f"{year:04}-{month:02}-{day:02}"


# --- RDF --------------------------------------------------------------------------------------------------------


def read_ntriples(file: BinaryIO, source: Source) -> Iterator[Document | Skipped]:
    """Yield the triples of an N-Triples file, as `_documents` says; a line that is none is skipped by its number.

    Raises:
        RetrievalError: Too large, or nothing in it.
        TableError: Not in its encoding.
        MissingExtra: rdflib is not installed.
    """
    rdflib = _rdflib()
    from rdflib.plugins.parsers.ntriples import NTGraphSink, ParseError, W3CNTriplesParser

    text = _text(file, source)
    graph = rdflib.Graph()
    parser, bad = W3CNTriplesParser(NTGraphSink(graph)), 0
    with _quiet():
        for number, line in enumerate(text.split("\n"), 1):
            try:
                parser.parsestring(f"{line}\n")
            except (ParseError, ValueError, RecursionError) as error:
                bad += 1
                yield Skipped(f"{source.name} line {number}", f"is not a triple ({_why(error)}). Repair or leave it.")
    yield from _documents(graph, source, bad > 0)


def read_turtle(file: BinaryIO, source: Source) -> Iterator[Document | Skipped]:
    """Yield the triples of a Turtle file, as `_documents` says.

    Raises:
        RetrievalError: Too large, nested too deep, not Turtle (the line is named), or nothing in it.
        TableError: Not in its encoding.
        MissingExtra: rdflib is not installed.
    """
    rdflib = _rdflib()
    from rdflib.exceptions import ParserError
    from rdflib.plugins.parsers.notation3 import BadSyntax

    text = _text(file, source)
    _check_depth(text)
    graph = rdflib.Graph()
    try:
        with _quiet():
            graph.parse(data=text, format="turtle", publicID=f"file:///{quote(source.name.lstrip('/'))}")
    except BadSyntax as error:
        why = " ".join(str(error._why).split())[:120]
        raise RetrievalError(f"is not Turtle: line {error.lines + 1}: {why}.", "Repair it.") from error
    except (ParserError, ValueError, LookupError, RecursionError, TypeError, AttributeError) as error:
        raise RetrievalError(f"cannot be read as Turtle ({_why(error)}).", "Repair it.") from error
    yield from _documents(graph, source, False)


def _documents(graph: Any, source: Source, damaged: bool) -> Iterator[Document | Skipped]:
    """Yield every triple as a document of one sentence, sorted by its parts.

    A thing is called by its rdfs:label or skos:prefLabel (without language, else English, else the first), else by the
    end of its IRI; these labels are no documents. The id comes from the triple, so that a file may be sorted anew.
    Metadata: subject, predicate and object as IRIs or values, language, datatype, and of a triple that an rdf:Statement
    speaks about valid_from, valid_to and the source. What has no name at all (a blank node without a label) is left
    out, and counted.
    """
    from rdflib import BNode, Literal, URIRef

    names: dict[Any, Any] = {}
    for label in NAMES:
        for thing, text in graph.subject_objects(URIRef(label)):
            if isinstance(text, Literal) and str(text).strip():
                names[thing] = min((names.get(thing), text), key=_language)
    about, statements = _statements(graph)
    labels = set(map(URIRef, NAMES))
    said = {triple: None for triple in graph if triple[0] not in statements}
    wanted = {triple: None for triple in said if triple[1] not in labels or str(names.get(triple[0])) != str(triple[2])}
    nameless = 0
    empty = True
    for triple in sorted(wanted | dict.fromkeys(about), key=_key):
        thing, predicate, value = triple
        if any(isinstance(part, BNode) and part not in names for part in triple):
            nameless += 1
            continue
        empty = False
        try:
            yield _document(source, triple, names, about.get(triple, {}), isinstance(value, Literal))
        except RetrievalError as error:
            yield Skipped(f"{source.name} triple {thing} {predicate}"[:200], str(error))
    if nameless:
        what = f"{nameless} of its triples have a part without a name (a blank node without rdfs:label)."
        yield Skipped(source.name, f"{what} Give them an IRI or a label.")
    elif empty and not damaged:
        raise RetrievalError("holds no triples.", "Leave it out.")


def _document(source: Source, triple: Any, names: Any, about: Mapping[str, str], literal: bool) -> Document:
    thing, predicate, value = triple
    metadata: dict[str, Any] = {"path": source.name}
    parts = {"subject": thing, "predicate": predicate, "object": value}
    metadata |= {name: str(part) for name, part in parts.items() if len(str(part)) <= VALUE_LIMIT}
    if literal and value.language:
        metadata["language"] = value.language
    elif literal and value.datatype:
        metadata["datatype"] = str(value.datatype)
    given = {name: about[name] for name in ENDS if name in about}
    said = [_called(thing, names), _called(predicate, names, predicate=True)]
    said.append(" ".join(str(value).split()) if literal else _called(value, names))
    if str(predicate) == TYPE:
        said[1] = "type"
    key = hashlib.sha256(_key(triple).encode("utf-8", "surrogatepass")).hexdigest()[:16]
    text = sentence(said[0], said[1], said[2], given)
    return fit(Document(f"{source.name}#{key}", text, about.get("source", source.name), metadata | dates_of(given)))


def _key(triple: Any) -> str:
    return " ".join(f'<{part}>' if not hasattr(part, "language") else part.n3() for part in triple)


def _statements(graph: Any) -> tuple[dict[Any, dict[str, str]], set[Any]]:
    """Return what rdf:Statements say of their triples, and the statements themselves."""
    from rdflib import Literal, URIRef

    about: dict[Any, dict[str, str]] = {}
    statements = set()
    for statement in graph.subjects(URIRef(PARTS[0]), unique=True):
        triple = tuple(graph.value(statement, URIRef(part), any=True) for part in PARTS)
        if None in triple or not isinstance(triple[1], URIRef) or isinstance(triple[0], Literal):
            continue
        statements.add(statement)
        kept = about.setdefault(triple, {})
        for predicate, value in graph.predicate_objects(statement):
            name = ABOUT.get(local_name(str(predicate)).replace(" ", "").lower())
            if name and str(value).strip():
                kept[name] = str(value).strip()
    return about, statements


def _called(thing: Any, names: Mapping[Any, Any], *, predicate: bool = False) -> str:
    return " ".join(str(names[thing]).split()) if thing in names else local_name(str(thing), predicate=predicate)


def _language(text: Any) -> tuple[int, str, str]:
    """Sort labels: without language, English, any other; none at all last."""
    if text is None:
        return (3, "", "")
    language = (text.language or "").lower()
    return (0 if not language else 1 if language.partition("-")[0] == "en" else 2, language, str(text))


def _check_depth(text: str) -> None:
    depth, line, start = 0, 1, 0
    for found in QUOTED.finditer(text):
        if found[0] in ("[", "(", "{"):
            depth += 1
            if depth > DEEPEST:
                line += text.count("\n", start, found.start())
                raise RetrievalError(f"line {line} is more than {DEEPEST} brackets deep.", "Name the things in it.")
        elif found[0] in ("]", ")", "}"):
            depth -= 1


def _text(file: BinaryIO, source: Source) -> str:
    data = file.read(LIMIT + 1)
    if len(data) > LIMIT:
        raise RetrievalError(f"is larger than {LIMIT // 1_000_000} MB.", "Split it, or write the triples as CSV.")
    return decode(data, marked_encoding(data) or source.encoding or "utf-8")


def _rdflib() -> Any:
    try:
        import rdflib
    except ImportError as error:
        raise MissingExtra("rdflib", "rdf") from error
    return rdflib


def _why(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:120].rstrip(".: ")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep rdflib's log of odd literals and IRIs to ourselves: their text is taken as it is written."""
    logger = logging.getLogger("rdflib.term")
    before = logger.level
    logger.setLevel(logging.ERROR + 1)
    try:
        yield
    finally:
        logger.setLevel(before)
