"""One mask for all heads at once, learned by gradient: heads are switched jointly, so their effects need not add up.

After the entrainment heads of Niu et al. (2025): a keep-logit per head, sampled gates, the two answers' logits as the
loss, a reward for keeping heads. Ours: the target may be either source; a guard keeps the whole next-token distribution
close to the unpruned model's on gold and irrelevant contexts; and the gates are hard concrete, not straight-through,
because a straight-through gradient is taken where no head is pruned, and there the slope of the guard is zero.
Knows gates, prompts and losses; select.py judges the candidates it returns.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...errors import HeadsError
from ..apply import gated
from ..families import describe
from ..finding.conflict_prompts import ConflictRecord
from ..finding.find import answer_tokens
from ..fingerprint import Fingerprint
from ..forward import last_logits, run, tokenized
from ..mask import HeadMask
from .panel import check_direction
from .select import GRID, Candidate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Learned", "candidates", "learn"]

SHARPNESS, STRETCH = 2 / 3, 0.1  # of the gates' distribution, as published
START = 3.0  # keep-logit: at first every head is kept with probability 0.95


@dataclass(frozen=True)
class Learned:
    """A learned mask before it is cut to 0 and 1.

    Attributes:
        model: Fingerprint of the model.
        direction: What was strengthened.
        keep: Probability that each head is kept, [L, H] as nested tuples.
        losses: Per step, the loss on conflicts, the guard, and the mean probability of keeping a head.
    """

    model: Fingerprint
    direction: str
    keep: tuple[tuple[float, ...], ...]
    losses: tuple[tuple[float, float, float], ...]


def learn(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[ConflictRecord],
    direction: str,
    *,
    steps: int = 200,
    rows: int = 8,
    rate: float = 0.3,
    reward: float = 1.0,
    guard: float = 3.0,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Learned:
    """Learn which heads to keep. The model's weights are not changed.

    The loss of a step, over `rows` records, with gates sampled for each prompt: the cross entropy of the wanted answer
    against the other one (first tokens, conflict prompts, in a format drawn at random), plus ``guard`` times
    KL(unpruned || pruned) in nats over the vocabulary on one gold or irrelevant prompt per record, minus ``reward``
    times the mean probability of keeping a head. The optimizer is Adam.

    Args:
        model: A model of a known family.
        tokenizer: Its tokenizer.
        records: Records to learn from: those of the split "find" that the model knows, never those of the panel.
        direction: "context" or "memory".
        steps: Gradient steps.
        rows: Records per step; there are twice as many prompts.
        rate: Learning rate.
        reward: Weight of keeping heads.
        guard: Weight of the KL guard; 3, because the panel has three conditions off target.
        seed: Seeds records and samples.
        on_progress: Receives (steps done, steps).

    Raises:
        HeadsError: No records, or an unknown direction.
    """
    check_direction(direction)
    if not records:
        raise HeadsError("no records to learn from.", "Score more facts.")
    layout = describe(model)
    draw, noise = random.Random(seed), torch.Generator(model.device).manual_seed(seed)
    logits = torch.full((layout.layers, layout.heads), START, device=model.device, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=rate)
    losses = []
    order: list[ConflictRecord] = []
    for step in range(steps):
        if len(order) < rows:
            order += draw.sample(list(records), len(records))
        part = [order.pop() for _ in range(min(rows, len(order)))]
        texts = [r.conflict[draw.choice(sorted(r.conflict))] for r in part]
        guards = [draw.choice((r.gold, r.irrelevant)) for r in part]
        answers = [answer_tokens(tokenizer, r, text) for r, text in zip(part, texts, strict=True)]
        target = torch.full((len(part),), ("memory", "context").index(direction), device=model.device)
        batch = tokenized(model, tokenizer, [*texts, *guards])
        usual = last_logits(model, tokenized(model, tokenizer, guards))

        gates = _sample(logits.expand(2 * len(part), -1, -1), noise)  # one mask per row

        def factors(layer: int, z: Tensor, gates: Tensor = gates) -> Tensor:
            return gates[:, layer].repeat_interleave(layout.head_dim, dim=1)[:, None].to(z.dtype)

        with gated(layout, factors, range(layout.layers)), torch.enable_grad():
            made = run(model, batch).float()
        two = made[: len(part)].gather(1, torch.tensor(answers, device=model.device))
        conflict = torch.nn.functional.cross_entropy(two, target)
        kept = torch.nn.functional.kl_div(
            made[len(part) :].log_softmax(-1), usual.float().log_softmax(-1), log_target=True, reduction="batchmean"
        )
        keep = logits.sigmoid().mean()
        (logits.grad,) = torch.autograd.grad(conflict + guard * kept - reward * keep, [logits])
        optimizer.step()
        losses.append((float(conflict.detach()), float(kept.detach()), float(keep.detach())))
        if on_progress is not None:
            on_progress(step + 1, steps)
    found = logits.detach().sigmoid().tolist()
    return Learned(Fingerprint.of(model, layout), direction, tuple(map(tuple, found)), tuple(losses))


def candidates(learned: Learned, grid: Sequence[int] = GRID) -> list[Candidate]:
    """Cut a learned mask: the heads more likely dropped than kept; and for each k the k least likely kept.

    Only heads that became less likely to be kept than they were at first are ever dropped.

    Args:
        learned: From `learn`.
        grid: Values of k.
    """
    start = float(torch.tensor(START).sigmoid())
    flat = [(p, (layer, head)) for layer, row in enumerate(learned.keep) for head, p in enumerate(row)]
    ranked = [(p, head) for p, head in sorted(flat) if p < start]
    halves = sum(p < 0.5 for p, _ in ranked)
    found = []
    for k in sorted({halves, *grid}):
        if 0 < k <= len(ranked):
            name = f"learned {learned.direction}:{k}"
            mask = HeadMask(learned.model, {head: 0.0 for _, head in ranked[:k]}, {"made by": name})
            found.append(Candidate(name, mask))
    return found


def _sample(logits: Tensor, noise: torch.Generator) -> Tensor:
    """Hard concrete gates (Louizos et al., 2018): in [0, 1], both ends reached, gradients in between."""
    uniform = torch.rand(logits.shape, generator=noise, device=logits.device).clamp(1e-6, 1 - 1e-6)
    soft = torch.sigmoid((logits + uniform.log() - (1 - uniform).log()) / SHARPNESS)
    return (soft * (1 + 2 * STRETCH) - STRETCH).clamp(0, 1)
