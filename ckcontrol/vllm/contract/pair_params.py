"""What the two rows of a pair carry: one control, one way of drawing, one name, written into vLLM's `extra_args`.

A steered request is two engine requests (rows) that differ in prompt and role only. The keys are flat strings and
integers, so they also pass through the HTTP field ``vllm_xargs``:

    ck_pair       the name both rows share; made here, never by a client
    ck_role       "contextual" or "parametric"
    ck_control    JSON of `Control.to_dict`
    ck_draft      which draft of it, where the method chooses between whole answers: each of them is a pair
    ck_sampling   JSON of how the pair's tokens are drawn (`SAMPLING` below)
    ck_trace      1 records a trace in the worker, until it is fetched

`read` is strict and bounded and is the only reader: the front end, the scheduler and the processor all use it. Each of
their processes makes a control and its options once, however many rows carry them: what was made from a text, or
written as it, is kept. Knows controls and options; imports nothing of vLLM until `sampling_params` is called.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Any

from ...control import Control, drafts
from ...decoding.options import GenerateOptions, new_seed, seeded
from ...errors import CKError, ControlError, ServingError, UnsupportedMode, did_you_mean

if TYPE_CHECKING:
    from vllm import SamplingParams

    from ...policies import Policy

__all__ = [
    "CONTEXTUAL",
    "PARAMETRIC",
    "ROLES",
    "SAMPLING",
    "PairParams",
    "blocks_of_pair",
    "check_stop",
    "drafts",
    "extra_args",
    "new_pair",
    "new_seed",
    "read",
    "sampling_of",
    "sampling_params",
    "seeded",
    "strip",
]

CONTEXTUAL, PARAMETRIC = "contextual", "parametric"
ROLES = (CONTEXTUAL, PARAMETRIC)
PREFIX = "ck_"
KEYS = ("ck_pair", "ck_role", "ck_control", "ck_draft", "ck_sampling", "ck_trace")
# The fields of GenerateOptions that decide how a pair's token is drawn; the others are vLLM's own business.
SAMPLING = (
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
_WRITER = "Use ckcontrol.vllm.extra_args."
_MOST_KEPT = 1024
_KEPT: dict[tuple[str, str], Any] = {}  # (key, text) -> the control or the options it stands for; the oldest go first
_KEEPING = Lock()


@dataclass(frozen=True)
class PairParams:
    """What one row of a pair was asked for; checked on construction.

    Attributes:
        pair: The name both rows share.
        role: ``"contextual"`` or ``"parametric"``.
        control: Policy and position of the pair.
        options: How its tokens are drawn; only the fields named in `SAMPLING` are meant, `seed` is set when sampling.
        trace: Record a trace.
        draft: Which draft of the control the pair writes; empty if it has only one.

    Raises:
        ServingError: A value that no row can carry; the message names it.
    """

    pair: str
    role: str
    control: Control
    options: GenerateOptions
    trace: bool = False
    draft: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.pair, str) or not _NAME.match(self.pair):
            raise ServingError("ck_pair is not a pair's name.", "Take it from ckcontrol.vllm.new_pair().")
        if not isinstance(self.role, str) or self.role not in ROLES:
            raise ServingError(f"ck_role={str(self.role)[:64]!r}.", f"Known: {', '.join(ROLES)}.")
        known, method = drafts(self.control), self.control.method
        if not isinstance(self.draft, str) or self.draft not in known:
            hint = f"One of: {', '.join(known)}." if known != ("",) else "Leave it out."
            raise ServingError(f"ck_draft={str(self.draft)[:64]!r} is no draft of method {method!r}.", hint)
        from ...policies import check_drafts

        try:
            check_drafts([self.control.policy()], "vLLM")
        except UnsupportedMode as error:
            raise ServingError(str(error)) from error
        if len(self.options.stop_token_ids) > _MAX_STOPS:
            raise ServingError("stop_token_ids is not a short list.", f"Give at most {_MAX_STOPS} token ids.")
        if self.options.do_sample and self.options.seed is None:
            raise ServingError(
                "ck_sampling samples without a seed.", "Pass one; ckcontrol.vllm.contract.pair_params.seeded draws it."
            )

    @cached_property
    def policy(self) -> Policy:
        """What decides the pair's tokens."""
        from ...policies import draft_policies, token_policy

        policy = self.control.policy()
        return draft_policies(policy)[self.draft] if self.draft else token_policy(policy)


def check_stop(stop: Sequence[str]) -> None:
    """Refuse stop texts that vLLM and `ckcontrol.generate` would find at different tokens.

    Raises:
        ControlError: One holds U+FFFD, how half a character is shown: vLLM shows a character when all of it is there.
    """
    for text in stop:
        if "\ufffd" in text:
            what = f"stop={text!r} holds U+FFFD, which stands for half a character; vLLM shows whole ones only."
            raise ControlError(what, "Stop at another text, or answer with ckcontrol.generate.")


def new_pair() -> str:
    """Return a fresh pair name that nobody can guess: 128 random bits, hexadecimal."""
    return secrets.token_hex(16)


def sampling_of(options: GenerateOptions) -> dict[str, Any]:
    """Return the fields named in `SAMPLING`; rows of a pair agree in these."""
    return {name: getattr(options, name) for name in SAMPLING}


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

    Both rows of a pair must get the same control and options; their arguments differ in ``ck_role`` alone. A pair that
    samples without a seed would draw differently on every tensor-parallel rank: call `seeded` first, or pass a seed.

    Args:
        pair: From `new_pair`.
        role: ``"contextual"`` for the prompt with passages, ``"parametric"`` for the one without.
        control: Policy and position.
        options: How tokens are drawn; None is greedy.
        trace: Record a trace in the worker, to be fetched by pair name.
        draft: One of `drafts`. Its trace is recorded in any case: it is what drafts are compared by.

    Raises:
        ServingError: A value that `read` would refuse.
    """
    row = PairParams(pair, role, control, options or GenerateOptions(), trace or bool(draft), draft)
    args: dict[str, str | int] = {
        "ck_pair": pair,
        "ck_role": role,
        "ck_control": _written("ck_control", control, control.to_dict()),
        "ck_sampling": _written("ck_sampling", row.options, sampling_of(row.options)),
        "ck_trace": int(row.trace),
    }
    return args | {"ck_draft": draft} if draft else args


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
    trace = args.get("ck_trace", 0)
    if not isinstance(trace, (bool, int, float)) or trace not in (0, 1):
        raise ServingError(f"ck_trace={str(trace)[:64]!r}.", "Use 1 to record a trace, 0 not to.")
    control = _made("ck_control", args.get("ck_control"))
    options = _made("ck_sampling", args.get("ck_sampling", "{}"))
    return PairParams(
        args.get("ck_pair", ""), args.get("ck_role", ""), control, options, bool(trace), args.get("ck_draft", "")
    )


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


def blocks_of_pair(prompts: Sequence[int], longest: int, most: int, block: int) -> int:
    """Return the KV-cache blocks that a pair may come to hold, for one group of layers.

    Args:
        prompts: Tokens of either prompt.
        longest: Tokens of the answer.
        most: The model's longest sequence.
        block: Tokens per block.
    """
    return sum(-(-min(prompt + longest, most) // block) for prompt in prompts)


def _written(key: str, value: Control | GenerateOptions, data: Mapping[str, Any]) -> str:
    """Return the text of a control or of options; whoever reads it in this process gets the same object."""
    _check_plain(key, data)
    text = _short(key, json.dumps(data, allow_nan=False, separators=(",", ":")))
    _keep(key, text, value)
    return text


def _made(key: str, text: Any) -> Any:
    """Return the control or the options that a text stands for."""
    text = _short(key, text)
    found = _KEPT.get((key, text))
    return _keep(key, text, _parsed(key, text)) if found is None else found


def _keep(key: str, text: str, value: Any) -> Any:
    with _KEEPING:
        _KEPT[key, text] = value
        while len(_KEPT) > _MOST_KEPT:
            del _KEPT[next(iter(_KEPT))]
    return value


def _parsed(key: str, text: str) -> Control | GenerateOptions:
    try:
        data = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ServingError(f"{key} is not JSON: {str(error)[:120]}.", _WRITER) from error
    if not isinstance(data, dict):
        raise ServingError(f"{key} is not a JSON object.", _WRITER)
    _check_plain(key, data)
    if key == "ck_sampling":
        for name in data:
            if name not in SAMPLING:
                raise ServingError(f"ck_sampling holds {name[:64]!r}.", did_you_mean(name[:64], SAMPLING))
    elif not isinstance(data.get("method", ""), str):
        raise ServingError("ck_control: method is not text.", "Give a method's name, e.g. dial.")
    try:
        if key == "ck_sampling":
            return GenerateOptions(**data)
        control = Control.from_dict(data)
        drafts(control)  # an installed policy's own error would end the engine later
        return control
    except CKError as error:
        raise ServingError(f"{key}: {error}") from error
    except Exception as error:  # whatever an installed policy's constructor raises
        raise ServingError(f"{key}: {type(error).__name__}: {error}") from error


def _short(key: str, text: Any) -> str:
    if not isinstance(text, str) or len(text) > _MAX_JSON:
        raise ServingError(f"{key} is not a JSON text of at most {_MAX_JSON} characters.", _WRITER)
    return text


def _check_plain(key: str, data: Mapping[str, Any]) -> None:
    """Refuse an object that is not flat; values are scalars or short lists of scalars."""
    for name, value in data.items():
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if item is not None and not isinstance(item, (str, int, float)):
                raise ServingError(f"{key}: {name[:64]!r} is not a plain value.", "Give text, numbers, true or false.")
            if isinstance(item, int) and abs(item) > _MAX_INT:
                raise ServingError(f"{key}: {name[:64]!r} is too large.", "Give a number below 2**63.")


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")
