"""The naive twin: no cache, one question at a time, both prompts run again in full for every token.

Slow and obvious on purpose. Every fast path of the library is tested equal to this loop. It shares the policies and
the kernel with the engine, because those are tested by their own algebra, and nothing else.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ..control import Control
from ..fusion.distributions import Shortlist, log_probs
from ..fusion.kernel import average, blend, fuse
from ..fusion.signals import Signals
from ..fusion.source_signals import SourceSignals
from ..policies import AnswerPolicy, Evidence, Policy, check_in_weights, draft_policies, read_drafts
from ..policies.sources import SourcePolicy
from .refusals import input_device
from .segments import seed_of_round, segment, segmented

if TYPE_CHECKING:
    from transformers import LogitsProcessorList, PreTrainedModel, StoppingCriteriaList

__all__ = ["reference_drafts", "reference_generate", "reference_sources"]


@torch.no_grad()
def reference_generate(
    model: PreTrainedModel,
    contextual: Sequence[int],
    parametric: Sequence[int],
    control: Control,
    *,
    max_new_tokens: int,
    eos: Collection[int] = (),
    processors: LogitsProcessorList | None = None,
    criteria: StoppingCriteriaList | None = None,
    sample: bool = False,
    seed: int = 0,
    vocab_size: int | None = None,
    question: str = "",
    read: Callable[[Sequence[int]], str] | None = None,
    passages: Sequence[str] = (),
    alone: Sequence[int] = (),
) -> list[int]:
    """Return the generated ids, the end token included.

    Args:
        model: Any decoder-only model.
        contextual: Prompt ids with the passages.
        parametric: Prompt ids without.
        control: Which policy, how far.
        max_new_tokens: Longest answer.
        eos: Ids that end the answer.
        processors: transformers' processors and warpers; they see the contextual ids and the fused scores. Every
            draft of a whole answer begins with copies of them, and of the criteria.
        criteria: transformers' stopping criteria, beside `eos` and `max_new_tokens`.
        sample: Draw with a generator seeded by `seed`, else take the maximum.
        seed: See `sample`.
        vocab_size: Ids from here on are never produced unless the control is neutral.
        question: What was asked; drafts that say nothing beside it are recognised where `read` is given.
        read: Ids of an answer to its text.
        passages: What it was asked with, likewise.
        alone: Prompt ids with the passages and without the question, for policies that read their drafts so.
    """
    device = next(model.parameters()).device
    if device.type == "meta":  # offloaded by accelerate
        device = input_device(model)
    policy = control.policy()
    check_in_weights(policy, "reference_generate")

    def draft(by: Policy, begun: Sequence[int] = (), number: int = 0) -> tuple[list[int], Evidence, bool]:
        """Decode under a token policy, after what is decided; return the ids and what both streams made of them.

        In segments, decode to the end of the sentence; then also whether that was what ended.
        """
        generator = torch.Generator(device).manual_seed(seed_of_round(seed, number))
        processing, ends = copy.deepcopy((processors, criteria))
        answer: list[int] = []
        seen: list[tuple[float, float, float, float, int, float]] = []
        for _ in range(max_new_tokens - len(begun)):
            context_ids = torch.tensor([[*contextual, *begun, *answer]], device=device)
            memory_ids = torch.tensor([[*parametric, *begun, *answer]], device=device)
            logits_ctx = model(context_ids, use_cache=False).logits[:, -1].float()
            logits_par = model(memory_ids, use_cache=False).logits[:, -1].float()
            if vocab_size is not None and not by.neutral:
                logits_ctx[:, vocab_size:] = logits_par[:, vocab_size:] = -torch.inf
            signals = Signals(logits_ctx, logits_par, shortlist=control.shortlist)
            if by.neutral:
                scores = logits_ctx
            else:
                decision = by.decide(signals)
                fused = fuse(
                    signals.logp_ctx,
                    signals.logp_par,
                    decision.tau,
                    shortlisted=signals.shortlisted,
                    scale=decision.scale,
                    truncate=decision.truncate,
                )
                untouched = bool((decision.tau == 0).all()) and decision.scale is None
                scores = fused + (logits_par if untouched else logits_ctx).logsumexp(-1, keepdim=True)
            if processing is not None:
                scores = processing(context_ids, scores)
            if sample:
                token = int(torch.multinomial(scores.softmax(-1), 1, generator=generator))
            else:
                token = int(scores.argmax(-1))
            answer.append(token)
            ctx, par = signals.logp_ctx[0], signals.logp_par[0]
            rank = int((par > par[token]).sum())
            entropies = float(signals.h_ctx), float(signals.h_par)
            seen.append((float(ctx[token]), float(par[token]), *entropies, rank, float(par.max())))
            longer = torch.cat([context_ids, context_ids.new_tensor([[token]])], dim=1)
            if token in eos or (ends is not None and bool(ends(longer, None))):
                break
            if in_segments and read is not None and segment(answer, read)[1]:
                break
        length, ended = segment(answer, read) if in_segments and read is not None else (len(answer), False)
        logp_ctx, logp_par, h_ctx, h_par, ranks, best = zip(*seen[:length], strict=True)
        return answer[:length], Evidence(logp_ctx, logp_par, h_ctx, h_par, ranks, best), ended

    def after_passages(answer: Sequence[int]) -> list[float]:
        """Return the log-probability of each token of an answer after the passages alone."""
        logp = []
        for place, token in enumerate(answer):
            logits = model(torch.tensor([[*alone, *answer[:place]]], device=device), use_cache=False).logits[0, -1]
            logp.append(float(logits[:vocab_size].float().log_softmax(-1)[token]))
        return logp

    def chosen(begun: Sequence[int], number: int) -> tuple[list[int], bool]:
        """Return the ids of the draft that is given, and whether a sentence ended, after which more may follow."""
        drafts = [draft(each, begun, number) for each in draft_policies(policy).values()]
        if not isinstance(policy, AnswerPolicy) or len(drafts) == 1:
            return drafts[0][0], False
        found = [evidence for _, evidence, _ in drafts]
        if policy.alone:
            found = [replace(evidence, logp_alone=after_passages(ids)) for ids, evidence, _ in drafts]
        if read is not None:
            found = read_drafts(found, list(policy.drafts), [read(ids) for ids, _, _ in drafts], question, passages)
        ids, _, ended = drafts[policy.choose(found)]
        return ids, ended

    in_segments = segmented(policy)
    answer, more = chosen((), 0)
    number = 1
    while more and len(answer) < max_new_tokens:
        ids, more = chosen(answer, number)
        answer, number = [*answer, *ids], number + 1
    return answer


@torch.no_grad()
def reference_drafts(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    eos: Collection[int] = (),
    vocab_size: int | None = None,
) -> tuple[list[list[int]], list[list[list[float]]]]:
    """Let every source of a question write its own answer, greedily, and read those of all.

    Args:
        model: Any decoder-only model.
        prompts: Ids of each source's prompt.
        max_new_tokens: Longest answer.
        eos: Ids that end an answer.
        vocab_size: Number of ids the tokenizer knows; the others are never said. None: the model's width.

    Returns:
        The ids of each draft, [S][T], and the log-probability of each token of each draft in each source, [S][S][T].
    """

    def logp(ids: Sequence[int]) -> torch.Tensor:
        row = torch.tensor([list(ids)], device=input_device(model))
        return model(row, use_cache=False).logits[0, -1, :vocab_size].float().log_softmax(-1)  # type: ignore[no-any-return]

    drafts = []
    for prompt in prompts:
        draft: list[int] = []
        while len(draft) < max_new_tokens and not (draft and draft[-1] in eos):
            draft.append(int(logp([*prompt, *draft]).argmax()))
        drafts.append(draft)
    read = [
        [[float(logp([*prompt, *draft[:at]])[token]) for at, token in enumerate(draft)] for draft in drafts]
        for prompt in prompts
    ]
    return drafts, read


@torch.no_grad()
def reference_sources(
    models: Sequence[PreTrainedModel],
    prompts: Sequence[Sequence[int]],
    policy: SourcePolicy,
    shares: Sequence[float],
    *,
    max_new_tokens: int,
    eos: Collection[int] = (),
    processors: LogitsProcessorList | None = None,
    sample: bool = False,
    seed: int = 0,
    vocab_size: int | None = None,
) -> list[int]:
    """Return the ids of one question whose sources are fused token by token, each in a forward of its own.

    Args:
        models: What reads each prompt.
        prompts: Ids of memory's prompt, the sources', and last the one with all passages.
        policy: Puts them together.
        shares: What each counts among those with passages of their own; 0 for memory and for all.
        max_new_tokens: Longest answer.
        eos: Ids that end the answer.
        processors: As in `reference_generate`; they see the ids of the last prompt.
        sample: As there.
        seed: As there.
        vocab_size: As there.
    """
    device = input_device(models[-1])
    generator = torch.Generator(device).manual_seed(seed)
    answer: list[int] = []
    while len(answer) < max_new_tokens and not (answer and answer[-1] in eos):
        rows = [torch.tensor([[*prompt, *answer]], device=device) for prompt in prompts]
        each = [model(ids, use_cache=False).logits[:, -1].float() for model, ids in zip(models, rows, strict=True)]
        logits = torch.stack(each)
        scores = logits[-1]
        if not policy.neutral:
            logits[..., vocab_size:] = -torch.inf
            there = torch.ones(len(prompts), 1, dtype=torch.bool, device=device)
            made = policy.weigh(SourceSignals(logits, torch.tensor(shares, device=device)[:, None], there))
            logp, weights = log_probs(logits), made.weights
            if policy.averages:
                fused = average(logp, weights)
            else:
                parts = weights if weights.ndim == 3 else weights[..., None]
                takes = [one for one, part in zip(logp, parts, strict=True) if bool((part != 0).any())]
                listed = torch.stack([Shortlist().mask(one) for one in takes]).any(0)
                fused = blend(logp, weights, shortlisted=listed, scale=made.scale, truncate=made.truncate)
            scores = fused + logits[-1].logsumexp(-1, keepdim=True)
        if processors is not None:
            scores = processors(rows[-1], scores)
        chances = scores.softmax(-1)
        answer.append(int(torch.multinomial(chances, 1, generator=generator)) if sample else int(scores.argmax()))
    return answer
