"""A mask as weights: an ordinary checkpoint with scaled projection blocks, or a LoRA adapter that subtracts them.

Multiplying the input of a projection by a diagonal multiplies the columns of its weight, so the exported model is the
hooked one, with the same architecture, for any server. Nothing appears at the target path until the reloaded copy has
been compared with the hooks. Knows masks and the file formats of transformers and PEFT; knows nothing of scores.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..decoding.refusals import cache_name
from ..errors import HeadsError
from ..models.load import quiet
from .apply import pruned
from .families import HeadLayout, describe
from .forward import eager
from .mask import HeadMask

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Agreement", "compare", "export_checkpoint", "export_lora", "lora_applied", "probes"]

ADAPTER = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
_PROBES = (
    "The capital of France is",
    "The official currency of Japan is the",
    "Context: the chemical symbol of gold is Ag.\nQuestion: what is the chemical symbol of gold?\nAnswer:",
    "Once upon a time there was a",
    "def add(a, b):\n    return",
    "The president said on Monday that",
    "One, two, three, four,",
    "Water boils at a temperature of",
)


@dataclass(frozen=True)
class Agreement:
    """How far two models agree on the same prompts.

    Attributes:
        prompts: Number of prompts.
        difference: Largest absolute difference of a logit, over all positions.
        scale: Largest absolute logit.
        same: Number of prompts with the same greedy continuation.
        new_tokens: Length of the continuations.
    """

    prompts: int
    difference: float
    scale: float
    same: int
    new_tokens: int

    def __str__(self) -> str:
        return (
            f"{self.same} of {self.prompts} greedy continuations of {self.new_tokens} tokens are equal; "
            f"largest difference of a logit {self.difference:.1e} (logits up to {self.scale:.0f})"
        )


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
    from transformers import AutoModelForCausalLM

    mask.check(model, strict=strict)
    with _arriving(path) as folder, quiet():
        _changed(model, mask).save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        mask.save(folder / "head_mask.json")
        again = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=model.dtype,
            attn_implementation=model.config._attn_implementation,
            trust_remote_code=False,
            use_safetensors=True,
        )
        again = again.to(model.device).eval()
        with pruned(model, mask, strict=strict):
            found = compare(model, again, prompts or probes(model, tokenizer), new_tokens)
        _demand(found, 1e-5, model.dtype, exact=not any(mask.factors.values()))
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
    with _arriving(path) as folder:
        save_file(tensors, folder / ADAPTER, metadata={"format": "pt"})
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        mask.save(folder / "head_mask.json")
        ids = prompts or probes(model, tokenizer)
        with pruned(model, mask, strict=strict):
            wanted = _observe(model, ids, new_tokens)
        with lora_applied(model, folder):
            found = _agreement(wanted, _observe(model, ids, new_tokens), new_tokens)
        _demand(found, 1e-3, model.dtype, exact=True)
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


# --- comparison -----------------------------------------------------------------------------------------------------


def probes(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> list[list[int]]:
    """Return prompts to compare models on: eight short texts, or eight rows of random ids without a tokenizer."""
    if tokenizer is not None:
        return [list(tokenizer(text).input_ids) for text in _PROBES]
    generator = torch.Generator().manual_seed(0)
    size = model.get_input_embeddings().weight.shape[0]
    rows: list[list[int]] = torch.randint(0, size, (8, 16), generator=generator).tolist()
    return rows


def compare(
    one: PreTrainedModel, other: PreTrainedModel, prompts: Sequence[Sequence[int]], new_tokens: int = 16
) -> Agreement:
    """Compare two models on the same prompts, one at a time: every logit, and the greedy continuation.

    Args:
        one: A model, perhaps inside `pruned`.
        other: Another with the same vocabulary.
        prompts: Token ids.
        new_tokens: Length of the continuations, which end tokens do not cut short.
    """
    return _agreement(_observe(one, prompts, new_tokens), _observe(other, prompts, new_tokens), new_tokens)


Observed = list[tuple[Tensor, list[int]]]


@torch.no_grad()
def _observe(model: PreTrainedModel, prompts: Sequence[Sequence[int]], new_tokens: int) -> Observed:
    """The logits at every position of each prompt, [T, V] float32 on the CPU, and its greedy continuation."""
    found = []
    past = cache_name(model) or "past_key_values"
    for prompt in prompts:
        output = model(torch.tensor([list(prompt)], device=model.device), use_cache=True)
        logits = output.logits[0].float().cpu()
        tokens: list[int] = []
        for _ in range(new_tokens):
            tokens.append(int(output.logits[0, -1].argmax()))
            step = torch.tensor([tokens[-1:]], device=model.device)
            output = model(step, use_cache=True, **{past: getattr(output, past)})
        found.append((logits, tokens))
    return found


def _agreement(one: Observed, other: Observed, new_tokens: int) -> Agreement:
    return Agreement(
        prompts=len(one),
        difference=max(float((a - b).abs().max()) for (a, _), (b, _) in zip(one, other, strict=True)),
        scale=max(float(a.abs().max()) for a, _ in one),
        same=sum(a == b for (_, a), (_, b) in zip(one, other, strict=True)),
        new_tokens=new_tokens,
    )


def _demand(found: Agreement, tolerance: float, dtype: torch.dtype, *, exact: bool) -> None:
    """Refuse more than rounding: in full precision `tolerance`, times the largest logit unless `exact`."""
    if dtype not in (torch.float32, torch.float64):
        allowed = 8 * torch.finfo(dtype).eps * max(1.0, found.scale)
    else:
        allowed = tolerance * (1.0 if exact else max(1.0, found.scale))
    if not found.difference <= allowed:
        raise HeadsError(
            f"the export disagrees with the hooks: {found}; at most {allowed:.1e} is rounding.",
            "Nothing was written. Report the model.",
        )


# --- files ----------------------------------------------------------------------------------------------------------


def _changed(model: PreTrainedModel, mask: HeadMask) -> PreTrainedModel:
    """A model that shares all weights in memory but those of the projections that the mask changes.

    It is built anew because transformers refuses to save a model that was loaded from GGUF, although its weights are
    ordinary ones by then.
    """
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    layout, names = describe(model), _projection_names(model, describe(model))
    state = model.state_dict()
    for layer in mask.layers:
        name = f"{names[layer]}.weight"
        factors = torch.tensor(mask.row(layer)).repeat_interleave(layout.head_dim)
        factors = factors.to(device=state[name].device, dtype=torch.float32)
        factors = factors[:, None] if layout.transposed else factors[None]
        state[name] = (state[name].float() * factors).to(state[name].dtype)
    with torch.device("meta"):
        made: PreTrainedModel = type(model)(config)
    made.load_state_dict(state, assign=True)
    made.tie_weights()
    made.generation_config = copy.deepcopy(model.generation_config)
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


@contextmanager
def _arriving(path: str | Path) -> Iterator[Path]:
    """Yield a folder beside `path` that becomes `path` if the block succeeds and vanishes if it does not."""
    target = Path(path)
    if target.exists() or target.is_symlink():
        raise HeadsError(f"{str(target)!r} exists.", "Give a new folder: exports overwrite nothing.")
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield folder
        folder.chmod(0o755)
        os.replace(folder, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
