"""``ckcontrol ask``: the whole pipeline, from a question and an index to a steered answer with its passages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import PromptError
from ..views.safe_text import escape_json
from . import files, options

__all__ = ["ask"]


@options.spread
def ask(
    index: options.Folder,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What to answer.")],
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="How many passages.")] = 4,
    mode: options.Search = options.Mode.dense,
    where: options.Where = [],  # noqa: B006  typer copies it
    min_score: options.MinScore = None,
    rerank: options.Rerank = None,
    embedder: options.Embedder = None,
    sources: options.SourcesAs = None,
    *,
    given: options.Answering,
    explain: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a page: why each token was chosen.", show_default=False),
    ] = None,
) -> None:
    """Retrieve passages and answer from them, from memory, or anywhere between.

    Prints the answer, what each of its sentences rests on, and the passages. Says so when passages had to be cut, or
    none were found.
    """
    from ..views.terminal import print_cited, print_hits, print_sources

    if not question.strip():
        raise PromptError("the question is empty.", "Ask something.")
    control, drawn = given.control(), given.drawn(trace=given.json or explain is not None)
    variables, template = given.variables(), given.template()
    conditions = files.parse_where(where)
    if explain is not None:
        files.check_writable(explain)
    opened = options.open_index(index, embedder)
    reranker = options.load_reranker(rerank)
    loaded = given.load()

    from ..rag import Rag

    rag = Rag(
        loaded,
        opened,
        control=control,
        template=template,
        template_kwargs=variables,
        k=k,
        mode=mode.value,
        min_score=min_score,
        where=conditions,
        reranker=reranker,
        options=drawn,
    )
    answer = rag.ask(question, streamer=given.streamer(loaded[1]), sources=sources and sources.value)
    if explain is not None:
        explain.write_text(answer.to_page(), encoding="utf-8")  # first: a pipe that breaks must not cost the page
    if given.json:
        typer.echo(escape_json(answer.to_json()))
    else:
        if not given.stream:
            typer.echo(given.said(answer.answer))
        given.warn_of_cut(answer.answer)
        typer.echo()
        print_cited(answer.cited, answer.hits)
        print_sources(answer.answer)
        print_hits(answer.prompted, question, notice=answer.notice)
    if explain is not None:
        typer.echo(f"Wrote {explain}", err=given.json)
