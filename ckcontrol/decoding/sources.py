"""Prompts of several sources: one question, closed book, with each passage (or group of them), and with all together.

All are built from the same pieces by `build_pair`, so they differ in their passages alone. Knows prompts, names and how
much room their caches take; knows no stream (source_streams.py) and no weights (policies/sources.py).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import PromptError, UnsupportedMode
from .prompts import PromptPair, build_pair, passage_list

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "ALL",
    "MAX_SOURCES",
    "MEMORY",
    "Source",
    "SourcePrompts",
    "build_sources",
    "cache_bytes",
    "check_room",
    "read_sources",
]

MAX_SOURCES = 16  # beside memory and all
MEMORY, ALL = "memory", "all"


@dataclass(frozen=True)
class Source:
    """One source of `generate(..., sources=[...])`, where a list of places does not say it.

    Attributes:
        passages: Places of its passages, from 0; None: all; empty: closed book, which only another model can be.
        model: Another checkpoint with the same tokenizer, which reads the prompt instead; None: the model itself.
        name: What a trace calls it; empty: made of its passages.
    """

    passages: Sequence[int] | None = None
    model: Any = field(default=None, repr=False)
    name: str = ""


@dataclass(frozen=True)
class SourcePrompts:
    """The prompts of one question, in this order: memory, the sources, all passages together.

    Where the only source is everything there is, it is not repeated: the names are ``("memory", "all")``, today's pair;
    without passages and other models they are ``("memory",)``, which then is also the last.

    Attributes:
        names: ``"memory"``, ``"passage 1"`` or ``"passages 1+3"`` (counted from 1) or as given, and ``"all"``.
        pairs: The prompt of each as `PromptPair.contextual`, with memory's as `PromptPair.parametric`; see also its
            `passages`, after any truncation, and `alone`. Memory's pair is closed book in both.
        places: Which passages each prompt was asked with, by their place, from 0.
        scores: What each passage was ranked by, where it is a hit of a search; None where it has no score.
        models: What reads each prompt; None: the model that answers.
    """

    names: tuple[str, ...]
    pairs: tuple[PromptPair, ...]
    places: tuple[tuple[int, ...], ...]
    scores: tuple[float | None, ...]
    models: tuple[Any, ...]

    @property
    def ids(self) -> tuple[tuple[int, ...], ...]:
        """The token ids of each prompt."""
        return tuple(pair.contextual for pair in self.pairs)

    @property
    def pair(self) -> PromptPair:
        """The prompt with all passages, and memory's: the pair of plain two-stream decoding."""
        return self.pairs[-1]

    @property
    def several(self) -> bool:
        """Whether there is more than that pair."""
        return len(self.names) > 2


def build_sources(
    tokenizer: PreTrainedTokenizerBase,
    question: str | None = None,
    passages: Sequence[Any] = (),
    sources: Any = "each",
    **how: Any,
) -> SourcePrompts:
    """Build the prompts of one question, or conversation, and its sources.

    Args:
        tokenizer: Of the model that will answer.
        question: As in `build_pair`; or `messages` by name.
        passages: As there.
        sources: ``"each"``: every passage is one. Or a list: each entry the places of its passages, from 0, or a
            `Source`.
        **how: As `build_pair`: ``messages``, ``template``, ``limit``, ``truncate`` and the others. Each prompt is cut
            by itself; where `PromptTemplate.passage` numbers, it counts from 1 in each.

    Returns:
        The prompts; one pair where there is one source, which then is all.

    Raises:
        PromptError: Sources that name no passage of the question, name one twice, repeat each other or are more than
            `MAX_SOURCES`; and as `build_pair`.
    """
    given = passage_list("passages", passages)
    wanted = read_sources(sources, len(given))
    if len(wanted) > MAX_SOURCES:
        raise PromptError(
            f"{len(wanted)} sources, and at most {MAX_SOURCES} are read side by side.",
            "Put passages together, sources=[[0, 1], [2, 3], ...], or pass fewer of them.",
        )

    def pair(places: Sequence[int]) -> PromptPair:
        return build_pair(tokenizer, question, [given[place] for place in places], **how)

    everything = tuple(range(len(given)))
    memory, whole = pair(()), pair(everything)
    rows: list[tuple[str, PromptPair, tuple[int, ...], Any]] = [(MEMORY, memory, (), None)]
    rows += [(s.name, pair(s.passages or ()), tuple(s.passages or ()), s.model) for s in wanted]
    if given or wanted:
        rows.append((ALL, whole, everything, None))
    names, pairs, places, models = zip(*rows, strict=True)
    return SourcePrompts(names, pairs, places, tuple(_score(passage) for passage in given), models)


def read_sources(sources: Any, count: int) -> list[Source]:
    """Return the sources that were asked for of so many passages, with their places and names; see `build_sources`."""
    if isinstance(sources, str):
        if sources != "each":
            raise PromptError(f"sources={sources!r:.40}.", 'Pass "each", or a list like [[0], [1, 2]].')
        sources = [[place] for place in range(count)]
    if not isinstance(sources, (list, tuple)):
        raise PromptError(f"sources={sources!r:.60} is no list.", 'Pass "each", or a list like [[0], [1, 2]].')
    found: list[Source] = []
    for i, entry in enumerate(sources):
        source = entry if isinstance(entry, Source) else Source(entry)
        places = range(count) if source.passages is None and isinstance(entry, Source) else source.passages
        where = f"sources[{i}]"
        if isinstance(places, (str, bytes)) or not isinstance(places, Sequence):
            raise PromptError(f"{where}={entry!r:.60} is no list of places.", "Write [0] for the first passage alone.")
        for place in places:
            if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < count:
                there = f"places are 0 to {count - 1}" if count else "there are no passages"
                raise PromptError(f"{where} names passage {place!r:.40}, and {there}.", "Count from 0.")
        if len(set(places)) < len(places):
            raise PromptError(f"{where}={list(places)} names a passage twice.", "Name each once.")
        if not places and source.model is None:
            raise PromptError(f"{where} has no passage: that is memory, which is a source already.", "Leave it out.")
        own = sum(not isinstance(other, Source) or other.model is None for other in sources)
        if own > 1 and len(places) == count and source.model is None:
            raise PromptError(f"{where} has every passage, which is a source already.", "Leave it out.")
        if len(places) == count and source.model is None:
            continue  # what there is anyway
        if any(sorted(s.passages or ()) == sorted(places) and s.model is source.model for s in found):
            raise PromptError(f"{where} repeats another source.", "Leave it out.")
        found.append(Source(tuple(places), source.model, source.name or _name(places, count, source.model)))
        if any(s.name == found[-1].name for s in found[:-1]) or found[-1].name in (MEMORY, ALL):
            raise PromptError(f"{where} is called {found[-1].name!r}, as another source is.", "Give it a name.")
    return found


def _name(places: Sequence[int], count: int, model: Any) -> str:
    numbers = "+".join(str(place + 1) for place in places)
    what = ALL if len(places) == count > 0 else f"passage{'s' * (len(places) > 1)} {numbers}" if places else MEMORY
    return what if model is None else f"second model, {what}"


def _score(passage: Any) -> float | None:
    score = getattr(passage, "score", None)
    if not isinstance(score, (int, float)) or isinstance(score, bool) or not abs(score) < float("inf"):
        return None
    return float(score)


def cache_bytes(model: PreTrainedModel, positions: int) -> int:
    """Return how many bytes of keys and values a model holds for some positions, told from its config.

    An upper bound: windows that slide hold less. Weights and the largest prompt's activations come on top.

    Args:
        model: Any decoder with keys and values.
        positions: Of all prompts together, with what is to be generated after each.
    """
    config = getattr(model.config, "get_text_config", lambda: model.config)()
    heads = getattr(config, "num_attention_heads", 1)
    kept = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(2 * config.num_hidden_layers * kept * width * positions * model.dtype.itemsize)


def check_room(model: PreTrainedModel, prompts: Sequence[SourcePrompts], max_new_tokens: int) -> int:
    """Return what `cache_bytes` says of these prompts and their answers; refuse what the machine cannot hold.

    Raises:
        UnsupportedMode: The caches alone are larger than the memory of the model's device.
    """
    positions = sum(len(ids) + max_new_tokens for one in prompts for ids in one.ids)
    need, total = cache_bytes(model, positions), _memory(model)
    if total is not None and need > total:
        raise UnsupportedMode(
            f"{sum(len(one.names) for one in prompts)} prompts of {positions} positions need {need / 2**30:.1f} GiB of "
            f"caches, and the device has {total / 2**30:.1f} GiB.",
            "Pass fewer or shorter passages, fewer questions at once, or a smaller max_new_tokens.",
        )
    return need


def _memory(model: PreTrainedModel) -> int | None:
    if model.device.type == "cuda":
        import torch

        return int(torch.cuda.get_device_properties(model.device).total_memory)
    names = getattr(os, "sysconf_names", {})
    if model.device.type == "cpu" and "SC_PHYS_PAGES" in names and "SC_PAGE_SIZE" in names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None
