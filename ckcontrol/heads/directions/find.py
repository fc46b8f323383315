"""Find a direction on a model: the difference of two means, the layer and the strengths that do most and break least.

The prompts are those that `ckcontrol.generate` builds, chat template included. A prompt is run once but for its last
token, and every candidate starts there (`Prepared`): what a direction changes begins at that token. Knows facts,
prompts and answers; knows nothing of files.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...arguments import check_integer
from ...decoding.prompts import build_pair
from ...decoding.refusals import eos_ids, position_limit
from ...decoding.streams import Stream
from ...errors import HeadsError, did_you_mean
from ..choosing.panel import DIRECTIONS, DISQUALIFIED, NEUTRAL, PanelPrompt, Result, perplexity
from ..families import describe
from ..finding.conflict_prompts import ConflictRecord, build_records
from ..finding.facts import Fact
from ..finding.find import KNOWN
from ..fingerprint import Fingerprint
from ..forward import pad
from .apply import added
from .direction import Direction

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Found", "Prepared", "check_settings", "difference", "find"]

CONDITIONS = ("conflict asked", "gold", "irrelevant", "closed book")
LAYERS = 6  # tried, evenly spaced over `DEPTHS`
DEPTHS = (0.3, 0.85)  # of the model's depth; Minder et al. and Rimsky et al. both find the middle to work
FIRST = 0.5  # strength at which layers are compared, in units of the mean length of the residual stream there
STRENGTHS = (0.125, 0.25, 0.5, 1.0)
KEPT = 2  # layers of each contrast whose strengths are all tried
FEWEST = 5  # prompts on either side of the difference of those that followed memory and those that followed a passage
Progress = Callable[[str, int, int], None]
Place = tuple[str, int]  # what was contrasted, and the layer


@dataclass(frozen=True)
class Found:
    """A direction, and what it does on facts that played no part in finding it.

    Attributes:
        direction: The choice; a strength is 0 where nothing helped on that side.
        followed: source -> how many of the conflicts followed it.
        trials: On the development facts: ((contrast, layer), signed strength in lengths of the stream, result). The
            first is (None, 0.0, the unmodified model) and alone has a perplexity: that of the others is measured where
            they would win. Where layers were compared, of conflicts alone.
        test: alpha -> result on the test facts, for 0, 0.5 and 1, without a side that has no strength.
    """

    direction: Direction
    followed: Mapping[str, int]
    trials: tuple[tuple[Place | None, float, Result], ...]
    test: Mapping[float, Result]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values, including the outcome of every test prompt."""
        d = self.direction
        return {
            "layer": d.layer,
            "context": d.context,
            "memory": d.memory,
            "followed": dict(self.followed),
            "contrast": d.note["contrast"],
            "trials": [
                {"contrast": at and at[0], "layer": at and at[1], "strength": s, **result.rounded()}
                for at, s, result in self.trials
            ],
            "test": {f"{alpha:g}": result.to_dict() for alpha, result in self.test.items()},
        }


def find(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    *,
    known: str = "ranked",
    n: int | None = None,
    new_tokens: int = 10,
    seed: int = 0,
    batch_size: int = 32,
    on_progress: Progress | None = None,
) -> Found:
    """Find the direction from context to memory on a model.

    1. Each known fact is asked with a passage that says something false, and without one. v_l is a difference of two
       means of layer l's residual stream at the last prompt token (Marks and Tegmark 2023, arXiv 2310.06824; Rimsky et
       al. 2024, arXiv 2312.06681): ``followed``, over conflicts, where the answer is memory's less where it is the
       passage's, if either was given `FEWEST` times; and ``passage``, without the passage less with it, which needs no
       model that wavers.
    2. On the development facts, the layers of each contrast are compared by how far v_l, at one strength, moves
       conflicts both ways; in the best, every strength. As for head masks, the total of four rates decides
       (`Result.total`), and a strength that raises the perplexity of neutral text by more than a tenth is out.
    3. The choice is measured on the test facts.

    Facts are split by subject, as in `build_records`.

    Args:
        model: A model of a known family.
        tokenizer: Its tokenizer.
        facts: From `read_facts`; those without a question are left out.
        known: Which facts the model must know: "greedy", "ranked" or "any".
        n: Use this many facts, drawn by `seed`; None takes all.
        new_tokens: Length of an answer; its first line counts.
        seed: Seeds false answers, splits and the draw.
        batch_size: Prompts per forward.
        on_progress: Receives (stage, done, total).

    Raises:
        HeadsError: Too few facts, with the counts, or no strength that gains in total.
        ControlError: `n`, `new_tokens` or `batch_size` is not a positive integer.
    """
    check_settings(known, n, new_tokens, batch_size)
    report = on_progress or (lambda stage, done, total: None)
    asked = {fact.id: fact for fact in facts if fact.question}
    chosen = list(asked.values())
    if n is not None and n < len(chosen):
        chosen = random.Random(f"{seed}/facts").sample(chosen, n)
    made, _ = build_records(
        model, tokenizer, chosen, seed=seed, batch_size=batch_size, on_progress=partial(report, "asking closed book")
    )
    records = [record for record in made if record.known in KNOWN[known]]
    split = {name: [r for r in records if r.split == name] for name in ("find", "dev", "test")}
    if not all(split.values()):
        counts = ", ".join(f"{len(rows)} to {name}" for name, rows in split.items())
        raise HeadsError(
            f"of {len(facts)} facts, {len(chosen)} are used and {len(records)} are known: {counts}.",
            "Give more facts that have a question and that the model knows, at least three per relation.",
        )

    def prepared(name: str, condition: str) -> Prepared:
        prompts = [_prompt(tokenizer, record, asked[record.id], condition) for record in split[name]]
        longest, limit = max(len(p.ids) for p in prompts) + new_tokens, position_limit(model)
        if limit is not None and longest > limit:
            raise HeadsError(
                f"the longest prompt and its answer are {longest} tokens, and the model reads {limit}.",
                "Leave out facts with long texts, or ask for shorter answers: --new-tokens.",
            )
        return Prepared(model, tokenizer, prompts, batch_size, new_tokens)

    report("reading conflicts", 0, 2)
    conflicts = prepared("find", CONDITIONS[0])
    streams, outcomes = conflicts.streams(), conflicts.outcomes()
    report("reading conflicts", 1, 2)
    followed = {source: outcomes.count(source) for source in DIRECTIONS}
    vectors = {"passage": prepared("find", CONDITIONS[3]).streams().mean(dim=0) - streams.mean(dim=0)}
    if min(followed.values()) >= FEWEST:
        vectors["followed"] = difference(streams, outcomes)
    lengths = streams.norm(dim=-1).mean(dim=0)
    report("reading conflicts", 2, 2)
    fingerprint, dev = Fingerprint.of(model), [prepared("dev", condition) for condition in CONDITIONS]
    neutral = [list(tokenizer(text).input_ids)[: position_limit(model)] for text in NEUTRAL]

    def made_of(place: Place, context: float, memory: float, **note: Any) -> Direction:
        contrast, layer = place
        scale, note = float(lengths[layer]), {"contrast": contrast, **note}
        return Direction(fingerprint, layer, vectors[contrast][layer], scale * context, scale * memory, note)

    def adding(place: Place, strength: float) -> AbstractContextManager[None]:
        return added(model, made_of(place, abs(strength), abs(strength)), float(strength > 0))

    def trials(
        places: Sequence[Place], strengths: Sequence[float], on: Sequence[Prepared], stage: str
    ) -> list[tuple[Place, float, Result]]:
        made: list[tuple[Place, float, Result]] = []
        for place in places:
            for strength in strengths:
                with adding(place, strength):
                    made.append((place, strength, Result(_outcomes(on))))
                report(stage, len(made), len(places) * len(strengths))
        return made

    def cost(place: Place, strength: float) -> float:
        with adding(place, strength):
            return perplexity(model, neutral)

    base = Result(_outcomes(dev), perplexity(model, neutral))
    places = [(contrast, layer) for contrast in vectors for layer in _layers(len(lengths))]
    first = trials(places, (-FIRST, FIRST), dev[:1], "trying layers")
    gain = {place: sum(_moved(base, s, result) for at, s, result in first if at == place) for place in places}
    ranked = sorted(places, key=lambda place: -gain[place])
    best = [place for contrast in vectors for place in [one for one in ranked if one[0] == contrast][:KEPT]]
    second = trials(best, [s * sign for s in STRENGTHS for sign in (-1, 1)], dev, "trying strengths")
    place, context, memory = _best(base, second, cost)
    note = {"facts": len(records), "followed": followed, "known": known, "seed": seed, "new_tokens": new_tokens}
    direction = made_of(place, context, memory, **note)
    held, test = [prepared("test", condition) for condition in CONDITIONS], {}
    for alpha, strength in ((0.0, context), (0.5, 1.0), (1.0, memory)):
        if strength:
            with added(model, direction, alpha):
                test[alpha] = Result(_outcomes(held), perplexity(model, neutral))
        report("measuring", len(test), 3)
    return Found(direction, followed, ((None, 0.0, base), *first, *second), test)


def check_settings(known: str, n: int | None, new_tokens: int, batch_size: int) -> None:
    """Refuse what `find` would refuse of these, before a model is there.

    Raises:
        HeadsError: An unknown rule of knowing.
        ControlError: A number that is not a positive integer.
    """
    for name, value in (("new_tokens", new_tokens), ("batch_size", batch_size), ("n", 1 if n is None else n)):
        check_integer(name, value, 1, 1_000_000)
    if known not in KNOWN:
        raise HeadsError(f"known={known!r} is unknown.", did_you_mean(known, KNOWN))


def difference(streams: Tensor, outcomes: Sequence[str]) -> Tensor:
    """Return v of every layer, [L, d] float32: the mean where memory was followed less that where the context was.

    Args:
        streams: Residual streams, [N, L, d] float32.
        outcomes: "memory", "context" or "other" for each.
    """
    memory, context = (torch.tensor([outcome == source for outcome in outcomes]) for source in ("memory", "context"))
    return streams[memory].mean(dim=0) - streams[context].mean(dim=0)


class Prepared:
    """Prompts that were run but for their last token, to be answered again and again from there.

    Args:
        model: The model, unmodified.
        tokenizer: Its tokenizer.
        prompts: Of at least two tokens each.
        batch_size: Prompts per forward.
        new_tokens: Longest answer.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[PanelPrompt],
        batch_size: int,
        new_tokens: int,
    ) -> None:
        self.model, self.tokenizer, self.prompts, self.new_tokens = model, tokenizer, list(prompts), new_tokens
        self.ends = torch.tensor(sorted(eos_ids(model, tokenizer)), device=model.device)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].ids))  # similar lengths need less padding
        self._parts: list[tuple[list[int], Stream, Tensor]] = []
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            batch = pad([prompts[i].ids for i in places], model.device)
            stream = Stream(model, batch.ids[:, :-1], batch.mask[:, :-1])
            with torch.no_grad():
                stream.prefill()
            self._parts.append((places, stream, batch.ids[:, -1]))

    def streams(self) -> Tensor:
        """Return the residual stream that leaves each layer at the last prompt token, [N, L, d] float32 on the CPU."""
        layout, seen = describe(self.model), dict[int, Tensor]()

        def keep(layer: int) -> Callable[..., None]:
            def hook(module: torch.nn.Module, args: Any, output: Any) -> None:
                seen[layer] = (output[0] if isinstance(output, tuple) else output)[:, -1].float().cpu()

            return hook

        handles = [block.module.register_forward_hook(keep(i)) for i, block in enumerate(layout.blocks)]
        found = torch.empty(len(self.prompts), layout.layers, layout.hidden)
        try:
            for places, _ in self._steps(1):
                found[places] = torch.stack([seen[layer] for layer in range(layout.layers)], dim=1)
        finally:
            for handle in handles:
                handle.remove()
        return found

    def outcomes(self) -> list[str]:
        """Answer every prompt greedily; return which source each answer names first."""
        found = [""] * len(self.prompts)
        for places, rows in self._steps(self.new_tokens):
            for place, row in zip(places, rows, strict=True):
                text = self.tokenizer.decode(row, skip_special_tokens=True)
                found[place] = self.prompts[place].outcome_of_text(text)
        return found

    def _steps(self, count: int) -> Iterator[tuple[list[int], list[list[int]]]]:
        """Yield the places of a batch, and up to `count` greedy tokens of each, up to its end token."""
        for places, kept, last in self._parts:
            stream, token = copy.copy(kept), last
            stream.cache = copy.deepcopy(kept.cache)
            made: list[Tensor] = []
            over = torch.zeros_like(token, dtype=torch.bool)
            with torch.no_grad():
                for _ in range(count):
                    token = stream.step(token).argmax(dim=-1)
                    made.append(token)
                    over |= torch.isin(token, self.ends)
                    if bool(over.all()):
                        break
            tokens = torch.stack(made, dim=1)
            ended = torch.isin(tokens, self.ends).cumsum(dim=1) > 0
            lengths = (~ended).sum(dim=1).tolist()
            yield places, [row[:length] for row, length in zip(tokens.tolist(), lengths, strict=True)]


def _outcomes(prepared: Sequence[Prepared]) -> dict[str, tuple[str, ...]]:
    """What prompts of one condition each come to, as `Result` takes it."""
    return {each.prompts[0].condition: tuple(each.outcomes()) for each in prepared}


def _prompt(tokenizer: PreTrainedTokenizerBase, record: ConflictRecord, fact: Fact, condition: str) -> PanelPrompt:
    passages = {
        "conflict asked": fact.states(record.context),
        "gold": fact.states(fact.answer),
        "irrelevant": record.irrelevant.removesuffix(record.clean).strip(),
    }
    given = [passages[condition]] if condition in passages else []
    ids = tuple(build_pair(tokenizer, fact.question, given).contextual)
    return PanelPrompt(condition, ids, record.aliases, record.context, frozenset(), None)


def _layers(count: int) -> list[int]:
    """The layers to try: `LAYERS` of them evenly over `DEPTHS`, fewer in a shallow model."""
    low, high = (depth * (count - 1) for depth in DEPTHS)
    return sorted({round(low + (high - low) * i / (LAYERS - 1)) for i in range(LAYERS)})


def _moved(base: Result, strength: float, result: Result) -> float:
    """How far conflicts moved the way that was meant."""
    return result.rm - base.rm if strength > 0 else result.rc - base.rc


def _best(
    base: Result, trials: Sequence[tuple[Place, float, Result]], cost: Callable[[Place, float], float]
) -> tuple[Place, float, float]:
    """Return the place with the most gained in total on both sides together, and its strengths.

    Args:
        base: Of the unmodified model, with its perplexity.
        trials: Place, signed strength, result.
        cost: Returns the perplexity at a place and a signed strength; asked only of what would win.
    """
    gains: dict[Place, float] = {}
    sides: dict[Place, dict[str, float]] = {}
    for place in dict.fromkeys(at for at, _, _ in trials):
        gains[place], sides[place] = 0.0, dict.fromkeys(DIRECTIONS, 0.0)
        for source, sign in (("context", -1), ("memory", 1)):
            found = [(r.total(source) - base.total(source), s) for at, s, r in trials if at == place and s * sign > 0]
            for gain, strength in sorted(found, key=lambda one: (-one[0], abs(one[1]))):
                if gain > 1e-12 and cost(place, strength) <= DISQUALIFIED * base.perplexity:
                    gains[place], sides[place][source] = gains[place] + gain, abs(strength)
                    break
    place = max(gains, key=lambda at: gains[at])
    if not gains[place]:
        raise HeadsError(
            "on the development facts no strength in any layer gained in total, toward either source.",
            "Give more facts, or stay with a method of two streams.",
        )
    return place, sides[place]["context"], sides[place]["memory"]
