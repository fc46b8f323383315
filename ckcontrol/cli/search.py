"""``ckcontrol search``: the passages of an index that are nearest a question."""

from __future__ import annotations

import json as json_module
from typing import Annotated

import typer

from ..text_safety import escape_json
from . import inputs

__all__ = ["search"]


def search(
    index: inputs.Folder,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="A question, or some words.")],
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="How many passages.")] = 5,
    mode: inputs.Search = inputs.Mode.dense,
    where: inputs.Where = [],  # noqa: B006  typer copies it
    rerank: inputs.Rerank = None,
    embedder: inputs.Embedder = None,
    json: inputs.AsJson = False,
) -> None:
    """Find the passages nearest a question. Prints rank, score, source, metadata and the line nearest the words."""
    from rich.console import Console

    from ..show import print_hits

    conditions = inputs.parse_where(where)
    opened = inputs.open_index(index, embedder)
    reranker = inputs.load_reranker(rerank)
    with Console(stderr=True).status("Searching ..."):
        hits = opened.search(query, k, where=conditions, mode=mode.value, reranker=reranker)
    if json:
        records = [hit.to_dict() for hit in hits]
        typer.echo(escape_json(json_module.dumps({"query": query, "hits": records}, ensure_ascii=False)))
        return
    print_hits(hits, query)
    if not hits:
        typer.echo("Nothing was found.", err=True)
