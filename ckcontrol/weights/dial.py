"""A dial onto a model: its adapters beside the weights, each row of a forward with its own, or with none.

PEFT reads the adapters and says which layers they belong to; a hook on each of those adds, to its output, the products
with the adapters that the rows ask for (decoding/weight_rows.py). All adapters of a layer lie in one pair of matrices,
so a batch of one adapter costs two thin products per layer, and one of several the same with the other rows' zeroed.
Whatever does not ask for an adapter meets the base model, bit for bit.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..decoding.refusals import bare
from ..decoding.weight_rows import BASE, DIALS, Rows, rows_now
from ..errors import UnsupportedMode
from .adapters import attach
from .manifest import Manifest

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

__all__ = ["load", "unload"]

_LOADED: weakref.WeakKeyDictionary[Any, list[tuple[nn.Module, Any]]] = weakref.WeakKeyDictionary()
_IN, _OUT = "_ck_dial_in", "_ck_dial_out"  # a layer's buffers, [ranks, in] and [ranks, out]: adapter after adapter


def load(model: PreTrainedModel, folder: str | Path) -> Manifest:
    """Load a dial onto a model, for `Control("weights", alpha=...)`; `unload` takes it off again.

    The model keeps its weights and answers as before under every other method.

    Args:
        model: The one that the dial's adapters were trained on; not compiled, and without adapters of its own.
        folder: What `mix` wrote.

    Returns:
        The dial's manifest.

    Raises:
        WeightsError: No dial, a damaged one, one of another model, or the model has adapters or a dial already.
        UnsupportedMode: The model is compiled.
        MissingExtra: PEFT is not installed.
    """
    path = Path(folder)
    if hasattr(model, "_orig_mod"):
        raise UnsupportedMode("a dial cannot be loaded onto a compiled model.", "Load it onto the model itself.")
    manifest = Manifest.read(path)
    inner = bare(model)
    manifest.check(inner, path)
    names = {alpha: BASE if name is None else name for alpha, name in sorted(manifest.adapters.items())}
    used = [name for name in names.values() if name != BASE]
    wrapped = attach(inner, {name: path / name for name in used})
    try:
        found = _updates(wrapped, used)
    finally:
        wrapped.unload()
    hooks: list[tuple[nn.Module, Any]] = []
    for name, updates in found.items():
        hooks.append((layer := inner.get_submodule(name), _put(layer, updates)))
    inner.eval()
    _LOADED[inner] = hooks
    DIALS[inner] = names
    return manifest


def unload(model: PreTrainedModel) -> None:
    """Take the dial off a model, which is then as it was; a model without one stays as it is."""
    inner = bare(model)
    DIALS.pop(inner, None)
    for layer, hook in _LOADED.pop(inner, []):
        hook.remove()
        for name in (_IN, _OUT):
            delattr(layer, name)


def _updates(wrapped: Any, names: list[str]) -> dict[str, dict[str, tuple[Tensor, Tensor]]]:
    """Return layer -> adapter -> its matrices, [rank, in] and, times the adapter's scale, [rank, out]."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found = {}
    for path, module in wrapped.get_base_model().named_modules():
        if isinstance(module, BaseTunerLayer):
            layer: Any = module
            found[path] = {
                name: (layer.lora_A[name].weight.detach(), layer.lora_B[name].weight.detach().T * layer.scaling[name])
                for name in names
                if name in layer.lora_A
            }
    return found


def _put(layer: nn.Module, updates: Mapping[str, tuple[Tensor, Tensor]]) -> Any:
    """Give a layer its adapters; return the hook that adds them."""
    import torch

    spans, end = [], 0
    for name, (first, _) in updates.items():
        spans.append((name, end, end := end + len(first)))
    # Buffers follow the model to another device, and stay out of what it saves.
    for buffer, side in ((_IN, 0), (_OUT, 1)):
        layer.register_buffer(buffer, torch.cat([pair[side] for pair in updates.values()]), persistent=False)
    key = tuple(spans)

    def add(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        rows = rows_now()
        return None if rows is None else _added(module, args[0], output, rows, key)

    return layer.register_forward_hook(add)


def _added(module: Any, x: Tensor, output: Tensor, rows: Rows, spans: tuple[tuple[str, int, int], ...]) -> Tensor:
    """Return a layer's output, [B, ..., out], plus each row's update of its input, [B, ..., in]."""
    import torch

    first, end, keep = rows.within(spans, x)
    if first == end:
        return output
    into, out = getattr(module, _IN)[first:end], getattr(module, _OUT)[first:end]
    thin = torch.nn.functional.linear(x.to(into.dtype), into)
    if keep is not None:
        if len(x) != len(keep):
            raise UnsupportedMode(
                f"rows of {len(keep)} questions reach {type(module).__name__} as {len(x)}, which hides whose they are.",
                "Ask each alpha in a batch of its own.",
            )
        thin = thin * keep.view(len(x), *(1,) * (x.dim() - 2), -1).to(thin.dtype)
    flat = output.reshape(-1, output.shape[-1])
    if into.dtype == output.dtype:
        made = torch.addmm(flat, thin.reshape(-1, thin.shape[-1]), out)
    else:  # PEFT keeps adapters of half-precision models in float32
        made = (flat + thin.reshape(-1, thin.shape[-1]) @ out).to(output.dtype)
    return made.view(output.shape)
