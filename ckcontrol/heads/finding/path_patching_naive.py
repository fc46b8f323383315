"""Path patching by its definition: one whole forward per head, with every other head frozen by a hook.

The oracle for `sweep`, slow on purpose and without its ideas: no residual rows, no modules but the projections.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..families import HeadLayout
from ..forward import Batch, run

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["naive_patch", "record_heads"]


@torch.no_grad()
def record_heads(model: PreTrainedModel, layout: HeadLayout, batch: Batch) -> list[Tensor]:
    """Run a batch and keep the input of every output projection at all positions: L tensors, [N, T, H*d_h]."""
    kept: list[Tensor] = []

    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        kept.append(args[0].clone())

    with ExitStack() as hooks:
        for module in layout.projections:
            hooks.callback(module.register_forward_pre_hook(hook).remove)
        run(model, batch)
    return kept


@torch.no_grad()
def naive_patch(
    model: PreTrainedModel,
    layout: HeadLayout,
    clean: Batch,
    corrupted: Batch,
    targets: Tensor,
    heads: Iterable[tuple[int, int]],
    *,
    positions: str = "last",
) -> Tensor:
    """Logits of the targets, with the heads taken from the corrupted prompts one at a time.

    Args:
        model: The model.
        layout: Its heads.
        clean: Prompts X, N rows.
        corrupted: The corrupted prompts, one per row of `clean`.
        targets: Token ids to read, [N, K].
        heads: (layer, head) of each head to patch; one forward each.
        positions: "last" patches the last position; "all" every position, for prompts of equal length.

    Returns:
        [N, number of heads, K], in the model's dtype.
    """
    own, other = record_heads(model, layout, clean), record_heads(model, layout, corrupted)
    rows = []
    for layer, head in heads:
        frozen = [value.clone() for value in own]
        where = slice(None) if positions == "all" else slice(-1, None)
        frozen[layer][:, where, layout.columns(head)] = other[layer][:, where, layout.columns(head)]
        with ExitStack() as hooks:
            for module, value in zip(layout.projections, frozen, strict=True):
                hooks.callback(module.register_forward_pre_hook(_replace(value)).remove)
            rows.append(run(model, clean).gather(1, targets))
    return torch.stack(rows, dim=1)


def _replace(value: Tensor) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (value, *args[1:])

    return hook
