"""A dial onto a model: its adapters beside the weights, each row of a forward with its own, or with none.

PEFT adds the adapters' layers and computes batches of several adapters; a hook per layer tells it the rows' adapters
(decoding/weight_rows.py). Whatever does not ask for an adapter meets the base model, bit for bit.
"""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..decoding.refusals import bare
from ..decoding.weight_rows import BASE, DIALS, row_adapters
from ..errors import UnsupportedMode, WeightsError
from .adapters import attach
from .manifest import Manifest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["load", "unload"]

_LOADED: weakref.WeakKeyDictionary[Any, tuple[Any, list[Any]]] = weakref.WeakKeyDictionary()


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
    if inner in DIALS:
        raise WeightsError("the model has a dial already.", "Call ckcontrol.weights.unload(model) first.")
    manifest.check(inner, path)
    names = {alpha: BASE if name is None else name for alpha, name in manifest.adapters.items()}
    wrapped = attach(inner, {name: path / name for name in sorted(set(names.values()) - {BASE})})
    from peft.tuners.tuners_utils import BaseTunerLayer

    hooks = []
    for module in inner.modules():
        if isinstance(module, BaseTunerLayer):
            layer: Any = module
            layer.set_adapter([])  # none acts unless a row asks for it
            hooks.append(layer.register_forward_pre_hook(_choose, with_kwargs=True))
    inner.eval()
    _LOADED[inner] = (wrapped, hooks)
    DIALS[inner] = names
    return manifest


def unload(model: PreTrainedModel) -> None:
    """Take the dial off a model, which is then as it was; a model without one stays as it is."""
    inner = bare(model)
    DIALS.pop(inner, None)
    wrapped, hooks = _LOADED.pop(inner, (None, []))
    for hook in hooks:
        hook.remove()
    if wrapped is not None:
        wrapped.unload()


def _choose(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    names = row_adapters()
    return None if names is None else (args, {**kwargs, "adapter_names": list(names)})
