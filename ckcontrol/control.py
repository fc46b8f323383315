"""What a caller asks for: `Control`, which policy and how far. Frozen and checked on construction.

So a bad value never reaches a model. Importing this module loads no tensor library; making a `Control` does, because
its policy is built there, once. Knows nothing of models or transformers.
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

__all__ = ["Control"]


@dataclass(frozen=True, init=False)
class Control:
    """How far the model trusts its memory against the passages, and by which policy.

    Attributes:
        method: Registered policy name: ``off``, ``ck-plug``, ``ck-plug-repo``, ``cad``, ``adacad``, ``coiecd``,
            ``acd``, ``arr``, ``grd``, ``nwcad``, ``dial``, or one that an installed package registers.
        alpha: The position between passages and memory, the same way round in every method: 0 = context, 0.5 = the
            unmodified model, 1 = memory. None means 0.5 for methods that take it, and is required for those that
            choose by themselves.
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
        from .fusion.distributions import Shortlist
        from .policies import build

        # Kept beside the fields, so neither takes part in ==, hash, repr or to_dict.
        set_field(self, "_policy", build(method, alpha, params))  # checks names and ranges
        set_field(self, "_shortlist", Shortlist(self.candidates, self.candidate_ratio))

    def policy(self) -> Policy:
        """Return this control's policy, which was built with it."""
        policy: Policy = vars(self)["_policy"]
        return policy

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


def controls_for(control: Control | Sequence[Control] | None, rows: int) -> list[Control]:
    """Return one control per row: one for all, or a list of them; None is ``Control()``.

    Raises:
        ControlError: The list has another length, or its controls differ in the shortlist they share.
    """
    if control is None or isinstance(control, Control):
        return [control or Control()] * rows
    controls = list(control)
    if len(controls) != rows:
        raise ControlError(f"{len(controls)} controls for {rows} rows.", "Pass one control, or one per question.")
    if len({c.shortlist for c in controls}) > 1:
        raise ControlError("the controls of one batch differ in candidates or candidate_ratio.", "Make them equal.")
    return controls
