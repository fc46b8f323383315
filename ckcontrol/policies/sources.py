"""How several sources are put together: `log q = sum_i w_i log p_i`, or an average of probabilities, step by step.

The sources are memory, each passage or group, and all passages together, see `fusion/source_signals.py`.

`Lifted` (what a `Control` means here): a policy of two streams decides tau_i on the pair (source i, memory), and, with
v_i the shares of the sources, sum v_i = 1,

    log q = sum_i v_i * [min(tau_i, 1) * log p_all + (1 - min(tau_i, 1)) * log p_par
                         + max(tau_i - 1, 0) * (log p_i - log p_par)]

so every tau_i = 1 is the unmodified model with all its passages, every tau_i = 0 memory, both bit for bit, and with one
passage, where p_1 = p_all, it is the equation of two streams. Towards memory nothing is turned away from.
`Replug` (Shi et al., arXiv 2301.12652, Eq. 2): q = sum_i lambda_i * p_i over the passages alone, lambda = softmax of
    the retrieval scores. Memory and all passages together take no part.
`MinEntropy`, `AvgEntropy`: after FuseLLM (Wan et al., arXiv 2401.10491, Sec. 3.3), which picks of several models'
    distributions the one with the least cross-entropy to the training text (MinCE), or averages them with weights that
    fall with it (AvgCE). Here there is no text yet, so the entropy H_i of each source stands in: q = p_i of the least
    H_i; q = sum_i w_i p_i with w = softmax(-H).
`Weighed`: weights that are given.

Knows signals of a step; knows no prompts, streams or text.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import ControlError, did_you_mean
from ..fusion.source_signals import SourceSignals
from .base import Decision, Policy

__all__ = [
    "COMBINATIONS",
    "AvgEntropy",
    "Lifted",
    "MinEntropy",
    "Replug",
    "SourceDecision",
    "SourcePolicy",
    "Weighed",
    "combination",
    "shares_of",
]


@dataclass(frozen=True)
class SourceDecision:
    """What was decided for one step; everything lies on the device of the signals.

    Attributes:
        weights: Of every source; they sum to 1, [S, B], or [S, B, V] where they differ between tokens; float32.
        switched: Rows that were acted on, [B] bool.
        scale: As in `Decision`.
        truncate: As in `Decision`.
    """

    weights: Tensor
    switched: Tensor
    scale: Tensor | None = None
    truncate: Tensor | None = None

    def unless(self, rows: Tensor) -> SourceDecision:
        """Return the decision with weight 1 on all passages together in some rows, [B] bool."""
        unit = torch.zeros_like(self.weights)
        unit[-1] = 1.0
        weights = torch.where(rows if unit.ndim == 2 else rows[:, None], unit, self.weights)
        scale = None if self.scale is None else self.scale.masked_fill(rows, 1.0)
        truncate = None if self.truncate is None else self.truncate & ~rows
        return SourceDecision(weights, self.switched & ~rows, scale, truncate)

    def pair(self) -> Decision:
        """Return it as a trace tells it of two streams: tau is everything that memory does not weigh."""
        return Decision(1 - self.weights[0], self.switched, self.scale, self.truncate)


@dataclass(frozen=True)
class SourcePolicy(ABC):
    """Base of what puts sources together. Stateless, as `Policy` is: the same signals give the same weights.

    Attributes:
        name: What a message calls it.
        averages: Probabilities are averaged (`kernel.average`) instead of log-probabilities (`kernel.blend`); then no
            weight is below 0, and `scale` and `truncate` are not given.
    """

    name: ClassVar[str]
    averages: ClassVar[bool] = False

    @property
    def neutral(self) -> bool:
        """True when all passages together have weight 1 at every step."""
        return False

    def steered_rows(self, like: Tensor) -> Tensor | slice:
        """As `Policy.steered_rows`."""
        return slice(None)

    @abstractmethod
    def weigh(self, signals: SourceSignals) -> SourceDecision:
        """Choose the weights of every row of one step, without synchronising with the device."""


@dataclass(frozen=True)
class Lifted(SourcePolicy):
    """A policy of two streams, asked about every source and memory; the equation is at the top of the file.

    Attributes:
        policy: One of tokens; of several rows `per_row`.
    """

    name: ClassVar[str] = "control"
    policy: Policy

    @property
    def neutral(self) -> bool:
        """As the policy."""
        return self.policy.neutral

    def steered_rows(self, like: Tensor) -> Tensor | slice:
        """Those of the policy."""
        return self.policy.steered_rows(like)

    def weigh(self, signals: SourceSignals) -> SourceDecision:
        """Ask the policy about each source; its weights are those of the equation."""
        rows = signals.logits.shape[1]
        made: dict[int, Decision] = {}
        for place in range(1, len(signals.logits) - 1):
            made[place] = self.policy.decide(signals.pair(place))
        wide = any(decision.tau.ndim == 2 for decision in made.values())
        weights = torch.zeros_like(signals.logits if wide else signals.shares, dtype=torch.float32)
        leaving, whole = torch.zeros_like(weights[0]), torch.ones_like(weights[0], dtype=torch.bool)
        switched = torch.zeros(rows, dtype=torch.bool, device=weights.device)
        scale, truncate = None, None
        for place, decision in made.items():
            share, tau = signals.shares[place], decision.tau
            if wide:
                share, tau = share[:, None], tau if tau.ndim == 2 else tau[:, None]
            low, counts = tau.clamp_max(1.0), share > 0
            leaving = leaving + share * (1 - low)
            whole = whole & ((low == 0) | ~counts)
            weights[place] = share * (tau - low)
            switched = switched | (decision.switched & (signals.shares[place] > 0))
            if decision.scale is not None:
                less = signals.shares[place] * (1 - decision.scale)
                scale = 1 - less if scale is None else scale - less
            if decision.truncate is not None:
                cut = decision.truncate & (signals.shares[place] > 0)
                truncate = cut if truncate is None else truncate | cut
        leaving = torch.where(whole & (signals.shares.sum(0) > 0)[(...,) + (None,) * wide], 1.0, leaving)
        weights[-1] = 1 - leaving
        weights[0] = leaving - weights[1:-1].sum(0)
        return SourceDecision(weights, switched, scale, truncate)


@dataclass(frozen=True)
class Replug(SourcePolicy):
    """The passages' answers averaged by what they were ranked by; see the top of the file."""

    name: ClassVar[str] = "replug"
    averages: ClassVar[bool] = True

    def weigh(self, signals: SourceSignals) -> SourceDecision:
        """Return the shares; a row without passages is all there is."""
        weights = signals.shares.clone()
        weights[-1] = 1 - _full(signals)
        return SourceDecision(weights, _full(signals) > 0)


@dataclass(frozen=True)
class MinEntropy(SourcePolicy):
    """The surest source alone; of equals the later one, so all passages together before any."""

    name: ClassVar[str] = "min-entropy"

    def weigh(self, signals: SourceSignals) -> SourceDecision:
        """Give weight 1 to the lowest entropy."""
        h = signals.h.masked_fill(~signals.present, math.inf).flip(0)
        surest = len(h) - 1 - h.argmin(0)
        weights = torch.zeros_like(signals.h).scatter_(0, surest[None], 1.0)
        return SourceDecision(weights, surest < len(h) - 1)


@dataclass(frozen=True)
class AvgEntropy(SourcePolicy):
    """Every source, averaged by exp(-H)."""

    name: ClassVar[str] = "avg-entropy"
    averages: ClassVar[bool] = True

    def weigh(self, signals: SourceSignals) -> SourceDecision:
        """Return softmax(-H) over the sources of each row."""
        weights = (-signals.h).masked_fill(~signals.present, -math.inf).softmax(0)
        return SourceDecision(weights, weights[-1] < 1)


@dataclass(frozen=True)
class Weighed(SourcePolicy):
    """Fixed exponents by the sources' names; those not named have 0.

    Attributes:
        weights: Name and weight; they sum to 1. Below 0: turned away from, with the shortlist.
    """

    name: ClassVar[str] = "weights"
    weights: tuple[tuple[str, float], ...] = ()
    order: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        for name, weight in self.weights:
            number = isinstance(weight, (int, float)) and not isinstance(weight, bool) and abs(weight) <= 1e4
            if not number:
                raise ControlError(f"combine[{name!r:.40}]={weight!r:.40} is no weight.", "Give -10000 to 10000.")
        total = math.fsum(weight for _, weight in self.weights)
        if abs(total - 1) > 1e-6 * max(1.0, *(abs(weight) for _, weight in self.weights), 1.0):
            raise ControlError(f"the weights of combine sum to {total:g}.", "Make them sum to 1.")

    def check(self, names: Sequence[str]) -> None:
        """Refuse a name that no source has."""
        for name, _ in self.weights:
            if name not in names:
                raise ControlError(f"combine names the source {name!r:.40}.", did_you_mean(str(name), names))

    def weigh(self, signals: SourceSignals) -> SourceDecision:
        """Return the weights of each row's sources."""
        given, last = dict(self.weights), len(signals.logits) - 1
        rows = []
        for names in self.order:
            row = [0.0] * (last + 1)
            for i, name in enumerate(names):
                row[last if i == len(names) - 1 else i] += float(given.get(name, 0.0))
            rows.append(row)
        weights = torch.tensor(rows, device=signals.logits.device).T.contiguous()
        return SourceDecision(weights, weights[-1] != 1)


COMBINATIONS: dict[str, type[SourcePolicy]] = {p.name: p for p in (Replug, MinEntropy, AvgEntropy)}


def combination(combine: Any, policy: Policy, names: Sequence[Sequence[str]]) -> SourcePolicy:
    """Return what puts the sources of a batch together.

    Args:
        combine: As in `generate`.
        policy: Of the controls, where `combine` leaves it to them.
        names: Of every question's sources.

    Raises:
        ControlError: An unknown name, weights that do not sum to 1, or of sources that are not there.
    """
    if combine is None:
        return Lifted(policy)
    if isinstance(combine, str):
        if combine not in COMBINATIONS:
            raise ControlError(f"combine={combine!r:.40}.", did_you_mean(combine[:40], COMBINATIONS))
        return COMBINATIONS[combine]()
    if isinstance(combine, Mapping):
        made = Weighed(tuple(combine.items()), tuple(tuple(one) for one in names))
        for one in names:
            made.check(one)
        return made
    if isinstance(combine, SourcePolicy):
        return combine
    raise ControlError(
        f"combine={combine!r:.60} says no way to put sources together.",
        f"Pass one of {', '.join(COMBINATIONS)}, or weights like {{'memory': 0.3, 'all': 0.7}}.",
    )


def shares_of(places: Sequence[Sequence[int]], scores: Sequence[float | None]) -> list[float]:
    """Return what each source with passages counts among them: they sum to 1.

    Args:
        places: Of the passages in each source.
        scores: What each passage was ranked by: softmax of these. Even, where any has none.
    """
    known = [score for score in scores if score is not None]
    even = len(known) < len(scores) or not known
    mass = [1.0] * len(scores) if even else [math.exp(score - max(known)) for score in known]
    each = [math.fsum(mass[place] for place in one) for one in places]
    if even:
        each = [1.0] * len(places)
    total = math.fsum(each)
    return [one / total for one in each] if total > 0 else [1 / len(places)] * len(places)


def _full(signals: SourceSignals) -> Tensor:
    """Return 1 for rows that have passages, else 0, [B]."""
    return (signals.shares.sum(0) > 0).float()
