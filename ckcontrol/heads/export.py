"""A mask as weights: an ordinary checkpoint with scaled projection blocks, or a LoRA adapter that subtracts them.

Multiplying the input of a projection by a diagonal multiplies the columns of its weight, so the exported model is the
hooked one, with the same architecture, for any server. Nothing appears at the target path until the reloaded copy has
been compared with the hooks. Knows masks and PEFT's file format; knows nothing of scores.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import HeadsError
from .apply import pruned
from .checkpoint import Agreement, agreement, arriving, asked, compare, demand, observe, write_checkpoint
from .families import HeadLayout, describe
from .forward import eager
from .mask import HeadMask

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["export_checkpoint", "export_lora", "lora_applied"]

ADAPTER = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def export_checkpoint(
    model: PreTrainedModel,
    mask: HeadMask,
    path: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    prompts: Sequence[Sequence[int]] | None = None,
    new_tokens: int = 16,
    strict: bool = True,
) -> Agreement:
    """Write the model with the mask in its weights: safetensors, same architecture, same dtype.

    The model in memory is not changed. The biases of the projections stay, as they do under the hooks. The mask is
    written beside the weights as ``head_mask.json``.

    Args:
        model: The unpruned model, not quantised.
        mask: Its mask.
        path: A folder that does not exist yet.
        tokenizer: Saved beside the weights if given.
        prompts: Token ids to compare on; None takes eight built-in texts (random ids without a tokenizer).
        new_tokens: Length of the greedy continuations that are compared.
        strict: As in `pruned`.

    Returns:
        How the reloaded checkpoint compares with `model` under `pruned`. Where every factor is 0 both compute the
        same sums: expect 0.0 on one machine.

    Raises:
        HeadsError: The path exists, the mask is for another model, or the reloaded checkpoint disagrees by more than
            rounding. Nothing is left behind then.
    """
    mask.check(model, strict=strict)
    ids = asked(model, tokenizer, prompts, new_tokens)
    with arriving(path) as folder:
        again = write_checkpoint(model, _changed(model, mask), folder, tokenizer)
        mask.save(folder / "head_mask.json")
        with pruned(model, mask, strict=strict):
            found = compare(model, again, ids, new_tokens)
        demand(found, 1e-5, model.dtype, exact=not any(mask.factors.values()))
    return found


def export_lora(
    model: PreTrainedModel,
    mask: HeadMask,
    path: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    prompts: Sequence[Sequence[int]] | None = None,
    new_tokens: int = 16,
    strict: bool = True,
    base: str | None = None,
) -> Agreement:
    """Write the mask as a LoRA adapter in PEFT's format, for servers that choose an adapter per request.

    In each layer of the mask, A selects the columns of its heads and B holds (factor - 1) times their weights, so B A
    is the change, at scaling 1. The rank is heads * head_dim of the layer with the most heads; other layers are padded
    with zeros, because servers want one rank. In half precision the subtraction leaves about 2^-8 of a pruned head.

    Args:
        model: The unpruned model.
        mask: Its mask, other than the identity.
        path: A folder that does not exist yet.
        tokenizer: Makes the built-in prompts; it is not saved.
        prompts: As in `export_checkpoint`.
        new_tokens: As in `export_checkpoint`.
        strict: As in `pruned`.
        base: Name of the base model for ``adapter_config.json``; None takes the name the model was loaded by, unless
            that is a folder.

    Returns:
        How `model` with the adapter, read back from its files, compares with `model` under `pruned`.

    Raises:
        HeadsError: As in `export_checkpoint`, or the mask is the identity.
    """
    from safetensors.torch import save_file

    mask.check(model, strict=strict)
    layout = describe(model)
    if not mask.heads:
        raise HeadsError("the mask is the identity: an adapter of rank 0 cannot be written.", "Prune a head.")
    heads = {layer: [h for at, h in mask.heads if at == layer] for layer in mask.layers}
    rank = max(map(len, heads.values())) * layout.head_dim
    names = _projection_names(model, layout)
    tensors = {}
    for layer in mask.layers:
        down, up = _factorised(layout, mask, layer, heads[layer], rank)
        tensors[f"base_model.model.{names[layer]}.lora_A.weight"] = down
        tensors[f"base_model.model.{names[layer]}.lora_B.weight"] = up
    if base is None:
        base = model.config._name_or_path
        base = None if not base or Path(base).exists() else base
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "bias": "none",
        "fan_in_fan_out": layout.transposed,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "target_modules": [names[layer] for layer in mask.layers],
    }
    ids = asked(model, tokenizer, prompts, new_tokens)
    with arriving(path) as folder:
        save_file(tensors, folder / ADAPTER, metadata={"format": "pt"})
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        mask.save(folder / "head_mask.json")
        with pruned(model, mask, strict=strict):
            wanted = observe(model, ids, new_tokens)
        with lora_applied(model, folder):
            found = agreement(wanted, observe(model, ids, new_tokens), new_tokens)
        demand(found, 1e-3, model.dtype, exact=True)
    return found


@contextmanager
def lora_applied(model: PreTrainedModel, path: str | Path) -> Iterator[None]:
    """Add an adapter that `export_lora` wrote to a model's output projections while the block runs.

    This is PEFT's arithmetic, ``W x + b + (lora_alpha / r) * B (A x)``, without PEFT. It is there for checks;
    servers load the folder themselves.

    Raises:
        HeadsError: The adapter names a module the model does not have.
    """
    from safetensors.torch import load_file

    config = json.loads((Path(path) / CONFIG).read_text(encoding="utf-8"))
    tensors = load_file(Path(path) / ADAPTER)
    scaling = config["lora_alpha"] / config["r"]
    modules = dict(model.named_modules())
    handles = []
    try:
        for name in config["target_modules"]:
            if name not in modules:
                raise HeadsError(f"the model has no module {name!r}.", "The adapter is for another model.")
            down, up = (tensors[f"base_model.model.{name}.lora_{x}.weight"].to(model.device) for x in "AB")
            handles.append(modules[name].register_forward_hook(_low_rank(down, up, scaling)))
        with eager():
            yield
    finally:
        for handle in handles:
            handle.remove()


def _low_rank(down: Tensor, up: Tensor, scaling: float) -> Any:
    def add(module: torch.nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        z: Tensor = args[0]
        return output + scaling * (z @ down.t() @ up.t())

    return add


def _changed(model: PreTrainedModel, mask: HeadMask) -> dict[str, Tensor]:
    """The weights of the projections under the mask, by their names in the model's state."""
    layout, names = describe(model), _projection_names(model, describe(model))
    state, made = model.state_dict(), {}
    for layer in mask.layers:
        name = f"{names[layer]}.weight"
        factors = torch.tensor(mask.row(layer)).repeat_interleave(layout.head_dim)
        factors = factors.to(device=state[name].device, dtype=torch.float32)
        factors = factors[:, None] if layout.transposed else factors[None]
        made[name] = (state[name].float() * factors).to(state[name].dtype)
    return made


def _factorised(layout: HeadLayout, mask: HeadMask, layer: int, heads: list[int], rank: int) -> tuple[Tensor, Tensor]:
    """A [rank, H*d_h] and B [d, rank] of one layer, on the CPU; rows beyond its own heads are zero."""
    weight = layout.weight(layer).detach().float().cpu()
    width = layout.head_dim
    down, up = torch.zeros(rank, weight.shape[1]), torch.zeros(weight.shape[0], rank)
    for i, head in enumerate(heads):
        rows, columns = slice(i * width, (i + 1) * width), layout.columns(head)
        down[rows, columns] = torch.eye(width)
        up[:, rows] = (mask.factor(layer, head) - 1) * weight[:, columns]
    dtype = layout.weight(layer).dtype
    return down.to(dtype), up.to(dtype).contiguous()


def _projection_names(model: PreTrainedModel, layout: HeadLayout) -> list[str]:
    names = {id(module): name for name, module in model.named_modules()}
    return [names[id(projection)] for projection in layout.projections]
