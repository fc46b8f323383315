"""``ckcontrol search``: the passages of an index that are nearest a question."""

from __future__ import annotations

import json as json_module
from typing import Annotated

import typer

from ..views.safe_text import clean, escape_json
from . import files, options

__all__ = ["search"]


def search(
    index: options.Folder,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="A question, or some words.")],
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="How many passages.")] = 5,
    mode: options.Search = options.Mode.dense,
    where: options.Where = [],  # noqa: B006  typer copies it
    min_score: options.MinScore = None,
    rerank: options.Rerank = None,
    embedder: options.Embedder = None,
    json: options.AsJson = False,
) -> None:
    """Find the passages nearest a question. Prints rank, score, source, metadata and the line closest to the words."""
    from rich.console import Console

    from ..views.terminal import print_hits

    conditions = files.parse_where(where)
    opened = options.open_index(index, embedder)
    reranker = options.load_reranker(rerank)
    with Console(stderr=True).status("Searching ..."):
        hits = opened.search(query, k, where=conditions, mode=mode.value, reranker=reranker, min_score=min_score)
    if not hits:
        typer.echo(clean(f"Nothing was found. {opened.unmet(conditions)}".strip(), 2000), err=True)
    if json:
        records = [hit.to_dict() for hit in hits]
        typer.echo(escape_json(json_module.dumps({"query": query, "hits": records}, ensure_ascii=False)))
        return
    print_hits(hits, query)
