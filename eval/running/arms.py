"""Arms: what is compared. Method names and alphas to controls, and the wording of the prompt that each of them gets.

The one place that reads ``method@alpha``; a run card holds both apart. Knows the registry of policies; knows no model,
no data and no file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ckcontrol.control import Control
from ckcontrol.errors import EvalError, did_you_mean
from ckcontrol.policies import names

__all__ = ["ALPHAS", "Arm", "arms_for", "method_names"]

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
_ADAPTIVE = "-adaptive"
_FIXED = {
    # The model without its passages is tau = 0, which is cad at alpha 1.
    "closed-book": (Control("cad", alpha=1.0), "base"),
    "prompt": (Control("off"), "context-only"),
    "prompt-memory": (Control("off"), "memory-only"),
}


@dataclass(frozen=True)
class Arm:
    """One way of answering.

    Attributes:
        name: Unique in a run: the method, with ``@alpha`` if it has the dial.
        method: The method with its parameters, the same along its control curve.
        alpha: The setting of the dial; None for a method without one.
        control: What decodes.
        prompt: Wording of the prompt: "base", "context-only" or "memory-only" (prompt_styles.py).
    """

    name: str
    method: str
    alpha: float | None
    control: Control
    prompt: str = "base"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "name": self.name,
            "method": self.method,
            "alpha": self.alpha,
            "prompt": self.prompt,
            "control": self.control.to_dict(),
        }


def method_names() -> list[str]:
    """Return the methods that an evaluation knows: every policy, the adaptive forms, and what is not a policy."""
    policies = names()
    adaptive = [name + _ADAPTIVE for name in policies if _takes(name, adaptive=True)]
    return ["off", *_FIXED, *sorted({*policies, *adaptive} - {"off"})]


def arms_for(methods: Iterable[str], alphas: Sequence[float] = ALPHAS) -> list[Arm]:
    """Return the arms of some methods, in order: one per alpha for a method with the dial, otherwise one.

    Args:
        methods: Names as in `method_names`, or "all", which leaves out ``weights``: it needs a dial on the model. A
            policy's own parameters follow its name: ``ck-plug:gate=2``, ``coiecd:coiecd_alpha=0.5:coiecd_ratio=2``; an
            alpha of its own comes last: ``ck-plug:gate=2@0.6``.
        alphas: Settings of the dial, 0 = context, 1 = memory, for the methods that do not name an alpha themselves.

    Raises:
        EvalError: No method or an unknown one, a parameter that cannot be read, or no alpha.
        ControlError: The policy refuses a parameter or an alpha.

    Example:
        >>> [arm.name for arm in arms_for(["off", "ck-plug", "adacad"], [0, 0.5])]
        ['off', 'ck-plug@0', 'ck-plug@0.5', 'adacad']
        >>> [arm.name for arm in arms_for(["cad@0.6", "ck-plug"], [1])]
        ['cad@0.6', 'ck-plug@1']
    """
    wanted: list[str] = []
    for given in methods:
        wanted += (
            [each for each in method_names() if not _in_weights(each)] if given.strip() == "all" else [given.strip()]
        )
    if not wanted or not alphas:
        raise EvalError("no method or no alpha to compare.", "Name some: --methods off,ck-plug --alpha 0,0.5,1")
    found: dict[str, Arm] = {}
    for method in wanted:
        for arm in _arms(method, alphas):
            found.setdefault(arm.name, arm)
    return list(found.values())


def _in_weights(method: str) -> bool:
    return method in names() and Control(method).policy().in_weights


def _arms(method: str, alphas: Sequence[float]) -> list[Arm]:
    given, mark, own = method.rpartition("@")
    if mark:
        method, alphas = given, [_alpha(method, own)]
    found = _of_method(method, alphas)
    if mark and found[0].alpha is None:
        raise EvalError(f"{method!r} takes no alpha, and {given}@{own} gives it one.", f"Write {method} alone.")
    return found


def _of_method(method: str, alphas: Sequence[float]) -> list[Arm]:
    if method in _FIXED:
        control, prompt = _FIXED[method]
        return [Arm(method, method, None, control, prompt)]
    name, *rest = method.split(":")
    params = dict(_parameter(method, part) for part in rest)
    policy = name
    if name.endswith(_ADAPTIVE) and name not in names():
        policy, params = name.removesuffix(_ADAPTIVE), {**params, "adaptive": True}
    if policy not in names() or ("adaptive" in params and not _takes(policy, adaptive=True)):
        raise EvalError(f"no method {method!r}.", did_you_mean(method, method_names()))
    if "adaptive" in params or not _takes(policy, alpha=0.5) or "cad_alpha" in params:
        return [Arm(method, method, None, Control(policy, **params))]
    return [Arm(f"{method}@{a:g}", method, float(a), Control(policy, alpha=a, **params)) for a in alphas]


def _alpha(method: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise EvalError(f"{text!r} in {method!r} is not an alpha.", "Write a number after the @: ck-plug@0.6") from None


def _parameter(method: str, text: str) -> tuple[str, Any]:
    name, mark, value = text.partition("=")
    if not mark or not name:
        raise EvalError(f"{text!r} in {method!r} is not a parameter.", "Write name=value: cad:cad_alpha=1")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _takes(policy: str, **params: Any) -> bool:
    try:
        Control(policy, **params)
    except ValueError:
        return False
    return True
