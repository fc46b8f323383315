"""Which facts a model knows, does not know, or neither: asked closed-book in every wording, greedily and by samples.

All answers right: known; all wrong: unknown; anything between is uncertain and belongs into no benchmark (the protocol
of TriState-Bench, arXiv 2606.10298). Every pass is written as it is done, so a stopped screening goes on where it was.
Knows engines, facts and the files of its folder.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ckcontrol.decoding.options import GenerateOptions
from ckcontrol.errors import EvalError
from ckcontrol.rates import count

from ..items.states import StateFact, rank
from ..judging.verdict import verdict
from ..run_files import SampleFile, check_same, whole_passes, write_bytes
from .arms import arms_for
from .engine import Engine
from .passes import passes
from .runner import OnNote, OnProgress, make

__all__ = ["Screened", "screen"]


@dataclass(frozen=True)
class Screened:
    """What `screen` found.

    Attributes:
        known: Fact id to whether all its answers were right (True) or all wrong (False).
        uncertain: The facts between, and those of which an answer failed.
        path: Where each fact's count of right answers stands, one JSON object a line.
    """

    known: dict[str, bool]
    uncertain: frozenset[str]
    path: Path


def screen(
    facts: Sequence[StateFact],
    engine: Callable[[GenerateOptions], Engine],
    folder: Path,
    *,
    samples: int = 3,
    temperature: float = 0.7,
    max_new_tokens: int = 24,
    seed: int = 0,
    limit: int | None = None,
    batch_size: int = 16,
    on_progress: OnProgress = lambda stage, done, total: None,
    on_note: OnNote = lambda text: None,
) -> Screened:
    """Ask a model for every fact and sort the facts by whether it knows them.

    Args:
        facts: With their wordings; one without `wordings` is asked in its question alone.
        engine: Makes what answers, from how it draws.
        folder: Where the answers are kept; a stopped screening goes on there.
        samples: Answers drawn per wording, beside the greedy one.
        temperature: Of the samples.
        max_new_tokens: Longest answer.
        seed: Of the samples, and of which facts are taken if there is a limit.
        limit: Most facts; those not taken count as uncertain.
        batch_size: Questions per pass.
        on_progress: Receives (stage, done, total).
        on_note: Receives what is worth a line.

    Raises:
        EvalError: The folder holds another screening, no fact can be asked, or fewer than 0 samples.
    """
    if samples < 0:
        raise EvalError(f"samples={samples} cannot be drawn.", "Give 0 for the greedy answer alone.")
    chosen = {fact.id for fact in sorted(facts, key=lambda fact: rank(seed, "screen", fact.id))[:limit]}
    taken = {fact.id: fact for fact in facts if fact.id in chosen}
    if not taken:
        raise EvalError("there is no fact to ask for.", "Give a file of facts.")
    records = [
        replace(fact.asked(), id=f"{place}#{name}", question=wording)
        for name, fact in taken.items()
        for place, wording in enumerate((fact.question, *fact.wordings))
    ]
    arms = arms_for(["off"])
    draws = [GenerateOptions(max_new_tokens=max_new_tokens)]
    draws += [replace(draws[0], do_sample=True, temperature=temperature, seed=seed + i) for i in range(samples)]
    engines = [engine(options) for options in draws]
    folder.mkdir(parents=True, exist_ok=True)
    asked = [[record.id, record.question, *record.par_answers] for record in records]
    card = {"samples": samples, "temperature": temperature, "seed": seed, "asked": asked, "batch_size": batch_size}
    tasks = {"screen": {"records": len(records)}}
    check_same(folder, {**engines[0].card(), **card, "arms": [arm.to_dict() for arm in arms], "tasks": tasks})
    right: Counter[str] = Counter()
    answered: Counter[str] = Counter()
    for turn, one in enumerate(engines):
        path = folder / f"answers{turn}.jsonl"
        work = passes([("screen", records)], arms, one.length, batch_size=batch_size)
        stage = f"Sample {turn} of {samples}" if turn else "Greedy answers"
        with SampleFile(path) as store:
            make(one, work, store, partial(_told, on_progress, stage), _nothing)
        for _, _, lines in whole_passes(path):
            for line in lines:
                name = line["id"].partition("#")[2]
                if line.get("error") is None and name in taken:
                    answered[name] += 1
                    right[name] += verdict(line.get("text") or "", (), taken[name].answers).parametric
    told, known = [], {}
    for name, fact in taken.items():
        of = (1 + len(fact.wordings)) * len(engines)
        sure = answered[name] == of and right[name] in (0, of)
        told.append({"id": name, "known": right[name] == of if sure else None, "right": right[name], "of": of})
        if sure:
            known[name] = right[name] == of
    path = folder / "known.jsonl"
    write_bytes(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in told).encode())
    uncertain = frozenset(fact.id for fact in facts if fact.id not in known)
    yes = sum(known.values())
    unknown, rest = len(known) - yes, len(taken) - len(known)
    on_note(f"{count(len(taken), 'fact')} asked: {yes:,} known, {unknown:,} unknown, {rest:,} uncertain.")
    return Screened(known, uncertain, path)


def _told(on_progress: OnProgress, stage: str, _: str, done: int, total: int) -> None:
    on_progress(stage, done, total)


def _nothing(_: str) -> None:
    """An estimate of one of several turns says little."""
