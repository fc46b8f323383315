"""Overrides on COUNTERFACT: do edits hold, do other wordings find them, and is everything else left alone?

    python benchmarks/overrides.py COUNTERFACT.json --half choose --steer      which nearness, which steering
    python benchmarks/overrides.py COUNTERFACT.json --json FILE                the report: docs/overrides.md

Subjects are split in halves by their hash; wordings by `overrides_data`. Scope is told for every edit and question of
the half, with all its edits in one store, once with COUNTERFACT's prompt alone and once with one wording more, the one
of choosing; answers are given to a sample by hash, as they cost a model. What is written out counts apart from what the
model says itself.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from overrides_data import Edit, edits, is_report, others, questions

import ckcontrol as ck
from ckcontrol.rates import wilson
from ckcontrol.retrieval import Embedder, Index, Overrides, Passage

TOKENS = 20
BATCH = 20


def order(text: str) -> str:
    return hashlib.sha256(f"sample {text}".encode()).hexdigest()


def holds(edit: Edit, text: str) -> bool:
    """Return whether an answer gives the new fact, and not the old one before it."""
    said = text.lower()
    new, true = said.find(edit.new.lower()), said.find(edit.true.lower())
    return new >= 0 and not 0 <= true < new


def rate(hits: Sequence[bool]) -> dict[str, Any]:
    count, low_high = sum(hits), wilson(sum(hits), len(hits))
    return {"hits": count, "n": len(hits), "rate": round(count / max(len(hits), 1), 4), "interval": low_high}


def asked(rag: Any, texts: list[str], **options: Any) -> list[Any]:
    return [a for start in range(0, len(texts), BATCH) for a in rag.ask(texts[start : start + BATCH], **options)]


def scope(store: Overrides, half: list[Edit], away: list[Edit], report: bool) -> dict[str, Any]:
    """Tell which questions are in scope of which edit; `away` are subjects that no edit is about."""

    def found(pairs: list[tuple[Edit, str]]) -> list[bool]:
        facts = store.find([text for _, text in pairs])
        return [
            fact is not None and fact[0].subject == edit.subject for (edit, _), fact in zip(pairs, facts, strict=True)
        ]

    beside = [(edit, text) for edit in half for text in others(edit, report)]
    far = [text for edit in away for text in (edit.prompt, *questions(edit, report), *others(edit, report))]
    wrong = store.find([text for _, text in beside])
    elsewhere = store.find(far)
    return {
        "own prompt": rate(found([(edit, edit.prompt) for edit in half])),
        "other wordings": rate(found([(edit, text) for edit in half for text in questions(edit, report)])),
        "same subject, other question: silent": rate([fact is None for fact in wrong]),
        "other subjects: silent": rate([fact is None for fact in elsewhere]),
        "wrongly in scope": sorted({text for (_, text), fact in zip(beside, wrong, strict=True) if fact})[:20]
        + sorted(text for text, fact in zip(far, elsewhere, strict=True) if fact)[:20],
    }


def outcome(name: str, pairs: list[tuple[Edit, str]], answers: Sequence[Any]) -> dict[str, Any]:
    """Tell how many answers hold, how many of them the model said itself, and what became of the others."""
    both = list(zip(pairs, answers, strict=True))
    held = [holds(edit, a.text) for (edit, _), a in both]
    return {
        name: rate(held),
        f"{name}, applied": rate([a.override is not None for a in answers]),
        f"{name}, where applied": rate([ok for ok, a in zip(held, answers, strict=True) if a.override]),
        f"{name}, said by the model": rate([ok and not a.written_out for ok, a in zip(held, answers, strict=True)]),
        f"{name}, where applied, said by the model": rate(
            [ok and not a.written_out for ok, a in zip(held, answers, strict=True) if a.override]
        ),
        f"{name}, failed": [
            (text, a.text, bool(a.override)) for ((_, text), a), ok in zip(both, held, strict=True) if not ok
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--half", choices=("choose", "report"), default="report")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--sample", type=int, default=30, help="edits that are answered; 0: scope alone")
    parser.add_argument("--skip", type=int, default=0, help="edits of the sample left out: those already looked at")
    parser.add_argument("--same", type=int, default=20, help="questions of each other kind whose tokens are compared")
    parser.add_argument("--steer", action="store_true", help="compare ways to steer towards a statement, and stop")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    report = given.half == "report"
    every = edits(given.data)
    half = [edit for edit in every if is_report(edit.subject) == report]
    away = [edit for edit in every if is_report(edit.subject) != report]
    facts = [{"subject": edit.subject, "prompt": edit.prompt, "answer": edit.new} for edit in half]
    embedder = Embedder("demo")
    store = Overrides(facts, embedder)
    start = time.process_time()
    result: dict[str, Any] = {"half": given.half, "edits": len(half), "near": store.near}
    result["scope"] = scope(store, half, away, report)
    wider = [{**f, "prompts": [questions(e, False)[0]]} for f, e in zip(facts, half, strict=True)]
    two = Overrides(wider, embedder)
    if report:
        result["scope, one wording more"] = scope(two, half, away, report)
    result["scope seconds"] = round(time.process_time() - start, 2)
    print(json.dumps(result, indent=1), flush=True)
    sample = sorted(half, key=lambda edit: order(edit.subject))[given.skip :][: given.sample]
    model, tokenizer = ck.load(given.model)
    if given.steer:
        close = {"candidates": 2, "candidate_ratio": 0.1}
        ways = (
            ck.Control(alpha=0.0),
            ck.Control("cad", cad_alpha=1.0, **close),
            ck.Control("cad", cad_alpha=0.5, **close),
        )
        for control in (*ways, ck.Control("cad", cad_alpha=1.0), ck.Control("off")):
            start = time.process_time()
            texts = [(edit, text) for edit in sample for text in (edit.prompt, questions(edit, report)[0])]
            told = [[f"{edit.prompt} {edit.new}."] for edit, _ in texts]
            answers: list[Any] = []
            for first in range(0, len(texts), BATCH):
                part = slice(first, first + BATCH)
                answers += ck.generate(
                    model,
                    tokenizer,
                    [text for _, text in texts[part]],
                    told[part],
                    control=control,
                    max_new_tokens=TOKENS,
                )
            held = [holds(edit, answer.text) for (edit, _), answer in zip(texts, answers, strict=True)]
            print(
                control,
                {"own prompt": rate(held[::2]), "other wording": rate(held[1::2])},
                time.process_time() - start,
                flush=True,
            )
            print([(text, a.text) for (_, text), a, ok in zip(texts, answers, held, strict=True) if not ok][:6])
        return
    if sample:
        lines = (Path(ck.__file__).parent / "demo" / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
        index = Index.build([Passage(f"p{n}", json.loads(line)["text"]) for n, line in enumerate(lines)], embedder)
        options = {"k": 1, "max_new_tokens": TOKENS, "trace": False}
        plain = ck.Rag(model, index, tokenizer=tokenizer, overrides=(), **options)
        edited = ck.Rag(model, index, tokenizer=tokenizer, overrides=store, **options)
        broad = ck.Rag(model, index, tokenizer=tokenizer, overrides=two, **options)
        result |= {"sample": len(sample), "skip": given.skip}
        start = time.process_time()
        for name, pairs in (
            ("own prompt", [(edit, edit.prompt) for edit in sample]),
            ("other wording", [(edit, questions(edit, report)[-1]) for edit in sample]),
        ):
            answers = asked(edited, [text for _, text in pairs])
            result |= outcome(name, pairs, answers)
            print(json.dumps({key: value for key, value in result.items() if key.startswith(name)}, indent=1))
        # what only the further wording finds; the statement is the same, so the others are answered as before
        more = [n for n, (_, text) in enumerate(pairs) if not answers[n].override and two.find([text])[0]]
        for place, answer in zip(more, asked(broad, [pairs[n][1] for n in more]) if more else (), strict=True):
            answers[place] = answer
        result |= outcome("other wording, one wording more", pairs, answers)
        near = [others(edit, report)[place % 4] for place, edit in enumerate(sample)]
        near = near[: given.same]
        far = [questions(edit, report)[0] for edit in sorted(away, key=lambda edit: order(edit.subject))[: given.same]]
        both = zip(asked(edited, near + far), asked(plain, near + far), strict=True)
        same = [one.answer.token_ids == other.answer.token_ids and one.override is None for one, other in both]
        result["other questions: same tokens"] = rate(same[: len(near)])
        result["other subjects: same tokens"] = rate(same[len(near) :])
        result["answer seconds"] = round(time.process_time() - start, 1)
    print(json.dumps(result, indent=1, ensure_ascii=False))
    if given.json:
        given.json.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
