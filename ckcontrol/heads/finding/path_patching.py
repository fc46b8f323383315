"""Exact path patching of every head for the price of two forwards and one stack of MLP products.

Path patching (Wang et al. 2022; Goldowsky-Dill et al. 2023; PH3, Jin et al. 2024) asks: run prompt X with every head
frozen to its value on X, except one, which takes its value on a corrupted prompt; how far do the answers' logits move
when MLPs and norms are recomputed? With all other heads frozen, nothing moves information between positions, MLPs and
norms act on each position separately, and only the last position is read: a patched run *is* one residual row that
starts at its sender. So the rows of all senders travel up the model together, as one batch of matrix products.

    row 0        the unpatched last position; it must end where the model ends
    row 1 + l*H + h   starts in layer l as row 0 + post_norm(a_l + W_O[:, h] (z_corrupted - z)) - post_norm(a_l)

In a parallel layer the rows of its own heads do not pass its MLP. Two more readings leave the MLPs out: `direct` (final
norm recomputed) and `linear` (final norm frozen). path_patching_naive.py is the reference. Knows `HeadLayout`; knows
nothing of facts.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...errors import NonFiniteLogits
from ..families import HeadLayout
from ..forward import Batch, run

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Capture", "Patched", "capture", "direct", "gradient", "linear", "sweep"]


@dataclass(frozen=True)
class Capture:
    """What one forward leaves at the last position, float32 (float64 of a float64 model).

    Attributes:
        stream: Residual stream that enters the first layer, [N, d].
        final: Residual stream that leaves the last layer, [N, d].
        heads: Every head's value before the output projection, [N, L, H, d_h].
        logits: [N, V], in the model's dtype.
    """

    stream: Tensor
    final: Tensor
    heads: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Patched:
    """The answers' logits with and without each patch.

    Attributes:
        base: Logits of the targets on the unpatched row, [N, K].
        logits: Logits of the targets with head (l, h) patched, [N, L, H, K].
    """

    base: Tensor
    logits: Tensor

    @property
    def change(self) -> Tensor:
        """Change of each target's logit, [N, L, H, K]."""
        return self.logits - self.base[:, None, None]


@torch.no_grad()
def capture(model: PreTrainedModel, layout: HeadLayout, batch: Batch) -> Capture:
    """Run a batch once and keep its last position. Hooks that are already set, such as a mask's, act first.

    Raises:
        NonFiniteLogits: The model produced NaN or infinity.
    """
    seen: dict[int | str, Tensor] = {}

    def keep(name: int | str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            value = args[0] if args else kwargs["hidden_states"]
            seen[name] = _precise(value[:, -1])

        return hook

    with ExitStack() as hooks:
        ends = (("stream", layout.blocks[0].module), ("final", (*layout.final, layout.unembed)[0]))
        named: list[tuple[int | str, nn.Module]] = [*ends, *enumerate(layout.projections)]
        for name, module in named:
            hooks.callback(module.register_forward_pre_hook(keep(name), with_kwargs=True).remove)
        logits = run(model, batch)
    _check(logits)
    heads = torch.stack([seen[layer] for layer in range(layout.layers)], dim=1)
    shape = (-1, layout.layers, layout.heads, layout.head_dim)
    return Capture(seen["stream"], seen["final"], heads.view(shape), logits)


@torch.no_grad()
def sweep(layout: HeadLayout, clean: Capture, corrupted: Tensor, targets: Tensor) -> Patched:
    """Patch every head of every layer, each by itself, in one pass up the model.

    Args:
        layout: Parts of the model; their weights may be of any floating type, the rows are float32.
        clean: `capture` of the prompts, N rows.
        corrupted: Heads of the corrupted prompts, [N, L, H, d_h], or anything that broadcasts to it (a mean, zero).
        targets: Token ids whose logits are read, [N, K] int64.
    """
    change = corrupted - clean.heads
    count, heads = clean.stream.shape[0], layout.heads
    rows = clean.stream.new_empty(1 + layout.layers * heads, count, layout.hidden)
    rows[0] = clean.stream
    for layer, block in enumerate(layout.blocks):
        seen = 1 + layer * heads
        joined, patched = _attention(layout, layer, clean.heads[:, layer], change[:, layer])
        live = rows[:seen]
        if layout.parallel:
            live += _through(block.feed_forward, live)
        live += joined
        fresh = rows[seen : seen + heads]
        fresh.copy_(rows[:1] + (patched - joined))
        if not layout.parallel:
            live = rows[: seen + heads]
            live += _through(block.feed_forward, live)
    return _read(layout, rows, targets)


@torch.no_grad()
def direct(layout: HeadLayout, clean: Capture, corrupted: Tensor, targets: Tensor) -> Patched:
    """The direct path only: every MLP frozen too, the final norm recomputed; arguments as in `sweep`."""
    return _read(layout, _direct_rows(layout, clean, corrupted), targets)


def linear(layout: HeadLayout, clean: Capture, corrupted: Tensor, targets: Tensor) -> Tensor:
    """Direct logit attribution: `direct` with final norm, output embedding and softcap replaced by their tangent at X.

    Returns the change of each target's logit, [N, L, H, K]; arguments as in `sweep`.
    """
    rows = _direct_rows(layout, clean, corrupted)
    change = rows[1:] - rows[:1]  # [L*H, N, d]
    effects = []
    with torch.enable_grad():
        end = clean.final.detach().requires_grad_()
        logits = _logits(layout, end[None], targets)[0]  # [N, K]
        for k in range(targets.shape[1]):
            (slope,) = torch.autograd.grad(logits[:, k].sum(), end, retain_graph=True)  # [N, d]
            effects.append((change * slope).sum(-1))
    return _by_head(layout, torch.stack(effects, dim=-1))


def gradient(model: PreTrainedModel, layout: HeadLayout, batch: Batch, clean: Capture, targets: Tensor) -> Tensor:
    """Gradient of logit[targets[:, 0]] - logit[targets[:, 1]] with respect to every head's value at the last position.

    Times (z_corrupted - z), summed over d_h, it is attribution patching: the first-order estimate of a head's *total*
    effect there. Attention above the sender responds, where `sweep` freezes it. One forward and one backward in all.

    Returns [N, L, H, d_h]; `clean` is the capture of `batch`, the rest as in `sweep`.
    """
    count = batch.ids.shape[0]
    shifts = [clean.heads.new_zeros(count, layout.heads * layout.head_dim, requires_grad=True) for _ in layout.blocks]

    def shift(layer: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            z = args[0]
            last = z[:, -1:] + shifts[layer][:, None].to(z.dtype)
            return (torch.cat([z[:, :-1], last], dim=1), *args[1:])

        return hook

    with ExitStack() as hooks, torch.enable_grad():
        for layer, module in enumerate(layout.projections):
            hooks.callback(module.register_forward_pre_hook(shift(layer)).remove)
        logits = run(model, batch)
        chosen = logits.gather(1, targets[:, :2])
        slopes = torch.autograd.grad((chosen[:, 0] - chosen[:, 1]).sum(), shifts)
    return torch.stack(slopes, dim=1).view(clean.heads.shape)


# --- parts ------------------------------------------------------------------------------------------------------


def _attention(layout: HeadLayout, layer: int, heads: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
    """What layer `layer`'s attention adds to the stream: unpatched [1, N, d], and with each head patched [H, N, d]."""
    weight = layout.weight(layer).to(heads.dtype)  # [d, H*d_h]
    bias = layout.bias(layer)
    raw = heads.flatten(1) @ weight.t()
    if bias is not None:
        raw = raw + bias.to(raw.dtype)
    blocks = weight.view(layout.hidden, layout.heads, layout.head_dim).permute(1, 2, 0)  # [H, d_h, d]
    moved = torch.bmm(change.transpose(0, 1), blocks)  # [H, N, d]
    norms = layout.blocks[layer].attention_out
    joined = _through(norms, raw[None])
    return joined, _through(norms, raw[None] + moved) if norms else joined + moved


def _direct_rows(layout: HeadLayout, clean: Capture, corrupted: Tensor) -> Tensor:
    """The end of the stream, unpatched and with each head's direct contribution patched, [1 + L*H, N, d]."""
    change = corrupted - clean.heads
    rows = [clean.final[None]]
    for layer in range(layout.layers):
        joined, patched = _attention(layout, layer, clean.heads[:, layer], change[:, layer])
        rows.append(clean.final[None] + (patched - joined))
    return torch.cat(rows)


def _through(chain: Sequence[nn.Module], rows: Tensor) -> Tensor:
    """Apply modules in order, in their own dtype; the rows come back in the dtype they had."""
    for module in chain:
        weight = next(module.parameters(), None)
        rows_in = rows if weight is None else rows.to(weight.dtype)
        rows = module(rows_in).to(rows.dtype)
    return rows


def _logits(layout: HeadLayout, rows: Tensor, targets: Tensor) -> Tensor:
    """Logits of each prompt's targets, [R, N, d] and [N, K] -> [R, N, K], in the rows' dtype."""
    ends = _through(layout.final, rows)
    unembed: Any = layout.unembed
    weight, bias = unembed.weight, unembed.bias
    logits = torch.einsum("rnd,nkd->rnk", ends, weight[targets].to(ends.dtype))
    if bias is not None:
        logits = logits + bias[targets].to(ends.dtype)
    return logits if layout.softcap is None else layout.softcap * torch.tanh(logits / layout.softcap)


def _read(layout: HeadLayout, rows: Tensor, targets: Tensor) -> Patched:
    logits = _logits(layout, rows, targets)
    return Patched(logits[0], _by_head(layout, logits[1:]))


def _by_head(layout: HeadLayout, values: Tensor) -> Tensor:
    """[L*H, N, K] -> [N, L, H, K]."""
    return values.transpose(0, 1).reshape(-1, layout.layers, layout.heads, values.shape[-1])


def _precise(value: Tensor) -> Tensor:
    """A copy in float32; float64 stays float64."""
    return value.detach().to(torch.promote_types(value.dtype, torch.float32), copy=True)


def _check(logits: Tensor) -> None:
    if not bool(torch.isfinite(logits).all()):
        row = int((~torch.isfinite(logits)).any(-1).nonzero()[0])
        raise NonFiniteLogits(row=row, step=0, stream="contextual")
