"""One look at both streams on an accelerator: the same as `survey.py`, in whole tensors and compiled where it can be.

Plain functions of tensors, without a shape that depends on data, so that they can be compiled, or captured as part of a
graph. `quickly` runs them through `torch.compile` on a CUDA device, once per kind of call and about ten seconds each
the first time; where that fails (no triton, no C compiler) they run as they are, and no other is tried: `compiles` says
so from then on, as where it is switched off (``TORCH_COMPILE_DISABLE=1``). Knows logits of shape [rows, V]; knows
nothing of policies.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from .distributions import BLOCK, FLOOR, jensen_shannon, normalised

__all__ = ["compiles", "divergence_at_once", "look", "quickly"]

logger = logging.getLogger(__name__)
T = TypeVar("T")
_failed: set[str] = set()


def look(logits: Tensor, k: int, ratio: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Look at a stream, or at both below each other.

    Args:
        logits: [R, V], float32; -inf marks a masked token.
        k: Of the shortlist.
        ratio: Of the shortlist.

    Returns:
        Maximum [R, 1], logsumexp [R, 1], entropy [R], least log-probability on the shortlist [R, 1], favourite [R].
    """
    size = logits.shape[1]
    padded = torch.nn.functional.pad(logits, (0, -size % BLOCK), value=-math.inf)
    blocks = padded.view(len(padded), -1, BLOCK).amax(-1)
    peak = blocks.amax(-1, keepdim=True)
    distance = logits - peak
    mass = distance.exp()
    total = mass.sum(-1, keepdim=True)
    entropy = (total.log() - (mass * distance.clamp_min(FLOOR)).sum(-1, keepdim=True) / total)[:, 0]
    norm = peak + total.log()
    within = torch.arange(BLOCK, device=logits.device)
    at = blocks.argmax(-1, keepdim=True) * BLOCK + within
    top = at.gather(1, padded.gather(1, at).argmax(-1, keepdim=True))[:, 0]
    if ratio == 0:
        return peak, norm, entropy, torch.full_like(norm, -math.inf), top
    best = blocks.topk(min(k, blocks.shape[1]), dim=-1, sorted=False).indices
    found = padded.gather(1, (best[..., None] * BLOCK + within).flatten(1))
    least = found.topk(min(k, size), dim=-1).values[:, -1:]
    floor = torch.minimum(normalised(least, norm), normalised(peak, norm) + math.log(ratio))
    return peak, norm, entropy, floor, top


def divergence_at_once(logits_a: Tensor, norm_a: Tensor, logits_b: Tensor, norm_b: Tensor) -> Tensor:
    """Return `jensen_shannon` of two streams of known logsumexp, [R, V] x 2 -> [R], in nats."""
    return jensen_shannon(normalised(logits_a, norm_a), normalised(logits_b, norm_b))


def compiles(device: torch.device) -> bool:
    """Whether `quickly` compiles on this device and has not failed to: what is written for it is longer uncompiled."""
    return device.type == "cuda" and not _failed and compiled(look) is not look  # as they are when it is switched off


def quickly(function: Callable[..., T], like: Tensor, *args: Any) -> T:
    """Return ``function(*args)``, compiled if `like` is on a CUDA device and that is possible."""
    name = function.__name__
    if not compiles(like.device):
        return function(*args)
    try:
        made: T = compiled(function)(*args)
        return made
    except Exception as error:  # whatever a compiler may miss on somebody's machine: the result is the same without
        _failed.add(name)
        logger.warning("ckcontrol: %s runs uncompiled, a little slower: %s", name, error)
        return function(*args)


@cache
def compiled(function: Callable[..., T]) -> Callable[..., T]:
    """Return a function compiled for any number of rows."""
    made: Callable[..., T] = torch.compile(function, fullgraph=True, dynamic=True)
    return made
