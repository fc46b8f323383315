"""A finished run to preference pairs: what a model should have said beside what it said, in the form that TRL takes.

KnowPO (Zhang et al., AAAI 2025, arXiv 2408.03297) names two errors: contextual ignorance, where the passages are to be
followed and were not, and contextual over-inclusion, where they are beside the point, or false beside a true one, and
were. A pair is one error of one answer of a run, with the answer that does not make it. Both are taken from the run
wherever it has both; where it has only one, the other is the same text with the name that it gives replaced. With
`same_words` they always are one text with one name or the other, wherever both sides have a name: such pairs differ in
the source that they follow and in nothing else, and nothing else is learnt from them. A text that was cut short makes
no pair: trainers put the end of the turn behind it, and a model learns to stop there.

Knows records, samples and verdicts; knows no model and no trainer.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckcontrol.decoding.prompts import PromptTemplate
from ckcontrol.errors import EvalError, did_you_mean

from .items.states import rank
from .judging.verdict import Verdict, verdict
from .metrics import mentions
from .records import Record
from .run_files import items, read_card, samples, write_bytes

__all__ = ["ERRORS", "TOWARD", "Exported", "Pair", "balanced", "export_pairs", "preference"]

TOWARD = ("context", "memory")
IGNORANCE, INCLUSION = "contextual ignorance", "contextual over-inclusion"
ERRORS = (IGNORANCE, INCLUSION)
SUBSTITUTED = "substituted"  # instead of an arm's name: a text of the other side with the name replaced
# By state: whether the passage's answer is wanted, and which error an answer of the other side is. A conflict is wanted
# from the source that the pairs lead toward.
_STATES = {"agree": (True, IGNORANCE), "helpful": (True, IGNORANCE)}
_STATES |= {"irrelevant": (False, INCLUSION), "noisy": (False, INCLUSION)}


@dataclass(frozen=True)
class Pair:
    """One preference.

    Attributes:
        task: Of the record.
        record: What was asked.
        error: Which of `ERRORS` the rejected answer makes.
        chosen: The text to prefer.
        rejected: The text to avoid.
        arms: Which arm wrote each, chosen first; `SUBSTITUTED` where none did.
        right: Names of which a right answer gives one.
        wrong: Names of which it gives none; empty where both sides are the same and no other is known.
    """

    task: str
    record: Record
    error: str
    chosen: str
    rejected: str
    arms: tuple[str, str]
    right: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()


@dataclass(frozen=True)
class Exported:
    """What `export_pairs` wrote.

    Attributes:
        path: The file.
        found: Pairs by error and state, before any was left out.
        kept: The same of those written.
        substituted: How many of those hold a text that no arm wrote.
        skipped: Records without a pair, by reason.
    """

    path: Path
    found: Mapping[tuple[str, str], int]
    kept: Mapping[tuple[str, str], int]
    substituted: int
    skipped: Mapping[str, int]


def preference(
    task: str,
    record: Record,
    answers: Sequence[tuple[str, str]],
    toward: str,
    *,
    same_words: bool = False,
    false: Sequence[str] = (),
) -> Pair | str:
    """Return the pair of one record, or why it has none.

    Args:
        task: Of the record.
        record: With its state; `conflict` is wanted from the source that `toward` names, in `agree` and `helpful` the
            passage's answer, in `irrelevant` and `noisy` memory's.
        answers: Arm and text, in order of preference; those that name neither answer are rejected where nothing that
            follows the other side can be.
        toward: One of `TOWARD`.
        same_words: Where both sides have a name, take one text of the run, which names one of them once, and its copy
            with the other name; whether an arm made the error does not matter then. Of a state other than conflict
            the text is one that is right.
        false: Names of a false answer, for a record whose sides are the same.
    """
    if record.state == "conflict":
        from_passage, error = toward == "context", IGNORANCE if toward == "context" else INCLUSION
    elif record.state in _STATES:
        from_passage, error = _STATES[record.state]
    else:
        return f"state {record.state} names no source"
    told = [(arm, text, verdict(text, record.ctx_answers, record.par_answers)) for arm, text in answers if text.strip()]
    goal, other = (record.ctx_answers, record.par_answers) if from_passage else (record.par_answers, record.ctx_answers)
    wanted = "contextual" if from_passage else "parametric"
    if {*goal} & {*other}:
        other = tuple(false)
    if same_words and told and goal and other:
        sides = (wanted, "contextual", "parametric") if record.state == "conflict" else (wanted, "both")
        named = [each for side in sides for each in told if each[2].source == side and _once(each, record)]
        if not named:
            return "no answer names one source, and once"
        arm, text, found = named[0]
        follows = found.source in (wanted, "both")
        new = _replaced(text, found, (other if follows else goal)[0]).strip()
        both = [(text.strip(), arm), (new, SUBSTITUTED)]
        (chosen, wrote), (rejected, made) = both if follows else both[::-1]
        return Pair(task, record, error, chosen, rejected, (wrote, made), goal, other)
    right = [each for each in told if each[2].source in (wanted, "both")]
    wrong = [each for each in told if each[2].source not in (wanted, "both")]
    named = [each for each in wrong if each[2].source != "neither"]
    if not wrong and record.state != "conflict":
        return "every answer is right"
    if not told:
        return "no arm answered in words"
    if not right and not (goal and named):
        return "no answer follows the wanted source"
    if not wrong and not other:
        return "no answer makes the error"
    better = right[0][:2] if right else (SUBSTITUTED, _replaced(named[0][1], named[0][2], goal[0]))
    worse = (named or wrong)[0][:2] if wrong else (SUBSTITUTED, _replaced(right[0][1], right[0][2], other[0]))
    texts = better[1].strip(), worse[1].strip()
    if texts[0] == texts[1]:
        return "both answers read the same"
    return Pair(task, record, error, *texts, (better[0], worse[0]), goal, other)


def balanced(pairs: Sequence[Pair], seed: int = 0) -> list[Pair]:
    """Return as many pairs of one error as of the other, and of an error's states as even a share as they allow.

    Which are kept depends on the seed and the record's id alone; the order is kept. Where one of the errors has no
    pair, all of the other's are returned.
    """
    by_error = {error: [pair for pair in pairs if pair.error == error] for error in ERRORS}
    room = min(map(len, by_error.values()))
    if not room:
        return list(pairs)
    kept: set[int] = set()
    for found in by_error.values():
        by_state: dict[str, list[Pair]] = {}
        for pair in sorted(found, key=lambda pair: rank(seed, pair.task, pair.record.id)):
            by_state.setdefault(pair.record.state, []).append(pair)
        left, states = room, sorted(by_state.values(), key=len)
        for i, each in enumerate(states):
            take = min(len(each), left // (len(states) - i))
            kept |= {id(pair) for pair in each[:take]}
            left -= take
    return [pair for pair in pairs if id(pair) in kept]


def export_pairs(
    folder: Path,
    out: Path,
    *,
    toward: str = "context",
    balance: bool = True,
    same_words: bool = True,
    seed: int = 0,
) -> Exported:
    """Write the preference pairs of a run as JSON lines, in TRL's preference format.

    Of a run in chat style, or of a server, ``prompt``, ``chosen`` and ``rejected`` are messages (TRL's conversational
    form); of one in completion style they are texts. Each line also says ``error``, ``state``, ``source`` (the one that
    the chosen answer follows), ``task``, ``id``, ``group``, ``toward``, in ``arms`` who wrote both, and in ``right``
    and ``wrong`` which names tell a right answer.

    Args:
        folder: A run, of which the answers so far are taken; one with arms on both sides of the dial has both answers
            to most questions.
        out: The file; replaced whole, or not at all.
        toward: ``"context"`` or ``"memory"``.
        balance: Leave out pairs, see `balanced`.
        same_words: As in `preference`.
        seed: For `balanced`.

    Raises:
        EvalError: An unknown direction, a damaged run, or one without a pair.
    """
    if toward not in TOWARD:
        raise EvalError(f"toward={toward!r} is no source.", did_you_mean(str(toward), TOWARD))
    card = read_card(folder)
    order = {arm["name"]: i for i, arm in enumerate(card["arms"]) if arm["prompt"] == "base"}
    order |= dict.fromkeys(("off",), -1) if "off" in order else {}
    chat = card.get("style") != "completion"
    templates = card.get("prompts") or {}
    template = _template(templates.get("base"), folder)
    said: dict[tuple[str, str], dict[str, str]] = {}
    cut: set[tuple[str, str]] = set()
    for sample in samples(folder):
        if sample["arm"] in order and sample.get("text") is not None:
            key = sample["task"], sample["id"]
            if sample.get("finish") == "length":
                cut.add(key)
            else:
                said.setdefault(key, {})[sample["arm"]] = sample["text"]
    records = [(line["task"], Record.from_dict(line)) for line in items(folder)]
    false = {(task, one.group): one.ctx_answers for task, one in records if one.state == "conflict"}
    pairs: list[Pair] = []
    skipped: Counter[str] = Counter()
    for task, record in records:
        key = task, record.id
        answers = sorted(said.get(key, {}).items(), key=lambda each: order[each[0]])
        found: Pair | str = "a text to complete, in a run of chats"
        if not (chat and record.cloze):
            others = false.get((task, record.group), ())
            found = preference(task, record, answers, toward, same_words=same_words, false=others)
            if key in cut and isinstance(found, str):
                found += ", without those cut short"
        if isinstance(found, Pair):
            pairs.append(found)
        else:
            skipped[found] += 1
    if not pairs:
        why = "; ".join(f"{count} times: {reason}" for reason, count in skipped.most_common(3)) or "it has no records"
        raise EvalError(
            f"{folder} holds no preference pair toward {toward} ({why}).",
            "Run the five states with arms on both sides, such as --methods off,dial --alpha 0,1.",
        )
    kept = balanced(pairs, seed) if balance else pairs
    rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in _rows(kept, template, chat, toward))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(out, rows.encode("utf-8", errors="surrogatepass"))
    return Exported(out, _counted(pairs), _counted(kept), sum(SUBSTITUTED in pair.arms for pair in kept), dict(skipped))


def _counted(pairs: Iterable[Pair]) -> dict[tuple[str, str], int]:
    return dict(sorted(Counter((pair.error, pair.record.state) for pair in pairs).items()))


def _once(answer: tuple[str, str, Verdict], record: Record) -> bool:
    """Whether an answer names either side no second time, so that the other name can stand in its place."""
    _, text, found = answer
    if found.span is None:
        return False
    return not mentions(_replaced(text, found, " | "), (*record.ctx_answers, *record.par_answers))


def _replaced(text: str, found: Verdict, name: str) -> str:
    """Return a text with the name that it gives replaced by another."""
    if found.span is None:
        return name
    first, end = found.span
    return text[:first] + name + text[end:]


def _rows(pairs: Sequence[Pair], template: PromptTemplate, chat: bool, toward: str) -> Iterator[dict[str, Any]]:
    for pair in pairs:
        prompt, opening = _prompt(pair.record, template, chat)
        texts: dict[str, Any] = {"prompt": prompt, "chosen": opening + pair.chosen, "rejected": opening + pair.rejected}
        if chat:
            roles = ("user", "assistant", "assistant")
            texts = {
                name: [{"role": role, "content": text}] for (name, text), role in zip(texts.items(), roles, strict=True)
            }
        state = pair.record.state
        from_passage = toward == "context" if state == "conflict" else _STATES[state][0]
        yield {
            **texts,
            "error": pair.error,
            "state": state,
            "source": "contextual" if from_passage else "parametric",
            "task": pair.task,
            "id": pair.record.id,
            "group": pair.record.group,
            "toward": toward,
            "arms": {"chosen": pair.arms[0], "rejected": pair.arms[1]},
            "right": list(pair.right),
            "wrong": list(pair.wrong),
        }


def _prompt(record: Record, template: PromptTemplate, chat: bool) -> tuple[str, str]:
    """Return the words of the contextual prompt, and what stands between them and an answer."""
    passages = [" ".join(passage.split()) if template.fold else passage.strip() for passage in record.passages]
    block = "".join(template.passage.format(number=i + 1, text=text) for i, text in enumerate(passages))
    before = template.instruction + (template.intro if block else "") + block
    if record.cloze:
        lines = "".join(f"{passage}\n" for passage in passages)
        return lines + record.question, " "
    prompt = before + template.question.format(question=record.question.strip())
    return (prompt, "") if chat else (prompt + template.answer, " ")


def _template(fields: Any, folder: Path) -> PromptTemplate:
    """Return the wording that the run was asked with; the default one where a server made the prompts."""
    if fields is None:
        return PromptTemplate()
    try:
        return PromptTemplate(**fields)
    except TypeError as error:
        raise EvalError(f"{folder / 'run.json'} holds prompts of another version: {error}.", "Run again.") from error
