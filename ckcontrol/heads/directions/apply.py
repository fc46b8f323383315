"""Run a model with a direction added to the residual stream: `added`, a context manager over a hook on one layer.

The stream is changed at the positions whose logits are asked for (``logits_to_keep``): in generation the last token of
the prompt and every generated one, in a plain ``model(ids)`` all. What the prompt's other tokens left in the cache is
the unmodified model's. Knows directions, hooks and which stream is running; knows nothing of scores or prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...decoding.refusals import accepted_inputs, bare
from ...decoding.streams import running_streams
from ...errors import HeadsError
from ..families import describe
from ..forward import eager
from .direction import Direction

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Added", "added"]

Directions = Direction | Sequence[Direction | None] | None
_HERE: ContextVar[tuple[Added, ...]] = ContextVar("directions_here", default=())
_ASKED: ContextVar[Any] = ContextVar("logits_asked_for", default=0)


@contextmanager
def added(
    model: PreTrainedModel, direction: Directions, alpha: float | Sequence[float], *, strict: bool = True
) -> Iterator[None]:
    """**This changes what the model computes** while the block runs, for the caller who opened it.

    h <- h + coefficient(alpha) * v, in the residual stream that leaves the direction's layer (Rimsky et al. 2024,
    arXiv 2312.06681), in every stream of a two-stream method alike. Only forwards in the caller's context
    are changed: other threads may use the model, or add directions of their own, at the same time.
    `ckcontrol.agenerate` and ``asyncio.to_thread`` carry the context along; a bare ``threading.Thread`` does not, so
    open the block in it. At alpha = 0.5 nothing is added and no hook exists. Blocks nest, and what they add is summed.
    Compiled code does not see hooks: while a block runs, everything under ``torch.compile`` in this process runs
    eagerly, and CUDA graphs are not used.

    Args:
        model: A model of a known family (`families.FAMILIES`), whose forward takes ``logits_to_keep``.
        direction: For every row, or one (or None) per row of the batch; beams and ``num_return_sequences`` are rows of
            their own. A list goes with plain forwards and with methods of one draft.
        alpha: From 0, toward the context, to 1, toward memory; or one per row.
        strict: As in `Direction.check`.

    Raises:
        HeadsError: The direction is for another model (the message names the field), or has no strength on that side;
            as many alphas as directions are needed; or, raised from within a forward, rows and directions do not match.
        ControlError: An alpha is not a number from 0 to 1.

    Example:
        >>> from ckcontrol.heads import Fingerprint
        >>> from ckcontrol.models.tiny import tiny_model
        >>> model, tokenizer = tiny_model()
        >>> found = Direction(Fingerprint.of(model), 1, torch.ones(model.config.hidden_size), context=4.0, memory=2.0)
        >>> ids = tokenizer("Who?", return_tensors="pt").input_ids
        >>> with added(model, found, alpha=0.2):
        ...     answer = model.generate(ids, max_new_tokens=4, do_sample=False)
    """
    with Added(model, direction, alpha, strict=strict).acting():
        yield


class Added:
    """Directions of a model with their alphas, checked once; `acting` may be entered for every step of a batch.

    Args and errors are those of `added`.
    """

    def __init__(
        self, model: PreTrainedModel, direction: Directions, alpha: float | Sequence[float], *, strict: bool = True
    ) -> None:
        given = [direction] if direction is None or isinstance(direction, Direction) else list(direction)
        alphas: list[Any] = list(alpha) if isinstance(alpha, (list, tuple)) else [alpha]
        rows = max(len(given), len(alphas))
        if not given or not alphas or not {len(given), len(alphas)} <= {1, rows}:
            raise HeadsError(f"{len(given)} directions and {len(alphas)} alphas.", "Give one, or one per row, of each.")
        if any(one is not None and not isinstance(one, Direction) for one in given):
            raise HeadsError(f"{direction!r} is not a list of directions.", "Give a Direction, or None, per row.")
        for one in {one for one in given if one is not None}:
            one.check(model, strict=strict)
        if "logits_to_keep" not in accepted_inputs(model):
            what = f"{type(bare(model)).__name__} takes no logits_to_keep, which says where a direction is added."
            raise HeadsError(what, "This version of transformers is not supported.")
        self.model = bare(model)
        self.rows = rows
        self.parts: dict[int, dict[int, Tensor]] = {}  # layer -> row -> what is added, [d] float32
        for row in range(rows):
            found = given[row % len(given)]
            factor = 0.0 if found is None else found.coefficient(alphas[row % len(alphas)])
            if found is not None and factor:
                self.parts.setdefault(found.layer, {})[row] = factor * found.vector
        self.kept: dict[Any, tuple[Any, Tensor]] = {}
        self.blocks = [describe(model).blocks[layer].module for layer in self.parts]

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Add them while the block runs."""
        if not self.parts:
            yield
            return
        handles = [self.model.register_forward_pre_hook(_note_asked, with_kwargs=True)]
        handles += [
            block.register_forward_hook(self._hook(layer)) for block, layer in zip(self.blocks, self.parts, strict=True)
        ]
        token = _HERE.set((*_HERE.get(), self))
        try:
            with eager():
                yield
        finally:
            _HERE.reset(token)
            for handle in handles:
                handle.remove()

    def _hook(self, layer: int) -> Callable[..., Any]:
        def add(module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if self not in _HERE.get():
                return None
            if isinstance(output, tuple):
                return (self._plus(layer, output[0]), *output[1:])
            return self._plus(layer, output)

        return add

    def _plus(self, layer: int, hidden: Tensor) -> Tensor:
        """Return the residual stream, [B, T, d], with what is added; rows without a direction keep every bit."""
        streams = len(running_streams() or ("any",))
        key = (layer, streams, len(hidden), hidden.dtype, hidden.device)
        if key not in self.kept:
            self.kept[key] = self._pushes(layer, streams, hidden)
        rows, push = self.kept[key]
        asked = _ASKED.get()
        where = slice(-asked if asked else None, None) if isinstance(asked, int) else asked
        if rows is None and (asked == 0 if isinstance(asked, int) else False):
            return hidden + push
        changed = hidden.clone()
        if rows is None:
            changed[:, where] += push
        else:
            part = hidden[rows]
            part[:, where] += push
            changed[rows] = part
        return changed

    def _pushes(self, layer: int, streams: int, hidden: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return the rows that are changed, None for all, and what is added to them, [1 or R, 1, d]."""
        parts = self.parts[layer]
        rows, rest = divmod(len(hidden), streams)
        if rest or self.rows not in (1, rows):
            raise HeadsError(
                f"{self.rows} directions meet a batch of {rows} rows.",
                "Give one direction and one alpha, or one of each per row; repeat each for beams and drafts.",
            )
        if self.rows == 1:
            return None, parts[0].to(hidden)[None, None]
        push = torch.stack([parts[row] for _ in range(streams) for row in parts])[:, None].to(hidden)
        if len(parts) == rows:
            return None, push
        changed = [stream * rows + row for stream in range(streams) for row in parts]
        return torch.tensor(changed, device=hidden.device), push


def _note_asked(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    _ASKED.set(kwargs.get("logits_to_keep", 0))
