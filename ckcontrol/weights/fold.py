"""One adapter of a dial in the model's own weights: an ordinary checkpoint for any server, at the speed of the model.

Knows a dial and how a checkpoint is written; decodes nothing but the prompts it is compared on.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..arguments import check_number
from ..decoding.refusals import bare
from ..decoding.weight_rows import nearest, rows_take
from ..errors import WeightsError
from ..heads.checkpoint import Agreement, arriving, asked, compare, demand, write_checkpoint
from .dial import Updates, put_on, unload
from .manifest import Manifest

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["export"]

TOLD = "ckcontrol-folded.json"


def export(
    model: PreTrainedModel,
    dial: str | Path,
    alpha: float,
    path: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    prompts: Sequence[Sequence[int]] | None = None,
    new_tokens: int = 16,
) -> Agreement:
    """Write the model with the dial's adapter for an alpha added to its weights: W + B A, safetensors, same dtype.

    For a service whose setting is fixed: the checkpoint is a plain model, so a step costs what a plain step costs, and
    nothing of this library or of PEFT is needed to serve it. The sum is made in float32. The model in memory is in the
    end as it was; let nobody decode with it meanwhile. ``ckcontrol-folded.json`` beside the weights says which dial and
    alpha they hold.

    Args:
        model: The one that the dial is for, without a dial or adapters of its own.
        dial: What `mix` wrote.
        alpha: The adapter nearest to it is taken, as under `Control("weights", alpha)`.
        path: A folder that does not exist yet.
        tokenizer: Saved beside the weights if given.
        prompts: Token ids to compare on; None takes eight built-in texts (random ids without a tokenizer).
        new_tokens: Length of the greedy continuations that are compared.

    Returns:
        How the reloaded checkpoint compares with `model` under the dial.

    Raises:
        WeightsError: The path exists, the dial is damaged or another model's, alpha stands for the model itself, an
            adapted weight is shared with another layer, or the reloaded checkpoint disagrees by more than rounding.
            Nothing is left behind then.
        HeadsError: The model is quantised, or in training mode.
        ControlError: alpha or new_tokens.
        MissingExtra: PEFT is not installed.
    """
    folder, inner = Path(dial), bare(model)
    alpha = check_number("alpha", alpha, 0.0, 1.0)
    manifest = Manifest.read(folder)
    manifest.check(inner, folder)
    taken = nearest({at: at for at in manifest.adapters}, alpha)
    name = manifest.adapters[taken]
    if name is None:
        raise WeightsError(
            f"alpha={alpha:g} is the model itself, without an adapter.",
            f"Give one nearer to {', '.join(f'{at:g}' for at in sorted(manifest.adapters) if at != 0.5)}.",
        )
    ids = asked(inner, tokenizer, prompts, new_tokens, WeightsError)
    with arriving(path, WeightsError) as made:
        updates = put_on(inner, folder, [name])
        try:
            again = write_checkpoint(inner, _changed(inner, updates, name), made, tokenizer)
            with rows_take((name,)):
                found = compare(inner, again, ids, new_tokens)
        finally:
            unload(inner)
        told = {"alpha": taken, "dial": manifest.card(folder), "base": manifest.base.to_dict()}
        (made / TOLD).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        demand(found, 1e-5, inner.dtype, exact=False, error=WeightsError)
    return found


def _changed(model: PreTrainedModel, updates: Updates, name: str) -> dict[str, Tensor]:
    """The adapted weights with an adapter's matrices added, by their names in the model's state."""
    from transformers.pytorch_utils import Conv1D

    state, made = model.state_dict(), {}
    places = Counter(weight.data_ptr() for weight in state.values())
    for layer, of in updates.items():
        key, (into, out) = f"{layer}.weight", of[name]
        weight = state[key]
        if places[weight.data_ptr()] > 1:
            raise WeightsError(f"{key!r} is the weight of another layer too.", "Serve the adapter itself.")
        change = into.float().T @ out.float()  # [in, out], GPT-2's way round
        turned = change if isinstance(model.get_submodule(layer), Conv1D) else change.T
        made[key] = (weight.float() + turned).to(weight.dtype)
    return made
