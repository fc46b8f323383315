"""Does a citation name the passage that a sentence rests on? Precision and recall where the support is known.

Questions and kinds are those of citation_questions.py.

Arms: ``words`` (`ckcontrol.citations.cite`); ``embedding``, cosine of sentence and passage by the demo embedder; and
``likelihood``, by how much the log-probability of a sentence falls per token when the passage is taken out of the demo
model's prompt, one forward each, on the first ``--likelihood N`` questions: by a threshold fixed beforehand (`FALL`)
and by the one that is best on these very questions, which no user could know; ``words`` on the same ones beside it.
The threshold of ``embedding`` is that of the best F1 on 65 questions of the next seed. Beside them ``cite all`` and
``cite the top hit``, the passage nearest the question by the embedder. Counted are pairs of sentence and passage;
intervals of 95 % draw questions.

    OMP_NUM_THREADS=1 python benchmarks/citations.py --likelihood 60 --json benchmarks/results/citations.json
    OMP_NUM_THREADS=1 python benchmarks/citations.py --no-models       # words and `cite all` alone: a second
    python benchmarks/citations.py --runs runs/a runs/b                # answers of models that were recorded
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from citation_questions import KINDS, Question, generated

import ckcontrol as ck
from ckcontrol.citations import cite
from ckcontrol.eval.figures.intervals import estimate
from ckcontrol.eval.metrics import mentions
from ckcontrol.eval.run_files import items, samples

Cited = list[tuple[int, ...]]


FALL = 0.1  # nats per token by which a sentence that a passage supports falls without it


# --- arms: what each cites, sentence by sentence ---------------------------------------------------------------------


def by_words(asked: Sequence[Question]) -> list[Cited]:
    made = [cite(one.text, one.passages, one.question) for one in asked]
    for one, sentences in zip(asked, made, strict=True):
        if [s.text for s in sentences] != list(one.answer):
            raise SystemExit(f"{one.text!r} was cut into {[s.text for s in sentences]}.")
    return [[s.passages for s in sentences] for sentences in made]


def thresholded(scores: list[list[tuple[float, ...]]], threshold: float) -> list[Cited]:
    return [[tuple(p for p, s in enumerate(row) if s >= threshold) for row in rows] for rows in scores]


def best_threshold(asked: Sequence[Question], scores: list[list[tuple[float, ...]]]) -> float:
    every = sorted({s for rows in scores for row in rows for s in row})
    return max(every, key=lambda t: f1(asked, thresholded(scores, t)))


def embedded(embedder: Any, asked: Sequence[Question]) -> tuple[list[list[tuple[float, ...]]], list[int]]:
    """Return cosines of sentences and passages, and the passage nearest each question."""
    scores, tops = [], []
    for one in asked:
        vectors = embedder.encode([*one.passages, *one.answer, one.question])
        close = vectors @ vectors[:2].T
        scores.append([tuple(map(float, row)) for row in close[2:-1]])
        tops.append(int(close[-1].argmax()))
    return scores, tops


def likelihoods(model: Any, tokenizer: Any, asked: Sequence[Question]) -> list[list[tuple[float, ...]]]:
    """Return by how much each sentence's log-probability per token falls without each passage, in nats."""
    import torch

    def told(one: Question, passages: Sequence[str]) -> list[float]:
        pair = ck.build_pair(tokenizer, one.question, passages)
        parts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (*map(str, spaced(one)),)]
        ids = [*pair.contextual, *(token for part in parts for token in part)]
        with torch.inference_mode():
            logits = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        start, sums = len(pair.contextual), []
        for part in parts:
            places = range(start, start + len(part))
            sums.append(sum(float(logits[place - 1, ids[place]]) for place in places) / max(len(part), 1))
            start += len(part)
        return sums

    found = []
    for one in asked:
        both = told(one, one.passages)
        without = [told(one, one.passages[1:]), told(one, one.passages[:1])]
        found.append([tuple(b - w[i] for w in without) for i, b in enumerate(both)])
    return found


def spaced(one: Question) -> Iterator[str]:
    for place, sentence in enumerate(one.answer):
        yield f" {sentence}" if place and one.kind != "unspaced" else sentence


# --- figures ---------------------------------------------------------------------------------------------------------


def counts(asked: Sequence[Question], cited: Sequence[Cited]) -> list[tuple[int, int, int]]:
    """Return for each question: pairs rightly cited, pairs cited, pairs that support."""
    rows = []
    for one, made in zip(asked, cited, strict=True):
        right = sum(len({*c} & {*s}) for c, s in zip(made, one.support, strict=True))
        rows.append((right, sum(map(len, made)), sum(map(len, one.support))))
    return rows


def f1(asked: Sequence[Question], cited: Sequence[Cited]) -> float:
    right, given, wanted = (sum(column) for column in zip(*counts(asked, cited), strict=True))
    return 2 * right / max(given + wanted, 1)


def measured(asked: Sequence[Question], cited: Sequence[Cited]) -> dict[str, Any]:
    right, given, wanted = zip(*counts(asked, cited), strict=True)
    groups = list(range(len(asked)))
    told: dict[str, Any] = {"f1": round(f1(asked, cited), 3)}
    for name, den in (("precision", given), ("recall", wanted)):
        if sum(den):
            found = estimate(right, groups, den)
            told[name] = [round(x, 3) for x in (found.value, found.low, found.high)]
    pairs = [(c, s) for made, one in zip(cited, asked, strict=True) for c, s in zip(made, one.support, strict=True)]
    told["exact"] = f"{sum({*c} == {*s} for c, s in pairs)}/{len(pairs)}"
    told["memory"] = f"{sum(not c for c, s in pairs if not s)}/{sum(not s for _, s in pairs)}"
    return told


def recorded(folder: Path) -> Counter[tuple[str, str, bool]]:
    """Count the answers of a run, recorded with one passage each, that give one source's answer and not the other's.

    Returns:
        State, whose answer, and whether `words` says so of the first sentence -> answers.
    """
    found: Counter[tuple[str, str, bool]] = Counter()
    asked = {item["id"]: item for item in items(folder)}
    for line in samples(folder):
        item = asked.get(line["id"], {})
        if not item.get("context") or not line.get("text"):
            continue
        state = item["meta"]["state"]
        says = [mentions(line["text"], item[names]) for names in ("ctx_answers", "par_answers")]
        if (state == "helpful" and says[0]) or (state == "conflict" and says == [True, False]):
            source = "passage"
        elif (state == "irrelevant" and says[1]) or (state == "conflict" and says == [False, True]):
            source = "memory"
        else:
            continue
        told = cite(line["text"], [item["context"]], item["question"])
        found[state, source, bool(told and told[0].passages) is (source == "passage")] += 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=320)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--likelihood", type=int, default=0, metavar="N", help="questions of that arm")
    parser.add_argument("--no-models", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--wrong", action="store_true", help="print what words cites wrongly")
    parser.add_argument("--runs", nargs="+", type=Path, default=[], help="only this: runs with one passage a record")
    args = parser.parse_args()
    for folder in args.runs:
        found = recorded(folder)
        for state, source in sorted({key[:2] for key in found}):
            right, wrong = found[state, source, True], found[state, source, False]
            print(f"{folder.name:12} {state:10} {source:7} {right} of {right + wrong}")
    if args.runs:
        return
    asked, other = generated(args.count, args.seed), generated(min(args.count, 65), args.seed + 1)
    start = time.process_time()
    arms: dict[str, list[Cited]] = {"words": by_words(asked)}
    seconds = {"words": time.process_time() - start}
    arms["cite all"] = [[(0, 1)] * len(one.answer) for one in asked]
    if not args.no_models:
        import torch

        from ckcontrol.retrieval import Embedder

        torch.set_num_threads(1)
        embedder = Embedder("demo")
        threshold = best_threshold(other, embedded(embedder, other)[0])
        start = time.process_time()
        scores, tops = embedded(embedder, asked)
        seconds["embedding"] = time.process_time() - start
        arms["embedding"] = thresholded(scores, threshold)
        arms["cite the top hit"] = [[(top,)] * len(one.answer) for top, one in zip(tops, asked, strict=True)]
    read = asked[: args.likelihood]
    if read:
        model, tokenizer = ck.load("demo")
        start = time.process_time()
        falls = likelihoods(model, tokenizer, read)
        arms["likelihood"] = thresholded(falls, FALL)
        arms["likelihood, best"] = thresholded(falls, best_threshold(read, falls))
        arms["words, the same"] = arms["words"][: len(read)]
        seconds["likelihood"] = (time.process_time() - start) * len(asked) / len(read)
    results = {name: measured(asked[: len(cited)], cited) for name, cited in arms.items()}
    for name, told in results.items():
        cost = f"{1000 * seconds[name] / len(asked):.2f} ms a question" if name in seconds else ""
        shown = " ".join(f"{key} {value}" for key, value in told.items())
        print(f"{name:17} {shown} {cost}")
    kinds = {}
    for kind in KINDS:
        kinds[kind] = {}
        for name, cited in arms.items():
            rows = [i for i, one in enumerate(asked[: len(cited)]) if one.kind == kind]
            if rows:
                kinds[kind][name] = measured([asked[i] for i in rows], [cited[i] for i in rows])["exact"]
        print(f"{kind:12}", "  ".join(f"{name} {exact}" for name, exact in kinds[kind].items()))
    if args.wrong:
        for one, made in zip(asked, arms["words"], strict=True):
            if [{*c} for c in made] != [{*c} for c in one.support]:
                print(one.kind, "|", one.question, "|", one.passages, "|", one.answer, "|", made, "not", one.support)
    if args.json:
        told = {"count": len(asked), "seed": args.seed, "arms": results, "exact by kind": kinds, "cpu s": seconds}
        args.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
