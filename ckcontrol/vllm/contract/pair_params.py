"""What the two rows of a pair carry: one control, one way of drawing, one name, written into vLLM's `extra_args`.

A steered request is two engine requests (rows) that differ in prompt and role only. The keys are flat strings and
integers, so they also pass through the HTTP field ``vllm_xargs``:

    ck_pair       the name both rows share; made here, never by a client
    ck_role       "contextual" or "parametric"
    ck_control    JSON of `Control.to_dict`
    ck_draft      which draft of it, where the method chooses between whole answers: each of them is a pair
    ck_sampling   JSON of how the pair's tokens are drawn (`DRAWN` below)
    ck_trace      1 records a trace in the worker, until it is fetched

`read` is strict and bounded and is the only reader: the front end, the scheduler and the processor all use it.
Knows controls and options; imports nothing of vLLM until `sampling_params` is called.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...control import Control
from ...decoding.options import GenerateOptions
from ...errors import CKError, ServingError, did_you_mean

if TYPE_CHECKING:
    from vllm import SamplingParams

    from ...policies import Policy

__all__ = [
    "CONTEXTUAL",
    "DRAWN",
    "PARAMETRIC",
    "ROLES",
    "PairParams",
    "drafts",
    "extra_args",
    "new_pair",
    "other_role",
    "read",
    "sampling_params",
    "seeded",
    "strip",
]

CONTEXTUAL, PARAMETRIC = "contextual", "parametric"
ROLES = (CONTEXTUAL, PARAMETRIC)
PREFIX = "ck_"
KEYS = ("ck_pair", "ck_role", "ck_control", "ck_draft", "ck_sampling", "ck_trace")
# The fields of GenerateOptions that decide how a pair's token is drawn; the others are vLLM's own business.
DRAWN = (
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "seed",
    "repetition_penalty",
    "penalty_scope",
    "stop_token_ids",
)
_MAX_JSON = 4096
_MAX_STOPS = 128
_MAX_INT = 2**63 - 1
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")


@dataclass(frozen=True)
class PairParams:
    """What one row of a pair was asked for.

    Attributes:
        pair: The name both rows share.
        role: ``"contextual"`` or ``"parametric"``.
        control: Policy and dial of the pair.
        options: How its tokens are drawn; only the fields named in `DRAWN` are meant, `seed` is set when sampling.
        trace: Record a trace.
        draft: Which draft of the control the pair writes; empty if it has one only.
    """

    pair: str
    role: str
    control: Control
    options: GenerateOptions
    trace: bool = False
    draft: str = ""

    @property
    def policy(self) -> Policy:
        """What decides the pair's tokens."""
        from ...policies import draft_policies, token_policy

        policy = self.control.policy()
        return draft_policies(policy)[self.draft] if self.draft else token_policy(policy)


def new_pair() -> str:
    """Return a fresh pair name that nobody can guess: 128 random bits, hexadecimal."""
    return secrets.token_hex(16)


def other_role(role: str) -> str:
    """Return the partner's role."""
    return PARAMETRIC if role == CONTEXTUAL else CONTEXTUAL


def drafts(control: Control) -> tuple[str, ...]:
    """Return the names of a control's drafts, each of which is a pair; ``("",)`` if there is nothing to choose from."""
    from ...policies import draft_policies

    names = tuple(draft_policies(control.policy()))
    return names if len(names) > 1 else ("",)


def extra_args(
    pair: str,
    role: str,
    control: Control,
    options: GenerateOptions | None = None,
    *,
    trace: bool = False,
    draft: str = "",
) -> dict[str, str | int]:
    """Return the `extra_args` (or ``vllm_xargs``) of one row.

    Both rows of a pair must get the same control and options. A pair that samples without a seed would draw
    differently on every tensor-parallel rank: call `seeded` first, or pass a seed.

    Args:
        pair: From `new_pair`.
        role: ``"contextual"`` for the prompt with passages, ``"parametric"`` for the one without.
        control: Policy and dial.
        options: How tokens are drawn; None is greedy.
        trace: Record a trace in the worker, to be fetched by pair name.
        draft: One of `drafts`. Its trace is recorded in any case: it is what drafts are compared by.

    Raises:
        ServingError: A value that `read` would refuse.
    """
    options = options or GenerateOptions()
    drawn = {name: getattr(options, name) for name in DRAWN}
    args: dict[str, str | int] = {
        "ck_pair": pair,
        "ck_role": role,
        "ck_control": json.dumps(control.to_dict(), allow_nan=False, separators=(",", ":")),
        "ck_sampling": json.dumps(drawn, allow_nan=False, separators=(",", ":")),
        "ck_trace": int(trace or bool(draft)),
    }
    if draft:
        args["ck_draft"] = draft
    read(args)
    return args


def seeded(options: GenerateOptions) -> GenerateOptions:
    """Return the options with a seed: a random one where sampling was asked for without."""
    if not options.do_sample or options.seed is not None:
        return options
    from dataclasses import replace

    return replace(options, seed=secrets.randbits(62))


def read(args: Mapping[str, Any] | None) -> PairParams | None:
    """Return what a row carries, or None for an ordinary request (one without any ``ck_`` key).

    Args:
        args: `SamplingParams.extra_args`.

    Raises:
        ServingError: A key that is unknown, missing, of the wrong type, too long or out of range; the message names
            it. Nothing else is ever raised, whatever the input.
    """
    if not args or not any(isinstance(key, str) and key.startswith(PREFIX) for key in args):
        return None
    for key in args:
        if isinstance(key, str) and key.startswith(PREFIX) and key not in KEYS:
            raise ServingError(f"unknown argument {key[:64]!r}.", did_you_mean(key[:64], KEYS))
    pair, role, trace = args.get("ck_pair"), args.get("ck_role"), args.get("ck_trace", 0)
    if not isinstance(pair, str) or not _NAME.match(pair):
        raise ServingError("ck_pair is not a pair's name.", "Take it from ckcontrol.vllm.new_pair().")
    if not isinstance(role, str) or role not in ROLES:
        raise ServingError(f"ck_role={str(role)[:64]!r}.", f"Known: {', '.join(ROLES)}.")
    if not isinstance(trace, (bool, int, float)) or trace not in (0, 1):
        raise ServingError(f"ck_trace={str(trace)[:64]!r}.", "Use 1 to record a trace, 0 not to.")
    draft = args.get("ck_draft", "")
    control = _object("ck_control", args.get("ck_control"))
    drawn = _object("ck_sampling", args.get("ck_sampling", "{}"))
    for name in drawn:
        if name not in DRAWN:
            raise ServingError(f"ck_sampling holds {name[:64]!r}.", did_you_mean(name[:64], DRAWN))
    stops = drawn.get("stop_token_ids", [])
    if not isinstance(stops, list) or len(stops) > _MAX_STOPS:
        raise ServingError("stop_token_ids is not a short list.", f"Give at most {_MAX_STOPS} token ids.")
    if not isinstance(control.get("method", ""), str):
        raise ServingError("ck_control: method is not text.", "Give a method's name, e.g. ck-plug.")
    try:
        options = GenerateOptions(**drawn)
        chosen = Control.from_dict(control)
        known = drafts(chosen)
    except ServingError:
        raise
    except (CKError, TypeError, ValueError, OverflowError) as error:
        raise ServingError(f"ck_control or ck_sampling: {error}") from error
    if not isinstance(draft, str) or draft not in known:
        hint = f"One of: {', '.join(known)}." if known != ("",) else "Leave it out."
        raise ServingError(f"ck_draft={str(draft)[:64]!r} is no draft of method {chosen.method!r}.", hint)
    if options.do_sample and options.seed is None:
        raise ServingError(
            "ck_sampling samples without a seed.", "Pass one; ckcontrol.vllm.contract.pair_params.seeded draws it."
        )
    return PairParams(pair, role, chosen, options, bool(trace), draft)


def strip(args: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the arguments without any ``ck_`` key: what a client may send, whatever it tried."""
    return {key: value for key, value in (args or {}).items() if not str(key).startswith(PREFIX)}


def sampling_params(
    args: Mapping[str, str | int], *, max_tokens: int, stop_token_ids: tuple[int, ...] = (), **rest: Any
) -> SamplingParams:
    """Return vLLM's parameters of one row.

    vLLM is told to be greedy and to penalise nothing: the processor hands it a row with one possible token.

    Args:
        args: From `extra_args`.
        max_tokens: Longest answer.
        stop_token_ids: End tokens beside those of the model.
        **rest: Further fields of `SamplingParams`, e.g. ``stop``, ``logprobs``, ``ignore_eos``; give both rows the
            same.
    """
    from vllm import SamplingParams

    fixed = {"temperature": 0.0, "n": 1, "detokenize": True}
    return SamplingParams(
        **(fixed | rest), max_tokens=max_tokens, stop_token_ids=list(stop_token_ids), extra_args=dict(args)
    )


def _object(name: str, text: Any) -> dict[str, Any]:
    """Return a flat JSON object; values are scalars or short lists of scalars."""
    if not isinstance(text, str) or len(text) > _MAX_JSON:
        raise ServingError(f"{name} is not a JSON text of at most {_MAX_JSON} characters.", "Use params.extra_args.")
    try:
        data = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ServingError(f"{name} is not JSON: {str(error)[:120]}.", "Use params.extra_args.") from error
    if not isinstance(data, dict):
        raise ServingError(f"{name} is not a JSON object.", "Use params.extra_args.")
    for key, value in data.items():
        for item in value if isinstance(value, list) else [value]:
            if item is not None and not isinstance(item, (str, int, float)):
                raise ServingError(f"{name}: {key[:64]!r} is not a plain value.", "Give text, numbers, true or false.")
            if isinstance(item, int) and abs(item) > _MAX_INT:
                raise ServingError(f"{name}: {key[:64]!r} is too large.", "Give a number below 2**63.")
    return data


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")
