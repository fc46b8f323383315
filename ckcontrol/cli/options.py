"""The options that commands share, and what they load with a spinner: a model, an index, an embedder, a re-ranker.

`Answering` holds the options of every command that answers, and `spread` gives them to one. Knows typer; knows no
command.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from ..control import DEFAULT_METHOD
from ..errors import ControlError, PromptError, RetrievalError
from ..views.safe_text import clean
from .files import import_policies, parse_params

if TYPE_CHECKING:
    from ..answer import Answer
    from ..control import Control
    from ..decoding.options import GenerateOptions
    from ..decoding.prompts import PromptTemplate
    from ..heads.directions.direction import Direction
    from ..retrieval import Index
    from ..weights.manifest import Manifest
    from .stream import TextStream

__all__ = [
    "Answering",
    "Mode",
    "Sources",
    "drawing",
    "load",
    "load_dial",
    "load_embedder",
    "load_reranker",
    "open_index",
    "place_of",
    "read_direction",
    "spread",
]


class Mode(str, Enum):
    """How passages are searched."""

    dense = "dense"
    bm25 = "bm25"
    hybrid = "hybrid"


class Sources(str, Enum):
    """How passages are read as sources."""

    each = "each"


SourcesAs = Annotated[
    Sources | None,
    typer.Option(
        "--sources",
        help="each: every passage answers by itself, and so does memory; the answer they support is given, and the "
        "table tells who answers what.",
        show_default=False,
    ),
]
Question = Annotated[str, typer.Option("-q", "--question", help="The question.")]
PassageFiles = Annotated[
    list[str],
    typer.Option("-p", "--passage", metavar="FILE", help="Passage file, UTF-8; - is stdin. Repeatable."),
]
PassageTexts = Annotated[
    list[str], typer.Option("--passage-text", metavar="TEXT", help="Passage given here. Repeatable.")
]
Model = Annotated[str, typer.Option(help="demo, tiny, a Hugging Face id or a folder.")]
Method = Annotated[str, typer.Option(help="Policy: dial, ck-plug, cad, adacad, coiecd, acd, arr, off, ...")]
Alpha = Annotated[
    float | None,
    typer.Option(help="0 = passages, 0.5 = the unmodified model, 1 = memory.", show_default=False),
]
Params = Annotated[
    list[str], typer.Option("--param", metavar="NAME=VALUE", help="Parameter of the policy. Repeatable.")
]
Import = Annotated[
    list[str],
    typer.Option(
        "--import", metavar="MODULE", help="Policies of your own: an installed module or a .py file. Repeatable."
    ),
]
Tokens = Annotated[int, typer.Option("--max-new-tokens", help="Longest answer, in tokens.")]
Sample = Annotated[bool, typer.Option("--sample", help="Draw tokens instead of taking the best.")]
Temperature = Annotated[float | None, typer.Option(help="With --sample.", show_default="1")]
Seed = Annotated[int | None, typer.Option(help="With --sample: makes it repeatable.", show_default=False)]
Stop = Annotated[
    list[str],
    typer.Option(metavar="TEXT", help="End the answer before this text; \\n is a line break. Repeatable."),
]
TemplateArgs = Annotated[
    list[str],
    typer.Option(
        "--template-arg",
        metavar="NAME=VALUE",
        help="Variable of the chat template, e.g. enable_thinking=false. Repeatable.",
    ),
]
System = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="System message, for models with a chat template.", show_default=False),
]
Truncate = Annotated[bool, typer.Option("--truncate", help="Cut passages that do not fit the model.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps.", show_default="the best there is")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16, auto.", show_default=False)]
Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        metavar="FOLDER",
        help="With --method weights: what `weights mix` wrote, one small LoRA file per alpha, added to the model.",
        show_default=False,
    ),
]
Heads = Annotated[
    Path | None,
    typer.Option("--heads", metavar="FILE", help="Head mask, or head scores with --prune.", show_default=False),
]
Prune = Annotated[
    str | None,
    typer.Option(metavar="CLASS:K", help="Heads to prune, e.g. memory:7 or only-context:3.", show_default=False),
]
PruneStream = Annotated[str, typer.Option("--prune-stream", help="Where to prune: both, contextual or parametric.")]
DirectionFile = Annotated[
    Path | None,
    typer.Option("--direction", metavar="FILE", help="Direction that `steer find` wrote.", show_default=False),
]
DirectionAlpha = Annotated[
    float | None,
    typer.Option(
        "--direction-alpha",
        metavar="ALPHA",
        help="How far along it: 0 context, 0.5 nothing, 1 memory.",
        show_default=False,
    ),
]
Known = Annotated[
    str,
    typer.Option(
        help="Facts the model must know: greedy (its own answer is right), ranked (or the right one is likelier than "
        "all others of the relation), any (also unknown ones).",
    ),
]
Thinking = Annotated[bool, typer.Option("--thinking", help="Print what the model thinks before its answer, too.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Stream = Annotated[bool, typer.Option("--stream", help="Print the answer while it is generated.")]
Folder = Annotated[Path, typer.Argument(metavar="INDEX", help="The index's folder.")]
Search = Annotated[Mode, typer.Option("--mode", help="By meaning, by words, or both.")]
Where = Annotated[
    list[str],
    typer.Option(
        "--where",
        metavar="CONDITION",
        help="On metadata, quoted: 'year>=2000', 'lang=en'; also !=, <=, >, <. Repeatable; all must hold.",
    ),
]
MinScore = Annotated[
    float | None,
    typer.Option(metavar="SCORE", help="Leave out passages that score less.", show_default="none left out"),
]
Rerank = Annotated[
    str | None, typer.Option(metavar="MODEL", help="Cross-encoder: a folder or an id.", show_default=False)
]
Embedder = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="Where the index's embedder is now.", show_default="as the index says"),
]


@dataclass(frozen=True)
class Answering:
    """What every command that answers is told: the model, the control, how tokens are drawn and what is printed.

    Raises:
        typer.BadParameter: The answer is asked for as a stream and as JSON.
    """

    model: Model = "demo"
    method: Method = DEFAULT_METHOD
    alpha: Alpha = None
    param: Params = field(default_factory=list)
    imported: Import = field(default_factory=list)
    max_new_tokens: Tokens = 64
    sample: Sample = False
    temperature: Temperature = None
    seed: Seed = None
    stop: Stop = field(default_factory=list)
    template_arg: TemplateArgs = field(default_factory=list)
    thinking: Thinking = False
    system: System = None
    device: Device = None
    dtype: Dtype = None
    weights: Weights = None
    stream: Stream = False
    json: AsJson = False

    def __post_init__(self) -> None:
        if self.stream and self.json:
            raise typer.BadParameter("--stream and --json exclude each other.")

    def control(self) -> Control:
        """Return the control; a bad one raises `ControlError` before anything is loaded."""
        import_policies(self.imported)
        from ..control import Control

        control = Control(self.method, self.alpha, **parse_params(self.param))
        if self.weights is not None and not control.policy().in_weights:
            raise ControlError(
                f"--weights without --method weights: {self.method} does not use it.", "Add the one, or drop the other."
            )
        return control

    def steers(self) -> bool:
        """Whether the control was asked to do something, which takes passages."""
        return self.alpha is not None or bool(self.param) or self.method not in (Answering.method, "off")

    def drawn(self, *, trace: bool) -> GenerateOptions:
        """Return how tokens are drawn, checked like the control."""
        from ..decoding.options import GenerateOptions

        return GenerateOptions(
            max_new_tokens=self.max_new_tokens,
            **drawing(self.sample, self.temperature, self.seed),
            trace=trace,
            stop=tuple(text.replace("\\n", "\n").replace("\\t", "\t") for text in self.stop),
        )

    def variables(self) -> dict[str, Any]:
        """Return the variables of the chat template."""
        return parse_params(self.template_arg, "--template-arg", "enable_thinking=false")

    def template(self) -> PromptTemplate:
        """Return the wording, with the system message."""
        from ..decoding.prompts import PromptTemplate

        if self.system is not None and not self.system.strip():
            raise PromptError("--system is empty.", "Leave it out.")
        return PromptTemplate(system=self.system)

    def streamer(self, tokenizer: Any) -> TextStream | None:
        """Return what prints the answer while it is generated; None where that was not asked for."""
        from .stream import TextStream

        stop = self.drawn(trace=False).stop
        return TextStream(tokenizer, stop=stop, thinking=self.thinking) if self.stream else None

    def said(self, answer: Answer) -> str:
        """Return what is printed of an answer that was not streamed."""
        thought = (answer.thinking or "") if self.thinking else ""
        return clean("\n\n".join(filter(None, (thought, answer.text))), None)

    def warn_of_cut(self, answer: Answer) -> None:
        """Say on stderr that an answer did not end by itself."""
        if answer.finish_reason == "length" and not self.json:
            typer.echo(f"! Cut at --max-new-tokens {self.max_new_tokens}: a higher one lets it go on.", err=True)

    def load(self) -> tuple[Any, Any]:
        """Load the model, with its dial, and its tokenizer, with a spinner."""
        loaded = load(self.model, self.device, self.dtype)
        load_dial(loaded[0], self.weights)
        return loaded


def drawing(sample: bool, temperature: float | None, seed: int | None = None) -> dict[str, Any]:
    """Return how tokens are drawn, as options of `GenerateOptions`.

    Raises:
        ControlError: An option that is for sampling, without it.
    """
    for name, value in (("temperature", temperature), ("seed", seed)):
        if value is not None and not sample:
            raise ControlError(f"--{name} {value} without --sample does nothing.", "Add --sample, or leave it out.")
    return {"do_sample": sample, "temperature": 1.0 if temperature is None else temperature, "seed": seed}


def spread(command: Callable[..., None], text: str | None = None, **fixed: Any) -> Callable[..., None]:
    """Give a command one option per field of `Answering`, in place of its parameter ``given: Answering``.

    typer reads a command's signature and docstring, so the result gets both.

    Args:
        command: A command with that parameter.
        text: The help text; None takes the command's.
        **fixed: Values of options that the result does not offer: a second command made of the same function.
    """
    hints = get_type_hints(Answering, include_extras=True)
    keyword = inspect.Parameter.KEYWORD_ONLY
    shared = [  # a list, made by a factory, is the one default that the class itself does not hold
        inspect.Parameter(name, keyword, default=getattr(Answering, name, []), annotation=hints[name]) for name in hints
    ]
    own = inspect.signature(command, eval_str=True).parameters.values()
    offered = [new for old in own for new in (shared if old.name == "given" else [old]) if new.name not in fixed]

    def call(**values: Any) -> None:
        values |= fixed
        given = {name: values.pop(name) for name in hints if name in values}
        command(given=Answering(**given), **values)

    call.__doc__ = text or command.__doc__
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in offered}
    call.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [parameter.replace(kind=keyword) for parameter in offered]
    )
    return call


def load(name: str, device: str | None = None, dtype: str | None = None) -> tuple[Any, Any]:
    """Load a model with a spinner on stderr where that is a terminal."""
    from rich.console import Console

    from ..models.load import load as load_model

    with Console(stderr=True).status(f"Loading {name} ...") as status:
        return load_model(name, device=device, dtype=dtype, on_status=status.update)


def read_direction(path: Path) -> Direction:
    """Read a direction file; one that cannot be opened is refused like a bad one."""
    from ..errors import HeadsError
    from ..heads.directions.direction import Direction

    try:
        return Direction.load(path)
    except OSError as error:
        what = f"direction file {str(path)!r} cannot be read: {error.strerror or error}."
        raise HeadsError(what, "Name the file that `ckcontrol steer find` wrote.") from error


def load_dial(model: Any, folder: Path | None) -> Manifest | None:
    """Load a dial of adapters onto a model, and return its manifest; None loads none."""
    if folder is None:
        return None
    from ..weights import load as load_weights

    return load_weights(model, folder)


def open_index(folder: Path, embedder: str | None = None, *, load: bool = False) -> Index:
    """Open an index, with the embedder that its manifest names unless another place for it is given.

    Args:
        folder: The index's folder.
        embedder: A name for `load_embedder`.
        load: Load the manifest's embedder now, with a spinner, rather than when it is needed.
    """
    from ..retrieval import Index

    index = Index.open(folder)
    if embedder is not None:
        scaled = index.info()["embedder"]["normalize"]
        index.close()
        index = Index.open(folder, load_embedder(embedder, normalize=scaled))
    return with_embedder(index) if load else index


def with_embedder(index: Index) -> Index:
    """Load an index's embedder now, with a spinner on stderr where that is a terminal; return the index."""
    from rich.console import Console

    with Console(stderr=True).status("Loading the index's embedder ..."):
        index.embedder  # noqa: B018  loads it
    return index


def load_embedder(name: str, *, normalize: bool = True) -> Any:
    """Load an embedder with a spinner on stderr where that is a terminal; a folder is recorded by its absolute path."""
    from rich.console import Console

    with Console(stderr=True).status(f"Loading the embedder {name} ...") as status, _local_is_input(name):
        from ..retrieval import Embedder

        return Embedder(place_of(name), normalize=normalize, on_status=status.update)


@contextmanager
def _local_is_input(name: str) -> Iterator[None]:
    """Make what is wrong with a path of this machine bad input, as `load` does: nothing failed."""
    try:
        yield
    except RetrievalError as error:
        if name.startswith((".", "~", "/")) or os.path.exists(name):
            raise ControlError(str(error)) from error
        raise


def place_of(embedder: str) -> str:
    """Return an embedder's name, or the absolute path of its folder."""
    path = Path(embedder).expanduser()
    return str(path.resolve()) if embedder != "demo" and path.is_dir() else embedder


def load_reranker(name: str | None) -> Any:
    """Load a re-ranker as `load_embedder` loads an embedder; None gives None."""
    if name is None:
        return None
    from rich.console import Console

    with Console(stderr=True).status(f"Loading the re-ranker {name} ..."), _local_is_input(name):
        from ..retrieval.rerank import Reranker

        return Reranker(name)
