"""What a caller asks for: `Control` (which policy, how far) and `GenerateOptions` (how tokens are drawn).

Both are frozen and checked on construction, so a bad value never reaches a model. Knows the policy registry by
name only; knows nothing of tensors or transformers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from .errors import ControlError, did_you_mean

if TYPE_CHECKING:
    from .policies.base import Policy

__all__ = ["Control", "GenerateOptions"]


def check_number(name: str, value: Any, low: float, high: float) -> float:
    """Return `value` as a float in [low, high]; bools, strings, NaN and infinities raise `ControlError`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ControlError(f"{name}={value!r} is not a finite number.", f"Give a number from {low} to {high}.")
    if not low <= value <= high:
        raise ControlError(f"{name}={value!r} is out of range.", f"Give a number from {low} to {high}.")
    return float(value)


def check_integer(name: str, value: Any, low: int, high: int) -> int:
    """Return `value` if it is an int in [low, high]; anything else raises `ControlError`."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ControlError(f"{name}={value!r} is not valid.", f"Give a whole number from {low} to {high}.")
    return value


@dataclass(frozen=True, init=False)
class Control:
    """How far the model trusts its memory against the passages, and by which policy.

    Attributes:
        method: Registered policy name: ``off``, ``ck-plug``, ``ck-plug-repo``, ``cad``, ``adacad``, ``coiecd``,
            ``acd``, ``arr``, ``grd``, ``nwcad``, ``dial``, or one that an installed package registers.
        alpha: The dial, one way in every method: 0 = context, 0.5 = the unmodified model, 1 = memory. None means
            0.5 for methods that have the dial, and is required for those that choose by themselves.
        candidates: k of the head set: where context is amplified (tau > 1) a token must be among the k best of
            either stream, or reach `candidate_ratio` of that stream's best probability.
        candidate_ratio: r of the head set; 0 admits the whole vocabulary (as published CAD does).
        params: The policy's own parameters under their papers' names, e.g. ``gate``, ``adaptive``, ``warmup``.

    Raises:
        ControlError: On an unknown method or parameter, or a value out of range. The message proposes the nearest.
    """

    method: str
    alpha: float | None
    candidates: int
    candidate_ratio: float
    params: Mapping[str, Any] = field(hash=False)

    def __init__(
        self,
        method: str = "ck-plug",
        alpha: float | None = None,
        *,
        candidates: int = 10,
        candidate_ratio: float = 0.01,
        **params: Any,
    ) -> None:
        if alpha is not None:
            alpha = check_number("alpha", alpha, 0.0, 1.0)
        set_field = object.__setattr__
        set_field(self, "method", method)
        set_field(self, "alpha", alpha)
        set_field(self, "candidates", check_integer("candidates", candidates, 1, 1_000_000))
        set_field(self, "candidate_ratio", check_number("candidate_ratio", candidate_ratio, 0.0, 1.0))
        set_field(self, "params", MappingProxyType(dict(params)))
        self.policy()  # names and ranges are checked here, not at the first token

    def policy(self) -> Policy:
        """Return a new policy object for this control."""
        from .policies import build

        return build(self)

    def to_dict(self) -> dict[str, Any]:
        """Return a flat, JSON-ready form; `from_dict` reads it back."""
        return {
            "method": self.method,
            "alpha": self.alpha,
            "candidates": self.candidates,
            "candidate_ratio": self.candidate_ratio,
            **self.params,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Control:
        """Build from `to_dict`'s form; unknown keys raise `ControlError` as in the constructor."""
        return cls(**data)

    def __repr__(self) -> str:
        shown = {k: v for k, v in self.to_dict().items() if v is not None}
        return f"Control({', '.join(f'{k}={v!r}' for k, v in shown.items())})"

    def __hash__(self) -> int:
        return hash(tuple(sorted(self.to_dict().items(), key=lambda item: item[0])))

    def __reduce__(self) -> tuple[Any, ...]:
        return (Control._rebuild, (self.to_dict(),))

    @staticmethod
    def _rebuild(data: dict[str, Any]) -> Control:
        return Control(**data)


def controls_for(control: Control | Sequence[Control] | None, rows: int) -> list[Control]:
    """Return one control per row: one for all, or a list of them; None is ``Control()``.

    Raises:
        ControlError: The list has another length, or its controls differ in the head set they share.
    """
    if control is None or isinstance(control, Control):
        return [control or Control()] * rows
    controls = list(control)
    if len(controls) != rows:
        raise ControlError(f"{len(controls)} controls for {rows} rows.", "Pass one control, or one per question.")
    if len({(c.candidates, c.candidate_ratio) for c in controls}) > 1:
        raise ControlError("the controls of one batch differ in candidates or candidate_ratio.", "Make them equal.")
    return controls


@dataclass(frozen=True)
class GenerateOptions:
    """How tokens are drawn and when to stop. Greedy unless asked; nothing is read from generation_config.json.

    Attributes:
        max_new_tokens: Longest answer, in tokens.
        do_sample: Draw from the fused distribution instead of taking its maximum.
        temperature: Divides the fused log-probabilities; used with `do_sample`.
        top_k: Keep the k best fused tokens; 0 keeps all; used with `do_sample`.
        top_p: Nucleus mass of the fused distribution; used with `do_sample`.
        seed: Every row draws from its own generator with this seed, so an answer does not depend on its batch
            neighbours, and equals ``torch.manual_seed(seed); model.generate(...)`` on that row alone. None: torch's
            global generator, one joint draw per step, as ``model.generate`` does.
        repetition_penalty: transformers' penalty, on the fused scores.
        penalty_scope: ``"all"`` penalises prompt and generated tokens, as transformers does (and so also the
            passage's words); ``"generated"`` only what was generated.
        stop_token_ids: Further end tokens, beside those of the generation config and the tokenizer.
        trace: Record a `TokenTrace` per token.
    """

    max_new_tokens: int = 64
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    penalty_scope: str = "all"
    stop_token_ids: tuple[int, ...] = ()
    trace: bool = True

    def __post_init__(self) -> None:
        check_integer("max_new_tokens", self.max_new_tokens, 1, 1_000_000)
        check_number("temperature", self.temperature, 1e-4, 100.0)
        check_integer("top_k", self.top_k, 0, 10_000_000)
        check_number("top_p", self.top_p, 1e-6, 1.0)
        check_number("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        if self.seed is not None:
            check_integer("seed", self.seed, 0, 2**63 - 1)
        if self.penalty_scope not in ("all", "generated"):
            raise ControlError(
                f"penalty_scope={self.penalty_scope!r}.",
                did_you_mean(str(self.penalty_scope), ["all", "generated"]),
            )
        for name in ("do_sample", "trace"):
            if not isinstance(getattr(self, name), bool):
                raise ControlError(f"{name}={getattr(self, name)!r} is not True or False.")
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        for token in self.stop_token_ids:
            check_integer("stop_token_ids", token, 0, 2**31)

    @classmethod
    def from_kwargs(cls, options: Mapping[str, Any]) -> GenerateOptions:
        """Build from keyword arguments; an unknown name raises `ControlError` with the nearest known one."""
        known = [f.name for f in fields(cls)]
        for name in options:
            if name not in known:
                raise ControlError(f"unknown option {name!r}.", did_you_mean(name, known))
        return cls(**options)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)
