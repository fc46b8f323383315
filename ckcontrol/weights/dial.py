"""A dial onto a model: its adapters beside the weights, each row of a forward with its own, or with none.

PEFT reads the adapters and says which layers they belong to; a hook on each of those adds, to its output, the products
with the adapters that the rows ask for (decoding/weight_rows.py). A batch of one adapter costs two thin products per
layer. One of several costs the same two, as thick as all of its adapters together, with the other rows' zeroed between.
Whatever does not ask for an adapter meets the base model, bit for bit.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ..decoding.refusals import bare
from ..decoding.weight_rows import BASE, DIALS, rows_now
from ..errors import UnsupportedMode, WeightsError
from .adapters import attach
from .manifest import Manifest

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

__all__ = ["Updates", "load", "put_on", "unload"]

# Layer -> adapter -> its matrices, [rank, in] and, times the adapter's scale, [rank, out].
Updates: TypeAlias = "dict[str, dict[str, tuple[Tensor, Tensor]]]"
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
    put_on(inner, path, [name for name in names.values() if name != BASE])
    inner.eval()
    DIALS[inner] = names
    return manifest


def put_on(model: PreTrainedModel, folder: Path, names: list[str]) -> Updates:
    """Hang adapters beside a model's layers, for rows that name them (weight_rows.py); `unload` takes them off.

    Args:
        model: As `bare` gives it, without a dial or adapters.
        folder: Of the dial.
        names: Folders inside it.

    Raises:
        WeightsError: As in `load`.
        MissingExtra: The same.
    """
    wrapped = attach(model, {name: folder / name for name in names})
    try:
        found = _updates(wrapped, names)
    finally:
        wrapped.unload()
    hooks = _LOADED[model] = []
    for name, updates in found.items():
        layer = model.get_submodule(name)
        hooks.append((layer, layer.register_forward_hook(_Beside(layer, updates))))
    return found


def unload(model: PreTrainedModel) -> None:
    """Take the dial off a model, which is then as it was; a model without one stays as it is."""
    inner = bare(model)
    DIALS.pop(inner, None)
    for layer, hook in _LOADED.pop(inner, []):
        hook.remove()
        for name in (_IN, _OUT):
            delattr(layer, name)


def _updates(wrapped: Any, names: list[str]) -> Updates:
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
            if not found[path] or any(side.dim() != 2 for pair in found[path].values() for side in pair):
                raise WeightsError(
                    f"the dial adapts {path!r}, which is no linear layer.", "Train a LoRA of linear layers alone."
                )
    return found


class _Beside:
    """The hook of a layer that adds each row's update: [B, ..., in] and the layer's [B, ..., out] to [B, ..., out].

    Args:
        layer: Gets the adapters as buffers, which follow it to another device and stay out of what it saves.
        updates: As `_updates` returns them.
    """

    def __init__(self, layer: nn.Module, updates: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        import torch

        for buffer, side in ((_IN, 0), (_OUT, 1)):
            layer.register_buffer(buffer, torch.cat([pair[side] for pair in updates.values()]), persistent=False)
        self._places: dict[str, slice] = {}
        end = 0
        for name, (into, _) in updates.items():
            self._places[name] = slice(end, end := end + len(into))
        self._views: tuple[Any, dict[str, tuple[Tensor, Tensor]]] = None, {}  # of which buffer -> adapter ->
        self._mixed: tuple[Any, ...] = (None,)  # of which buffer, adapters, their matrices one after another, widths

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        import torch

        rows, x, keep = rows_now(), args[0], None
        if rows is None:
            return None
        if rows.only is not None:
            pair = self._one(layer, rows.only)
            if pair is None:
                return None
            into, out = pair
        else:
            into, out, widths = self._several(layer, rows.used)
            if len(x) != len(rows.names):
                raise UnsupportedMode(
                    f"{len(rows.names)} questions are {len(x)} rows to {type(layer).__name__}: whose they are is lost.",
                    "Ask each alpha in a batch of its own.",
                )
            keep = rows.keep(widths, into)
        thin = torch.nn.functional.linear(x.to(into.dtype), into)
        if keep is not None:
            thin = thin * keep.view(len(x), *(1,) * (x.dim() - 2), -1)
        if output.dtype == out.dtype and output.is_contiguous() and not torch.is_grad_enabled():
            flat = output.view(-1, output.shape[-1])  # in place: a decode step has nothing to spare for copies
            return flat.addmm_(thin.reshape(-1, thin.shape[-1]), out).view_as(output)
        return (output + thin @ out).to(output.dtype)  # PEFT keeps adapters of half-precision models in float32

    def _one(self, layer: nn.Module, name: str) -> tuple[Tensor, Tensor] | None:
        """Return an adapter's matrices, [rank, in] and [rank, out]; None where it leaves the layer alone."""
        into = layer._buffers[_IN]
        of, views = self._views
        if of is not into:  # the model was moved, or this is the first forward
            views = {name: (into[place], layer._buffers[_OUT][place]) for name, place in self._places.items()}  # type: ignore[index]
            self._views = into, views
        return views.get(name)

    def _several(self, layer: nn.Module, names: tuple[str, ...]) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        """Return the matrices of some adapters, one after another, and the rank of each here."""
        import torch

        of, *made = self._mixed
        if of is not layer._buffers[_IN] or made[0] != names:
            pairs = [self._one(layer, name) for name in names]
            sides = [torch.cat([pair[side] for pair in pairs if pair is not None]) for side in (0, 1)]
            made = [names, *sides, tuple(0 if pair is None else len(pair[0]) for pair in pairs)]
            self._mixed = layer._buffers[_IN], *made
        return made[1], made[2], made[3]
