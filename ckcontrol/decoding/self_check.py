"""Whether a model keeps its past where a stream can own it: two tokens beside another stream, once per model.

Knows what `model.generate` does by itself, and compares; knows no family by name.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch

from ..errors import CKError, UnsupportedMode
from .refusals import bare

__all__ = ["check_itself"]

_OWN_LOOP: dict[str, Any] = {
    **{"max_new_tokens": 2, "min_new_tokens": 2, "do_sample": False, "num_beams": 1, "num_return_sequences": 1},
    **{"use_cache": True, "return_dict_in_generate": True, "output_logits": True},
    # what a checkpoint's generation_config may set, and would be heeded or warned of
    **dict.fromkeys(("temperature", "top_k", "top_p", "min_p", "typical_p", "penalty_alpha", "dola_layers")),
    **dict.fromkeys(("guidance_scale", "prompt_lookup_num_tokens", "stop_strings", "cache_implementation", "max_time")),
    **dict.fromkeys(("repetition_penalty", "no_repeat_ngram_size", "output_scores", "max_length", "min_length")),
}
_OUTSIDE = (
    "{} cannot run as two streams: beside another, a stream does not decode what model.generate does ({}), because the "
    "model keeps its past, or an adapter acts, outside the cache."
)
_INSTEAD = "Use ckcontrol.reference_generate, which needs no cache."

_CHECKED: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()  # models that passed `check_itself`


@torch.no_grad()
def check_itself(stream: Any) -> None:
    """Decode two tokens as a stream beside another stream, and compare with the model's own loop; once per model.

    So a model is refused whose past lies where no stream can own it: in its modules, in an argument that a forward does
    not take, in an adapter that only `generate` applies. Rows are as many as the stream has, for hooks that count them.

    Raises:
        UnsupportedMode: The logits of a stream are not those of the model's own loop.
    """
    model = stream.model
    if model in _CHECKED:
        return
    length = stream.input_ids.shape[1] if stream.keep is None else int(stream.keep[0].sum())
    ids = stream.input_ids[:1, -min(4, length) :].repeat(stream.input_ids.shape[0], 1)
    ids = torch.cat([ids[:, :1], ids], dim=1)  # the first column is padding
    mask = torch.ones_like(ids)
    mask[:, 0] = 0
    try:
        own = model.generate(input_ids=ids, attention_mask=mask, **_OWN_LOOP)
    except Exception:
        return  # nothing to compare with; what is wrong shows in the stream
    made = own.sequences[:, ids.shape[1] :]
    make = type(stream)
    first, other = make(model, ids, mask), make(model, ids[:, -1:], None)
    try:
        logits = [first._start()]
        other._start()
        logits.append(first.step(made[:, 0]))
    except (TypeError, ValueError, AttributeError, KeyError, IndexError, RuntimeError) as error:
        if isinstance(error, (CKError, torch.OutOfMemoryError)):
            raise
        what = f"{type(error).__name__}: {error}"
        raise UnsupportedMode(_OUTSIDE.format(type(bare(model)).__name__, what), _INSTEAD) from error
    for ours, theirs in zip(logits, own.logits, strict=True):
        apart = float((ours - theirs).abs().max()) / max(float(theirs.max() - theirs.min()), 1e-6)
        if apart > (1e-3 if model.dtype == torch.float32 else 0.05):  # false for NaN: the loop reports row and step
            what = f"logits differ by {apart:.0%} of their range"
            raise UnsupportedMode(_OUTSIDE.format(type(bare(model)).__name__, what), _INSTEAD)
    _CHECKED[model] = True
