"""Where attention heads live in each model family: one table of module names, and the parts they name.

A head is a block of `head_dim` columns in the *input* of its layer's output projection: query heads, also where keys
and values are shared (GQA). Everything that scores, masks or exports heads asks `describe` and names no module itself.
Knows transformers' module names; knows nothing of prompts, scores or masks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..decoding.refusals import bare
from ..errors import HeadsError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

__all__ = ["FAMILIES", "Family", "HeadLayout", "LayerParts", "describe"]


@dataclass(frozen=True)
class Family:
    """Module names of one architecture. A chain is applied in order; names that hold None are left out.

    Attributes:
        layers: The list of layers, seen from the model.
        projection: The attention's output projection, seen from the layer.
        final: What follows the last layer, up to but without the output embedding, seen from the model.
        attention_out: What the attention's output passes before it joins the residual stream (post-norms).
        feed_forward: What turns the residual stream into the update that the MLP adds to it, norms included.
        parallel: The feed-forward reads the layer's input; a text is the config flag that says so.
        unless: Config flags, each with the only value that this row describes.
    """

    layers: str
    projection: str
    final: tuple[str, ...]
    feed_forward: tuple[str, ...]
    attention_out: tuple[str, ...] = ()
    parallel: bool | str = False
    unless: tuple[tuple[str, Any], ...] = ()


_LLAMA = Family("model.layers", "self_attn.o_proj", ("model.norm",), ("post_attention_layernorm", "mlp"))
_GEMMA2 = Family(
    "model.layers",
    "self_attn.o_proj",
    ("model.norm",),
    ("pre_feedforward_layernorm", "mlp", "post_feedforward_layernorm"),
    attention_out=("post_attention_layernorm",),
)

# config.model_type -> names. To add a family: its row here, and its tiny model in tests/heads/test_sweep.py.
FAMILIES: dict[str, Family] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA2,
    "olmo2": Family(
        "model.layers",
        "self_attn.o_proj",
        ("model.norm",),
        ("mlp", "post_feedforward_layernorm"),
        attention_out=("post_attention_layernorm",),
    ),
    "gpt2": Family(
        "transformer.h",
        "attn.c_proj",
        ("transformer.ln_f",),
        ("ln_2", "mlp"),
        unless=(("add_cross_attention", False),),
    ),
    "gptj": Family("transformer.h", "attn.out_proj", ("transformer.ln_f",), ("ln_1", "mlp"), parallel=True),
    "gpt_neox": Family(
        "gpt_neox.layers",
        "attention.dense",
        ("gpt_neox.final_layer_norm",),
        ("post_attention_layernorm", "mlp"),
        parallel="use_parallel_residual",
    ),
    "phi": Family(
        "model.layers", "self_attn.dense", ("model.final_layernorm",), ("input_layernorm", "mlp"), parallel=True
    ),
    "opt": Family(
        "model.decoder.layers",
        "self_attn.out_proj",
        ("model.decoder.final_layer_norm", "model.decoder.project_out"),
        ("final_layer_norm", "fc1", "activation_fn", "fc2"),
        unless=(("do_layer_norm_before", True),),
    ),
}


@dataclass(frozen=True)
class LayerParts:
    """One layer of a model, as path patching walks it.

    Attributes:
        module: The layer itself; the last row of its input is the residual stream that enters it.
        projection: The attention's output projection.
        attention_out: Post-norms of the attention's output; empty in most families.
        feed_forward: Norm, MLP and post-norm, in order: residual stream in, update out.
    """

    module: nn.Module
    projection: nn.Module
    attention_out: tuple[nn.Module, ...]
    feed_forward: tuple[nn.Module, ...]


@dataclass(frozen=True)
class HeadLayout:
    """The parts of a model that head scoring and pruning touch. It holds the model's own modules, no copies.

    Attributes:
        family: `config.model_type`.
        layers: Number of layers, L.
        heads: Query heads per layer, H.
        head_dim: Width of a head, d_h.
        hidden: Width of the residual stream, d.
        transposed: The projections store [H*d_h, d] (GPT-2's Conv1D) instead of [d, H*d_h].
        parallel: Attention and MLP both read the layer's input.
        blocks: The layers, first to last.
        final: The final norm and whatever else precedes the output embedding.
        unembed: The output embedding; [V, d] weight, perhaps a bias.
        softcap: Logits become softcap * tanh(logits / softcap); None where they do not.
    """

    family: str
    layers: int
    heads: int
    head_dim: int
    hidden: int
    transposed: bool
    parallel: bool
    blocks: tuple[LayerParts, ...]
    final: tuple[nn.Module, ...]
    unembed: nn.Module
    softcap: float | None

    @property
    def projections(self) -> tuple[nn.Module, ...]:
        """The output projections, first layer to last; heads are column blocks of their input."""
        return tuple(block.projection for block in self.blocks)

    def columns(self, head: int) -> slice:
        """Where a head of any layer lies in the last axis of the projection's input."""
        return slice(head * self.head_dim, (head + 1) * self.head_dim)

    def weight(self, layer: int) -> Tensor:
        """A view of the projection of `layer` as [d, H*d_h], whichever way it is stored; writes go through."""
        stored: Tensor = self.blocks[layer].projection.weight  # type: ignore[assignment]
        return stored.t() if self.transposed else stored

    def bias(self, layer: int) -> Tensor | None:
        """The projection's bias, [d], or None."""
        return self.blocks[layer].projection.bias  # type: ignore[return-value]


def describe(model: PreTrainedModel) -> HeadLayout:
    """Find the heads of a model.

    Args:
        model: A causal transformers model of a family in `FAMILIES`, in eval mode.

    Raises:
        HeadsError: The family is unknown (the message says what to add), a config flag changes its structure, a
            projection is not a plain linear layer (quantised, or wrapped by an adapter), or the model is in training
            mode.
    """
    from torch import Tensor, nn
    from transformers.pytorch_utils import Conv1D

    model = bare(model)
    config = model.config
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise HeadsError(
            f"heads of model type {config.model_type!r} are not described.",
            "Add a row to FAMILIES in ckcontrol/heads/families.py: the list of layers, the attention's output "
            f"projection, the feed-forward chain, the final norm. Known: {', '.join(sorted(FAMILIES))}.",
        )
    for flag, value in family.unless:
        if getattr(config, flag, value) != value:
            raise HeadsError(
                f"{config.model_type} with {flag}={getattr(config, flag)!r} orders its parts differently.",
                f"Only {flag}={value!r} is described.",
            )
    if model.training:
        raise HeadsError("the model is in training mode: dropout would enter the scores.", "Call model.eval().")
    blocks = tuple(
        LayerParts(
            module=layer,
            projection=_at(layer, family.projection),
            attention_out=_chain(layer, family.attention_out),
            feed_forward=_chain(layer, family.feed_forward),
        )
        for layer in _at(model, family.layers)
    )
    kinds = {type(block.projection) for block in blocks}
    if not kinds <= {nn.Linear, Conv1D} or len(kinds) != 1:
        odd = next(kind for kind in kinds if kind not in (nn.Linear, Conv1D)) if len(kinds) == 1 else kinds
        raise HeadsError(
            f"the output projections are {odd}, not plain linear layers.",
            "Load the model without quantisation and merge its adapters first.",
        )
    held = {type(block.projection.weight) for block in blocks} - {nn.Parameter, Tensor}
    if held:
        what = f"the output projections hold {held.pop().__name__}, not plain weights."
        raise HeadsError(what, "Load the model without quantisation and merge its adapters first.")
    transposed = kinds == {Conv1D}
    stored: Any = blocks[0].projection.weight
    width, hidden = stored.shape if transposed else stored.shape[::-1]
    heads = int(config.num_attention_heads)
    if width % heads:
        raise HeadsError(f"{heads} heads do not divide the projection's input of {width}.", "The config is wrong.")
    parallel = bool(getattr(config, family.parallel)) if isinstance(family.parallel, str) else family.parallel
    softcap = getattr(config, "final_logit_softcapping", None)
    return HeadLayout(
        family=config.model_type,
        layers=len(blocks),
        heads=heads,
        head_dim=width // heads,
        hidden=hidden,
        transposed=transposed,
        parallel=parallel,
        blocks=blocks,
        final=_chain(model, family.final),
        unembed=model.get_output_embeddings(),
        softcap=None if softcap is None else float(softcap),
    )


def _at(module: Any, path: str) -> Any:
    for name in path.split("."):
        if not hasattr(module, name):
            raise HeadsError(
                f"{type(module).__name__} has no part {name!r}, so its heads cannot be found.",
                "Load the model plainly, and merge or remove its adapters first.",
            )
        module = getattr(module, name)
    return module


def _chain(module: Any, names: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(part for name in names if (part := _at(module, name)) is not None)
