"""Two adapters to a dial of them, one adapter per alpha, by PEFT's `add_weighted_adapter`.

The context adapter stands alone at 0, nothing at 0.5, the memory adapter alone at 1. Between them either the near one
is scaled, or both are merged with shares on the parabola through these points: the far one is then subtracted a little,
as task arithmetic does (Ilharco et al., ICLR 2023, arXiv 2212.04089). The ends are the adapters as they came. Knows
PEFT; knows no decoding.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..arguments import check_integer, check_number
from ..errors import WeightsError, did_you_mean
from ..heads.checkpoint import arriving
from ..heads.fingerprint import Fingerprint
from .adapters import attach
from .manifest import Manifest, Training

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["METHODS", "mix", "shares"]

METHODS = ("scale", "linear", "ties", "dare_ties", "dare_linear", "svd")


def shares(alpha: float) -> tuple[float, float]:
    """Return what the context and the memory adapter are weighted with at an alpha, where they are merged.

    Example:
        >>> shares(0.0), shares(0.5), shares(1.0), shares(0.25)
        ((1.0, 0.0), (0.0, 0.0), (0.0, 1.0), (0.375, -0.125))
    """
    return (1 - alpha) * (1 - 2 * alpha) + 0.0, alpha * (2 * alpha - 1) + 0.0


def mix(
    model: PreTrainedModel,
    context: str | Path,
    memory: str | Path,
    out: str | Path,
    *,
    steps: int = 9,
    method: str = "scale",
    density: float = 0.5,
    seed: int = 0,
) -> Manifest:
    """Write a dial: a folder with a manifest and one PEFT adapter per alpha, each for stock PEFT and vLLM.

    Args:
        model: The base of both adapters; left as it was.
        context: Folder of the adapter toward context, which is alpha = 0.
        memory: Folder of the adapter toward memory, which is alpha = 1.
        out: A new folder; it appears whole or not at all.
        steps: Positions from 0 to 1, odd, so that 0.5, the untouched base, is one of them.
        method: One of `METHODS`. ``scale`` merges nothing: the adapter of alpha's side, times |2 alpha - 1|. The others
            merge both by `shares`, as PEFT's ``combination_type``; all but ``svd`` need adapters of one rank.
        density: Which share of values ties and dare keep.
        seed: Of what dare drops.

    Raises:
        WeightsError: An unknown method, an even number of steps, an existing folder, a folder that is no adapter, an
            adapter of another model or of the other side, or adapters that the method cannot merge.
        MissingExtra: PEFT is not installed.
    """
    sources, target = (Path(context), Path(memory)), Path(out)
    if method not in METHODS:
        raise WeightsError(f"method={method!r:.40} is none.", did_you_mean(str(method), METHODS))
    if check_integer("steps", steps, 3, 101) % 2 == 0:
        raise WeightsError(f"steps={steps} leaves out alpha 0.5, the untouched model.", f"Take {steps + 1}.")
    density = check_number("density", density, 0.01, 1.0)
    if target.exists():
        raise WeightsError(f"{str(target)!r} exists.", "Give a new folder: nothing is overwritten.")
    base = Fingerprint.of(model)
    for folder, side in zip(sources, ("context", "memory"), strict=True):
        Training.check(folder, side, base)
    names = {i / (steps - 1): None if 2 * i == steps - 1 else f"step{i}" for i in range(steps)}
    manifest = Manifest(method, base, names)
    with arriving(target, WeightsError) as made:
        wrapped = attach(model, dict(zip(("context", "memory"), sources, strict=True)))
        try:
            for alpha, name in names.items():
                if name is None:
                    continue
                if alpha in (0.0, 1.0):
                    shutil.copytree(sources[int(alpha)], made / name)
                    continue
                sides, weights, how = ["context", "memory"], list(shares(alpha)), method
                if method == "scale":
                    sides, weights, how = [sides[alpha > 0.5]], [abs(2 * alpha - 1)], "linear"
                pruned = {"density": density} if method.startswith(("ties", "dare")) else {}
                with torch.random.fork_rng():
                    torch.manual_seed(seed)
                    try:
                        wrapped.add_weighted_adapter(sides, weights, name, combination_type=how, **pruned)
                    except ValueError as error:
                        raise WeightsError(
                            f"method {method!r} cannot merge these: {error}",
                            "Take svd, or adapters of one rank and shape.",
                        ) from error
                wrapped.save_pretrained(str(made), selected_adapters=[name], save_embedding_layers=False)
                wrapped.delete_adapter(name)
        finally:
            wrapped.unload()
        (made / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
        manifest.write(made)
    return manifest
