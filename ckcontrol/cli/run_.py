"""``ckcontrol run``: one question, its passages, one answer on stdout."""

from __future__ import annotations

import typer

from ..views.safe_text import clean, escape_json
from . import files, options
from .request import Request

__all__ = ["run"]


def run(
    question: options.Question,
    passage: options.PassageFiles = [],  # noqa: B006  typer copies it
    passage_text: options.PassageTexts = [],  # noqa: B006
    model: options.Model = "demo",
    method: options.Method = "ck-plug",
    alpha: options.Alpha = None,
    param: options.Params = [],  # noqa: B006
    max_new_tokens: options.Tokens = 64,
    sample: options.Sample = False,
    temperature: options.Temperature = 1.0,
    seed: options.Seed = None,
    truncate: options.Truncate = False,
    heads: options.Heads = None,
    prune: options.Prune = None,
    prune_stream: options.PruneStream = "both",
    device: options.Device = None,
    dtype: options.Dtype = None,
    stream: options.Stream = False,
    json: options.AsJson = False,
) -> None:
    """Answer a question from passages, from memory, or anywhere between. Prints the answer.

    Without --alpha the model is left as it is. Without passages it answers closed book. --heads and --prune switch
    attention heads off while it answers; they combine with every method.
    """
    if stream and json:
        raise typer.BadParameter("--stream and --json exclude each other.")
    request = Request(
        question=question,
        passages=files.read_passages(passage, passage_text),
        model=model,
        method=method,
        alpha=alpha,
        params=files.parse_params(param),
        options={
            "max_new_tokens": max_new_tokens,
            "do_sample": sample,
            "temperature": temperature,
            "seed": seed,
            "trace": json,
        },
        device=device,
        dtype=dtype,
        truncate=truncate,
        heads=heads,
        prune=prune,
        prune_stream=prune_stream,
    )
    answer = request.answer(stream)
    if json:
        typer.echo(escape_json(answer.to_json()))
    elif not stream:
        typer.echo(clean(answer.text, None))
