"""``ckcontrol ask``: the whole pipeline, from a question and an index to a steered answer with its passages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import PromptError
from ..text_safety import clean, escape_json
from . import inputs
from .explain import check_writable

__all__ = ["ask"]


def ask(
    index: inputs.Folder,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What to answer.")],
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="How many passages.")] = 4,
    mode: inputs.Search = inputs.Mode.dense,
    where: inputs.Where = [],  # noqa: B006  typer copies it
    rerank: inputs.Rerank = None,
    embedder: inputs.Embedder = None,
    model: inputs.Model = "demo",
    method: inputs.Method = "ck-plug",
    alpha: inputs.Alpha = None,
    param: inputs.Params = [],  # noqa: B006
    max_new_tokens: inputs.Tokens = 64,
    sample: inputs.Sample = False,
    temperature: inputs.Temperature = 1.0,
    seed: inputs.Seed = None,
    device: inputs.Device = None,
    dtype: inputs.Dtype = None,
    stream: inputs.Stream = False,
    explain: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a page: why each token was chosen.", show_default=False),
    ] = None,
    json: inputs.AsJson = False,
) -> None:
    """Retrieve passages and answer from them, from memory, or anywhere between.

    Prints the answer and the passages it was made from. Says so when passages had to be cut, or none were found.
    """
    from rich.console import Console

    from ..config import Control, GenerateOptions
    from ..show import print_hits

    if stream and json:
        raise typer.BadParameter("--stream and --json exclude each other.")
    if not question.strip():
        raise PromptError("the question is empty.", "Ask something.")
    control = Control(method, alpha, **inputs.parse_params(param))
    traced = json or explain is not None
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "do_sample": sample,
        "temperature": temperature,
        "seed": seed,
    }
    GenerateOptions.from_kwargs(options)
    conditions = inputs.parse_where(where)
    if explain is not None:
        check_writable(explain)
    opened = inputs.open_index(index, embedder)
    reranker = inputs.load_reranker(rerank)
    loaded = inputs.load(model, device, dtype)

    from ..rag import Rag
    from .stream import TextStream

    rag = Rag(loaded, opened, control=control, k=k, mode=mode.value, where=conditions, reranker=reranker, **options)
    answer = rag.ask(question, streamer=TextStream(loaded[1]) if stream else None, trace=traced)
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
