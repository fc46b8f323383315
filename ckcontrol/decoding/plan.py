"""What one run of the loop needs, whichever door it came through, and how its two streams run.

Knows drafts, streams and transformers' processor and stopping interfaces; knows no step (loop.py makes them).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..fusion.distributions import Shortlist
from .drafts import Drafts
from .recorder import Recorder
from .segments import Segments
from .streams import Stream, TwoStreams

if TYPE_CHECKING:
    from transformers import LogitsProcessorList, StoppingCriteriaList

    from .source_step import SourceRun
    from .source_streams import SourceStreams
    from .structured import Structure

__all__ = ["DecodingPlan"]


@dataclass
class DecodingPlan:
    """Everything one run of the loop needs; every door fills in one of these.

    Attributes:
        drafts: The rows and their policies: one row per question, or several of which one is returned. The prompts are
            run once per question.
        shortlist: Of every row.
        contextual: Prompts with passages, one row per question.
        parametric: Makes the stream of the prompts without; called only if that stream has to run.
        processors: transformers' logits processors and warpers, applied to the fused scores.
        criteria: transformers' stopping criteria.
        max_new_tokens: Longest answer.
        sample: Draw from the scores instead of taking the maximum.
        seed: Of every row, or one per question; see `Draw`.
        pad_token_id: What ended rows are filled with.
        vocab_size: Number of ids the tokenizer knows; higher ids can never win. None: the model's width.
        recorder: Collects the trace; None records nothing.
        favourites: In a running batch, the likeliest tokens to record of each step; None records nothing for them.
        streamer: transformers streamer; gets every token, and `end()` exactly once.
        penalise: ``"all"`` shows penalties the prompt and the answer, ``"generated"`` only the answer.
        structure: Masks, in both streams, what a grammar forbids.
        keep_scores: Keep the processed scores of each step.
        keep_logits: Keep the raw contextual logits of each step.
        compile: How steered steps run; see `static_step.static_streams`.
        segments: What ends a segment, where answers are decided by segments; None decides each as a whole.
        sources: Where there are more than two streams; `contextual` is the last of them.
        scores: What `keep_scores` kept, [rows, V] per step.
        logits: What `keep_logits` kept, likewise.
    """

    drafts: Drafts
    shortlist: Shortlist
    contextual: Stream
    parametric: Callable[[], Stream]
    processors: LogitsProcessorList
    criteria: StoppingCriteriaList
    max_new_tokens: int
    sample: bool
    seed: int | Sequence[int] | None
    pad_token_id: int
    vocab_size: int | None = None
    recorder: Recorder | None = None
    favourites: int | None = None
    streamer: Any = None
    penalise: str = "all"
    structure: Structure | None = None
    keep_scores: bool = False
    keep_logits: bool = False
    compile: bool | None = None
    segments: Segments | None = None
    sources: SourceRun | None = None
    scores: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)

    def streams(self) -> TwoStreams | SourceStreams:
        """Return both streams, or all sources; the contextual one alone if nothing is steered and nothing recorded."""
        if self.sources is not None and not (self.sources.neutral and self.recorder is None):
            return self.sources.start(self.max_new_tokens, self.vocab_size)
        from .pair_cache import can_share_forward
        from .static_step import static_streams

        steered = not self.drafts.policy.neutral
        parametric = self.parametric() if steered or self.recorder is not None else None
        if steered and parametric is not None and self.segments is None:
            static = static_streams(self.contextual, parametric, reserve=self.max_new_tokens, compile=self.compile)
            if static is not None:
                return static
        return TwoStreams(
            self.contextual,
            parametric,
            share=steered and can_share_forward(self.contextual.model),
            reserve=self.max_new_tokens,
            steered=steered,
            alike=self.drafts.several,
        )
