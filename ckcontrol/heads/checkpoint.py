"""A model with some weights changed as an ordinary checkpoint: whole or not at all, and compared with what ran before.

Knows the files of transformers; where the changed weights come from, a head mask or an adapter, is its callers' matter.
"""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..arguments import check_integer
from ..decoding.refusals import cache_name
from ..errors import HeadsError, WeightsError
from ..models.load import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "Agreement",
    "Observed",
    "agreement",
    "arriving",
    "asked",
    "compare",
    "demand",
    "observe",
    "probes",
    "write_checkpoint",
]

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
            f"largest difference of a logit {self.difference:.1e}, of logits up to {self.scale:.0f}"
        )


def write_checkpoint(
    model: PreTrainedModel,
    changed: Mapping[str, Tensor],
    folder: Path,
    tokenizer: PreTrainedTokenizerBase | None,
) -> PreTrainedModel:
    """Write a model with some weights in place of its own, and return it as it is read back.

    It is built anew because transformers refuses to save a model that was loaded from GGUF, although its weights are
    ordinary ones by then. All other weights are shared in memory with `model`, which is not changed.

    Args:
        model: Not quantised.
        changed: Name in ``model.state_dict()`` -> the weight, of the same shape and dtype.
        folder: Exists; see `arriving`.
        tokenizer: Saved beside the weights if given.
    """
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with quiet():
        with torch.device("meta"):
            made: PreTrainedModel = type(model)(config)
        made.load_state_dict({**model.state_dict(), **changed}, assign=True)
        made.tie_weights()
        made.generation_config = copy.deepcopy(model.generation_config)
        made.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        again: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=model.dtype,
            attn_implementation=model.config._attn_implementation,
            trust_remote_code=False,
            use_safetensors=True,
        )
    return again.to(model.device).eval()


def probes(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> list[list[int]]:
    """Return prompts to compare models on: eight short texts, or eight rows of random ids without a tokenizer."""
    if tokenizer is not None:
        return [list(tokenizer(text).input_ids) for text in _PROBES]
    generator = torch.Generator().manual_seed(0)
    size = model.get_input_embeddings().weight.shape[0]
    rows: list[list[int]] = torch.randint(0, size, (8, 16), generator=generator).tolist()
    return rows


def asked(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    prompts: Sequence[Sequence[int]] | None,
    new_tokens: int,
    error: type[HeadsError | WeightsError] = HeadsError,
) -> Sequence[Sequence[int]]:
    """Return the prompts to compare on, or `probes`, before anything is written.

    Raises:
        ControlError: `new_tokens` is no count.
        HeadsError: A prompt is no list of the model's token ids; or another `error`.
    """
    check_integer("new_tokens", new_tokens, 1, 4096)
    size = model.get_input_embeddings().weight.shape[0]
    for prompt in prompts or ():
        ids = isinstance(prompt, Sequence) and len(prompt) and all(type(t) is int and 0 <= t < size for t in prompt)
        if not ids:
            raise error(f"prompts holds {prompt!r:.60}.", f"Give lists of token ids from 0 to {size - 1}.")
    return prompts or probes(model, tokenizer)


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
    return agreement(observe(one, prompts, new_tokens), observe(other, prompts, new_tokens), new_tokens)


Observed = list[tuple[Tensor, list[int]]]


@torch.no_grad()
def observe(model: PreTrainedModel, prompts: Sequence[Sequence[int]], new_tokens: int) -> Observed:
    """Return the logits at every position of each prompt, [T, V] float32 on the CPU, and its greedy continuation."""
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


def agreement(one: Observed, other: Observed, new_tokens: int) -> Agreement:
    """Return how far what `observe` saw of two models agrees."""
    return Agreement(
        prompts=len(one),
        difference=max(float((a - b).abs().max()) for (a, _), (b, _) in zip(one, other, strict=True)),
        scale=max(float(a.abs().max()) for a, _ in one),
        same=sum(a == b for (_, a), (_, b) in zip(one, other, strict=True)),
        new_tokens=new_tokens,
    )


def demand(
    found: Agreement,
    tolerance: float,
    dtype: torch.dtype,
    *,
    exact: bool,
    error: type[HeadsError | WeightsError] = HeadsError,
) -> None:
    """Refuse more than rounding: in full precision `tolerance`, times the largest logit unless `exact`."""
    if dtype not in (torch.float32, torch.float64):
        allowed = 8 * torch.finfo(dtype).eps * max(1.0, found.scale)
    else:
        allowed = tolerance * (1.0 if exact else max(1.0, found.scale))
    if not found.difference <= allowed:
        raise error(
            f"the export disagrees with the hooks: {found}; at most {allowed:.1e} is rounding.",
            "Nothing was written. Report the model.",
        )


@contextmanager
def arriving(path: str | Path, error: type[HeadsError | WeightsError] = HeadsError) -> Iterator[Path]:
    """Yield a folder beside `path` that becomes `path` if the block succeeds; else it and its new parents vanish."""
    target = Path(path)
    if target.exists() or target.is_symlink():
        raise error(f"{str(target)!r} exists.", "Give a new folder: exports overwrite nothing.")
    new = [parent for parent in target.parents if not parent.exists()]
    folder: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        yield folder
        folder.chmod(0o755)
        os.replace(folder, target)
    except BaseException as why:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # not made, or something else lies there by now
            for parent in new:
                parent.rmdir()
        if isinstance(why, SafetensorError):  # a full disk, which safetensors reports as no OSError
            raise error(f"{str(target)!r} cannot be written: {why}.", "Make room, or give another folder.") from why
        raise
