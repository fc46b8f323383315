"""``ckcontrol ask``: the whole pipeline, from a question and an index to a steered answer with its passages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import PromptError
from ..views.safe_text import clean, escape_json
from . import files, options
from .explain import check_writable

__all__ = ["ask"]


def ask(
    index: options.Folder,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What to answer.")],
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="How many passages.")] = 4,
    mode: options.Search = options.Mode.dense,
    where: options.Where = [],  # noqa: B006  typer copies it
    rerank: options.Rerank = None,
    embedder: options.Embedder = None,
    model: options.Model = "demo",
    method: options.Method = "ck-plug",
    alpha: options.Alpha = None,
    param: options.Params = [],  # noqa: B006
    max_new_tokens: options.Tokens = 64,
    sample: options.Sample = False,
    temperature: options.Temperature = 1.0,
    seed: options.Seed = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    stream: options.Stream = False,
    explain: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a page: why each token was chosen.", show_default=False),
    ] = None,
    json: options.AsJson = False,
) -> None:
    """Retrieve passages and answer from them, from memory, or anywhere between.

    Prints the answer and the passages it was made from. Says so when passages had to be cut, or none were found.
    """
    from rich.console import Console

    from ..control import Control
    from ..decoding.options import GenerateOptions
    from ..views.terminal import print_hits

    if stream and json:
        raise typer.BadParameter("--stream and --json exclude each other.")
    if not question.strip():
        raise PromptError("the question is empty.", "Ask something.")
    control = Control(method, alpha, **files.parse_params(param))
    drawn = GenerateOptions(
        max_new_tokens=max_new_tokens,
        do_sample=sample,
        temperature=temperature,
        seed=seed,
        trace=json or explain is not None,
    )
    conditions = files.parse_where(where)
    if explain is not None:
        check_writable(explain)
    opened = options.open_index(index, embedder)
    reranker = options.load_reranker(rerank)
    loaded = options.load(model, device, dtype)

    from ..rag import Rag
    from .stream import TextStream

    rag = Rag(loaded, opened, control=control, k=k, mode=mode.value, where=conditions, reranker=reranker, options=drawn)
    answer = rag.ask(question, streamer=TextStream(loaded[1]) if stream else None)
    if json:
        typer.echo(escape_json(answer.to_json()))
    else:
        if not stream:
            typer.echo(clean(answer.text, None))
        typer.echo()
        print_hits(answer.cited, question, Console(), notice=answer.notice)
    if explain is not None:
        explain.write_text(answer.to_page(), encoding="utf-8")
        typer.echo(f"Wrote {explain}", err=json)
