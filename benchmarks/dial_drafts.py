"""What the dial's rules are chosen by: every draft of every question, once, with what each prompt makes of it.

    python benchmarks/dial_drafts.py --model demo --data FOLDER --half develop --out drafts/demo.jsonl

Asked are facts, TriState locations (screened: three wordings, greedy), counterfact, nq_swap (both passages), ramdocs
and the questions of desk_questions.py. What stands in the file is not asked again, so a run that was stopped goes on.
One JSON line per question: the record, whether the model knows it, and per draft its text and, token by token, the
log-probability with the passages (ctx) and without (par); with --peers also what other methods answer, decoded in the
same pass. A task may be named several times, with more questions each time: then a run that is stopped holds the first
questions of the seeded order. --familiar adds to every line of a finished file how likely the model finds the names of
its question (a stand-in for how popular they are, which no data set here says).
dial_rules.py compares rules on these files in seconds. Nothing of the data is committed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from desk_questions import desk

import ckcontrol as ck
from ckcontrol.decoding.options import GenerateOptions
from ckcontrol.decoding.prompts import PromptTemplate, build_pair
from ckcontrol.decoding.refusals import eos_ids
from ckcontrol.eval.items.states import rank
from ckcontrol.eval.judging.measures import measure
from ckcontrol.eval.records import Record
from ckcontrol.eval.running.fan import FanAnswer, fan
from ckcontrol.eval.running.prompt_styles import Wording, raw
from ckcontrol.eval.tasks.load import load_task, sample
from ckcontrol.policies import CAD, AnswerPolicy, Evidence, Policy, register
from ckcontrol.policies.off import UNMODIFIED

NEW_TOKENS = 24
BATCH = 24
PEERS = {
    **{f"ck-plug {alpha:g}": ck.Control("ck-plug", alpha=alpha) for alpha in (0.6, 0.75, 0.9)},
    "ck-plug adaptive": ck.Control("ck-plug", adaptive=True),
    **{name: ck.Control(name) for name in ("adacad", "coiecd", "nwcad", "grd", "trustmargin")},
}
LIMITS = {"facts": 70, "desk": 200, "tristate": 100, "counterfact": 50, "nq_swap": 24, "ramdocs": 12}
NAME = re.compile(r"(?<=\s)[A-Z\d][\w.'-]*")  # a word with a capital or a digit, but the first
LAST = re.compile(r"\w[\w.'-]*(?=\W*$)")
SHORT = {"ramdocs": 2000}  # characters of all passages together; half of them are longer


@register
@dataclass(frozen=True)
class Recording(AnswerPolicy):
    """The three drafts of a question, for both streams to read them."""

    name: ClassVar[str] = "recording"

    @property
    def drafts(self) -> Mapping[str, Policy]:
        return {"unmodified": UNMODIFIED, "memory": CAD(cad_alpha=-1.0), "context": CAD(cad_alpha=0.5)}

    def choose(self, drafts: Sequence[Evidence]) -> int:
        return 0

    def weigh(self, logp_ctx: Sequence[float], logp_par: Sequence[float]) -> float:
        return sum(logp_ctx)


def half(name: str) -> str:
    """Return which half of the data an id belongs to."""
    return "report" if int(hashlib.sha256(name.encode()).hexdigest(), 16) % 2 else "develop"


class Model:
    """A model that answers records, in batches of similar length."""

    def __init__(self, name: str, dtype: str, cloze: bool, peers: bool) -> None:
        self.model, self.tokenizer = ck.load(name, dtype=dtype)
        self.wording, self.cloze = Wording("auto", self.tokenizer), cloze
        self.peers = {peer: control.policy() for peer, control in PEERS.items()} if peers else {}
        self.said: dict[tuple[bool, str], str] = {}

    def template(self, record: Record) -> PromptTemplate:
        return raw(record) if record.cloze else self.wording.templates["base"]

    def batches(self, records: Sequence[Record], size: int) -> Iterator[list[Record]]:
        for cloze in (False, True):
            some = sorted((r for r in records if r.cloze == cloze), key=lambda r: len(r.context + r.question))
            yield from (some[i : i + size] for i in range(0, len(some), size))

    def closed(self, records: Sequence[Record]) -> dict[str, bool]:
        """Return whether each question is answered rightly without passages, greedily."""
        new = {(r.cloze, r.question): r for r in records if (r.cloze, r.question) not in self.said}
        for batch in self.batches(list(new.values()), BATCH):
            answers = ck.generate(
                self.model,
                self.tokenizer,
                [r.question for r in batch],
                template=self.template(batch[0]),
                control=ck.Control("off"),
                max_new_tokens=NEW_TOKENS,
                trace=False,
            )
            self.said |= {(r.cloze, r.question): a.text for r, a in zip(batch, answers, strict=True)}
        return {r.id: measure(r, {"text": self.said[r.cloze, r.question]})["accuracy"][0] == 1 for r in records}

    def drafts(self, batch: Sequence[Record]) -> list[dict[str, Any]]:
        """Return one row per record."""
        template, recording = self.template(batch[0]), Recording()
        made = fan(
            self.model,
            [build_pair(self.tokenizer, r.question, r.passages, template=template) for r in batch],
            [*recording.drafts.values(), recording, *self.peers.values()],
            options=GenerateOptions(max_new_tokens=NEW_TOKENS),
            ends=sorted(eos_ids(self.model, self.tokenizer)),
            pad=self.tokenizer.pad_token_id or 0,
            vocab_size=len(self.tokenizer),
            questions=[r.question for r in batch],
            read=self.read,
        )
        rows = []
        for record, answers in zip(batch, made, strict=True):
            row: dict[str, Any] = {"record": record.to_dict(), "drafts": {}, "peers": {}}
            for name, answer in zip(recording.drafts, answers, strict=False):
                columns = zip(("h_ctx", "h_par", "rank", "best"), zip(*answer.evidence, strict=True), strict=True)
                row["drafts"][name] = self.kept(record, answer) | dict(columns)
            for name, answer in zip(self.peers, answers[len(recording.drafts) + 1 :], strict=True):
                row["peers"][name] = self.kept(record, answer)
            rows.append(row)
        return rows

    def read(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    @torch.inference_mode()
    def familiar(self, question: str) -> float | None:
        """Return the log-probability of a question's names (or last word), nats, the question read as plain text."""
        names = [found.span() for found in NAME.finditer(question)]
        names = names or [found.span() for found in LAST.finditer(question)]
        read = self.tokenizer(question, return_offsets_mapping=True)
        ids = torch.tensor([[self.tokenizer.bos_token_id or self.tokenizer.eos_token_id, *read.input_ids]])
        logp = self.model(ids).logits[0, :-1].float().log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        of = [any(a < end and start < b for a, b in names) for start, end in read.offset_mapping]
        return float(logp[torch.tensor(of)].sum()) if any(of) else None

    def kept(self, record: Record, answer: FanAnswer) -> dict[str, Any]:
        """Return what is kept of an answer."""
        text = self.read(answer.ids)
        judged = {name: value[0] for name, value in measure(record, {"text": text}).items()}
        return {"text": text, "ctx": answer.logp_ctx, "par": answer.logp_par, "judged": judged}


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
    some = [r for r in some if max(len(r.context), len(r.meta.get("org_context", ""))) < SHORT.get(task, 700)]
    return sorted(some, key=lambda r: rank(0, r.id))[:limit]


def both_passages(records: Sequence[Record], known: Mapping[str, bool]) -> Iterator[Record]:
    """Yield each nq_swap question with its true passage and, where it is known, with the swapped one."""
    for r in records:
        meta = {"known": known[r.id]}
        true = {"passages": (r.meta["org_context"],), "ctx_answers": r.par_answers, "meta": meta}
        yield replace(r, id=f"{r.id}/true", state="agree" if known[r.id] else "helpful", **true)
        if known[r.id]:
            yield replace(r, meta=meta)


def records(
    model: Model, data: Path, side: str, limits: Iterable[tuple[str, int]]
) -> Iterator[tuple[str, list[Record]]]:
    """Yield the records of every task, screened for this model."""
    for task, limit in limits:
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
    parser.add_argument("--dtype", default="float32", help="of the weights; what is made of the logits is float32")
    parser.add_argument("--data", type=Path, help="needed but with --familiar")
    parser.add_argument("--half", choices=["develop", "report"], default="develop")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cloze", action="store_true", help="facts as texts to complete, for a base model")
    parser.add_argument("--peers", action="store_true", help="other methods on the same questions: twice the time")
    parser.add_argument("--familiar", action="store_true", help="add to the lines of --out, and ask nothing")
    parser.add_argument("--tasks", nargs="+", default=[], metavar="NAME=N", help=f"instead of {LIMITS}")
    args = parser.parse_args()
    if args.data is None and not args.familiar:
        parser.error("--data is needed")
    limits = [(name, int(n)) for name, _, n in (task.partition("=") for task in args.tasks)] or [*LIMITS.items()]
    began, model = time.process_time(), Model(args.model, args.dtype, args.cloze, args.peers)
    if args.familiar:
        rows = [json.loads(line) for line in args.out.read_text(encoding="utf-8").splitlines()]
        told = [json.dumps(r | {"familiar": model.familiar(r["record"]["question"])}, ensure_ascii=False) for r in rows]
        args.out.write_text("\n".join(told) + "\n", encoding="utf-8")
        return
    args.out.parent.mkdir(parents=True, exist_ok=True)
    written = args.out.read_text(encoding="utf-8").splitlines() if args.out.exists() else []
    done = {json.loads(line)["record"]["id"] for line in written}
    with args.out.open("a", encoding="utf-8") as file:
        for task, made in records(model, args.data, args.half, limits):
            new = [r for r in made if r.id not in done]
            done |= {r.id for r in new}
            for batch in model.batches(new, BATCH):
                for row in model.drafts(batch):
                    row |= {"task": task, "model": Path(args.model).name}
                    file.write(json.dumps(row, ensure_ascii=False, default=list) + "\n")
                file.flush()
            known = sum(bool(r.meta.get("known")) for r in made)
            told = f"{task}: {len(made)} records, {known} known, {time.process_time() - began:.0f} s of CPU"
            print(told, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
