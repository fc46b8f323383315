"""Facts to records: what a model remembers, a false answer against it, and the prompts that set one against the other.

A record holds, for one fact, the answer that the model gives from memory, another answer for the context to state, the
prompts (closed book, true context, conflicting context in three formats, unrelated context) and, for each format, the
two corrupted prompts that head scoring needs: *other subject* (memory moves, the context's answer stays) and *other
answer* (the context's answer moves, the subject stays). Prompts are plain text without a chat template, as in PH3 (Jin
et al. 2024) and JuICE (Li et al. 2025). Knows tokenizers and one closed-book forward; knows nothing of heads.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from ...errors import HeadsError
from .facts import FORMATS, Fact, contains

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["SPLITS", "ConflictRecord", "answer_token", "build_records"]

SPLITS = {"find": 0.6, "dev": 0.15, "test": 0.25}
PROBE_TOKENS = 10  # the closed-book continuation, of which the first five words count (JuICE)
PROBE_WORDS = 5
CANDIDATES = 16  # drawn before the one with the best length is taken


@dataclass(frozen=True)
class ConflictRecord:
    """One fact, ready for scoring and for evaluation. Its public name is `ckcontrol.heads.Record`.

    Attributes:
        id: ``relation/subject``.
        relation: The fact's relation.
        subject: The fact's subject.
        split: "find", "dev" or "test", drawn by subject: a subject is in the same split under all its relations.
        known: "greedy": the closed-book continuation contains the answer; "ranked": only the first token of the answer
            beats those of all other answers of the relation; "": neither.
        memory: The spelling of the true answer that the model finds likeliest when asked closed book.
        aliases: Every accepted spelling of the true answer.
        context: The false answer that the conflicting prompts state; its first token differs from that of `memory`.
        clean: The closed-book prompt.
        gold: A prompt whose context states the true answer.
        irrelevant: The closed-book prompt after a true sentence about something else.
        conflict: format -> prompt whose context states the false answer.
        other_subject: format -> the same prompt about another subject of the relation: only memory moves.
        other_answer: format -> the same prompt with a third answer stated: only the context moves.
    """

    id: str
    relation: str
    subject: str
    split: str
    known: str
    memory: str
    aliases: tuple[str, ...]
    context: str
    clean: str
    gold: str
    irrelevant: str
    conflict: Mapping[str, str]
    other_subject: Mapping[str, str]
    other_answer: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {**asdict(self), "aliases": list(self.aliases)}

    def corrupted(self, source: str, form: str) -> str:
        """Return the corrupted prompt of a format that moves a source, "memory" or "context"."""
        return (self.other_subject if source == "memory" else self.other_answer)[form]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ConflictRecord:
        """Rebuild from `to_dict`; missing or unknown keys raise `HeadsError`."""
        if odd := {f.name for f in fields(cls)} ^ set(data):
            raise HeadsError(f"a record has missing or unknown keys {sorted(odd)}.", "Write it with this version.")
        return cls(**{**data, "aliases": tuple(data["aliases"])})


def answer_token(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str) -> int | None:
    """The first token of `answer` after `prompt` and a space; None where it changes the tokens of the prompt."""
    before: list[int] = tokenizer(prompt).input_ids
    after: list[int] = tokenizer(f"{prompt} {answer}").input_ids
    return after[len(before)] if after[: len(before)] == before and len(after) > len(before) else None


def build_records(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    *,
    seed: int = 0,
    batch_size: int = 32,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[list[ConflictRecord], dict[str, int]]:
    """Probe the model closed book and make a record of every fact that can be scored.

    Order: probe; keep the spelling the model finds likeliest; draw a false answer, a third answer and another
    subject. The draws are seeded by the fact's id, so a record does not depend on which facts are scored after it.

    Args:
        model: The model to be scored.
        tokenizer: Its tokenizer; it adds special tokens as it does by default.
        facts: From `read_facts`. Facts of relations with fewer than three cannot be corrupted.
        seed: Changes the draws and the splits.
        batch_size: Prompts per closed-book forward.
        on_progress: Receives (facts probed, facts).

    Returns:
        The records in the order of the facts, and how many facts were left out for each reason: "leak" (the answer or
        its first token is in the prompt), "no pair" (no false answer, third answer or other subject with first tokens
        of its own), "tokens" (the answer changes the tokens before it).
    """
    probes = _probe(model, tokenizer, facts, batch_size, on_progress)
    relations: dict[str, list[int]] = {}
    for i, fact in enumerate(facts):
        relations.setdefault(fact.relation, []).append(i)
    left_out: Counter[str] = Counter()
    records = []
    for i, fact in enumerate(facts):
        others = [j for j in relations[fact.relation] if facts[j].answer != fact.answer]
        made = _record(tokenizer, facts, probes, i, others, seed)
        if isinstance(made, str):
            left_out[made] += 1
        else:
            records.append(made)
    return records, dict(left_out)


@dataclass(frozen=True)
class _Probe:
    text: str  # the greedy continuation
    spelling: str  # likeliest spelling of the true answer
    token: int | None  # its first token
    tokens: frozenset[int]  # first tokens of all spellings
    logits: Mapping[int, float]  # of every answer's first token in this relation


def _probe(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    batch_size: int,
    on_progress: Callable[[int, int], None] | None,
) -> list[_Probe]:
    from ..forward import greedy, last_logits, tokenized  # torch, which reading records does not need

    firsts = [{s: t for s in f.spellings if (t := answer_token(tokenizer, f.cloze, s)) is not None} for f in facts]
    asked: dict[str, set[int]] = {}
    for fact, tokens in zip(facts, firsts, strict=True):
        asked.setdefault(fact.relation, set()).update(tokens.values())
    probes = []
    for start in range(0, len(facts), batch_size):
        part = range(start, min(start + batch_size, len(facts)))
        batch = tokenized(model, tokenizer, [facts[i].cloze for i in part])
        logits = last_logits(model, batch).float().cpu()
        texts = greedy(model, tokenizer, batch, PROBE_TOKENS)
        for i, row, text in zip(part, logits, texts, strict=True):
            best = max(firsts[i], key=lambda s: float(row[firsts[i][s]]), default=facts[i].answer)
            ranked = {token: float(row[token]) for token in asked[facts[i].relation]}
            probes.append(_Probe(text, best, firsts[i].get(best), frozenset(firsts[i].values()), ranked))
        if on_progress is not None:
            on_progress(part.stop, len(facts))
    return probes


def _record(
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    probes: Sequence[_Probe],
    i: int,
    others: Sequence[int],
    seed: int,
) -> ConflictRecord | str:
    fact, probe = facts[i], probes[i]
    if probe.token is None:
        return "tokens"
    prompt_tokens = set(tokenizer(fact.cloze).input_ids)
    if contains(fact.cloze, fact.spellings) or probe.token in prompt_tokens:
        return "leak"
    draw = random.Random(f"{seed}/{fact.id}")
    order = draw.sample(others, len(others))
    forms = FORMATS if fact.question else FORMATS[:1]

    def token(j: int) -> int | None:
        return answer_token(tokenizer, fact.cloze, facts[j].answer)

    fine: list[int] = []
    for j in order:
        mark = token(j)
        if (
            mark is not None
            and mark not in probe.tokens | prompt_tokens
            and not contains(fact.cloze, facts[j].spellings)
            and not contains(facts[j].answer, fact.spellings)
        ):
            fine.append(j)
        if len(fine) == CANDIDATES:
            break
    if not fine:
        return "no pair"
    false = facts[fine[0]]
    thirds = [facts[j] for j in fine[1:] if token(j) != token(fine[0])]
    subjects = [
        facts[j]
        for j in others
        if facts[j].answer != false.answer
        and (not fact.question or facts[j].question)
        and not contains(facts[j].cloze, (*fact.spellings, *false.spellings))
    ]
    if not thirds or not subjects:
        return "no pair"
    third = _same_length(tokenizer, thirds, lambda f: f.answer, false.answer)
    subjects = draw.sample(subjects, min(len(subjects), CANDIDATES))
    subject = _same_length(tokenizer, subjects, lambda f: f.surface, fact.surface)
    elsewhere = [f for f in facts if f.relation != fact.relation and f.subject != fact.subject] or [subject]
    elsewhere = [f for f in elsewhere if not contains(f.states(f.answer), (*fact.spellings, fact.subject))] or elsewhere
    unrelated = draw.choice(elsewhere)
    return ConflictRecord(
        id=fact.id,
        relation=fact.relation,
        subject=fact.subject,
        split=_split(fact.subject, seed),
        known=_known(facts, probes, i, others),
        memory=probe.spelling,
        aliases=fact.spellings,
        context=false.answer,
        clean=fact.cloze,
        gold=f"{fact.states(fact.answer)} {fact.cloze}",
        irrelevant=f"{unrelated.states(unrelated.answer)} {fact.cloze}",
        conflict={form: fact.prompt(form, false.answer) for form in forms},
        other_subject={form: subject.prompt(form, false.answer) for form in forms},
        other_answer={form: fact.prompt(form, third.answer) for form in forms},
    )


def _known(facts: Sequence[Fact], probes: Sequence[_Probe], i: int, others: Sequence[int]) -> str:
    """How the model knows fact `i`; the rank of a first token that another answer shares proves nothing."""
    probe = probes[i]
    if contains(" ".join(probe.text.split()[:PROBE_WORDS]), facts[i].spellings):
        return "greedy"
    shared = any(probe.token in probes[j].tokens for j in others)
    best = max(probe.logits, key=lambda t: (probe.logits[t], -t))
    return "ranked" if best in probe.tokens and not shared else ""


def _same_length(
    tokenizer: PreTrainedTokenizerBase, found: Sequence[Fact], text: Callable[[Fact], str], like: str
) -> Fact:
    """The first candidate with as many tokens as `like`, else the nearest in length."""

    def length(value: str) -> int:
        return len(tokenizer(f" {value}", add_special_tokens=False).input_ids)

    return min(found, key=lambda fact: abs(length(text(fact)) - length(like)))


def _split(subject: str, seed: int) -> str:
    place = random.Random(f"{seed}/split/{subject.lower()}").random()
    for name, share in SPLITS.items():
        place -= share
        if place < 0:
            return name
    return name
