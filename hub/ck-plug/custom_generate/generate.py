"""CK-PLUG and its relatives for model.generate(custom_generate=...), by the package ckcontrol."""

from __future__ import annotations

from typing import Any

from ckcontrol import Control, decoding_loop

OURS = ("parametric_mask", "vocab_size", "streamer", "recorder", "seed", "penalty_scope", "tokenizer", "stop")


def generate(model: Any, parametric_ids: Any, method: str = "ck-plug", alpha: float | None = None, **given: Any) -> Any:
    """Decode between two prompts: the inputs, which hold the passages, and `parametric_ids`, which do not.

    Args:
        model: The model whose ``generate`` was called.
        parametric_ids: The prompts without passages, [B, L] int64, left-padded.
        method: A method of ckcontrol, e.g. "ck-plug", "cad", "dial".
        alpha: 0 context, 0.5 the unmodified model, 1 memory; None is the method's own default.
        **given: ``parametric_mask``, ``tokenizer``, ``seed``, ``stop`` and the like, as for
            `ckcontrol.decoding_loop`; ``params``, further parameters of the method; and what ``generate`` takes.
    """
    control = Control(method, alpha, **(given.pop("params", None) or {}))
    ours = {name: value for name in OURS if (value := given.pop(name, None)) is not None}
    loop = decoding_loop(control, parametric_ids=parametric_ids, **ours)
    return model.generate(**given, custom_generate=loop)
