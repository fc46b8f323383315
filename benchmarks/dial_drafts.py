"""What the dial's rules are chosen by: every draft of every question, once, with what each prompt makes of it.

    python benchmarks/dial_drafts.py --model demo --data FOLDER --half develop --out drafts/demo.jsonl

Asked are facts, TriState locations (screened: three wordings, greedy), counterfact, nq_swap (both passages) and desk
questions, made here. One JSON line per question: the record, whether the model knows it, and per draft its text and,
token by token, the log-probability with the passages (ctx), without (par), and, if asked for, with them alone (told).
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

import ckcontrol as ck
from ckcontrol.decoding.prompts import PromptTemplate, build_pair
from ckcontrol.eval.items.states import rank
from ckcontrol.eval.judging.measures import measure
from ckcontrol.eval.records import Record
from ckcontrol.eval.running.prompt_styles import Wording, raw
from ckcontrol.eval.tasks.load import load_task, sample
from ckcontrol.policies import CAD, AnswerPolicy, Evidence, Policy, register
from ckcontrol.policies.off import UNMODIFIED

NEW_TOKENS = 20
LIMITS = {"facts": 70, "tristate": 100, "counterfact": 50, "nq_swap": 24, "desk": 50}
CITIES = "Lisbon Rotterdam Gdansk Porto Leeds Turin Ghent Malmo Graz Bilbao Cork Zadar Lyon Brno Bergen Padua Riga"
NAMES = "Ms Okafor,Mr Lindqvist,Ms Duarte,Mr Petrov,Ms Tanaka,Mr Haddad,Ms Novak,Mr Silva,Ms Brandt,Mr Osei"
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday"
DESK = [  # question, passage, the answer's part that must be there
    ("How are refunds handled?", "Refunds are handled by the {city} office within {n} days.", "{city}"),
    ("Where do parcels leave from?", "Parcels leave from the {city} warehouse every {day}.", "{city}"),
    ("Who looks after new customers?", "New customers are looked after by {name}.", "{name}"),
    ("What does the basic plan cost?", "The basic plan costs {n} euros a month.", "{n}"),
    ("When is the archive open?", "The archive is open every {day} until noon.", "{day}"),
    ("How is a lost badge replaced?", "A lost badge is replaced at desk {n} in the main hall.", "{n}"),
    ("Who maintains the printers?", "The printers are maintained by {name} on the second floor.", "{name}"),
    ("Where are the backups kept?", "The backups are kept in {city} for six months.", "{city}"),
    ("How is overtime paid?", "Overtime is paid at {n} percent of the hourly rate.", "{n}"),
    ("What happens to damaged goods?", "Damaged goods are inspected by {name} in {city}.", "{name}"),
]


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


def desk() -> list[Record]:
    """Return 200 questions of an office with the true passage, and the same with one more that is beside the point.

    The answers are invented, so no model knows them.
    """

    def told(topic: int, turn: int) -> tuple[str, str]:
        def pick(words: list[str], salt: str) -> str:
            return words[int(rank(0, salt, str(topic), str(turn)), 16) % len(words)]

        filled = {
            "city": pick(CITIES.split(), "city"),
            "name": pick(NAMES.split(","), "name"),
            "day": pick(DAYS.split(), "day"),
            "n": pick([str(n) for n in range(11, 99)], "n"),
        }
        return DESK[topic][1].format(**filled), DESK[topic][2].format(**filled)

    made = []
    for turn in range(20):
        for topic, (question, _, _) in enumerate(DESK):
            passage, answer = told(topic, turn)
            beside, other = told((topic + 1 + turn % (len(DESK) - 1)) % len(DESK), turn + 100)
            name = f"desk-{topic}-{turn}"
            both = (passage, beside) if int(rank(0, name), 16) % 2 else (beside, passage)
            fields = {"par_answers": (answer,), "state": "helpful", "group": name, "meta": {"known": False}}
            made.append(Record(f"{name}/one", question, (passage,), **fields))
            made.append(Record(f"{name}/two", question, both, (other,), **(fields | {"state": "plain"})))
    return made


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


def records(model: Model, data: Path, side: str, scale: float) -> Iterator[tuple[str, list[Record]]]:
    """Yield the records of every task, screened for this model."""
    limits = {task: max(2, round(n * scale)) for task, n in LIMITS.items()}
    every = load_task("facts?states=all" + ("&cloze=1" if model.cloze else ""))
    probes = [fact.asked(model.cloze) for fact in every.facts if half(fact.id) == side]
    probes = sample([replace(p, group=p.id.split("/")[0]) for p in probes], limits["facts"])
    known = model.closed(probes)
    kept = []
    for record in every.records:
        knows = known.get(record.meta["fact"])
        if knows is not None and (record.state == "helpful") != knows:
            kept.append(replace(record, group=record.meta["fact"], meta={**record.meta, "known": knows}))
    yield "facts", kept
    yield "desk", [r for r in desk() if half(r.group) == side][: 2 * limits["desk"]]
    yield "tristate", tristate(data / "tristate" / "facts_location.jsonl", model, limits["tristate"], side)
    some = [r for r in load_task(f"counterfact={data / 'counterfact'}").records if half(r.id) == side]
    some = sorted(some, key=lambda r: rank(0, r.id))[: limits["counterfact"]]
    known = model.closed([replace(r, passages=(), state="closed") for r in some])
    yield "counterfact", [replace(r, meta={**r.meta, "known": known[r.id]}) for r in some]
    some = [r for r in load_task(f"nq_swap={data / 'nq_swap'}").records if half(r.id) == side]
    some = [r for r in some if len(r.passages[0]) < 700 and len(r.meta["org_context"]) < 700]
    some = sorted(some, key=lambda r: rank(0, r.id))[: limits["nq_swap"]]
    known = model.closed([replace(r, passages=(), state="closed") for r in some])
    made = []
    for r in some:
        meta = {"known": known[r.id]}
        true = {"passages": (r.meta["org_context"],), "ctx_answers": r.par_answers, "meta": meta}
        made.append(replace(r, id=f"{r.id}/true", state="agree" if known[r.id] else "helpful", **true))
        if known[r.id]:
            made.append(replace(r, meta=meta))
    yield "nq_swap", made


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--half", choices=["develop", "report"], default="develop")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cloze", action="store_true", help="facts as texts to complete, for a base model")
    parser.add_argument("--told", action="store_true", help="score drafts without the question: twice the time")
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of questions")
    args = parser.parse_args()
    began, model = time.perf_counter(), Model(args.model, args.cloze, args.told)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w", encoding="utf-8") as file:
        for task, made in records(model, args.data, args.half, args.scale):
            for batch in model.batches(made, 6):
                for row in model.drafts(batch):
                    row |= {"task": task, "model": Path(args.model).name}
                    file.write(json.dumps(row, ensure_ascii=False, default=list) + "\n")
                file.flush()
            known = sum(bool(r.meta.get("known")) for r in made)
            told = f"{task}: {len(made)} records, {known} known, {time.perf_counter() - began:.0f} s"
            print(told, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
