"""Policies that choose between whole answers: each draft is decoded by a policy of its own, then one of them is given.

Token by token, a blend compares the streams before both have proposed an answer: one opens with a name, the other
with "The capital of". A whole answer has no such beginning; what both streams make of it is two numbers. Knows plain
numbers of finished drafts; knows no model and no loop (decoding/loop.py runs the drafts side by side).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import fsum, sqrt
from typing import ClassVar
from warnings import warn

from ..errors import UnsupportedMode
from ..fusion.signals import Signals
from .base import Decision, Policy

__all__ = [
    "STAND_IN_TAU",
    "AnswerPolicy",
    "Evidence",
    "check_drafts",
    "check_in_weights",
    "draft_policies",
    "stand_in",
    "surprise",
    "token_policy",
]

STAND_IN_TAU = 2.0  # greatest exponent of a stand-in: pure contrast token by token breaks right answers


@dataclass(frozen=True)
class Evidence:
    """What both streams make of one draft: one number per token, the end token included, in nats; raw distributions.

    Attributes:
        logp_ctx: Log-probability of the token with the passages.
        logp_par: The same without them.
        h_ctx: Entropy with the passages.
        h_par: Entropy without them.
        rank_par: Rank of the token without the passages; 0 is the favourite.
        best_par: Log-probability of that favourite.
        idle: The draft says nothing or follows what is beside the point (`idle`); False where its text is not known.
        sentence: Tokens of its first sentence (`first_sentence`); None: all, or its text is not known.
        whole: It was written to its end. If not, the numbers are those of its tokens so far, and certain is of what
            follows only this: where `idle`, that it stays so, and that its first sentence has no fewer tokens.
        logp_alone: Log-probability of the token after the passages without the question; None where nobody read it so.
    """

    logp_ctx: Sequence[float]
    logp_par: Sequence[float]
    h_ctx: Sequence[float]
    h_par: Sequence[float]
    rank_par: Sequence[int]
    best_par: Sequence[float]
    idle: bool = False
    sentence: int | None = None
    logp_alone: Sequence[float] | None = None
    whole: bool = True

    @property
    def surprise_ctx(self) -> float:
        """`surprise` of the contextual stream at this draft."""
        return surprise(self.logp_ctx)

    @property
    def surprise_par(self) -> float:
        """`surprise` of the parametric stream at this draft."""
        return surprise(self.logp_par)

    @property
    def own_ctx(self) -> float:
        """`surprise` of the contextual stream at the first sentence."""
        return surprise(self.logp_ctx[: self.sentence])

    @property
    def own_par(self) -> float:
        """`surprise` of the parametric stream at the first sentence."""
        return surprise(self.logp_par[: self.sentence])


def surprise(logp: Sequence[float]) -> float:
    """Return the Euclidean length of an answer's token surprises, ``sqrt(sum(log p ** 2))``, in nats.

    The sum of surprises is -log p(answer), in which many small surprises at how something is said weigh as much as the
    one at what is said; their maximum forgets all but one token. The length lies between, and measured best.

    Example:
        >>> surprise([-3.0, 0.0, -4.0])
        5.0
    """
    return sqrt(fsum(value * value for value in logp))


@dataclass(frozen=True)
class AnswerPolicy(Policy):
    """Base of policies that choose between drafts. Both streams read every draft, so its evidence costs no forward.

    Attributes:
        alone: The choice takes `Evidence.logp_alone` too, which costs a forward over passages and drafts.
    """

    alone: ClassVar[bool] = False

    @property
    @abstractmethod
    def drafts(self) -> Mapping[str, Policy]:
        """The token policies that write the drafts, by each draft's name; with one there is nothing to choose."""

    @abstractmethod
    def choose(self, drafts: Sequence[Evidence]) -> int:
        """Return which draft is given, in the order of `drafts`."""

    def hopeless(self, drafts: Sequence[Evidence]) -> Collection[int]:
        """Return which drafts `choose` cannot give any more, however those that are not whole go on.

        Asked after every step; these drafts are then not written any further, and their `Evidence` is not whole. The
        answer must not change by it. By default none is.
        """
        return ()

    def weighed(self, drafts: Sequence[Evidence]) -> Sequence[float | None]:
        """Return what speaks for each draft against the first, as `choose` weighs it; None where nothing is weighed."""
        return [None] * len(drafts)

    @abstractmethod
    def weigh(self, logp_ctx: Sequence[float], logp_par: Sequence[float]) -> float:
        """Return the score of a given ending from its tokens' log-probabilities, in nats: higher is preferred."""

    @property
    def segmented(self) -> bool:
        """Whether drafts are weighed at the end of each sentence, and go on from the one chosen."""
        return False

    @property
    def stand_in(self) -> Policy | None:
        """The token policy that acts in its place where tokens are all there is; None if nothing may."""
        return None

    @property
    def amplifies(self) -> bool:
        """True when any draft does."""
        return any(draft.amplifies for draft in self.drafts.values())

    def decide(self, signals: Signals) -> Decision:
        """Refuse: there is no tau before there is an answer.

        Raises:
            UnsupportedMode: Always.
        """
        raise _no_token(self)


def draft_policies(policy: Policy) -> Mapping[str, Policy]:
    """Return the token policies that must be decoded for a policy: its drafts, or itself."""
    return policy.drafts if isinstance(policy, AnswerPolicy) else {policy.name: policy}


def token_policy(policy: Policy) -> Policy:
    """Return the one token policy that stands for a policy, where tokens are all there is.

    Raises:
        UnsupportedMode: The policy has several drafts to choose from.
    """
    drafts = list(draft_policies(policy).values())
    if len(drafts) > 1:
        raise _no_token(policy)
    return drafts[0]


def stand_in(policy: Policy) -> Policy:
    """Return the token policy that acts for a policy in a logits processor: itself, its one draft, or its stand-in.

    Where a stand-in acts instead of what was asked for, a `UserWarning` says so.

    Raises:
        UnsupportedMode: The policy has several drafts to choose from, and no stand-in.
    """
    instead = policy.stand_in if isinstance(policy, AnswerPolicy) and len(policy.drafts) > 1 else None
    if instead is None:
        return token_policy(policy)
    warn(
        f"method {policy.name!r} chooses between whole answers, and a logits processor sees one token at a time: "
        f"{instead.name!r} acts in its place, with tau at most {STAND_IN_TAU:g}. Name a token method to choose it, "
        "e.g. Control('ck-plug', alpha=...).",
        UserWarning,
        stacklevel=4,
    )
    return instead


def check_in_weights(policy: Policy, where: str) -> None:
    """Refuse a policy that changes the model row by row.

    Args:
        policy: Of a request.
        where: What the caller came through, as the error names it.

    Raises:
        UnsupportedMode: It does.
    """
    if policy.in_weights:
        raise UnsupportedMode(
            f"method {policy.name!r} needs an adapter of its own for every row, which {where} does not give.",
            "Use ckcontrol.generate, Rag, SteeredLLM(weights=...), or a server with --weights.",
        )


def check_drafts(policies: Iterable[Policy], where: str) -> None:
    """Refuse policies whose drafts need more than what both streams make of them, where there is no more.

    Args:
        policies: Of the requests.
        where: What the caller came through, as the error names it.

    Raises:
        UnsupportedMode: One of them needs the passages without the question, to start drafts anew, or adapters.
    """
    for policy in policies:
        check_in_weights(policy, where)
        if isinstance(policy, AnswerPolicy) and policy.segmented:
            raise UnsupportedMode(
                f"segments=True starts drafts anew from the one that was chosen, which {where} cannot.",
                "Leave segments out to choose between whole answers, or use ckcontrol.generate.",
            )
        if isinstance(policy, AnswerPolicy) and policy.alone:
            raise UnsupportedMode(
                f"method {policy.name!r} reads its drafts after the passages without the question, which {where} "
                "does not have.",
                "Use ckcontrol.generate, Rag, `ckcontrol serve` or SteeredLLM(weights=...).",
            )


def _no_token(policy: Policy) -> UnsupportedMode:
    return UnsupportedMode(
        f"method {policy.name!r} chooses between whole answers; here there is one token at a time.",
        "Use ckcontrol.generate or decoding_loop; for a logits processor take cad or ck-plug.",
    )
