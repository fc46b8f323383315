"""What happens when a pair is lost: its request fails, or its prompt with the passages is answered alone, once.

Alone means an ordinary request: vLLM draws, with the same options but random numbers of its own, and nothing is
steered. It gets no seed: on a CPU a seeded request whose prompt is prefilled in chunks ends vLLM 0.32's engine. Only an
answer of which nothing has been sent yet can be begun again. Knows options, OpenAI's and vLLM's fields; knows
nothing of HTTP or engines.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ...decoding.options import GenerateOptions
from ...errors import ServingError, did_you_mean
from .pair_params import strip

__all__ = ["CHOICES", "VARIABLE", "alone", "choice", "from_env", "vllm_sampling"]

VARIABLE = "CKCONTROL_VLLM_ON_LOST"
CHOICES = ("fail", "contextual")


def choice(value: str) -> str:
    """Return what to do when a pair is lost: ``"fail"`` or ``"contextual"``.

    Raises:
        ServingError: It is neither.
    """
    if value not in CHOICES:
        raise ServingError(f"on_lost={str(value)[:64]!r} is unknown.", did_you_mean(str(value)[:64], CHOICES))
    return value


def from_env(environ: Mapping[str, str] | None = None) -> str:
    """Read the choice from `VARIABLE`; ``"fail"`` where it is not set."""
    return choice((os.environ if environ is None else environ).get(VARIABLE, "").strip() or CHOICES[0])


def vllm_sampling(options: GenerateOptions) -> dict[str, Any]:
    """Return how tokens are drawn, without the seed, in the fields that vLLM's `SamplingParams` and endpoints share.

    Example:
        >>> vllm_sampling(GenerateOptions(repetition_penalty=1.2))
        {'temperature': 0.0, 'top_p': 1.0, 'top_k': 0, 'repetition_penalty': 1.2}
    """
    return {
        "temperature": options.temperature if options.do_sample else 0.0,
        "top_p": options.top_p if options.do_sample else 1.0,
        "top_k": options.top_k if options.do_sample else 0,
        "repetition_penalty": options.repetition_penalty,
    }


def alone(body: Mapping[str, Any], options: GenerateOptions) -> dict[str, Any]:
    """Return the contextual body of a pair as that of an ordinary request; a head mask stays in effect."""
    kept = {key: value for key, value in body.items() if key != "vllm_xargs"}
    arguments = strip(body.get("vllm_xargs"))
    return kept | vllm_sampling(options) | ({"vllm_xargs": arguments} if arguments else {})
