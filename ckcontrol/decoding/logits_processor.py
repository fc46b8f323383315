"""The convenience door: a transformers `LogitsProcessor` that runs the parametric stream by itself.

For pipelines that only take processors. Prefer `generate` or `decoding_loop`; what this door cannot do:
  - custom processors run after repetition penalty and before temperature, so with a penalty the contextual
    distribution it sees is already bent and the parametric one is not, which skews the confidence gain;
  - two forwards per token instead of one, and a comparison of ids per token that synchronises with the device;
  - no beams, no assisted decoding: refused as soon as rows are reordered or rolled back; no continuous batching: the
    engine never offers itself to such processors.

Knows streams and policies. State belongs to one generation; it starts over by itself when a new prompt arrives
(one that merely continues the last prompt needs `reset()`, because rolled-back candidates look the same).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import LogitsProcessor

from ..control import Control, controls_for
from ..errors import NonFiniteLogits, UnsupportedMode
from ..policies import check_in_weights, per_row, stand_in
from .fused_step import fused_step
from .refusals import check_model
from .streams import Stream

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["CKLogitsProcessor"]


class CKLogitsProcessor(LogitsProcessor):  # type: ignore[misc]
    """Steers ``model.generate(..., logits_processor=[CKLogitsProcessor(...)])``.

    Args:
        model: The model that generates.
        parametric_ids: The prompts without passages, left-padded, [B, L_par]: one row per generated row.
        parametric_mask: Their attention mask, or None.
        control: Which policy and how far, or one per row. None leaves the scores alone. ``dial`` weighs whole answers
            and cannot act here: ck-plug does in its place, tau at most 2, and a `UserWarning` says so.
        vocab_size: ``len(tokenizer)``: higher ids can never win.

    Example:
        >>> processor = CKLogitsProcessor(model, closed_book_ids, control=Control("ck-plug", 0.4))  # doctest: +SKIP
        >>> model.generate(**with_passages, logits_processor=[processor])  # doctest: +SKIP
    """

    supports_continuous_batching = False

    def __init__(
        self,
        model: PreTrainedModel,
        parametric_ids: Tensor,
        parametric_mask: Tensor | None = None,
        *,
        control: Control | Sequence[Control] | None = None,
        vocab_size: int | None = None,
    ) -> None:
        check_model(model)
        self.model = model
        self.parametric_ids = parametric_ids
        self.parametric_mask = parametric_mask
        controls = controls_for(control, parametric_ids.shape[0])
        policies = [c.policy() for c in controls]
        for policy in policies:
            check_in_weights(policy, "CKLogitsProcessor")
        self.policy = per_row([stand_in(policy) for policy in policies])
        self._shortlist = controls[0].shortlist
        self.vocab_size = vocab_size
        self.reset()

    def reset(self) -> None:
        """Forget the current generation. Called by itself when a new prompt arrives."""
        self._stream: Stream | None = None
        self._seen: Tensor | None = None
        self._prompt_length = 0

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the fused scores, [B, V] float32; `scores` is left untouched.

        Raises:
            UnsupportedMode: Rows were multiplied or reordered (beam search, several return sequences).
            NonFiniteLogits: NaN, +inf or nothing finite in either stream.
        """
        if self.policy.neutral:
            return scores
        logits_par = self._advance(input_ids)
        step = input_ids.shape[1] - self._prompt_length
        ctx = scores.to(torch.float32, copy=True)
        made = fused_step(self.policy, ctx, logits_par, shortlist=self._shortlist, vocab_size=self.vocab_size)
        for code, name in ((1, "contextual"), (2, "parametric")):
            bad = made.broken == code
            if bad.any():
                raise NonFiniteLogits(int(bad.nonzero()[0]), step, name)
        return ctx if made.scores is None else made.scores

    def _advance(self, input_ids: Tensor) -> Tensor:
        """Bring the parametric stream to where `input_ids` is; return its next-token logits."""
        if input_ids.shape[0] != self.parametric_ids.shape[0]:
            raise UnsupportedMode(
                f"{input_ids.shape[0]} rows are generated for {self.parametric_ids.shape[0]} parametric prompts.",
                "Beams are not supported; for several answers repeat the rows of parametric_ids.",
            )
        if self._stream is not None and self._seen is not None and input_ids.shape[1] > self._prompt_length:
            if torch.equal(input_ids[:, :-1], self._seen):
                self._seen = input_ids
                return self._stream.step(input_ids[:, -1])
            if torch.equal(input_ids[:, : self._prompt_length], self._seen[:, : self._prompt_length]):
                raise UnsupportedMode(
                    "the rows were reordered or rolled back between two tokens (beams, assisted decoding).",
                    "Use neither; to generate anew from a prompt that continues the last one, call reset() first.",
                )
        self._prompt_length = input_ids.shape[1]
        self._seen = input_ids
        mask = None if self.parametric_mask is None else self.parametric_mask.to(input_ids.device)
        self._stream = Stream(self.model, self.parametric_ids.to(input_ids.device), mask)
        return self._stream.prefill()
