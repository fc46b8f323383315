"""What the dial's rules are chosen by: every draft of every question, once, with what each prompt makes of it.

    python benchmarks/dial_drafts.py --model demo --data FOLDER --half develop --out drafts/demo.jsonl

Asked are facts, TriState locations (screened: three wordings, greedy), counterfact, nq_swap (both passages), ramdocs
and the questions of desk_questions.py. What stands in the file is not asked again, so a run that was stopped goes on.
One JSON line per question: the record, whether the model knows it, and per draft its text and, token by token, the
log-probability with the passages (ctx), without (par), and, if asked for, with them alone (told).
dial_rules.py compares rules on these files in seconds. Nothing of the data is committed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from desk_questions import desk

import ckcontrol as ck
from ckcontrol.decoding.prompts import PromptTemplate, build_pair
from ckcontrol.eval.items.states import rank
from ckcontrol.eval.judging.measures import measure
from ckcontrol.eval.records import Record
from ckcontrol.eval.running.prompt_styles import Wording, raw
from ckcontrol.eval.tasks.load import load_task, sample
from ckcontrol.policies import CAD, AnswerPolicy, Evidence, Policy, register
from ckcontrol.policies.off import UNMODIFIED

NEW_TOKENS = 24
BATCH = 24
LIMITS = {"facts": 70, "desk": 200, "tristate": 100, "counterfact": 50, "nq_swap": 24, "ramdocs": 12}


@register
@dataclass(frozen=True)
class Recording(AnswerPolicy):
    """The three drafts of a question; what was found out about them goes to `seen`."""

    name: ClassVar[str] = "recording"
    seen: ClassVar[list[list[Evidence]]] = []

    @property
    def drafts(self) -> Mapping[str, Policy]:
        return {"unmodified": UNMODIFIED, "memory": CAD(cad_alpha=-1.0), "context": CAD(cad_alpha=0.5)}

    def choose(self, drafts: Sequence[Evidence]) -> int:
        self.seen.append(list(drafts))
        return 0

    def weigh(self, logp_ctx: Sequence[float], logp_par: Sequence[float]) -> float:
        return sum(logp_ctx)


def half(name: str) -> str:
    """Return which half of the data an id belongs to; as in dial_figures.py."""
    return "report" if int(hashlib.sha256(name.encode()).hexdigest(), 16) % 2 else "develop"


class Model:
    """A model that answers records, in batches of similar length."""

    def __init__(self, name: str, cloze: bool, told: bool) -> None:
        self.model, self.tokenizer = ck.load(name)
        self.wording, self.cloze, self.told = Wording("auto", self.tokenizer), cloze, told

    def template(self, record: Record) -> PromptTemplate:
        return raw(record) if record.cloze else self.wording.templates["base"]

    def batches(self, records: Sequence[Record], size: int) -> Iterator[list[Record]]:
        for cloze in (False, True):
            some = sorted((r for r in records if r.cloze == cloze), key=lambda r: len(r.context + r.question))
            yield from (some[i : i + size] for i in range(0, len(some), size))

    def closed(self, records: Sequence[Record]) -> dict[str, bool]:
        """Return whether each question is answered rightly without passages, greedily."""
        found = {}
        for batch in self.batches(records, 24):
            answers = ck.generate(
                self.model,
                self.tokenizer,
                [r.question for r in batch],
                template=self.template(batch[0]),
                control=ck.Control("off"),
                max_new_tokens=NEW_TOKENS,
                trace=False,
            )
            for record, answer in zip(batch, answers, strict=True):
                found[record.id] = measure(record, {"text": answer.text})["accuracy"][0] == 1
        return found

    def drafts(self, batch: Sequence[Record]) -> list[dict[str, Any]]:
        """Return one row per record."""
        Recording.seen.clear()
        answers = ck.generate(
            self.model,
            self.tokenizer,
            [r.question for r in batch],
            [list(r.passages) for r in batch],
            template=self.template(batch[0]),
            control=ck.Control("recording"),
            max_new_tokens=NEW_TOKENS,
        )
        rows, jobs = [], []
        for record, answer, seen in zip(batch, answers, Recording.seen, strict=True):
            told = self.without_question(record)
            row: dict[str, Any] = {"record": record.to_dict(), "drafts": {}}
            for draft, found in zip(answer.drafts, seen, strict=True):
                kept: dict[str, Any] = {"text": draft.text, "n": len(draft.token_ids)}
                kept |= {"ctx": found.logp_ctx, "par": found.logp_par, "h_ctx": found.h_ctx, "h_par": found.h_par}
                kept |= {"rank": found.rank_par, "best": found.best_par, "ended": answer.finish_reason}
                kept["judged"] = {k: v[0] for k, v in measure(record, {"text": draft.text}).items()}
                row["drafts"][draft.name] = kept
                jobs.append((kept, told, draft.token_ids))
            rows.append(row)
        if self.told:
            self.score(jobs)
        return rows

    def without_question(self, record: Record) -> list[int]:
        """Return the ids of the passages alone, in the frame of the record's prompt."""
        template, question = self.template(record), record.question
        one, other = (
            build_pair(self.tokenizer, q, record.passages, template=template) for q in (question, "9@" + question[::-1])
        )
        same = 0
        while same < len(one.parametric) and one.parametric[-1 - same] == other.parametric[-1 - same]:
            same += 1
        tail = one.contextual[len(one.contextual) - same :] if not record.cloze else ()
        return [*one.contextual[: one.span[1]], *tail]

    @torch.no_grad()
    def score(self, jobs: list[tuple[dict[str, Any], list[int], Sequence[int]]]) -> None:
        """Write the log-probability of each draft's tokens after a prompt into its row."""
        unique: dict[tuple[tuple[int, ...], tuple[int, ...]], list[dict[str, Any]]] = {}
        for kept, prompt, ids in jobs:
            unique.setdefault((tuple(prompt), tuple(ids)), []).append(kept)
        order = sorted(unique, key=lambda k: len(k[0]) + len(k[1]))
        for at in range(0, len(order), 24):
            part = order[at : at + 24]
            longest = max(len(p) + len(y) for p, y in part)
            ids = torch.zeros(len(part), longest, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for i, (p, y) in enumerate(part):
                ids[i, : len(p) + len(y)] = torch.tensor([*p, *y])
                mask[i, : len(p) + len(y)] = 1
            hidden = self.model.get_decoder()(input_ids=ids, attention_mask=mask).last_hidden_state
            for i, (p, y) in enumerate(part):
                logits = self.model.lm_head(hidden[i, len(p) - 1 : len(p) + len(y) - 1]).float()
                logp = logits.log_softmax(-1).gather(-1, torch.tensor(y)[:, None])[:, 0].tolist()
                for kept in unique[p, y]:
                    kept["told"] = logp


def tristate(path: Path, model: Model, limit: int, side: str) -> list[Record]:
    """Return location facts that the model clearly knows (their passage is wrong) or does not (it is right)."""
    facts = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    facts = [f for f in facts if half(f["fact_id"]) == side and len(f["questions"]) == 3]
    facts = sorted(facts, key=lambda f: rank(0, f["fact_id"]))[:limit]
    asked = [
        Record(f"{f['fact_id']}#{i}", q, par_answers=(f["answer"], *f["aliases"]), state="closed", group=f["fact_id"])
        for f in facts
        for i, q in enumerate(f["questions"])
    ]
    right = model.closed(asked)
    countries = sorted({f["answer"] for f in facts})
    made = []
    for f in facts:
        said = {right[f"{f['fact_id']}#{i}"] for i in range(3)}
        if len(said) > 1:
            continue
        known, answers = said.pop(), (f["answer"], *f["aliases"])
        others = [c for c in countries if c not in answers and c not in f["questions"][0]]
        false = min(others, key=lambda c: rank(0, f["fact_id"], c))
        for state in ("conflict", "agree") if known else ("helpful",):
            stated = false if state == "conflict" else f["answer"]
            made.append(
                Record(
                    f"{f['fact_id']}/{state}",
                    f["questions"][0],
                    (f"{f['questions'][1]} It is {stated}.",),
                    (false,) if state == "conflict" else answers,
                    answers,
                    state,
                    f["fact_id"],
                    meta={"known": known},
                )
            )
    return made


def facts(model: Model, limit: int, side: str) -> list[Record]:
    """Return shipped facts: in four states where the model knows them, with a true passage where it does not."""
    every = load_task("facts?states=all" + ("&cloze=1" if model.cloze else ""))
    probes = [fact.asked(model.cloze) for fact in every.facts if half(fact.id) == side]
    probes = sample([replace(p, group=p.id.split("/")[0]) for p in probes], limit)
    known = model.closed(probes)
    kept = []
    for record in every.records:
        knows = known.get(record.meta["fact"])
        if knows is not None and (record.state == "helpful") != knows:
            kept.append(replace(record, group=record.meta["fact"], meta={**record.meta, "known": knows}))
    return kept


def short(task: str, data: Path, limit: int, side: str) -> list[Record]:
    """Return the records of a data set whose passages are short, in a seeded order."""
    some = [r for r in load_task(f"{task}={data / task}").records if half(r.id) == side]
    some = [r for r in some if max(len(r.context), len(r.meta.get("org_context", ""))) < 700]
    return sorted(some, key=lambda r: rank(0, r.id))[:limit]


def both_passages(records: Sequence[Record], known: Mapping[str, bool]) -> Iterator[Record]:
    """Yield each nq_swap question with its true passage and, where it is known, with the swapped one."""
    for r in records:
        meta = {"known": known[r.id]}
        true = {"passages": (r.meta["org_context"],), "ctx_answers": r.par_answers, "meta": meta}
        yield replace(r, id=f"{r.id}/true", state="agree" if known[r.id] else "helpful", **true)
        if known[r.id]:
            yield replace(r, meta=meta)


def records(model: Model, data: Path, side: str, limits: Mapping[str, int]) -> Iterator[tuple[str, list[Record]]]:
    """Yield the records of every task, screened for this model."""
    for task, limit in limits.items():
        if task == "facts":
            yield task, facts(model, limit, side)
        elif task == "desk":
            yield task, [r for r in desk() if half(r.group) == side][: 2 * limit]
        elif task == "tristate":
            yield task, tristate(data / "tristate" / "facts_location.jsonl", model, limit, side)
        else:
            some = short(task, data, limit, side)
            known = model.closed([replace(r, passages=(), state="closed") for r in some])
            if task == "nq_swap":
                yield task, list(both_passages(some, known))
            else:
                yield task, [replace(r, meta={**r.meta, "known": known[r.id]}) for r in some]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--half", choices=["develop", "report"], default="develop")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cloze", action="store_true", help="facts as texts to complete, for a base model")
    parser.add_argument("--told", action="store_true", help="score drafts without the question: twice the time")
    parser.add_argument("--tasks", nargs="+", default=[], metavar="NAME=N", help=f"instead of {LIMITS}")
    args = parser.parse_args()
    limits = {name: int(n) for name, _, n in (task.partition("=") for task in args.tasks)} or LIMITS
    began, model = time.perf_counter(), Model(args.model, args.cloze, args.told)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    written = args.out.read_text(encoding="utf-8").splitlines() if args.out.exists() else []
    done = {json.loads(line)["record"]["id"] for line in written}
    with args.out.open("a", encoding="utf-8") as file:
        for task, made in records(model, args.data, args.half, limits):
            for batch in model.batches([r for r in made if r.id not in done], BATCH):
                for row in model.drafts(batch):
                    row |= {"task": task, "model": Path(args.model).name}
                    file.write(json.dumps(row, ensure_ascii=False, default=list) + "\n")
                file.flush()
            known = sum(bool(r.meta.get("known")) for r in made)
            told = f"{task}: {len(made)} records, {known} known, {time.perf_counter() - began:.0f} s"
            print(told, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
