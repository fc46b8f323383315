"""What a mask does to a model's answers, on conflicts and off target, in one measurement.

On conflicts memory and context disagree. On gold contexts, irrelevant contexts, no context and neutral text a good mask
changes nothing. A rate on conflicts alone would reward a broken model, so all of these are measured together. Knows
records, prompts and answers; knows nothing of scores or of how a mask was chosen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ...decoding.refusals import position_limit
from ...errors import HeadsError, did_you_mean
from ...rates import wilson
from ..apply import pruned
from ..finding.conflict_prompts import ConflictRecord, answer_token
from ..finding.facts import FORMATS, find_words
from ..forward import greedy, last_logits, pad
from ..mask import HeadMask

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "DIRECTIONS",
    "NEUTRAL",
    "OUTCOMES",
    "Panel",
    "PanelPrompt",
    "Result",
    "check_direction",
    "interval",
    "perplexity",
]

OUTCOMES = ("memory", "context", "other")
DIRECTIONS = ("context", "memory")  # the source that a mask is to strengthen
OFF_TARGET = ("gold", "irrelevant", "closed book")
DISQUALIFIED = 1.1  # times the unpruned perplexity

# Plain English that asks for no fact; the perplexity of a pruned model is measured on it.
NEUTRAL = (
    "The kettle had just begun to whistle when she heard the gate. She set two cups on the table, wiped the crumbs "
    "from the cloth, and went to see who had come so early. It was only the neighbour's boy, holding a basket of "
    'plums and looking at his shoes. "Mother says they will not keep," he said.',
    "To repair a bicycle tyre, first take the wheel off and press the tyre away from the rim. Pull the tube out, pump "
    "it up a little and hold it under water until bubbles show where the hole is. Dry the place, roughen it with "
    "sandpaper, spread a thin layer of glue and wait until it is no longer wet before you press the patch on.",
    "We met on Tuesday to talk about the new timetable. Most of those present thought that the early shift should "
    "start half an hour later in winter, and nobody spoke against it. The question of who keeps the keys was put off "
    "until the next meeting, because two people who wanted to comment on it were ill.",
    "Clouds gathered over the hills during the afternoon, and by evening a steady rain was falling. The path along "
    "the river turned to mud, so the walkers took the road instead. They were tired, wet and rather cheerful, and "
    "they sang until the lights of the village came into view.",
    "A good list has one item to a line and no item twice. Before you write a function that removes duplicates, ask "
    "whether the order matters. If it does, keep a set of what you have seen and copy only what is not in it; if it "
    "does not, turn the list into a set and be done.",
    "Dear all, thank you for the parcels, which arrived safely although the paper had torn at one corner. The "
    "children wear the scarves every day. We hope to visit you when the days are longer and the trains run on time "
    "again. Until then we think of you often, especially on Sundays.",
)


@dataclass(frozen=True)
class Result:
    """One measurement of a panel.

    Attributes:
        outcomes: condition -> one of `OUTCOMES` per prompt. Conditions are ``conflict <format>`` for each format,
            ``gold`` (the context states what memory says), ``irrelevant`` (the context is about something else) and
            ``closed book``. The order is that of the records that have the condition.
        perplexity: On neutral text, ``exp`` of the mean negative log-likelihood per token; NaN without such text.
    """

    outcomes: Mapping[str, tuple[str, ...]]
    perplexity: float = field(default=math.nan)

    @property
    def conflict(self) -> tuple[str, ...]:
        """The outcomes on conflicts in all formats, one format after the other."""
        return tuple(x for name, found in self.outcomes.items() if name.startswith("conflict ") for x in found)

    def rate(self, condition: str, outcome: str) -> float:
        """Share of an outcome under a condition; ``conflict`` pools the formats. NaN without prompts."""
        found = self.conflict if condition == "conflict" else self.outcomes.get(condition, ())
        return sum(x == outcome for x in found) / len(found) if found else math.nan

    @property
    def rm(self) -> float:
        """RM: share of conflicts answered from memory; RM + RC + other = 1."""
        return self.rate("conflict", "memory")

    @property
    def rc(self) -> float:
        """RC: share of conflicts answered from the context."""
        return self.rate("conflict", "context")

    def total(self, direction: str) -> float:
        """Mean of four rates: the wanted one on conflicts, and correct answers on gold, irrelevant and closed book.

        This is what a selection maximises. All four count the same, so ten points won on conflicts are not worth
        eleven lost on irrelevant contexts.

        Args:
            direction: "context" wants conflicts answered from the context, "memory" from memory.
        """
        check_direction(direction)
        rates = [self.rate("conflict", direction), *(self.rate(name, "memory") for name in OFF_TARGET)]
        return sum(rates) / len(rates)

    def row(self) -> dict[str, float]:
        """Return a table's figures: RM, RC, other, gold, irrelevant, closed book, perplexity."""
        return {
            "RM": self.rm,
            "RC": self.rc,
            "other": self.rate("conflict", "other"),
            **{name: self.rate(name, "memory") for name in OFF_TARGET},
            "perplexity": self.perplexity,
        }

    def rounded(self) -> dict[str, float | None]:
        """Return the figures of `row` for JSON: to four places, None where nothing was measured."""
        return {name: None if math.isnan(value) else round(value, 4) for name, value in self.row().items()}

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values, including the outcome of every prompt (m, c or o)."""
        outcomes = {name: "".join(x[0] for x in found) for name, found in self.outcomes.items()}
        return {"outcomes": outcomes, "perplexity": None if math.isnan(self.perplexity) else self.perplexity}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Result:
        """Rebuild from `to_dict`."""
        names = {name[0]: name for name in OUTCOMES}
        outcomes = {name: tuple(names[x] for x in found) for name, found in data["outcomes"].items()}
        return cls(outcomes, math.nan if data["perplexity"] is None else data["perplexity"])


@dataclass(frozen=True)
class PanelPrompt:
    """A prompt of a panel, and what counts as which answer to it; a context answer without a first token has None."""

    condition: str
    ids: tuple[int, ...]
    memory: tuple[str, ...]  # spellings
    context: str
    memory_tokens: frozenset[int]  # first tokens
    context_token: int | None

    def outcome_of_text(self, text: str) -> str:
        """Return the source whose answer the first line names first; of two in the same place, the longer answer's."""
        line = (text.strip().splitlines() or [""])[0]
        places = []
        for outcome, spellings in (("memory", self.memory), ("context", (self.context,))):
            for spelling in spellings:
                if found := find_words(line, spelling):
                    places.append((found.start(), -len(spelling), outcome))
        return min(places)[2] if places else "other"

    def outcome_of_token(self, token: int) -> str:
        """Return the source whose answer begins with a token."""
        if token in self.memory_tokens:
            return "memory"
        return "context" if token == self.context_token else "other"


class Panel:
    """Prompts under all conditions, ready to be answered with one mask after another.

    Args:
        model: A model of a known family.
        tokenizer: Its tokenizer.
        records: From `build_records`; usually the ones of a split that the model knows.
        formats: Formats of the conflict prompts.
        neutral: Texts for the perplexity, cut to the model's context window; empty skips it.
        new_tokens: Answers are greedy continuations of this length. The first line counts: the source whose answer
            it names first wins. 0 compares only the first token, which costs one forward and demands less.
        batch_size: Prompts per forward.

    Raises:
        HeadsError: No records.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        records: Sequence[ConflictRecord],
        *,
        formats: Sequence[str] = FORMATS,
        neutral: Sequence[str] = NEUTRAL,
        new_tokens: int = 8,
        batch_size: int = 32,
    ) -> None:
        if not records:
            raise HeadsError("no records to measure on.", "Score more facts, or take another split.")
        self.model, self.tokenizer = model, tokenizer
        self.new_tokens, self.batch_size = new_tokens, batch_size
        limit = position_limit(model)
        self.neutral = [list(tokenizer(text).input_ids)[:limit] for text in neutral]
        self.prompts = [prompt for record in records for prompt in self._prompts(record, formats)]
        self._kept: dict[HeadMask | None, Result] = {}

    @property
    def measured(self) -> int:
        """Number of different masks measured so far, the unpruned model included."""
        return len(self._kept)

    def measure(self, mask: HeadMask | None = None) -> Result:
        """Answer every prompt under a mask; None is the unpruned model. A mask that was measured before costs nothing.

        Raises:
            HeadsError: The mask is for another model.
        """
        key = mask if mask is not None and mask.heads else None
        if key not in self._kept:
            with pruned(self.model, key):
                self._kept[key] = Result(self._answers(), perplexity(self.model, self.neutral))
        return self._kept[key]

    def _prompts(self, record: ConflictRecord, formats: Sequence[str]) -> Iterable[PanelPrompt]:
        texts = {f"conflict {form}": record.conflict[form] for form in formats if form in record.conflict}
        texts |= {"gold": record.gold, "irrelevant": record.irrelevant, "closed book": record.clean}
        for condition, text in texts.items():
            tokens = (answer_token(self.tokenizer, text, spelling) for spelling in record.aliases)
            yield PanelPrompt(
                condition=condition,
                ids=tuple(self.tokenizer(text).input_ids),
                memory=record.aliases,
                context=record.context,
                memory_tokens=frozenset(token for token in tokens if token is not None),
                context_token=answer_token(self.tokenizer, text, record.context),
            )

    def _answers(self) -> dict[str, tuple[str, ...]]:
        outcomes = [""] * len(self.prompts)
        order = sorted(
            range(len(self.prompts)), key=lambda i: len(self.prompts[i].ids)
        )  # similar lengths need less padding
        for start in range(0, len(order), self.batch_size):
            part = order[start : start + self.batch_size]
            batch = pad([self.prompts[i].ids for i in part], self.model.device)
            if self.new_tokens:
                texts = greedy(self.model, self.tokenizer, batch, self.new_tokens)
                for i, text in zip(part, texts, strict=True):
                    outcomes[i] = self.prompts[i].outcome_of_text(text)
            else:
                for i, token in zip(part, last_logits(self.model, batch).argmax(-1).tolist(), strict=True):
                    outcomes[i] = self.prompts[i].outcome_of_token(token)
        found: dict[str, list[str]] = {}
        for prompt, outcome in zip(self.prompts, outcomes, strict=True):
            found.setdefault(prompt.condition, []).append(outcome)
        return {name: tuple(values) for name, values in found.items()}


@torch.no_grad()
def perplexity(model: PreTrainedModel, texts: Sequence[Sequence[int]]) -> float:
    """``exp`` of the mean negative log-likelihood per token of some texts, token ids; NaN without any."""
    loss, count = 0.0, 0
    for ids in texts:
        tokens = torch.tensor([list(ids)], device=model.device)
        logits = model(tokens, use_cache=False).logits[0, :-1].float()
        loss += float(torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="sum"))
        count += len(ids) - 1
    return math.exp(min(loss / count, 700.0)) if count else math.nan


def check_direction(direction: str) -> None:
    """Raise `HeadsError` unless the direction is one of `DIRECTIONS`."""
    if direction not in DIRECTIONS:
        raise HeadsError(f"direction {direction!r} is not known.", did_you_mean(str(direction), DIRECTIONS))


def interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share of `count` cases; (0, 1) without cases.

    Example:
        >>> tuple(round(x, 3) for x in interval(0.5, 100))
        (0.404, 0.596)
    """
    return wilson(round(share * count), count) if count else (0.0, 1.0)
