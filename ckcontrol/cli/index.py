"""``ckcontrol index``: build, add to, remove from, describe and verify an index.

Knows files and `Index`; says what was done, what was left out and why, and how to go on after an interruption.
"""

from __future__ import annotations

import json as json_module
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from enum import Enum
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ControlError, EmptyCorpus, RetrievalError
from ..rates import count
from ..views.safe_text import clean, escape_json
from . import files, options
from .progress import WriteProgress
from .words import TextCommand, group, size

if TYPE_CHECKING:
    from ..retrieval import Document, Index, QuestionChange
    from ..retrieval.questions import QuestionWriter
    from ..retrieval.writing import Change

__all__ = ["index_app"]

SKIPPED = 3  # exit code: done, but inputs were left out
SHOWN = 20  # files of which something is gone, by name


class Kind(str, Enum):
    """Kinds of FAISS index."""

    auto = "auto"
    flat = "flat"
    hnsw = "hnsw"
    ivf = "ivf"
    ivfpq = "ivfpq"


class VectorMetric(str, Enum):
    """What a score is."""

    cosine = "cosine"
    ip = "ip"


class VectorType(str, Enum):
    """Types of the stored vectors."""

    float32 = "float32"
    float16 = "float16"


Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="SRC", help="Files, folders, globs: txt, md, html, pdf, json, jsonl, csv, parquet, nt, ttl."
    ),
]
Encoding = Annotated[
    str | None, typer.Option(help="Of text files. Default: what an HTML page names, else utf-8.", show_default=False)
]
TextField = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Of records: the field that holds the text.",
        show_default="text, contents, content, page_content or body",
    ),
]

index_app = group()


@index_app.command("build", cls=TextCommand)
def build(
    context: typer.Context,
    sources: Sources,
    out: Annotated[Path, typer.Option(metavar="INDEX", help="The index's folder.")],
    embedder: Annotated[str, typer.Option(metavar="MODEL", help="demo, a folder or a Hugging Face id.")] = "demo",
    kind: Annotated[Kind, typer.Option(help="auto chooses by size and says so.")] = Kind.auto,
    metric: Annotated[
        VectorMetric, typer.Option(help="Cosine, or the inner product of the vectors as they are.")
    ] = VectorMetric.cosine,
    dtype: Annotated[VectorType, typer.Option(help="Of the stored vectors.")] = VectorType.float32,
    chunk_size: Annotated[
        int | None, typer.Option(min=8, help="Most tokens per passage.", show_default="256, or what it reads")
    ] = None,
    overlap: Annotated[int, typer.Option(min=0, help="Most tokens that neighbouring passages share.")] = 32,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an index that is there.")] = False,
    overrides: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Facts that outrank what is found: docs/overrides.md.", show_default=False),
    ] = None,
    questions: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Have this model write the questions that each passage answers, as index questions does.",
            show_default=False,
        ),
    ] = None,
    encoding: Encoding = None,
    text_field: TextField = None,
    json: options.AsJson = False,
) -> None:
    """Cut, embed and index files. Exit 3: done, but inputs were skipped; each is named on stderr.

    After an interruption the same command goes on from the embeddings that were made.
    """
    from ..retrieval import Index
    from ..retrieval.store.generations import CURRENT

    facts = _facts(overrides)
    if not overwrite and (out / CURRENT).exists():
        raise ControlError(
            f"there is an index at {str(out)!r}.", "Add to it with ckcontrol index add, or pass --overwrite."
        )
    again = "The same command goes on where this one stopped."
    progress = WriteProgress(out, context.command)
    with _nothing_made(progress):
        documents = _read(_there(sources, progress), progress, encoding, text_field)
    write = _writer(questions) if questions is not None else None
    loaded = options.load_embedder(embedder, normalize=metric is VectorMetric.cosine)
    with _resumable(again), _nothing_made(progress), progress:
        index = Index.build(
            documents,
            loaded,
            out,
            kind=kind.value,
            metric=metric.value,
            dtype=dtype.value,
            chunk_size=chunk_size,
            overlap=overlap,
            overwrite=overwrite,
            overrides=facts,
            text_field=text_field,
            encoding=encoding,
            on_skip=progress.on_skip,
            on_progress=progress.on_progress,
        )
    if write is not None and questions is not None:
        _write_questions(index, write, questions)
    _summarise(index, progress, json, index.change)


@index_app.command("add", cls=TextCommand)
def add(
    context: typer.Context,
    index: options.Folder,
    sources: Sources,
    embedder: options.Embedder = None,
    encoding: Encoding = None,
    text_field: TextField = None,
    prune: Annotated[bool, typer.Option("--prune", help="Remove what is gone from these sources.")] = False,
    json: options.AsJson = False,
) -> None:
    """Add files; a changed document replaces its old passages, an unchanged one costs nothing.

    Files and records of these sources that are gone are named, and with --prune removed, but none of a source that was
    skipped. What --text-field and --encoding said at the build holds here too. Until the command is done, searches see
    the index as it was. Exit 3: done, but inputs were skipped.
    """
    from ..retrieval.reading.files import as_paths
    from ..retrieval.reading.gone import Reading, emptied, files_gone

    again = "The index is as it was. The same command goes on where this one stopped."
    progress, reading = WriteProgress(index, context.command), Reading()
    opened = options.open_index(index, embedder)
    made = opened.info()["settings"]
    documents = _read(sources, progress, encoding or made["encoding"], text_field or made["text_field"])
    stored, paths = list(options.with_embedder(opened).documents()), as_paths(sources)
    for source, lost in emptied(stored, paths).items() if prune else ():
        raise ControlError(
            f"{str(source)!r} holds no files, and --prune would remove the whole of it: {count(lost, 'document')}.",
            "Check that the folder is the right one, and mounted; ckcontrol index remove takes documents out by name.",
        )
    gone = files_gone(stored, paths)
    told: dict[str, Any] = {"on_skip": progress.on_skip, "on_progress": progress.on_progress}
    with _resumable(again), progress:
        change = opened.add(reading.watch(documents), without=[*chain(*gone.values())] if prune else (), **told)
    records = reading.records_gone(opened.documents(), progress.skipped)
    if prune and records:
        opened.remove(documents=[*chain(*records.values())])
    _summarise(opened, progress, json, change, gone | records, prune)


@index_app.command("remove", cls=TextCommand)
def remove(
    index: options.Folder,
    document: Annotated[list[str], typer.Option("--document", metavar="ID", help="Repeatable.")] = [],  # noqa: B006
    passage: Annotated[list[str], typer.Option("--passage", metavar="ID", help="Repeatable.")] = [],  # noqa: B006
    where: options.Where = [],  # noqa: B006
    json: options.AsJson = False,
) -> None:
    """Remove documents, passages, or everything whose metadata fits."""
    conditions = files.parse_where(where)
    if not (document or passage or conditions):
        raise ControlError("nothing to remove was named.", "Give --document, --passage or --where.")
    opened = options.open_index(index)
    change = opened.remove(documents=document, passages=passage, where=conditions)
    if json:
        _echo_json({"removed": change.removed, "index": opened.info()})
    else:
        left = opened.info()["passages"]
        unmet = "" if change.removed else clean(opened.unmet(conditions), 2000)
        typer.echo(f"Removed {count(change.removed, 'passage')}; {count(left, 'passage')} left. {unmet}".strip())


@index_app.command("override", cls=TextCommand)
def override(
    index: options.Folder,
    facts: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="jsonl, json, csv, parquet.", show_default=False)
    ] = None,
    none: Annotated[bool, typer.Option("--none", help="Take all overrides out.")] = False,
    json: options.AsJson = False,
) -> None:
    """Set the facts that outrank what is found, in place of all before.

    Each has answer or statement, and prompt or subject and relation; docs/overrides.md. Nothing is embedded.
    """
    if (facts is None) != none:
        raise ControlError(
            "which overrides?" if facts is None else "both a file and --none.", "Name a file, or --none."
        )
    read = _facts(facts)
    opened = options.open_index(index)
    opened.override(read)
    if json:
        _echo_json({"overrides": len(read), "index": opened.info()})
    else:
        typer.echo(f"{count(len(read), 'override')} in {clean(str(index))}.")


@index_app.command("questions", cls=TextCommand)
def questions(
    index: options.Folder,
    model: options.Model = "demo",
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Passages at once.")] = 8,
    device: options.Device = None,
    dtype: options.Dtype = None,
    embedder: options.Embedder = None,
    json: options.AsJson = False,
) -> None:
    """Have a model write the questions that each passage answers; a search then finds passages by them too.

    Every batch is kept: after an interruption the same command goes on. Later it asks only of what is new.
    """
    opened = options.open_index(index, embedder, load=True)
    change = _write_questions(opened, _writer(model, device, dtype), model, batch_size)
    if json:
        _echo_json({"questions": asdict(change), "index": opened.info()})
        return
    data = opened.info()
    none = f"; of {count(change.without, 'text')} the model made none" if change.without else ""
    gone = f"; {count(change.removed, 'question')} of texts that are gone removed" if change.removed else ""
    if not change.asked:
        typer.echo(f"Nothing to ask: every text was asked of{gone}. {_questions(data)} in {clean(str(index))}.")
        return
    typer.echo(
        f"{count(change.written, 'question')} written for {count(change.asked, 'text')}{none}{gone}. "
        f"{_questions(data)} in {clean(str(index))}."
    )


@index_app.command("info", cls=TextCommand)
def info(index: options.Folder, json: options.AsJson = False) -> None:
    """Say what an index holds and how it was made."""
    from ..retrieval.index import WORDS_OF_OLD

    data = options.open_index(index).info()
    if json:
        _echo_json(data)
        return
    settings, embedder = data["settings"], data["embedder"]
    cut = f"{settings['chunk_size'] or '256 a passage, or what the embedder reads'}, overlap {settings['overlap']}"
    revision = f", revision {embedder['revision']}" if embedder["revision"] else ""
    _grid(
        {
            "index": data["path"],
            "documents": f"{data['documents']:,}",
            "passages": _passages(data),
            "kind": _why(data),
            "vectors": f"{settings['metric']}, {settings['dtype']}, {embedder['dim']} numbers each",
            "embedder": f"{embedder['name']}{revision}",
            **({"overrides": f"{data['overrides']:,} that outrank what is found"} if data["overrides"] else {}),
            **({"questions": _questions(data)} if data["questions"] else {}),
            "tokens": cut,
            **{name.replace("_", " "): settings[name] for name in ("text_field", "encoding") if settings[name]},
            **({} if data["words"] else {"words": WORDS_OF_OLD}),
            "size": size(data["bytes"]),
            "created": f"{data['created']} (generation {data['generation']}, updated {data['updated']})",
            "format": f"version {data['version']}, written by ckcontrol {data['writer']}",
        }
    )


@index_app.command("verify", cls=TextCommand)
def verify(index: options.Folder, json: options.AsJson = False) -> None:
    """Check every file, text, word and vector of an index; exit 1 if one is wrong."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ..retrieval import Index
    from ..retrieval.store.generations import CURRENT
    from ..views.terminal import open_console

    if not (index / CURRENT).exists():
        Index.open(index).close()  # says that there is none
    with Console(stderr=True).status("Verifying ..."):
        findings = Index.verify(index)
    sound = all(finding.ok for finding in findings)
    if json:
        _echo_json({"ok": sound, "checks": [finding._asdict() for finding in findings]})
    else:
        grid = Table.grid(padding=(0, 2))
        for finding in findings:
            mark = Text("ok", "green") if finding.ok else Text("FAILED", "bold red")
            grid.add_row(mark, finding.check, Text(clean(finding.detail)))
        open_console().print(grid)
    if not sound:
        raise typer.Exit(1)


# --- shared ---------------------------------------------------------------------------------------


def _facts(path: Path | None) -> list[Any]:
    from ..retrieval import read_overrides

    try:
        return [] if path is None else list(read_overrides(path))
    except RetrievalError as error:  # a record that is none: bad input, nothing failed
        raise ControlError(str(error)) from error


def _read(
    sources: Sequence[str | Path], progress: WriteProgress, encoding: str | None, text_field: str | None
) -> Iterator[Document]:
    from ..retrieval import read

    try:
        return read(
            sources, on_skip=progress.on_skip, on_file=progress.on_file, encoding=encoding, text_field=text_field
        )
    except RetrievalError as error:  # an unknown encoding, a path that does not exist: bad input, nothing failed
        raise ControlError(str(error)) from error


def _there(sources: list[str], progress: WriteProgress) -> list[Path]:
    """Return the sources that name files; the others are told now, before anything is loaded.

    Raises:
        EmptyCorpus: None of them does.
        ControlError: One is no path.
    """
    from ..retrieval.reading.files import as_paths, nothing_at

    try:
        paths = as_paths(sources)
    except RetrievalError as error:
        raise ControlError(str(error)) from error
    missing = {path: told for path in paths if (told := nothing_at(path)) is not None}
    for told in missing.values():
        progress.on_skip(told)
    if len(missing) == len({*paths}):
        raise EmptyCorpus
    return [path for path in paths if path not in missing]


@contextmanager
def _resumable(again: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(again, err=True)
        raise


@contextmanager
def _nothing_made(progress: WriteProgress) -> Iterator[None]:
    """Say why there is no index where the sources held nothing: bad input, no failure."""
    try:
        yield
    except EmptyCorpus as error:
        why = "every input was skipped, as said above" if progress.skipped else "the sources hold no text"
        raise ControlError(f"no index was made: {why}.", "Name files that can be read.") from error


def _summarise(
    index: Index,
    progress: WriteProgress,
    json: bool,
    change: Change | None,
    gone: Mapping[str, Sequence[str]] = {},
    pruned: bool = False,
) -> None:
    """Print what was done, and what is gone of the sources; exit 3 when inputs were skipped."""
    data = index.info()
    counts = {} if change is None else asdict(change)
    counts["skipped"] = len(progress.skipped)  # without those of the index's own folder
    if json:
        skipped = [asdict(item) for item in progress.skipped]
        told = {"files": progress.files, "change": counts, "skipped": skipped, "gone": gone, "pruned": pruned}
        _echo_json(told | {"index": data})
    else:
        for file, ids in [*gone.items()][:SHOWN]:
            what = "the file is gone" if ids == [file] else f"{count(len(ids), 'record')} of it gone"
            typer.echo(f"gone     {clean(file, 1000)}: {what}, {'removed' if pruned else 'still found'}.", err=True)
        reused = f", {counts['reused']:,} more reused from an interrupted run" if counts["reused"] else ""
        twice = counts["folded"] not in (0, data["passages"] - data["texts"])  # else the brackets say it
        folded = f", {counts['folded']:,} of the new ones equal to others" if twice else ""
        lost = count(sum(map(len, gone.values())), "document")
        rows = {
            "index": f"{data['path']}, {size(data['bytes'])}",
            "files": f"{progress.files:,}",
            "documents": " · ".join(f"{counts[name]:,} {name}" for name in ("added", "replaced", "unchanged")),
            "passages": f"{_passages(data)}{folded}",
            "embedded": f"{count(counts['embedded'], 'text')}{reused}",
            **({"questions": _questions(data)} if data["questions"] else {}),
            "kind": _why(data),
            **({"gone": f"{lost}, {'removed' if pruned else 'still found: --prune removes them'}"} if gone else {}),
        }
        _grid(rows | ({"skipped": f"{count(counts['skipped'], 'input')}, named on stderr"} if progress.skipped else {}))
    if progress.skipped:
        raise typer.Exit(SKIPPED)


def _writer(model: str, device: str | None = None, dtype: str | None = None) -> QuestionWriter:
    from ..atomic_questions import question_writer

    return question_writer(*options.load(model, device, dtype))


def _write_questions(index: Index, write: QuestionWriter, model: str, batch_size: int = 8) -> QuestionChange:
    from ..retrieval import write_questions
    from .bars import Bars

    again = f"Those written so far are kept: ckcontrol index questions {index.path} --model {model} goes on."
    with _resumable(clean(again, None)), Bars() as bars:
        return write_questions(index, write, batch_size=batch_size, on_progress=bars)


def _questions(data: dict[str, Any]) -> str:
    return (
        f"{count(data['questions'], 'question')} answered by {count(data['questioned'], 'text')} of {data['texts']:,}"
    )


def _passages(data: dict[str, Any]) -> str:
    same = data["passages"] - data["texts"]
    return f"{data['passages']:,}" + (f" ({same:,} share another's text)" if same else "")


def _why(data: dict[str, Any]) -> str:
    """Say which kind of index is in use, and why."""
    from ..retrieval.store.vectors import MEMORY, SCAN

    kind, asked = data["kind"], data["settings"]["kind"]
    held = data["rows"] * data["embedder"]["dim"] * (2 if data["settings"]["dtype"] == "float16" else 4)
    vectors = count(data["rows"], "vector") + (f" ({held / 2**20:,.0f} MiB)" if held >= 2**20 else "")
    if kind == asked:
        return f"{kind}: as asked, {vectors}"
    if asked != "auto":
        return f"{kind}: {vectors} are too few to train the {asked} that was asked for"
    reasons = {
        "flat": f"exact search is fast up to {SCAN >> 20} MiB",
        "ivf": f"beyond {SCAN >> 20} MiB only the nearest lists are searched",
        "ivfpq": f"beyond {MEMORY >> 30} GiB the vectors are searched compressed",
    }
    return f"{kind}: {vectors}, {reasons.get(kind, 'chosen by size')}"


def _grid(rows: dict[str, str]) -> None:
    from rich.table import Table
    from rich.text import Text

    from ..views.terminal import open_console

    grid = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        grid.add_row(Text(name, "dim"), Text(clean(value)))
    open_console().print(grid)


def _echo_json(data: Any) -> None:
    typer.echo(escape_json(json_module.dumps(data, ensure_ascii=False, allow_nan=False)))
