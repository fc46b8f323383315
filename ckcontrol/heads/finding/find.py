"""Score every head of a model on a set of facts, resumably: the run behind ``ckcontrol heads find``.

Rows of scores are appended to ``OUT.partial`` as they are made, a batch at a time; an interrupted run goes on there
and ends with the same bytes as one that was not. Knows records, path patching and files; decides nothing about heads.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...errors import HeadsError, did_you_mean
from ..families import HeadLayout, describe
from ..fingerprint import Fingerprint
from ..forward import tokenized
from .conflict_prompts import ConflictRecord, answer_token, build_records
from .facts import FORMATS, Fact
from .path_patching import capture, direct, gradient, linear, sweep
from .scores import SOURCES, HeadScores

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["answer_tokens", "check_settings", "find", "score_batch"]

KNOWN = {"greedy": ("greedy",), "ranked": ("greedy", "ranked"), "any": ("greedy", "ranked", "")}
Progress = Callable[[str, int, int], None]


def find(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    out: str | Path,
    *,
    formats: Sequence[str] = ("substitution",),
    n: int | None = None,
    known: str = "ranked",
    seed: int = 0,
    batch_size: int = 4,
    on_progress: Progress | None = None,
) -> HeadScores:
    """Score all heads on all facts that the model knows, and write the scores file.

    Order: closed-book probe and records; then, for each batch, the conflict prompt and its two corruptions run once
    each, and `sweep` patches every head; the columns direct, linear and gradient are added for the first format.

    Args:
        model: A model of a known family, in eval mode.
        tokenizer: Its tokenizer.
        facts: From `read_facts`.
        out: Where the scores go; ``OUT.partial`` beside it holds an unfinished run and is removed at the end.
        formats: Prompt formats to score, from `facts.FORMATS`. Facts without a question have only "substitution".
        n: Number of records to score, drawn by `seed`; None scores all.
        known: Which facts count as known: "greedy", "ranked" (also those known by rank) or "any"; see `ConflictRecord`.
        seed: Seeds draws and splits.
        batch_size: Records scored at once.
        on_progress: Receives (stage, done, total).

    Returns:
        The scores. If `out` already is the finished result of the same run, it is read and returned.

    Raises:
        HeadsError: The family is unknown, no fact is left, or `out` or its partial file is from another run.
        NonFiniteLogits: The model produced NaN or infinity.
    """
    layout = describe(model)
    forms = list(dict.fromkeys(formats))
    check_settings(forms, n, known, batch_size)
    fingerprint = Fingerprint.of(model, layout)
    settings: dict[str, Any] = {
        "facts": hashlib.sha256(json.dumps([asdict(f) for f in facts]).encode()).hexdigest()[:16],
        "formats": forms,
        "known": known,
        "n": n,
        "seed": seed,
        "batch_size": batch_size,
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    target = Path(out)
    if target.exists():
        done = HeadScores.load(target)
        _same_run(target, done.model, done.settings, fingerprint, settings)
        return done
    partial = target.with_name(target.name + ".partial")
    if partial.exists():
        head, examples = _resume(partial, batch_size)
        _same_run(partial, Fingerprint.from_dict(head["model"]), head["settings"], fingerprint, settings)
    else:
        head = {"model": fingerprint.to_dict()}
        head |= _records(model, tokenizer, facts, settings, on_progress)
        examples = []
        partial.write_text(json.dumps(head, ensure_ascii=False) + "\n", encoding="utf-8")
    records = [ConflictRecord.from_dict(record) for record in head["records"]]
    with partial.open("a", encoding="utf-8", newline="\n") as file:
        for start in range(len(examples), len(records), batch_size):
            rows = score_batch(model, tokenizer, layout, records[start : start + batch_size], forms)
            file.write("".join(json.dumps(row) + "\n" for row in rows))
            file.flush()
            examples += rows
            if on_progress is not None:
                on_progress("scoring", len(examples), len(records))
    scores = HeadScores(fingerprint, head["settings"], records, examples)
    ready = target.with_name(target.name + ".ready")
    ready.write_text(scores.to_json(), encoding="utf-8", newline="\n")
    os.replace(ready, target)
    partial.unlink()
    return scores


def score_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    layout: HeadLayout,
    records: Sequence[ConflictRecord],
    formats: Sequence[str],
) -> list[dict[str, Any]]:
    """Score all heads on some records; one mapping per record, as in `HeadScores.examples`, values to 6 digits."""
    rows: list[dict[str, Any]] = [{"memory": {}, "context": {}} for _ in records]
    for form in formats:
        some = [i for i, record in enumerate(records) if form in record.conflict]
        if not some:
            continue
        chosen = [records[i] for i in some]
        targets = torch.tensor([answer_tokens(tokenizer, r, r.conflict[form]) for r in chosen], device=model.device)
        batch = tokenized(model, tokenizer, [r.conflict[form] for r in chosen])
        clean = capture(model, layout, batch)
        slope = gradient(model, layout, batch, clean, targets) if form == formats[0] else None
        for source in SOURCES:
            prompts = [r.corrupted(source, form) for r in chosen]
            corrupted = capture(model, layout, tokenized(model, tokenizer, prompts)).heads
            change = sweep(layout, clean, corrupted, targets).change
            columns = {"memory_logit": change[..., 0], "context_logit": change[..., 1]}
            if slope is not None:
                short = direct(layout, clean, corrupted, targets).change
                tangent = linear(layout, clean, corrupted, targets)
                columns["direct"] = short[..., 0] - short[..., 1]
                columns["linear"] = tangent[..., 0] - tangent[..., 1]
                columns["gradient"] = (slope * (corrupted - clean.heads)).sum(-1)
            lists = {name: _digits(value) for name, value in columns.items()}
            for place, i in enumerate(some):
                rows[i][source][form] = {name: values[place] for name, values in lists.items()}
    return rows


def answer_tokens(tokenizer: PreTrainedTokenizerBase, record: ConflictRecord, prompt: str) -> list[int]:
    """Return the first tokens of memory's and of the context's answer as continuations of a prompt.

    Raises:
        HeadsError: One of the answers changes the tokens before it, or both begin with the same token.
    """
    found = [answer_token(tokenizer, prompt, answer) for answer in (record.memory, record.context)]
    if None in found or found[0] == found[1]:
        raise HeadsError(
            f"{record.id}: {record.memory!r} and {record.context!r} have no first tokens of their own here.",
            "Leave the fact out.",
        )
    return [token for token in found if token is not None]


def _digits(values: Tensor) -> list[list[float]]:
    return [[float(f"{v:.6g}") for v in row] for row in values.flatten(1).cpu().tolist()]


def check_settings(formats: Sequence[str], n: int | None, known: str, batch_size: int) -> None:
    """Refuse what `find` would refuse of these, before a model is there.

    Raises:
        HeadsError: An unknown format or rule of knowing, no format, or a number below 1.
    """
    for form in formats:
        if form not in FORMATS:
            raise HeadsError(f"no prompt format {form!r}.", did_you_mean(form, FORMATS))
    if not formats:
        raise HeadsError("no prompt format was given.", f"Known: {', '.join(FORMATS)}.")
    if known not in KNOWN:
        raise HeadsError(f"known={known!r} is unknown.", did_you_mean(known, KNOWN))
    if n is not None and n < 1:
        raise HeadsError(f"n={n} scores nothing.", "Give at least 1; stable scores need 200.")
    if batch_size < 1:
        raise HeadsError(f"batch_size={batch_size} is not a batch.", "Give at least 1.")


def _records(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    settings: dict[str, Any],
    on_progress: Progress | None,
) -> dict[str, Any]:
    probing = None if on_progress is None else partial(on_progress, "asking closed book")
    made, left_out = build_records(model, tokenizer, facts, seed=settings["seed"], on_progress=probing)
    chosen = [record for record in made if record.known in KNOWN[settings["known"]]]
    left_out["not known"] = len(made) - len(chosen)
    if not chosen:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()) if count)
        raise HeadsError(
            f"of {len(facts)} facts none can be scored ({reasons or 'there are none'}).",
            "Give facts that the model knows, at least three per relation, or known='any'.",
        )
    random.Random(f"{settings['seed']}/order").shuffle(chosen)  # so that the first n, for any n, are of all relations
    kept = chosen[: settings["n"]]
    told = settings | {"facts_read": len(facts), "left_out": left_out}
    return {"settings": told, "records": [record.to_dict() for record in kept]}


def _resume(partial: Path, batch_size: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Read an unfinished run and cut the file back to its last whole batch."""
    lines = partial.read_bytes().split(b"\n")[:-1]  # what follows the last newline is an incomplete line
    try:
        head, *rows = [json.loads(line) for line in lines]
        whole = len(rows) if len(rows) == len(head["records"]) else len(rows) // batch_size * batch_size
    except (ValueError, KeyError, TypeError) as error:
        raise HeadsError(f"{str(partial)!r} is damaged.", "Delete it to start over.") from error
    os.truncate(partial, sum(len(line) + 1 for line in lines[: 1 + whole]))
    return head, rows[:whole]


def _same_run(path: Path, was: Fingerprint, had: Any, fingerprint: Fingerprint, settings: dict[str, Any]) -> None:
    found = was.differs(fingerprint)
    if found is None:
        found = next(((k, had.get(k), v) for k, v in settings.items() if had.get(k) != v), None)
    if found is not None:
        name, theirs, mine = found
        raise HeadsError(
            f"{str(path)!r} is from another run: {name} is {theirs!r} there and {mine!r} here.",
            "Name another file, or delete that one.",
        )
