"""Head masks per request inside vLLM: hooks that scale heads in the rows of masked requests alone.

As in heads/apply.py a factor multiplies the head's slice of the output projection's input, by a hook on the
projection; here the rows of a flat batch belong to many requests. Hooks run in eager mode only, so a compiled engine is
refused with a sentence: there, serve an exported checkpoint or adapter. Keys and values computed under a mask differ,
so every mask has a ``cache_salt`` of its own, which the front end sets (`head_masks.salt`). Knows the V1 model runner.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ...heads.families import FAMILIES
from ...serving.json_values import HEADS
from ..contract.head_masks import pack, salt, unpack

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ...heads.mask import HeadMask

__all__ = ["HINT", "install", "masked", "refusal"]

HINT = "Start the server with --enforce-eager, or serve a model with the heads exported: ckcontrol heads export."

Scales = dict[int, list[tuple[int, int, "Tensor"]]]  # layer -> first row, last row plus one, factors [H]


def masked(mask: HeadMask, cache_salt: str | None = None) -> tuple[dict[str, str], str]:
    """Return what an offline request with a mask needs: its `extra_args` and its ``cache_salt``.

    Args:
        mask: The mask; whether it was made for this model is for the caller to check.
        cache_salt: The request's own salt, if it has one.

    Example:
        >>> from ckcontrol.heads import HeadMask
        >>> from ckcontrol.models.tiny import tiny_model
        >>> masked(HeadMask.of(tiny_model()[0], [(0, 1)]))[0]
        {'ckheads': '[[0,1,0.0]]'}
    """
    entries = tuple((layer, head, factor) for (layer, head), factor in mask.factors.items())
    return {HEADS: pack(entries)}, salt(entries, cache_salt)


def refusal(config: Any, runner: Any) -> str | None:
    """Return why masks cannot act in this engine, or None."""
    text = config.model_config.hf_text_config
    if not config.model_config.enforce_eager:
        return "head masks act in eager mode only, and this engine compiles its model."
    if not all(hasattr(runner, name) for name in ("requests", "input_batch", "query_start_loc")):
        return "head masks need vLLM's V1 model runner; set VLLM_USE_V2_MODEL_RUNNER=0."
    if text.model_type not in FAMILIES:
        return f"the model family {text.model_type!r} is not known; known: {', '.join(sorted(FAMILIES))}."
    return None


def install(config: Any, runner: Any) -> dict[str, int]:
    """Put the hooks in place; return the model's ``layers`` and ``heads``."""
    text = config.model_config.hf_text_config
    heads = int(text.num_attention_heads)
    model, scales = runner.model, Scales()
    model.register_forward_pre_hook(lambda *_: _refill(scales, runner, heads))
    blocks = _at(model, FAMILIES[text.model_type].layers)
    for layer, block in enumerate(blocks):
        projection = _at(block, FAMILIES[text.model_type].projection)
        if projection is not None:  # None: a layer of another pipeline rank
            projection.register_forward_pre_hook(_hook(layer, scales, heads))
    return {"layers": len(blocks), "heads": heads}


def _refill(scales: Scales, runner: Any, heads: int) -> None:
    """Note, once per forward, which rows of the flat batch each mask scales."""
    scales.clear()
    names: Sequence[str] = runner.input_batch.req_ids
    starts = runner.query_start_loc.np
    for i, name in enumerate(names):
        request = runner.requests.get(name)
        given = getattr(getattr(request, "sampling_params", None), "extra_args", None)
        if given and HEADS in given:
            for layer, factors in _factors(given[HEADS], heads, runner.device):
                scales.setdefault(layer, []).append((int(starts[i]), int(starts[i + 1]), factors))


@lru_cache(maxsize=256)
def _factors(mask: str, heads: int, device: torch.device) -> tuple[tuple[int, Tensor], ...]:
    """Return the factors of each layer that a packed mask touches, [H] float32; sent to the device once."""
    import torch

    from .sampling import sent

    found: dict[int, list[float]] = {}
    for layer, head, factor in unpack(mask):
        if head < heads:
            found.setdefault(layer, [1.0] * heads)[head] = factor
    return tuple((layer, sent(factors, torch.float32, device)) for layer, factors in found.items())


def _hook(layer: int, scales: Scales, heads: int) -> Callable[..., Any]:
    def scale(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if layer not in scales:
            return None
        z = args[0].clone()  # [tokens, H_local * d_h]
        first, here = _slice(module, heads)
        for start, end, factors in scales[layer]:
            local = factors[first : first + here].to(dtype=z.dtype, device=z.device)
            part = z[start:end].view(end - start, here, -1)
            part *= local[:, None]
        return (z, *args[1:])

    return scale


def _slice(module: Any, heads: int) -> tuple[int, int]:
    """Return the first head of this tensor-parallel rank, and how many it holds."""
    ranks = int(getattr(module, "tp_size", 1) or 1)
    rank = int(getattr(module, "tp_rank", 0) or 0)
    return rank * (heads // ranks), heads // ranks


def _at(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name, None)
        if module is None:
            return None
    return module
