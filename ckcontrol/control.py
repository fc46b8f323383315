"""What a caller asks for: `Control`, which policy and how far. Frozen and checked on construction.

So a bad value never reaches a model. The policy is built there, once, and kept; that loads torch, which importing this
module does not. Knows nothing of models or transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from .arguments import check_integer, check_number
from .errors import ControlError

if TYPE_CHECKING:
    from .fusion.distributions import Shortlist
    from .policies.base import Policy

__all__ = ["DEFAULT_METHOD", "Control"]

DEFAULT_METHOD = "dial"


@dataclass(frozen=True, init=False)
class Control:
    """How far the model trusts its memory against the passages, and by which policy.

    Attributes:
        method: Registered policy name: ``dial`` unless given, ``off``, ``ck-plug``, ``ck-plug-repo``, ``cad``,
            ``adacad``, ``coiecd``, ``acd``, ``arr``, ``grd``, ``nwcad``, ``trustmargin``, or one that an
            installed package registers.
        alpha: The position between passages and memory, the same way round in every method: 0 = context, 0.5 = the
            unmodified model, 1 = memory. None means 0.5 for methods that take an alpha, and is the only value for
            those that choose by themselves.
        candidates: k of the shortlist: where context is amplified (tau > 1) a token must be among the k best of
            either stream, or reach `candidate_ratio` of that stream's best probability.
        candidate_ratio: r of the shortlist; 0 admits the whole vocabulary (as published CAD does).
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
        method: str = DEFAULT_METHOD,
        alpha: float | None = None,
        *,
        candidates: int = 10,
        candidate_ratio: float = 0.01,
        **params: Any,
    ) -> None:
        if alpha is not None:
            alpha = check_number("alpha", alpha, 0.0, 1.0)
        if not isinstance(method, str):
            number = isinstance(method, (int, float)) and not isinstance(method, bool)
            meant = f"Control(alpha={method!r})" if number else f"Control({DEFAULT_METHOD!r})"
            raise ControlError(f"method={method!r:.60} is not a name.", f"Write it like this: {meant}.")
        set_field = object.__setattr__
        set_field(self, "method", method)
        set_field(self, "alpha", alpha)
        set_field(self, "candidates", check_integer("candidates", candidates, 1, 1_000_000))
        set_field(self, "candidate_ratio", check_number("candidate_ratio", candidate_ratio, 0.0, 1.0))
        set_field(self, "params", MappingProxyType(dict(params)))
        from .fusion.distributions import Shortlist
        from .policies import build

        # Kept beside the fields, so neither takes part in ==, hash, repr or to_dict.
        set_field(self, "_policy", build(method, alpha, params))  # checks names and ranges
        set_field(self, "_shortlist", Shortlist(self.candidates, self.candidate_ratio))

    def policy(self) -> Policy:
        """Return this control's policy, which was built with it."""
        policy: Policy = vars(self)["_policy"]
        return policy

    def without_passages(self) -> Control:
        """Return what is left of it where there are no passages: nothing is to steer, unless it is in the weights.

        Two equal streams must not run beside each other: rounding would look like a conflict.
        """
        return self if self.policy().in_weights else Control(method="off")

    @property
    def shortlist(self) -> Shortlist:
        """`candidates` and `candidate_ratio` as one value."""
        shortlist: Shortlist = vars(self)["_shortlist"]
        return shortlist

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


def check_control(control: object, name: str = "control") -> Control:
    """Return a control as it is; None is ``Control()``.

    Raises:
        ControlError: Anything else; the message shows the control that was probably meant.
    """
    if control is None or isinstance(control, Control):
        return control or Control()
    meant = "Control(alpha=0.3)"
    if isinstance(control, (int, float)) and not isinstance(control, bool) and 0 <= control <= 1:
        meant = f"Control(alpha={control!r})"
    elif isinstance(control, str):
        meant = f"Control({control!r:.40})"
    elif isinstance(control, Mapping):
        meant = "Control.from_dict(...)"
    raise ControlError(f"{name}={control!r:.60} is not a Control.", f"Pass control=ckcontrol.{meant}.")


def control_with(name: str, value: object) -> str | None:
    """Return how a control is written that is told `value` under `name`; None if no control takes that name."""
    if name == "method":
        return f"Control({value!r:.40})"
    if name in ("alpha", "candidates", "candidate_ratio"):
        return f"Control({name}={value!r:.40})"
    from .policies.base import takes

    method = takes(name)
    return None if method is None else f"Control({method!r}, {name}={value!r:.40})"


def controls_for(control: Control | Sequence[Control] | None, rows: int) -> list[Control]:
    """Return one control per row: one for all, or a list of them; None is ``Control()``.

    Raises:
        ControlError: What is no control, a list of another length, or of controls that differ in the shortlist they
            share.
    """
    if not isinstance(control, (list, tuple)):
        return [check_control(control)] * rows
    controls = [check_control(one, f"control[{place}]") for place, one in enumerate(control)]
    if len(controls) != rows:
        raise ControlError(f"{len(controls)} controls for {rows} rows.", "Pass one control, or one per question.")
    if len({c.shortlist for c in controls}) > 1:
        raise ControlError("the controls of one batch differ in candidates or candidate_ratio.", "Make them equal.")
    return controls


def overriding() -> Control:
    """Return how an answer is steered towards the statement of an override, whatever control is in force elsewhere.

    The shortlist is short: with the usual one, the amplified difference begins more answers with the prompt's own
    "Background:". Chosen on few questions; docs/overrides.md has what it reaches.
    """
    return Control("cad", cad_alpha=1.0, candidates=2, candidate_ratio=0.1)


def drafts(control: Control) -> tuple[str, ...]:
    """Return the names of the answers that a control's method chooses from; ``("",)`` where it does not choose."""
    from .policies import draft_policies

    names = tuple(draft_policies(control.policy()))
    return names if len(names) > 1 else ("",)
