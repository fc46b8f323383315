"""Log-likelihood of given endings under every control: both streams read the ending, and each of its tokens is fused.

Knows models, signals, policies and the kernel; knows nothing of texts, tasks or files. There is no shortlist: it would
give an ending -inf for a single unlikely token, which leaves nothing to compare.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ckcontrol.decoding.inputs import stream_of
from ckcontrol.decoding.weight_rows import by_adapter, rows_take
from ckcontrol.fusion.distributions import Shortlist
from ckcontrol.fusion.kernel import fuse
from ckcontrol.fusion.signals import Signals
from ckcontrol.policies import AnswerPolicy, Policy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["likelihoods"]


@torch.no_grad()
def likelihoods(
    model: PreTrainedModel,
    prompts: Sequence[tuple[Sequence[int], Sequence[int]]],
    endings: Sequence[Sequence[int]],
    policies: Sequence[Policy],
    *,
    vocab_size: int,
    pad: int,
) -> list[list[float]]:
    """Return the log-likelihood of every ending under every policy.

    Order of operations: both prompts are run, followed by the ending; at each of its tokens the two distributions are
    fused under the policy and normalised over the tokenizer's vocabulary, and the token's log-probability is added.

    Args:
        model: A decoder-only model.
        prompts: For each ending its contextual and its parametric prompt, as token ids.
        endings: At least one token each.
        policies: One per control.
        vocab_size: Number of ids the tokenizer knows; the others have no probability.
        pad: Id that fills the prompts on the left.

    Returns:
        ``[ending][policy]``, in nats; for a policy that chooses between whole answers, what it `weigh`s.
        NaN where the logits became NaN, -inf where a token is impossible.
    """
    groups = by_adapter(model, policies)
    if len(groups) > 1:
        found: dict[int, list[float]] = {}
        for places in groups.values():
            mine = [policies[i] for i in places]
            rows = likelihoods(model, prompts, endings, mine, vocab_size=vocab_size, pad=pad)
            found |= {i: [row[k] for row in rows] for k, i in enumerate(places)}
        return [[found[i][row] for i in range(len(policies))] for row in range(len(endings))]
    name = next(iter(groups), None)
    ctx, par = (
        _logits(
            model, [(*pair[side], *ending) for pair, ending in zip(prompts, endings, strict=True)], endings, pad, name
        )
        for side in (0, 1)
    )  # [T, V], T tokens of all endings
    ctx[:, vocab_size:] = par[:, vocab_size:] = -torch.inf
    tokens = torch.tensor([token for ending in endings for token in ending], device=ctx.device)[:, None]
    lengths = [len(ending) for ending in endings]
    signals = Signals(ctx, par, shortlist=Shortlist(ratio=0.0))
    streams = signals.logp_ctx, signals.logp_par
    made = []
    for policy in policies:
        if isinstance(policy, AnswerPolicy) and not policy.neutral:
            ctx_ends, par_ends = (torch.split(stream.gather(1, tokens)[:, 0].double(), lengths) for stream in streams)
            made.append([policy.weigh(c.tolist(), p.tolist()) for c, p in zip(ctx_ends, par_ends, strict=True)])
            continue
        if policy.neutral:
            logq = signals.logp_ctx
        else:
            decision = policy.decide(signals)
            everything = torch.ones_like(ctx, dtype=torch.bool)
            logq = fuse(
                signals.logp_ctx,
                signals.logp_par,
                decision.tau,
                shortlisted=everything,
                scale=decision.scale,
                check=False,
            )
        each = logq.gather(1, tokens)[:, 0].double()
        made.append([float(part.sum()) for part in torch.split(each, lengths)])
    return [list(row) for row in zip(*made, strict=True)]


def _logits(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], endings: Sequence[Sequence[int]], pad: int, name: str | None
) -> Tensor:
    """Logits that predict the tokens of the endings, [T, V] float32."""
    stream = stream_of(model, rows, pad)
    more: dict[str, Any] = {}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        more["logits_to_keep"] = max(map(len, endings)) + 1
    with rows_take(None if name is None else (name,) * len(rows)):
        logits = model(
            input_ids=stream.input_ids,
            attention_mask=None if stream.keep is None else stream.keep.long(),
            position_ids=stream.position,
            use_cache=False,
            return_dict=True,
            **more,
        ).logits
    picked = [logits[i, -1 - len(ending) : -1] for i, ending in enumerate(endings)]
    return torch.cat(picked).float()
