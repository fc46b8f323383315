"""The whole choice in one call: every method proposes, development records decide, test records are reported on.

Knows the methods of select.py and learn.py and how records are split; prints nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ...arguments import check_integer
from ...errors import HeadsError, did_you_mean
from ..finding.conflict_prompts import ConflictRecord
from ..finding.scores import HeadScores
from .learn import candidates, learn
from .panel import NEUTRAL, Panel, Result, check_direction
from .select import BUDGET, GRID, Candidate, Selection, consistent, greedy, random_controls, select, top_k

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["METHODS", "Tuned", "check_methods", "tune"]

METHODS = ("top-k", "consistent", "greedy", "learned")
SEEDS = (-(2**63), 2**63 - 1)  # what torch's generators take
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Tuned:
    """What every method chose, and what that does on records that played no part in the choice.

    Attributes:
        direction: The source that was to be strengthened.
        selections: method -> its selection on the development records.
        winner: The method whose choice had the best total there; None if no method beats the unpruned model.
        test: "none" and every method that chose a mask -> its result on the test records.
        controls: Results on the test records of random heads in the layers of the winner's mask.
    """

    direction: str
    selections: Mapping[str, Selection]
    winner: str | None
    test: Mapping[str, Result]
    controls: tuple[Result, ...]

    @property
    def chosen(self) -> Candidate | None:
        """The winner's candidate, if there is one."""
        return None if self.winner is None else self.selections[self.winner].chosen

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values, including the outcome of every test prompt."""
        chosen = self.chosen
        return {
            "direction": self.direction,
            "winner": self.winner,
            "chosen": None if chosen is None else chosen.name,
            "mask": None if chosen is None else chosen.mask.to_dict(),
            "selections": {name: selection.to_dict() for name, selection in self.selections.items()},
            "test": {name: result.to_dict() for name, result in self.test.items()},
            "controls": [result.to_dict() for result in self.controls],
        }


def check_methods(methods: Sequence[str]) -> None:
    """Refuse methods that `tune` does not know.

    Raises:
        HeadsError: Names the first.
    """
    for method in methods:
        if method not in METHODS:
            raise HeadsError(f"method {method!r} is not known.", did_you_mean(method, METHODS))


def tune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    scores: HeadScores,
    direction: str,
    *,
    methods: Sequence[str] = ("top-k",),
    grid: Sequence[int] = GRID,
    budget: int = BUDGET,
    draws: int = 10,
    limit: int | None = None,
    formats: Sequence[str] | None = None,
    neutral: Sequence[str] = NEUTRAL,
    new_tokens: int = 8,
    steps: int = 200,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> Tuned:
    """Choose heads to prune so that a model leans more on its context, or more on its memory.

    Scores and learning use the records of the split "find", the choice uses those of "dev", the report those of "test";
    always the ones that the model knows. A subject is in the same split under all its relations.

    Args:
        model: The scored model.
        tokenizer: Its tokenizer.
        scores: From `find`.
        direction: "context" or "memory".
        methods: From `METHODS`; all have the same development records and the same `budget`.
        grid: Values of k; 0 is always among the candidates.
        budget: Masks that a method may have measured.
        draws: Random-head controls for the winner on the test records.
        limit: Most records of each split; None takes all.
        formats: Conflict formats of the panels; None takes those that were scored.
        neutral: Texts for the perplexity.
        new_tokens: As in `Panel`.
        steps: Gradient steps of "learned"; "greedy" takes at most max(grid) heads.
        seed: Seeds controls and learning.
        on_progress: Receives (stage, done, total).

    Raises:
        HeadsError: Unknown direction or method, scores of another model, or a split without known records.
        ControlError: `seed` has more than 64 bits.
    """
    check_direction(direction)
    check_methods(methods)
    check_integer("seed", seed, *SEEDS)
    scores.model.check(model, "the scores")
    forms = tuple(formats or scores.formats)
    settings: dict[str, Any] = {"formats": forms, "neutral": neutral, "new_tokens": new_tokens}
    splits = {name: _known(scores.records, name)[:limit] for name in ("find", "dev", "test")}
    dev, test = (Panel(model, tokenizer, splits[name], **settings) for name in ("dev", "test"))

    report = on_progress or (lambda stage, done, total: None)

    def proposals(method: str) -> list[Candidate]:
        if method == "top-k":
            return top_k(scores, direction, grid=grid, split="find")
        if method == "consistent":
            return consistent(scores, direction, grid=grid, split="find")
        if method == "greedy":
            return greedy(model, tokenizer, scores, direction, steps=max(grid), on_progress=partial(report, "greedy"))
        found = learn(
            model, tokenizer, splits["find"], direction, steps=steps, seed=seed, on_progress=partial(report, "learning")
        )
        return candidates(found, grid)

    selections = {}
    for method in methods:
        selections[method] = select(
            dev, direction, proposals(method), budget=budget, on_progress=partial(report, f"measuring {method}")
        )
    best = {
        method: next(r for c, r in found.trials if c is found.chosen).total(direction)
        for method, found in selections.items()
        if found.chosen is not None
    }
    winner = max(best, key=lambda method: best[method]) if best else None
    results = {"none": test.measure(None)}
    results |= {name: test.measure(found.chosen.mask) for name, found in selections.items() if found.chosen}
    controls: list[Result] = []
    chosen = None if winner is None else selections[winner].chosen
    if chosen is not None:
        for mask in random_controls(chosen.mask, draws, seed):
            controls.append(test.measure(mask))
            report("random controls", len(controls), draws)
    return Tuned(direction, selections, winner, results, tuple(controls))


def _known(records: Sequence[ConflictRecord], split: str) -> list[ConflictRecord]:
    found = [record for record in records if record.known and record.split == split]
    if not found:
        raise HeadsError(f"no known record is in the split {split!r}.", "Score more facts: find --n.")
    return found
