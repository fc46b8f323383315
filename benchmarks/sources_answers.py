"""Whole answers weighed across sources, against what people do instead: the figures of docs/research/sources.md.

    python benchmarks/sources_answers.py run --model demo --half develop --data FOLDER --out drafts/demo.jsonl
    python benchmarks/sources_answers.py report drafts/demo.jsonl [--json FILE]

Asked are RAMDocs (FOLDER/ramdocs; questions with two to five documents, one of them wrong), the shipped facts with a
true and a false passage (noisy), and four_passages.py. Passages stand in the order of `canonical`, because RAMDocs' own
puts right ones first. `run` writes, per question, the draft of every source and what each source makes of each; what
stands in the file is not asked again, so a run that was stopped goes on. `report` needs no model: every rule chooses
among the same drafts. Halves go by the SHA-256 of the id. Nothing of the data is committed.

Arms: plain (all passages in one prompt), closed book, dial on those two (adaptive), TrustMargin, the majority of the
answers to single passages (memory's where there is none; ties go to the first passage), and ours.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from four_passages import four_passages, half

import ckcontrol as ck
from ckcontrol.decoding.inputs import stream_of
from ckcontrol.decoding.options import GenerateOptions
from ckcontrol.decoding.refusals import check_tokenizer, eos_ids
from ckcontrol.decoding.source_drafts import canonical, through, writing
from ckcontrol.decoding.source_streams import SourceStreams
from ckcontrol.decoding.sources import build_sources
from ckcontrol.eval.items.states import rank
from ckcontrol.eval.judging.measures import measure
from ckcontrol.eval.records import Record
from ckcontrol.eval.running.prompt_styles import Wording
from ckcontrol.eval.tasks.load import load_task
from ckcontrol.policies import Evidence, SourceDraft, first_sentence, read_drafts, surprise, weigh
from ckcontrol.policies.source_answers import merged

NEW_TOKENS = 16
DRAWS = 4000
TASKS = ("facts", "four", "ramdocs")


def records(task: str, data: Path | None, side: str, limit: int) -> list[Record]:
    """Return the questions of one set and half, in a seeded order."""
    if task == "four":
        some = list(four_passages())
    elif task == "facts":
        some = list(load_task("facts?states=noisy").records)
    else:
        every = load_task(f"ramdocs={data / 'ramdocs' if data else ''}").records
        some = [record for record in every if 2 <= len(record.passages) <= 5 and record.ctx_answers]
    return sorted((r for r in some if half(r.id) == side), key=lambda r: rank(0, r.id))[:limit]


@torch.no_grad()
def run(given: argparse.Namespace) -> None:
    """Ask; one JSON line per question, the sets in turn."""
    torch.set_num_threads(1)
    lists = [[(task, r) for r in records(task, given.data, given.half, n)] for task, n in given.tasks.items()]
    asked = [pair for place in range(max(map(len, lists))) for some in lists for pair in some[place : place + 1]]
    done = set()
    if given.out.exists():
        done = {json.loads(line)["record"]["id"] for line in given.out.read_text(encoding="utf-8").splitlines()}
    model, tokenizer = ck.load(given.model, dtype=given.dtype)
    template = Wording("auto", tokenizer).templates["base"]
    ends, known = sorted(eos_ids(model, tokenizer)), check_tokenizer(model, tokenizer)
    options, pad = GenerateOptions(max_new_tokens=NEW_TOKENS), tokenizer.pad_token_id or 0
    began = time.process_time()
    for task, record in asked:
        if record.id in done:
            continue
        passages = [record.passages[place] for place in canonical(record.passages)]
        prompts = build_sources(tokenizer, record.question, passages, template=template)
        (found,) = through(writing(model, tokenizer, [prompts], options, ends=ends, vocab_size=known))
        alone = SourceStreams(
            [stream_of(model, [prompts.pair.alone], pad)], reserve=1, share=False, keep=True, vocab_size=known
        )
        alone.prefill()
        told = alone.score(0, [found.ids[-1], found.ids[0]])[0]
        alone.leave()
        row = {
            "task": task,
            "record": record.to_dict(),
            "passages": passages,
            "texts": found.texts,
            "lengths": [len(ids) for ids in found.ids],
            "logp": [[[round(v, 4) for v in reading.logp] for reading in each] for each in found.readings],
            "alone": [[round(v, 4) for v in reading.logp] for reading in told],
            "judged": [{k: v[0] for k, v in measure(record, {"text": text}).items()} for text in found.texts],
        }
        with given.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        print(f"{record.id}: {time.process_time() - began:.0f} s of CPU", file=sys.stderr, flush=True)


class Question:
    """One question, its sources and their drafts."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        self.task, self.record, self.texts, self.passages = row["task"], row["record"], row["texts"], row["passages"]
        self.question, self.judged = self.record["question"], row["judged"]
        logp, lengths = row["logp"], row["lengths"]
        read = [(), *((passage,) for passage in self.passages), tuple(self.passages)]
        self.sources = [
            SourceDraft(
                text,
                [surprise(each) for each in logp[place]],
                surprise(logp[place][place][: first_sentence(text, lengths[place])]),
                read[place],
            )
            for place, text in enumerate(self.texts)
        ]
        none: Sequence[Any] = ()
        pair = [
            Evidence(logp[-1][place], logp[0][place], none, none, none, none, logp_alone=row["alone"][i])
            for i, place in enumerate((-1, 0))
        ]
        texts = [self.texts[-1], self.texts[0]]
        self.pair = read_drafts(pair, ["unmodified", "memory"], texts, self.question, self.passages)

    def choices(self) -> Iterator[tuple[str, int]]:
        """Yield each arm with the place of the draft that it gives."""
        last = len(self.texts) - 1
        yield "plain", last
        yield "closed book", 0
        for name, control in {
            "dial adaptive": ck.Control(adaptive=True),
            "trustmargin": ck.Control("trustmargin"),
        }.items():
            yield name, (last, 0)[control.policy().choose(self.pair)]  # type: ignore[attr-defined]
        answers = merged(self.texts, self.question)[1:-1]
        most = max(Counter(answers).values())
        yield "majority", next(1 + i for i, a in enumerate(answers) if Counter(answers)[a] == most)
        for name, control in OURS.items():
            yield name, weigh(self.sources, self.question, control.policy()).given  # type: ignore[arg-type]


PAIRS = {"dial adaptive": ck.Control(adaptive=True), "trustmargin": ck.Control("trustmargin")}
OURS = {"ours adaptive": ck.Control(adaptive=True)} | {f"ours {a:g}": ck.Control(alpha=a) for a in (0, 0.25, 0.4, 0.7)}


def cell(values: np.ndarray, against: np.ndarray) -> dict[str, float]:
    """Return a rate and its difference to another arm's, in points, paired, with 95 % of a bootstrap."""
    picks = np.random.default_rng(0).integers(0, len(values), (DRAWS, len(values)))
    low, high = np.quantile(100 * (values - against)[picks].mean(axis=1), [0.025, 0.975])
    rate, difference = 100 * values.mean(), 100 * (values - against).mean()
    return {
        key: round(float(v), 1)
        for key, v in zip(("rate", "minus", "low", "high"), (rate, difference, low, high), strict=True)
    }


def stances(questions: Sequence[Question]) -> dict[str, Counter[str]]:
    """Return what is told of the answers from each kind of passage of `four_passages.py`, adaptively."""
    told: dict[str, Counter[str]] = {}
    for question in questions:
        record = Record.from_dict(question.record)
        found = weigh(question.sources, question.question, ck.Control(adaptive=True).policy()).stances[1:-1]  # type: ignore[arg-type]
        for kind, passage in zip(record.meta["types"], record.passages, strict=True):
            told.setdefault(kind, Counter())[found[question.passages.index(passage)]] += 1
    return told


def report(given: argparse.Namespace) -> None:
    """Print the table of every file, and write the figures."""
    figures: dict[str, Any] = {}
    for path in given.drafts:
        questions = [Question(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
        sets = {task: [q for q in questions if q.task == task] for task in TASKS}
        sets["facts, known"] = [q for q in sets["facts"] if q.judged[0]["accuracy"]]
        for name, some in sets.items():
            if not some:
                continue
            right: dict[str, list[float]] = {}
            for question in some:
                for arm, place in question.choices():
                    right.setdefault(arm, []).append(question.judged[place]["accuracy"])
            arms = {arm: np.array(values) for arm, values in right.items()}
            some_arms = {arm: cell(v, arms["plain"]) for arm, v in arms.items()}
            dial = {arm: cell(v, arms["dial adaptive"]) for arm, v in arms.items() if arm.startswith("ours")}
            figures.setdefault(path.stem, {})[name] = {"n": len(some), "minus plain": some_arms, "minus dial": dial}
            print(f"\n{path.stem}, {name}, n = {len(some)}: a right one named first, %; minus plain; minus dial")
            for arm, told in sorted(some_arms.items(), key=lambda pair: pair[1]["rate"]):
                line = (
                    f"  {arm:14} {told['rate']:5.1f}  {told['minus']:+6.1f} [{told['low']:+.1f}, {told['high']:+.1f}]"
                )
                if arm in dial:
                    line += f"  {dial[arm]['minus']:+6.1f} [{dial[arm]['low']:+.1f}, {dial[arm]['high']:+.1f}]"
                print(line)
            if name == "four":
                print("  what is told of the answers from each kind of passage, adaptive")
                for kind, counts in sorted(stances(some).items()):
                    print(f"  {kind:14} {', '.join(f'{n} {stance}' for stance, n in counts.most_common())}")
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    asking = commands.add_parser("run")
    asking.add_argument("--model", default="demo")
    asking.add_argument("--dtype", default="float32", help="of the weights; what is made of the logits is float32")
    asking.add_argument("--data", type=Path)
    asking.add_argument("--half", choices=["develop", "report"], default="develop")
    asking.add_argument(
        "--tasks", type=_sizes, default={"facts": 60, "four": 40, "ramdocs": 60}, help="facts=60,four=40"
    )
    asking.add_argument("--out", type=Path, required=True)
    asking.set_defaults(act=run)
    telling = commands.add_parser("report")
    telling.add_argument("drafts", type=Path, nargs="+")
    telling.add_argument("--json", type=Path)
    telling.set_defaults(act=report)
    given = parser.parse_args()
    given.act(given)


def _sizes(text: str) -> dict[str, int]:
    return {name: int(size) for name, _, size in (part.partition("=") for part in text.split(","))}


if __name__ == "__main__":
    main()
