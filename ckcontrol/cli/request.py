"""The one answer that ``run`` and ``explain`` ask for, checked before a model is loaded."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..answer import Answer
from ..errors import ControlError, did_you_mean

if TYPE_CHECKING:
    from ..heads import HeadMask
from . import options

__all__ = ["Request"]

STREAMS = ("both", "contextual", "parametric")


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
        from ..control import Control
        from ..decoding.options import GenerateOptions

        control = Control(self.method, self.alpha, **self.params)
        chosen = GenerateOptions.from_kwargs(self.options)
        mask = self._mask()
        model, tokenizer = options.load(self.model, self.device, self.dtype)
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
                options=chosen,
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
        from ..heads.choosing.select import read_mask

        return read_mask(self.heads, self.prune)


def _pruned(model: Any, mask: HeadMask, stream: str) -> AbstractContextManager[None]:
    from ..heads import pruned

    if stream == "both":
        return pruned(model, mask)
    return pruned(model, contextual=mask) if stream == "contextual" else pruned(model, parametric=mask)
