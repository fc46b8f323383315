"""What the commands read: options, files, parameters, filters; and the answer that ``run`` and ``explain`` ask for.

Knows typer and the file system. Files are size-limited and must be UTF-8; every refusal names the file.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ControlError, PromptError, did_you_mean
from ..trace import Answer

if TYPE_CHECKING:
    from ..heads import HeadMask
    from ..retrieval import Index

__all__ = ["Mode", "Request", "load", "open_index", "parse_params", "parse_where", "read_passages"]

LIMIT = 10_000_000  # bytes a passage file may have
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
RESERVED = {"method", "alpha"}
STREAMS = ("both", "contextual", "parametric")
CONDITION = re.compile(r"\s*([^=!<>]*[^=!<>\s])\s*(!=|>=|<=|==?|>|<)\s*(.*?)\s*", re.DOTALL)
OPERATORS = {"=": "$eq", "==": "$eq", "!=": "$ne", ">": "$gt", ">=": "$gte", "<": "$lt", "<=": "$lte"}
TEXTS = ("id", "source", "document")  # names whose values are texts, whatever they look like


class Mode(str, Enum):
    """How passages are searched."""

    dense = "dense"
    bm25 = "bm25"
    hybrid = "hybrid"


Question = Annotated[str, typer.Option("-q", "--question", help="The question.")]
PassageFiles = Annotated[
    list[str],
    typer.Option("-p", "--passage", metavar="FILE", help="Passage file, UTF-8; - is stdin. Repeatable."),
]
PassageTexts = Annotated[
    list[str], typer.Option("--passage-text", metavar="TEXT", help="Passage given here. Repeatable.")
]
Model = Annotated[str, typer.Option(help="demo, tiny, a Hugging Face id or a folder.")]
Method = Annotated[str, typer.Option(help="Policy: ck-plug, cad, adacad, coiecd, acd, arr, off, ...")]
Alpha = Annotated[
    float | None,
    typer.Option(help="0 = passages, 0.5 = the unmodified model, 1 = memory.", show_default=False),
]
Params = Annotated[
    list[str], typer.Option("--param", metavar="NAME=VALUE", help="Parameter of the policy. Repeatable.")
]
Tokens = Annotated[int, typer.Option("--max-new-tokens", help="Longest answer, in tokens.")]
Sample = Annotated[bool, typer.Option("--sample", help="Draw tokens instead of taking the best.")]
Temperature = Annotated[float, typer.Option(help="Used with --sample.")]
Seed = Annotated[int | None, typer.Option(help="Makes --sample repeatable.", show_default=False)]
Truncate = Annotated[bool, typer.Option("--truncate", help="Cut passages that do not fit the model.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps.", show_default="the best there is")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16, auto.", show_default=False)]
Heads = Annotated[
    Path | None,
    typer.Option("--heads", metavar="FILE", help="Head mask, or head scores with --prune.", show_default=False),
]
Prune = Annotated[
    str | None,
    typer.Option(metavar="CLASS:K", help="Heads to prune, e.g. memory:7 or only-context:3.", show_default=False),
]
PruneStream = Annotated[str, typer.Option("--prune-stream", help="Where to prune: both, contextual or parametric.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Stream = Annotated[bool, typer.Option("--stream", help="Print the answer as it is made.")]
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
Rerank = Annotated[
    str | None, typer.Option(metavar="MODEL", help="Cross-encoder: a folder or an id.", show_default=False)
]
Embedder = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="Where the index's embedder is now.", show_default="as the index says"),
]


@dataclass(frozen=True)
class Request:
    """Everything one answer depends on, as read from the command line."""

    question: str
    passages: list[str]
    model: str
    method: str
    alpha: float | None
    params: dict[str, Any]
    options: dict[str, Any]
    device: str | None = None
    dtype: str | None = None
    truncate: bool = False
    heads: Path | None = None
    prune: str | None = None
    prune_stream: str = "both"

    def answer(self, stream: bool = False) -> Answer:
        """Load the model and answer; with `stream` the text is printed as it comes.

        The control and the options are checked first, so a bad one costs no loading.
        """
        from ..config import Control, GenerateOptions

        control = Control(self.method, self.alpha, **self.params)
        GenerateOptions.from_kwargs(self.options)
        mask = self._mask()
        model, tokenizer = load(self.model, self.device, self.dtype)
        from .. import generate
        from .stream import TextStream

        streamer = TextStream(tokenizer) if stream else None
        with nullcontext() if mask is None else _pruned(model, mask, self.prune_stream):
            answer: Answer = generate(
                model,
                tokenizer,
                self.question,
                self.passages,
                control=control,
                truncate="passages" if self.truncate else None,
                streamer=streamer,
                **self.options,
            )
        return answer

    def _mask(self) -> HeadMask | None:
        """The heads to prune, read and checked before the model is loaded."""
        if self.prune_stream not in STREAMS:
            raise ControlError(f"--prune-stream {self.prune_stream!r}.", did_you_mean(self.prune_stream, STREAMS))
        if self.heads is None:
            if self.prune is not None or self.prune_stream != "both":
                raise ControlError("--prune without --heads.", "Name the file that `ckcontrol heads find` wrote.")
            return None
        from ..heads.select import read_mask

        return read_mask(self.heads, self.prune)


def _pruned(model: Any, mask: HeadMask, stream: str) -> AbstractContextManager[None]:
    from ..heads import pruned

    if stream == "both":
        return pruned(model, mask)
    return pruned(model, contextual=mask) if stream == "contextual" else pruned(model, parametric=mask)


def load(name: str, device: str | None = None, dtype: str | None = None) -> tuple[Any, Any]:
    """Load a model with a spinner on stderr where that is a terminal."""
    from rich.console import Console

    from .. import models

    with Console(stderr=True).status(f"Loading {name} ...") as status:
        return models.load(name, device=device, dtype=dtype, on_status=status.update)


def read_passages(files: Sequence[str], texts: Sequence[str] = ()) -> list[str]:
    """Read passage files in order, then append the texts.

    Raises:
        PromptError: A file is missing, unreadable, over 10 MB, empty or not UTF-8; or stdin is named twice.
    """
    if list(files).count("-") > 1:
        raise PromptError("'-' was given more than once.", "stdin can be read once.")
    return [_read(name) for name in files] + list(texts)


def _read(name: str) -> str:
    label = "stdin" if name == "-" else repr(name)
    try:
        if name == "-":
            data = sys.stdin.buffer.read(LIMIT + 1)
        else:
            with Path(name).open("rb") as file:
                data = file.read(LIMIT + 1)
    except OSError as error:
        raise PromptError(f"passage file {label} cannot be read: {error.strerror or error}.") from error
    if len(data) > LIMIT:
        raise PromptError(f"passage file {label} is larger than {LIMIT // 1_000_000} MB.", "Split it.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptError(
            f"passage file {label} is not UTF-8 (byte {error.start}).", "Convert it, e.g. with iconv."
        ) from error
    if not text.strip():
        raise PromptError(f"passage file {label} is empty.", "Leave it out to answer closed book.")
    return text


def parse_params(pairs: Sequence[str]) -> dict[str, Any]:
    """Turn ``name=value`` texts into typed values: true/false, a whole number, a number, else text.

    Raises:
        ControlError: No ``=``, an empty or repeated name, or a name that has an option of its own.
    """
    params: dict[str, Any] = {}
    for pair in pairs:
        name, sign, text = pair.partition("=")
        name = name.strip().replace("-", "_")
        if not sign or not name.isidentifier():
            raise ControlError(f"--param {pair!r} is not NAME=VALUE.", "For example: --param gate=2")
        if name in RESERVED:
            raise ControlError(f"--param {pair!r}: {name} has its own option.", f"Use --{name}.")
        if name in params:
            raise ControlError(f"--param {name} was given twice.")
        params[name] = _typed(text.strip())
    return params


def _typed(text: str) -> bool | int | float | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if re.fullmatch(r"[+-]?\d{1,18}", text):
        return int(text)
    return float(text) if NUMBER.fullmatch(text) else text


def parse_where(conditions: Sequence[str]) -> dict[str, Any] | None:
    """Turn ``year>=2000`` and the like into the mapping that a search takes; None when there are none.

    Values are typed as those of parameters; ``"in quotes"`` they are texts. Those of id, source and document are texts.

    Raises:
        ControlError: Not a condition, or the same comparison of the same name twice.
    """
    where: dict[str, dict[str, Any]] = {}
    for given in conditions:
        match = CONDITION.fullmatch(given)
        if match is None:
            raise ControlError(f"--where {given!r} is no condition.", "For example: --where 'year>=2000'")
        name, sign, text = match.groups()
        quoted = len(text) > 1 and text[0] == text[-1] == '"'
        value = text[1:-1] if quoted else text if name in TEXTS else _typed(text)
        tests = where.setdefault(name, {})
        if OPERATORS[sign] in tests:
            raise ControlError(f"--where {given!r}: {name}{sign} was given twice.", "All conditions must hold.")
        tests[OPERATORS[sign]] = value
    return where or None


def open_index(folder: Path, embedder: str | None = None, *, load: bool = False) -> Index:
    """Open an index, with the embedder its manifest names unless another place of it is given.

    Args:
        folder: The index's.
        embedder: A name for `load_embedder`.
        load: Load the manifest's embedder now, with a spinner, rather than when it is needed.
    """
    from rich.console import Console

    from ..retrieval import Index

    index = Index.open(folder)
    if embedder is not None:
        scaled = index.info()["embedder"]["normalize"]
        index.close()
        index = Index.open(folder, load_embedder(embedder, normalize=scaled))
    if load:
        with Console(stderr=True).status("Loading the index's embedder ..."):
            index.embedder  # noqa: B018  loads it
    return index


def load_embedder(name: str, *, normalize: bool = True) -> Any:
    """Load an embedder with a spinner on stderr where that is a terminal; folders are kept by their absolute path."""
    from rich.console import Console

    with Console(stderr=True).status(f"Loading the embedder {name} ...") as status:
        from ..retrieval import Embedder

        path = Path(name).expanduser()
        place = str(path.resolve()) if name != "demo" and path.is_dir() else name
        return Embedder(place, normalize=normalize, on_status=status.update)


def load_reranker(name: str | None) -> Any:
    """Load a re-ranker like `load_embedder`; None for None."""
    if name is None:
        return None
    from rich.console import Console

    with Console(stderr=True).status(f"Loading the re-ranker {name} ..."):
        from ..retrieval.rerank import Reranker

        return Reranker(name)
