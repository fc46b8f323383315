"""Which heads to prune: candidates from scores, and the one that wins on a panel of development records.

Every method proposes masks and is judged by the same panel, prompts and number of measurements. The unpruned model
(k = 0) is always among the candidates, so a method that helps nowhere chooses it. Knows scores, panels and masks;
learn.py learns a mask by gradient.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import HeadsError, did_you_mean
from ..finding.conflict_prompts import ConflictRecord
from ..finding.scores import Floats, HeadScores, rank
from ..mask import KIND as MASK_KIND
from ..mask import Head, HeadMask
from .panel import DISQUALIFIED, Panel, Result, check_direction

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "GRID",
    "MODES",
    "Candidate",
    "Selection",
    "consistent",
    "greedy",
    "mask_for",
    "random_controls",
    "read_mask",
    "select",
    "top_k",
]

MODES = ("memory", "context", "only-memory", "only-context", "all")
GRID = (1, 3, 5, 7, 9, 12, 15, 17, 22, 25)  # and 0, the unpruned model
BUDGET = 30  # masks that a method may have measured


@dataclass(frozen=True)
class Candidate:
    """A mask and its name, e.g. ``memory:7``."""

    name: str
    mask: HeadMask


@dataclass(frozen=True)
class Selection:
    """What a method's candidates did on the panel, and which one won.

    Attributes:
        direction: The source that was to be strengthened.
        base: The unpruned model (k = 0).
        trials: Every candidate with its result, in the order measured.
        chosen: The winner; None, the unpruned model, where no candidate had a higher total.
    """

    direction: str
    base: Result
    trials: tuple[tuple[Candidate, Result], ...]
    chosen: Candidate | None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values: the total, the rates and the heads of every candidate."""

        def row(name: str, heads: Sequence[Head], result: Result) -> dict[str, Any]:
            rates = result.rounded()
            return {
                "name": name,
                "heads": [f"{layer}.{head}" for layer, head in heads],
                "total": round(result.total(self.direction), 4),
                **rates,
            }

        return {
            "direction": self.direction,
            "chosen": self.chosen.name if self.chosen else "none",
            "candidates": [
                row("none", (), self.base),
                *(row(candidate.name, candidate.mask.heads, result) for candidate, result in self.trials),
            ],
        }


def select(
    panel: Panel,
    direction: str,
    candidates: Iterable[Candidate],
    *,
    budget: int = BUDGET,
    on_progress: Callable[[int, int], None] | None = None,
) -> Selection:
    """Measure candidates and take the best total; ties go to the unpruned model, then to the mask with fewer heads.

    Args:
        panel: Of development records. Never report the chosen mask on them.
        direction: "context" or "memory".
        candidates: Masks; equal ones count once. More than `budget` are thinned out evenly.
        budget: Measurements besides the unpruned model.
        on_progress: Receives (masks measured, masks).

    A mask that raises the perplexity of neutral text above 1.1 times the unpruned model's cannot win.

    Raises:
        HeadsError: Unknown direction, or a mask of another model.
    """
    check_direction(direction)
    different = {candidate.mask: candidate for candidate in reversed(list(candidates)) if candidate.mask.heads}
    kept = list(reversed(different.values()))
    if len(kept) > budget:
        kept = [kept[i * (len(kept) - 1) // max(1, budget - 1)] for i in range(budget)]
    base = panel.measure(None)
    trials = []
    for done, candidate in enumerate(kept, 1):
        trials.append((candidate, panel.measure(candidate.mask)))
        if on_progress is not None:
            on_progress(done, len(kept))
    best = base.total(direction)
    chosen: Candidate | None = None
    for candidate, result in sorted(trials, key=lambda trial: len(trial[0].mask.heads)):
        if not result.perplexity > DISQUALIFIED * base.perplexity and result.total(direction) > best + 1e-12:
            best, chosen = result.total(direction), candidate
    return Selection(direction, base, tuple(trials), chosen)


# --- methods that rank heads by their scores --------------------------------------------------------------------------


def mask_for(scores: HeadScores, choice: str, **where: Any) -> HeadMask:
    """Return the mask that a choice such as ``memory:7`` names.

    The classes are the best k heads by importance for memory (M) and for the context (C). ``memory`` prunes M,
    ``context`` C, ``only-memory`` M without C, ``only-context`` C without M, ``all`` both.

    Args:
        scores: From `find`.
        choice: One of `MODES`, a colon, and k.
        **where: Which scores, as in `HeadScores.importance`; by default all records, in the format "substitution".

    Raises:
        HeadsError: The choice does not have that form, or its class is unknown.
    """
    found = re.fullmatch(r"([a-z-]+):(\d{1,5})", choice.strip().lower().replace(" ", "-"))
    if found is None:
        raise HeadsError(f"{choice!r} is not a choice of heads.", "Write a class and a number, e.g. memory:7.")
    mode, k = found.group(1), int(found.group(2))
    if mode not in MODES:
        raise HeadsError(f"class {mode!r} of heads is not known.", did_you_mean(mode, MODES))
    memory = rank(scores.importance("memory", **where))[:k]
    context = rank(scores.importance("context", **where))[:k]
    return _mask(scores, _combine(mode, memory, context), f"{mode}:{k}")


def read_mask(path: str | Path, choice: str | None = None) -> HeadMask:
    """Read a mask file, or a scores file together with a choice of heads.

    Args:
        path: Written by `HeadMask.save`, ``heads tune`` or ``heads find``.
        choice: As in `mask_for`; only for a scores file.

    Raises:
        HeadsError: Unreadable, neither kind of file, or the choice is missing or superfluous.
    """
    try:
        with Path(path).open("rb") as file:
            is_mask = MASK_KIND.encode() in file.read(200)
    except OSError as error:
        raise HeadsError(
            f"heads file {str(path)!r} cannot be read: {error.strerror or error}.", "Check the path."
        ) from error
    if is_mask:
        if choice is not None:
            raise HeadsError(
                f"{str(path)!r} is a mask already, given with the choice {choice!r}.",
                "Leave the choice out.",
            )
        return HeadMask.load(path)
    scores = HeadScores.load(path)
    if choice is None:
        raise HeadsError(f"{str(path)!r} holds scores of all heads.", "Say which to prune, e.g. --prune memory:7.")
    return mask_for(scores, choice)


def top_k(scores: HeadScores, direction: str, *, grid: Sequence[int] = GRID, **where: Any) -> list[Candidate]:
    """PH3's choice (Jin et al. 2024): the best k heads by path patching, in the modes that act in one direction.

    To strengthen the context the modes are ``memory``, ``only-memory`` and ``all``; to strengthen memory ``context``,
    ``only-context`` and ``all``.

    Args:
        scores: From `find`.
        direction: "context" or "memory".
        grid: Values of k.
        **where: Which scores, as in `HeadScores.importance`.
    """
    memory, context = (rank(scores.importance(source, **where)) for source in ("memory", "context"))
    return _modes(scores, direction, memory, context, grid, "")


def consistent(scores: HeadScores, direction: str, *, grid: Sequence[int] = GRID, **where: Any) -> list[Candidate]:
    """JuICE's filter (Li et al. 2025, section 4): only heads that are positive in every format, ranked by sum.

    Half of the heads that top-k finds in the format "substitution" change their role in a coherent paragraph.

    Args:
        scores: From `find`, with more than one format.
        direction: "context" or "memory".
        grid: Values of k.
        **where: Which scores, as in `HeadScores.importance`, except for the format.
    """
    ranked = []
    for source in ("memory", "context"):
        formats = np.stack([scores.importance(source, form=form, **where) for form in scores.formats])
        ranked.append(rank(np.where((formats > 0).all(0), formats.sum(0), 0.0)))
    return _modes(scores, direction, ranked[0], ranked[1], grid, "consistent ")


def greedy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    scores: HeadScores,
    direction: str,
    *,
    steps: int = 25,
    split: str | None = "find",
    limit: int = 64,
    form: str = "substitution",
    batch_size: int = 16,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Candidate]:
    """Prune the best head, score again under that mask, and so on, because the scores of single heads do not add up.

    Args:
        model: The scored model.
        tokenizer: Its tokenizer.
        scores: From `find`; they name the records.
        direction: "context" prunes heads for memory, "memory" heads for the context.
        steps: Most heads to prune; it ends early when no head promotes the source any longer.
        split: The records to score on; None takes all.
        limit: Number of records used: the first that the model knows.
        form: Format of the prompts.
        batch_size: Prompts per forward.
        on_progress: Receives (heads chosen, steps).

    Returns:
        One candidate per number of heads.
    """
    check_direction(direction)
    scores.model.check(model, "the scores")
    source = "memory" if direction == "context" else "context"
    known = [r for r in scores.records if r.known and form in r.conflict and split in (None, r.split)][:limit]
    if not known:
        raise HeadsError(f"no known record has the format {form!r} in split {split!r}.", "Score more facts.")
    found: list[Candidate] = []
    heads: list[Head] = []
    for step in range(steps):
        best = rank(_importance(model, tokenizer, known, source, form, _mask(scores, heads, ""), batch_size))
        if not best:
            break
        heads.append(best[0])
        found.append(Candidate(f"greedy {source}:{len(heads)}", _mask(scores, heads, f"greedy {source}:{len(heads)}")))
        if on_progress is not None:
            on_progress(step + 1, steps)
    return found


def random_controls(mask: HeadMask, draws: int = 10, seed: int = 0) -> list[HeadMask]:
    """Return masks that give the same factors to random heads, as many in each layer as the mask has.

    Heads of `mask` are drawn only where a layer has too few others.

    Args:
        mask: The mask to compare with.
        draws: Number of masks; equal ones may occur in small models.
        seed: Seeds the draws.
    """
    controls = []
    for draw in range(draws):
        chance = random.Random(f"{seed}/{draw}")
        factors: dict[Head, float] = {}
        for layer in mask.layers:
            given = [factor for (at, _), factor in mask.factors.items() if at == layer]
            others = [h for h in range(mask.model.heads) if (layer, h) not in mask.factors]
            own = [h for at, h in mask.heads if at == layer]
            pool = chance.sample(others, len(others)) + chance.sample(own, len(own))
            factors |= {(layer, head): factor for head, factor in zip(pool, given, strict=False)}
        controls.append(HeadMask(mask.model, factors, {"made by": "random control", "draw": draw, "seed": seed}))
    return controls


# --- parts ------------------------------------------------------------------------------------------------------------


def _combine(mode: str, memory: Sequence[Head], context: Sequence[Head]) -> list[Head]:
    m, c = set(memory), set(context)
    return sorted({"memory": m, "context": c, "only-memory": m - c, "only-context": c - m, "all": m | c}[mode])


def _modes(
    scores: HeadScores, direction: str, memory: list[Head], context: list[Head], grid: Sequence[int], prefix: str
) -> list[Candidate]:
    check_direction(direction)
    against = "memory" if direction == "context" else "context"
    found = []
    for k in grid:
        for mode in (against, f"only-{against}", "all"):
            name = f"{prefix}{mode}:{k}"
            found.append(Candidate(name, _mask(scores, _combine(mode, memory[:k], context[:k]), name)))
    return found


def _mask(scores: HeadScores, heads: Iterable[Head], name: str) -> HeadMask:
    return HeadMask(scores.model, dict.fromkeys(heads, 0.0), {"made by": name} if name else {})


def _importance(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[ConflictRecord],
    source: str,
    form: str,
    mask: HeadMask,
    batch_size: int,
) -> Floats:
    """Mean importance of each head in the pruned model, [L, H], measured as `find` does."""
    import torch

    from ..apply import pruned
    from ..families import describe
    from ..finding.find import answer_tokens
    from ..finding.path_patching import capture, sweep
    from ..forward import tokenized

    layout = describe(model)
    total = np.zeros((layout.layers, layout.heads))
    with pruned(model, mask):
        for start in range(0, len(records), batch_size):
            part = records[start : start + batch_size]
            texts = [record.conflict[form] for record in part]
            answers = [answer_tokens(tokenizer, r, text) for r, text in zip(part, texts, strict=True)]
            targets = torch.tensor(answers, device=model.device)
            clean, other = (
                capture(model, layout, tokenized(model, tokenizer, prompts))
                for prompts in (texts, [record.corrupted(source, form) for record in part])
            )
            change = sweep(layout, clean, other.heads, targets).change
            total += (change[..., 0] - change[..., 1]).sum(0).double().cpu().numpy()
    return total / len(records) * (-1.0 if source == "memory" else 1.0)
