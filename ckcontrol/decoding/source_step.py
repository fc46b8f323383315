"""One step of several sources, from their logits to fused scores or greedy tokens; and what a trace keeps of it.

The rules are those of two streams (fused_step.py): spare ids are masked in steered rows, neutral rows are the model as
it is, scores have the offset of the logits with all passages. Knows sources, policies and the kernel; knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..answer import SourceTold, SourceTrace, TokenTrace
from ..errors import ControlError, TokenizerMismatch
from ..fusion.distributions import Shortlist, nonfinite_rows
from ..fusion.kernel import average, blend, regauge_sources
from ..fusion.source_signals import SourceSignals
from ..policies.sources import Lifted, SourceDecision, SourcePolicy, shares_of
from .fused_step import FusedStep
from .matmul import leave_few_row_products
from .pair_cache import leave_pair_attention
from .refusals import check_model, check_tokenizer
from .source_streams import SourceStreams, slots
from .sources import SourcePrompts
from .streams import Stream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["SourceRun", "check_models", "fuse_sources", "told"]

_COLUMNS = 4  # weight, entropy, log-probability, rank


def fuse_sources(policy: SourcePolicy, signals: SourceSignals, decision: SourceDecision) -> Tensor:
    """Apply a decision; return scores in the gauge of the logits with all passages, [B, V] float32."""
    weights, logits, logp, norm = decision.weights, signals.logits, signals.logp, signals.norm[-1]
    plain = torch.ones_like(decision.switched)
    if decision.truncate is not None:
        plain = plain & ~decision.truncate
    if decision.scale is not None:
        plain = plain & (decision.scale == 1)
    if policy.averages:
        return regauge_sources(average(logp, weights, check=False), logits, norm, weights, plain)
    part = weights != 0 if weights.ndim == 2 else (weights != 0).any(-1)
    listed = None
    if logits.device.type != "cpu" or decision.truncate is not None or bool((weights < 0).any()):
        listed = signals.shortlisted(part)
    elif weights.ndim == 2:  # what takes no part in any row need not be looked at
        used = part.any(-1)
        used[-1] = True
        weights, logits, logp = weights[used], logits[used], logp[used]
    fused = blend(logp, weights, shortlisted=listed, scale=decision.scale, truncate=decision.truncate, check=False)
    return regauge_sources(fused, logits, norm, weights, plain)


@dataclass
class SourceRun:
    """The sources of a batch of questions while it is decoded.

    Attributes:
        prompts: Of each question.
        policy: Puts the sources together.
        streams: Of the prompts, in the order of `slots`.
        columns: What a trace keeps of each step, [S, B, 4].
    """

    prompts: Sequence[SourcePrompts]
    policy: SourcePolicy
    streams: Sequence[Stream]
    by_score: bool = False
    columns: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        device = self.streams[-1].input_ids.device
        self.slots = slots(self.prompts)
        twice = [len(one.names) == 2 and len(self.slots) > 2 for one in self.prompts]
        here = [
            [place is not None and not (slot == 1 and twice[row]) for row, place in enumerate(places)]
            for slot, places in enumerate(self.slots)
        ]
        self.present = torch.tensor(here, device=device)
        shares = torch.zeros(len(self.slots), len(self.prompts))
        for row, one in enumerate(self.prompts):
            inner = [slot for slot in range(1, len(self.slots) - 1) if self.slots[slot][row] is not None]
            places = [one.places[self.slots[slot][row] or 0] for slot in inner]
            scores = one.scores if self.by_score else [None] * len(one.scores)
            for slot, share in zip(inner, shares_of(places, scores) if inner else [], strict=True):
                shares[slot, row] = share
        self.shares = shares.to(device)
        # Closed book throughout: the model as it is, whatever the policy, as with two streams that are one.
        closed = [len(set(one.ids)) == 1 and not any(m is not None for m in one.models) for one in self.prompts]
        self._closed = torch.tensor(closed, device=device) if any(closed) else None
        self._open = torch.tensor([row for row, same in enumerate(closed) if not same], device=device)

    @property
    def neutral(self) -> bool:
        """Whether the answers are those of the unmodified model with all passages."""
        return self.policy.neutral

    def start(self, reserve: int, vocab_size: int | None, *, keep: bool = False) -> SourceStreams:
        """Return the streams, not yet run; those of neutral answers run apart, as plain generation does."""
        return SourceStreams(self.streams, reserve=reserve, share=not self.neutral, keep=keep, vocab_size=vocab_size)

    def name(self, row: int, slot: int) -> str:
        """Return what a row's source is called in an error."""
        place = self.slots[slot][row] if slot < len(self.slots) else None
        return "fused" if place is None else self.prompts[row].names[place]

    def leave(self) -> None:
        """Put the attention of every model back; does no harm where it is in place."""
        for stream in self.streams:
            leave_pair_attention(stream.model, self.streams[-1])
            leave_few_row_products(stream.model, self.streams[-1])

    def step(self, logits: Tensor, shortlist: Shortlist, vocab_size: int | None, pick: bool) -> SourceStep:
        """Decide and fuse one step; [S, B, V] float32, spare ids are masked in place."""
        known = logits.shape[-1]
        if not self.neutral and vocab_size is not None and vocab_size < known:
            rows = self.policy.steered_rows(logits)
            logits[:, self._open if isinstance(rows, slice) else rows, vocab_size:] = -torch.inf
            known = vocab_size
        signals = SourceSignals(logits, self.shares, self.present, shortlist=shortlist, known=known)
        decision = self.policy.weigh(signals)
        if self._closed is not None:
            decision = decision.unless(self._closed)
        scores = logits[-1].clone() if self.neutral else fuse_sources(self.policy, signals, decision)
        count = len(logits)
        places = torch.arange(1, count + 1, dtype=torch.uint8, device=logits.device)[:, None]
        codes = torch.where(signals.broken, places, 255).amin(0)
        broken = codes.masked_fill(codes == 255, 0)
        tokens = None
        if pick:
            tokens = scores.argmax(-1)
            broken = torch.where((broken == 0) & nonfinite_rows(scores), count + 1, broken).to(torch.uint8)
        return SourceStep(
            signals.pair(count - 1), decision.pair(), broken, None if pick else scores, tokens, signals, decision
        )

    def record(self, tokens: Tensor, step: SourceStep) -> None:
        """Keep what every source made of the chosen tokens, [B]."""
        signals, weights = step.sources, step.weights.weights
        chosen = tokens.expand(len(signals.logits), -1)[..., None]
        logp = signals.logp.gather(-1, chosen)
        if weights.ndim == 3:
            weights = weights.gather(-1, chosen)[..., 0]
        ranks = (signals.logp > logp).sum(-1).float()
        self.columns.append(torch.stack([weights, signals.h, logp[..., 0], ranks], dim=-1))

    def traces(self, row: int, tokens: Sequence[TokenTrace]) -> tuple[TokenTrace, ...]:
        """Return the records of a row's tokens with those of its sources."""
        if not self.columns or not tokens:
            return tuple(tokens)
        places = [slot for slot in range(len(self.slots)) if bool(self.present[slot, row])]
        values = torch.stack(self.columns[: len(tokens)])[:, places, row].tolist()
        return tuple(
            replace(
                token,
                sources=tuple(
                    SourceTrace(weight, h, step[0][1] - h, logp, int(rank)) for weight, h, logp, rank in step
                ),
            )
            for token, step in zip(tokens, values, strict=True)
        )


@dataclass(frozen=True)
class SourceStep(FusedStep):
    """A fused step of several sources; signals and decision are those of all passages and memory, for a trace.

    Attributes:
        sources: What all of them said.
        weights: What was decided.
    """

    sources: SourceSignals
    weights: SourceDecision


def told(prompts: SourcePrompts) -> tuple[SourceTold, ...]:
    """Return what an `Answer` says of its sources where tokens are fused: which there were."""
    return tuple(SourceTold(name, tuple(places)) for name, places in zip(prompts.names, prompts.places, strict=True))


def check_models(prompts: SourcePrompts, policy: SourcePolicy, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse other models whose distributions cannot be put beside the model's.

    Raises:
        UnsupportedMode: As `refusals.check_model`.
        TokenizerMismatch: Its vocabulary is not the tokenizer's.
        ControlError: A control is to decide between models, which it compares passages and memory for.
    """
    others = [(name, other) for name, other in zip(prompts.names, prompts.models, strict=True) if other is not None]
    for name, other in others:
        check_model(other)
        try:
            same = check_tokenizer(other, tokenizer) == check_tokenizer(model, tokenizer)
        except TokenizerMismatch as error:
            raise TokenizerMismatch(f"source {name!r}: {error}") from error
        sizes = getattr(other.config, "vocab_size", None), getattr(model.config, "vocab_size", None)
        if not same or sizes[0] != sizes[1]:
            raise TokenizerMismatch(
                f"source {name!r} is a model of {sizes[0]} tokens, and the model that answers has {sizes[1]}.",
                "Models are put together token by token: take one with the same tokenizer, such as its base.",
            )
    if others and isinstance(policy, Lifted):
        raise ControlError(
            f"source {others[0][0]!r} is another model, and a control weighs passages against one model's memory.",
            "Say how models are put together: combine='min-entropy', 'avg-entropy', or weights by name.",
        )
