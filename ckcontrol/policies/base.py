"""What a policy is: a frozen set of parameters that turns the signals of a step into an exponent tau per row.

Knows tensors and the registry; knows nothing of models, prompts or sampling. To add one, write a frozen dataclass
derived from `Policy` and register it, or name it in the entry-point group ``ckcontrol.policies``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from importlib.metadata import entry_points
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from ..errors import ControlError, did_you_mean
from ..fusion.signals import Signals

__all__ = ["TAU_MAX", "Decision", "OnDial", "Policy", "build", "names", "ones", "register", "tau_from_alpha"]

# alpha = 0 means tau = infinity (the pure contrast log p_ctx - log p_par); at 1e4 the greedy choice is that limit's,
# with the contextual score as a tie-breaker of one part in ten thousand.
TAU_MAX = 1e4


def tau_from_alpha(alpha: float) -> float:
    """Return tau = (1 - alpha) / alpha, capped at `TAU_MAX`: 0 -> the cap, 0.5 -> 1, 1 -> 0."""
    return min((1 - alpha) / max(alpha, 1 / (1 + TAU_MAX)), TAU_MAX)


@dataclass(frozen=True)
class Decision:
    """What a policy decided for one step. All tensors live on the device of the signals.

    Attributes:
        tau: Exponent of the contextual stream, [B], or [B, V] when it differs between tokens; float32.
        switched: Rows the policy acted on, [B] bool.
        scale: Inverse temperature coupled to the knob, [B]; None means 1.
        truncate: Rows to cut to the shortlist even where tau <= 1, [B] bool; None means none.
    """

    tau: Tensor
    switched: Tensor
    scale: Tensor | None = None
    truncate: Tensor | None = None

    def plain(self) -> Tensor:
        """Rows that nothing scales or truncates, [B] bool: at tau = 1 or 0 they are one stream, bit for bit."""
        plain = torch.ones_like(self.switched)
        if self.truncate is not None:
            plain = plain & ~self.truncate
        if self.scale is not None:
            plain = plain & (self.scale == 1)
        return plain

    def acting(self) -> Tensor:
        """Rows that differ from the contextual stream, [B] bool."""
        still = self.tau == 1
        return ~((still if still.ndim == 1 else still.all(-1)) & self.plain())

    def rows(self, index: Tensor | slice) -> Decision:
        """Return the decision on some rows only, [R] int64 or a slice -> R rows."""
        scale = None if self.scale is None else self.scale[index]
        truncate = None if self.truncate is None else self.truncate[index]
        return Decision(self.tau[index], self.switched[index], scale, truncate)


@dataclass(frozen=True)
class Policy(ABC):
    """Base of all policies. Fields are the method's parameters, under the paper's names, validated on construction.

    A policy is stateless: the same signals always give the same decision, so rows may be batched, reordered or
    replayed. A field called ``alpha`` makes the method accept one; see `OnDial`.
    """

    name: ClassVar[str]
    in_weights: ClassVar[bool] = False
    """The model itself is changed, row by row: this acts without passages too, where nothing else is to steer."""

    @property
    def neutral(self) -> bool:
        """True when tau is certainly 1 at every step; decoding then is plain generation, bit for bit."""
        return False

    @property
    def amplifies(self) -> bool:
        """True when tau may exceed 1, so that the shortlist must be computed. Claiming False wrongly is an error."""
        return True

    def steered_rows(self, like: Tensor) -> Tensor | slice:
        """Index of the rows that are not neutral; `like` gives the device. All rows, unless policies are mixed."""
        return slice(None)

    @abstractmethod
    def decide(self, signals: Signals) -> Decision:
        """Choose tau for every row of one step, without synchronising with the device."""


@dataclass(frozen=True)
class OnDial(Policy):
    """Base of policies with one knob from context to memory.

    Attributes:
        alpha: 0 = context, 0.5 = the unmodified model, 1 = memory; None leaves the model as it is.
    """

    alpha: float | None = None

    @property
    def position(self) -> float:
        """alpha, 0.5 unless given."""
        return 0.5 if self.alpha is None else self.alpha

    def _check_adaptive(self, adaptive: bool) -> None:
        """Refuse an `adaptive` that is no truth value, or that would make alpha meaningless."""
        if not isinstance(adaptive, bool):
            raise ControlError(f"adaptive={adaptive!r} is not True or False.")
        if adaptive and self.alpha is not None:
            raise ControlError(f"adaptive chooses alpha by itself; alpha={self.alpha!r} would be ignored.", "Drop one.")


P = TypeVar("P", bound=type[Policy])
_REGISTRY: dict[str, type[Policy]] = {}


def register(policy: P) -> P:
    """Register a policy class under its ``name``; usable as a decorator. A second class of that name is refused."""
    known = _REGISTRY.setdefault(policy.name, policy)
    if known is not policy and f"{known.__module__}.{known.__qualname__}" != (
        f"{policy.__module__}.{policy.__qualname__}"
    ):
        raise ControlError(f"policy {policy.name!r} is already registered by {known.__module__}.", "Rename yours.")
    return policy


def _installed() -> dict[str, Callable[[], type[Policy]]]:
    return {entry.name: entry.load for entry in entry_points(group="ckcontrol.policies")}


def names() -> list[str]:
    """Return every known method: the built-in ones and those that installed packages declare."""
    return sorted(_REGISTRY.keys() | _installed().keys())


def takes(name: str) -> str | None:
    """Return the registered method that has a parameter of this name, ``dial`` before others; None if none has."""
    found = [method for method, policy in _REGISTRY.items() if name in (f.name for f in fields(policy))]
    return min(found, key=lambda method: (method != "dial", method), default=None)


def build(method: str, alpha: float | None = None, params: Mapping[str, Any] | None = None) -> Policy:
    """Return a new policy.

    Args:
        method: A name from `names`.
        alpha: 0 = context, 0.5 = the unmodified model, 1 = memory; None for the method's own default.
        params: The method's parameters, by name.

    Raises:
        ControlError: Unknown method, unknown parameter, or an alpha given to a method that chooses by itself.
    """
    if method not in _REGISTRY:
        installed = _installed()
        if method not in installed:
            raise ControlError(f"unknown method {method!r}.", did_you_mean(str(method), names()))
        register(installed[method]())
    policy = _REGISTRY[method]
    given = dict(params or {})
    known = [f.name for f in fields(policy)]
    for name in given:
        if name not in known:
            owner = takes(name)
            hint = did_you_mean(name, known) if known else "It has none."
            if owner is not None:
                hint = f"Method {owner!r} has it: name that method. " + hint
            raise ControlError(f"method {method!r} has no parameter {name!r}.", hint)
    if alpha is not None:
        if "alpha" not in known:
            why = "it leaves the model as it is" if policy().neutral else "it chooses by itself"
            raise ControlError(
                f"method {method!r} has no alpha: {why}.",
                "Drop alpha, or use a method with one: dial, ck-plug, cad.",
            )
        given["alpha"] = alpha
    return policy(**given)


def ones(like: Tensor) -> Tensor:
    """Return tau = 1 for every row, [B] float32."""
    return torch.ones(like.shape[0], dtype=torch.float32, device=like.device)
