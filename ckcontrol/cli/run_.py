"""``ckcontrol run``: one question, its passages, one answer on stdout."""

from __future__ import annotations

import typer

from ..text_safety import clean, escape_json
from . import inputs

__all__ = ["run"]


def run(
    question: inputs.Question,
    passage: inputs.PassageFiles = [],  # noqa: B006  typer copies it
    passage_text: inputs.PassageTexts = [],  # noqa: B006
    model: inputs.Model = "demo",
    method: inputs.Method = "ck-plug",
    alpha: inputs.Alpha = None,
    param: inputs.Params = [],  # noqa: B006
    max_new_tokens: inputs.Tokens = 64,
    sample: inputs.Sample = False,
    temperature: inputs.Temperature = 1.0,
    seed: inputs.Seed = None,
    truncate: inputs.Truncate = False,
    heads: inputs.Heads = None,
    prune: inputs.Prune = None,
    prune_stream: inputs.PruneStream = "both",
    device: inputs.Device = None,
    dtype: inputs.Dtype = None,
    stream: inputs.Stream = False,
    json: inputs.AsJson = False,
) -> None:
    """Answer a question from passages, from memory, or anywhere between. Prints the answer.

    Without --alpha the model is left as it is. Without passages it answers closed book. --heads and --prune switch
    attention heads off while it answers; they combine with every method.
    """
    if stream and json:
        raise typer.BadParameter("--stream and --json exclude each other.")
    request = inputs.Request(
        question=question,
        passages=inputs.read_passages(passage, passage_text),
        model=model,
        method=method,
        alpha=alpha,
        params=inputs.parse_params(param),
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
