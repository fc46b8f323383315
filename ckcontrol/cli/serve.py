"""``ckcontrol serve``: an OpenAI-compatible server over one model in this process, and the page. Knows uvicorn."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import ServingError, require
from ..views.safe_text import clean
from .files import import_policies, parse_params
from .options import Device, Dtype, Embedder, Import, Weights, load, load_dial, open_index, read_direction
from .process import check_port

__all__ = ["serve"]

LOOPBACK = ("127.0.0.1", "::1", "localhost")
KEY = "CKCONTROL_API_KEY"


def serve(
    model: Annotated[str, typer.Option("--model", help="demo, tiny, a Hugging Face id or a folder.")],
    index: Annotated[
        Path | None,
        typer.Option("--index", metavar="INDEX", help="Index for requests with ck.retrieve.", show_default=False),
    ] = None,
    embedder: Embedder = None,
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    api_key: Annotated[
        list[str],
        typer.Option("--api-key", metavar="KEY", help=f"Ask for it; or set {KEY}. Repeatable.", show_default=False),
    ] = [],  # noqa: B006  typer copies it
    name: Annotated[
        str | None, typer.Option("--name", help="What clients call the model.", show_default="as --model")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=1024, help="Most answers decoded at once.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 1024,
    limit: Annotated[
        list[str],
        typer.Option(metavar="NAME=VALUE", help="Change a bound of requests, e.g. passages=128, pairs=64, seconds=60."),
    ] = [],  # noqa: B006
    direction: Annotated[
        Path | None,
        typer.Option(
            "--direction", metavar="FILE", help="Direction for requests with ck.direction.", show_default=False
        ),
    ] = None,
    imported: Import = [],  # noqa: B006
    device: Device = None,
    dtype: Dtype = None,
    weights: Weights = None,
) -> None:
    """Serve steered requests over the OpenAI API, and a page to try them, from one model in this process.

    A request is steered by an object "ck" in its body: {"passages": [...], "method": "ck-plug", "alpha": 0.3}, or with
    --index {"retrieve": {"k": 4}, "alpha": 0.3}. For one machine and a few users; for many, see serve-vllm. Unless told
    otherwise the server listens on 127.0.0.1 alone.
    """
    require("serve", starlette="starlette", uvicorn="uvicorn")
    import uvicorn

    from ..serving.app import create_app
    from ..serving.limits import Limits, check_names

    bounds: dict[str, Any] = parse_params(limit, "--limit", "passages=128")
    check_names(bounds)
    limits = Limits(**bounds)
    import_policies(imported)
    keys = api_key or [key for key in [os.environ.get(KEY)] if key]
    if not all(key.strip() for key in keys):
        raise ServingError("--api-key is empty.", "Give a key, or leave it out.")
    if embedder is not None and index is None:
        raise ServingError("--embedder is that of an index, and none is served.", "Name it: --index FOLDER.")
    read = None if direction is None else read_direction(direction)
    opened = None if index is None else open_index(index, embedder, load=True)
    check_port(host, port)
    loaded, tokenizer = load(model, device, dtype)
    load_dial(loaded, weights)
    local = host in LOOPBACK
    app = create_app(
        loaded,
        tokenizer,
        name=name or model,
        keys=keys,
        limits=limits,
        index=opened,
        rows=batch,
        tokens=max_new_tokens,
        hosts=[*LOOPBACK, "[::1]"] if local else ["*"],
        direction=read,
    )
    if not local and not keys:
        typer.echo(f"ckcontrol: without --api-key anybody who reaches {host} can use this server.", err=True)
    called = clean(name or model) + ("" if index is None else f" with the index {clean(str(index))}")

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            """Say that it is up, and where its page is."""
            await super().startup(sockets)
            if self.started:
                at = self.servers[0].sockets[0].getsockname()[1]
                page = f"http://{f'[{host}]' if ':' in host else host}:{at}/"
                typer.echo(f"ckcontrol: {page} serves {called}. Stop it by Ctrl-C.", err=True)

    config = uvicorn.Config(
        app, host=host, port=port, log_level="warning", access_log=False, server_header=False, ws="none"
    )
    server = Server(config)
    with suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        raise typer.Exit(1)
