"""Head masks and a direction per request inside vLLM: hooks that change the rows of those requests alone.

As in heads/apply.py a factor multiplies the head's slice of the output projection's input, by a hook on the
projection; as in heads/directions/apply.py a multiple of the direction is added to the stream that leaves its layer, by
a hook on the layer, at a prompt's last token and after it. Here the rows of a flat batch belong to many requests. Hooks
run in eager mode only, so a compiled engine is refused with a sentence. Keys and values computed so differ: the front
end sets a ``cache_salt`` for every mask, and one for every row under a direction (changes.py). Knows the V1 model
runner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ...heads.families import FAMILIES
from ...serving.json_values import DIRECTION, HEADS
from ..contract.changes import pack, salt, unpack

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ...heads.mask import HeadMask

__all__ = ["HINT", "LED_HINT", "install", "install_direction", "masked", "refusal"]

HINT = "Start the server with --enforce-eager, or serve a model with the heads exported: ckcontrol heads export."
LED_HINT = "Give a direction of this model to serve-vllm --direction, which runs eagerly; else: ckcontrol serve."

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


def refusal(config: Any, runner: Any, what: str = "head masks") -> str | None:
    """Return why masks, or directions, cannot act in this engine, or None."""
    text = config.model_config.hf_text_config
    if not config.model_config.enforce_eager:
        return f"{what} act in eager mode only, and this engine compiles its model."
    if not all(hasattr(runner, name) for name in ("requests", "input_batch", "query_start_loc")):
        return f"{what} need vLLM's V1 model runner; set VLLM_USE_V2_MODEL_RUNNER=0."
    if text.model_type not in FAMILIES:
        return f"the model family {text.model_type!r} is not known; known: {', '.join(sorted(FAMILIES))}."
    if _at(runner.model, FAMILIES[text.model_type].layers) is None:
        return f"{type(runner.model).__name__}, as vLLM runs {text.model_type!r}, has its layers in an unknown place."
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
    for _, start, end, mask in _asked(runner, HEADS):
        for layer, factors in _factors(mask, heads, runner.device):
            scales.setdefault(layer, []).append((start, end, factors))


def _asked(runner: Any, key: str) -> Iterator[tuple[int, int, int, Any]]:
    """Yield, of each request of the batch with an engine argument, its place, first row, last row plus one, value."""
    names: Sequence[str] = runner.input_batch.req_ids
    starts = runner.query_start_loc.np
    for i, name in enumerate(names):
        request = runner.requests.get(name)
        given = getattr(getattr(request, "sampling_params", None), "extra_args", None)
        if given and key in given:
            yield i, int(starts[i]), int(starts[i + 1]), given[key]


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
        z = args[0].clone()  # [tokens, H_local * d_h]; transformers' own layers have a batch of one in front
        flat = z.view(-1, z.shape[-1])
        first, here = _slice(module, heads)
        for start, end, factors in scales[layer]:
            local = factors[first : first + here].to(dtype=z.dtype, device=z.device)
            part = flat[start:end].view(end - start, here, -1)
            part *= local[:, None]
        return (z, *args[1:])

    return scale


def install_direction(config: Any, runner: Any, layer: int, vector: Sequence[float]) -> None:
    """Put the hooks of a direction v, [d], in place: `layer` is that whose output they change."""
    import torch

    from .sampling import sent

    model, device = runner.model, runner.device
    v = sent(list(vector), torch.float32, device)
    pushes: list[tuple[Tensor, Tensor]] = []  # rows of the flat batch [n], and what is added to them [n, d]; or empty

    def note(*_: Any) -> None:
        pushes.clear()
        rows, coefficients = _led(runner)
        if rows:
            pushes.append((sent(rows, torch.long, device), sent(coefficients, torch.float32, device)[:, None] * v))

    def add(module: Any, args: Any, output: Any) -> Any:
        if not pushes:
            return None
        rows, push = pushes[0]
        stream = output[0] if isinstance(output, tuple) else output  # of a tuple the stream is the sum
        changed = stream.clone()
        flat = changed.view(-1, changed.shape[-1])
        flat[rows] += push.to(flat.dtype)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    model.register_forward_pre_hook(note)
    _at(model, FAMILIES[config.model_config.hf_text_config.model_type].layers)[layer].register_forward_hook(add)


def _led(runner: Any) -> tuple[list[int], list[float]]:
    """Return the rows of the flat batch that a direction changes, and its coefficient in each.

    Those from a prompt's last token on, whose logits are asked for; a token that is computed again after a preemption
    is one of them as it was before.
    """
    rows, coefficients = list[int](), list[float]()
    batch = runner.input_batch
    for i, start, end, coefficient in _asked(runner, DIRECTION):
        before = int(batch.num_prompt_tokens[i]) - 1 - int(batch.num_computed_tokens_cpu[i])
        led = range(start + max(0, before), end)
        rows += led
        coefficients += [float(coefficient)] * len(led)
    return rows, coefficients


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
