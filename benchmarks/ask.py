"""The whole pipeline on a corpus of our own making: is the right passage found, and whom does the answer believe?

Written here, from the shipped capitals: five passages a country, about different things, as Markdown, HTML, text, JSONL
and CSV; a tenth of all passages is false, each naming another country's capital. ``ckcontrol index build`` indexes the
files. Asked, through `Rag`: the countries whose passage is false and as many whose passage is true. Printed: how often
the passage that answers is among the k found, and what the answers name at each alpha: memory's own closed-book answer,
the passage's claim, the truth, none of them, with 95 % Wilson intervals. (The rates of memory leave out questions whose
closed-book answer names no capital.) Before that, one question through ``ckcontrol ask`` in a process of its own.

    python benchmarks/ask.py                # demo model and embedder, everything
    python benchmarks/ask.py --limit 20 --json out.json
"""

from __future__ import annotations

import argparse
import csv
import html
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

import ckcontrol as ck
from ckcontrol.cli.main import main as ckcontrol_main
from ckcontrol.eval.items.shipped_facts import Capital, load_capitals
from ckcontrol.eval.metrics import mentions, wilson
from ckcontrol.retrieval import Index

ALPHAS = (0.0, 0.25, 0.5, 1.0)
FALSE_SHARE = 0.1
FORMATS = ("md", "txt", "html", "jsonl", "csv")
NAME = r"[A-Z][\w'’.-]*(?: (?:of |de )?[A-Z][\w'’-]*)*"

# About the country, saying nothing that is asked; some say "capital" to make the search work for its hits.
OTHERS = [
    "Buses to the capital of {place} leave the border twice a day. Seats can be booked a week ahead, and in winter the "
    "last one leaves before dark.",
    "A small museum of postal history shows every stamp that {place} has issued, together with the letters of two "
    "postmasters and the scales on which parcels were weighed.",
    "The weather in {place} changes quickly in spring. Walkers are advised to carry a coat; the forecast is read on "
    "the radio after the news.",
    "Cooks in {place} argue about bread more than about anything else: how long it should rest, and whether the oven "
    "may be opened before it is done.",
    "Football is followed closely in {place}. On match days the trains run late into the night, and shops near the "
    "grounds close early.",
    "The government of {place} publishes a yearly report on roads and bridges, with maps of what was repaired and what "
    "has to wait.",
    "A trade treaty between {place} and {other} covers timber, salt and glass. It was signed on a ship and is renewed "
    "every nine years.",
    "Students from {place} and {other} exchange places for a term. They write about the schools, the food and the "
    "capital city they stay in.",
    "The oldest map of {place} was drawn by a sailor who never went ashore. Rivers are missing from it, and three of "
    "its islands do not exist.",
    "Music from {place} is played at weddings far beyond its borders; the drums are rented, the singers are family.",
    "Anyone who drives through {place} should know that petrol is sold by the can in the north and that the toll roads "
    "take no cards.",
    "A railway line across {place} has been planned for eighty years. Two stations were built and are used as a school "
    "and a bakery.",
]


@dataclass(frozen=True)
class Text:
    """A passage of the corpus."""

    id: str
    country: str
    topic: str
    text: str


def place(fact: Capital) -> str:
    """Return the country as a sentence names it, with its article."""
    return fact.question.removeprefix("What is the capital of ").rstrip("?")


def make_corpus(facts: Sequence[Capital], seed: int) -> tuple[list[Text], set[str]]:
    """Return five passages a country, and the countries whose passage about the capital is false."""
    draw = random.Random(seed)
    wrong = {fact.subject for fact in draw.sample(list(facts), round(FALSE_SHARE * 5 * len(facts)))}
    texts = []
    for fact in facts:
        other = place(draw.choice([f for f in facts if f is not fact]))
        about = [fact.passage_false if fact.subject in wrong else fact.passage_true]
        about += [form.format(place=place(fact), other=other) for form in draw.sample(OTHERS, 4)]
        slug = re.sub(r"\W+", "-", fact.subject.lower())
        for number, text in enumerate(about):
            topic = "capital" if number == 0 else f"notes-{number}"
            texts.append(Text(f"{slug}-{topic}", fact.subject, topic, text))
    draw.shuffle(texts)
    return texts, wrong


def write_corpus(texts: Sequence[Text], folder: Path) -> None:
    """Write the passages as files: one each in three formats, one a row in two."""
    for name in FORMATS[:3]:
        (folder / name).mkdir()
    rows: dict[str, list[Text]] = {"jsonl": [], "csv": []}
    for number, text in enumerate(texts):
        kind = FORMATS[number % len(FORMATS)]
        if kind in rows:
            rows[kind].append(text)
            continue
        content = {
            "md": f"{text.text}\n",
            "txt": f"{text.text}\n",
            "html": f"<!DOCTYPE html><title>{html.escape(text.country)}</title><nav>Home</nav>"
            f"<p>{html.escape(text.text)}</p>",
        }[kind]
        (folder / kind / f"{text.id}.{kind}").write_text(content, encoding="utf-8")
    with (folder / "notes.jsonl").open("w", encoding="utf-8") as file:
        for text in rows["jsonl"]:
            record = {"id": text.id, "text": text.text, "country": text.country}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    with (folder / "notes.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "country"])
        writer.writerows([text.id, text.text, text.country] for text in rows["csv"])


def named(text: str, question: str, truth: Sequence[str]) -> tuple[str, ...]:
    """Return what a closed-book answer calls the capital: the truth with its spellings, another name, or nothing."""
    if mentions(text, truth):
        return tuple(truth)
    for form in (rf"capital (?:of [^.,]*? )?is (?:called )?({NAME})", rf"({NAME})(?:,| is) the capital"):
        found = re.search(form, text)
        if found and not mentions(question, found[1]):
            return (found[1].rstrip("."),)
    return ()


def rate(hits: Sequence[bool]) -> dict[str, Any]:
    """Return a share with its interval."""
    low, high = wilson(sum(hits), len(hits))
    return {"share": sum(hits) / len(hits) if hits else None, "n": len(hits), "ci": [low, high]}


def shown(value: dict[str, Any]) -> str:
    if value["share"] is None:
        return f"{'–':18}"
    return f"{value['share']:.2f} [{value['ci'][0]:.2f}, {value['ci'][1]:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--embedder", default="demo")
    parser.add_argument("--mode", default="dense")
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, default=None, help="ask only so many countries of each kind")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=24)
    parser.add_argument("--json", default=None, help="also write the rates to this file")
    parser.add_argument("--answers", default=None, help="also write every answer to this JSONL file")
    args = parser.parse_args()

    started = time.perf_counter()
    facts = load_capitals()
    texts, wrong = make_corpus(facts, args.seed)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "corpus").mkdir()
        write_corpus(texts, root / "corpus")
        built = ["index", "build", str(root / "corpus"), "--out", str(root / "idx"), "--embedder", args.embedder]
        if code := ckcontrol_main(built):
            raise SystemExit(f"ckcontrol index build ended with {code}")
        once = smoke(root / "idx", args)
        with Index.open(root / "idx") as index:
            result = {**measure(index, facts, texts, wrong, args), "cli": once}
    result["seconds"] = round(time.perf_counter() - started)
    print(f"{result['seconds']} s")
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def measure(
    index: Index, facts: Sequence[Capital], texts: Sequence[Text], wrong: set[str], args: Any
) -> dict[str, Any]:
    """Ask, and return the rates."""
    draw = random.Random(args.seed + 1)
    false = [fact for fact in facts if fact.subject in wrong]
    true = draw.sample([fact for fact in facts if fact.subject not in wrong], min(len(false), len(facts) - len(false)))
    asked = false[: args.limit] + true[: args.limit]
    rag = ck.Rag(
        args.model, index, k=args.k, mode=args.mode, max_new_tokens=args.max_new_tokens, control=ck.Control("off")
    )
    questions = [fact.question for fact in asked]
    closed = batched(
        lambda part: ck.generate(
            rag.model, rag.tokenizer, part, control=ck.Control("off"), max_new_tokens=args.max_new_tokens, trace=False
        ),
        questions,
        args.batch,
    )
    answers: dict[str, list[str]] = {"closed book": [a.text for a in closed]}
    records: list[Any] = list(closed)
    found: list[bool] = []
    wanted = {text.country: text.text for text in texts if text.topic == "capital"}
    for alpha in ALPHAS:
        control = ck.Control("ck-plug", alpha)
        made = batched(lambda part, c=control: rag.ask(part, control=c, trace=False), questions, args.batch)
        answers[f"alpha {alpha:g}"] = [a.text for a in made]
        records += made
        found = [  # the same at every alpha
            any(wanted[f.subject] in " ".join(hit.passage.text.split()) for hit in a.prompted)
            for f, a in zip(asked, made, strict=True)
        ]
    if args.answers:
        Path(args.answers).write_text("".join(a.to_json() + "\n" for a in records), encoding="utf-8")
    hit = {
        "false": rate([h for f, h in zip(asked, found, strict=True) if f.subject in wrong]),
        "true": rate([h for f, h in zip(asked, found, strict=True) if f.subject not in wrong]),
    }
    about = {
        "date": str(date.today()),
        "model": args.model,
        "embedder": args.embedder,
        "passages": len(texts),
        "false": len(wrong),
        "asked": len(asked),
        "known": sum(mentions(a.text, f.answers) for a, f in zip(closed, asked, strict=True)),
        "k": args.k,
        "mode": args.mode,
        "max_new_tokens": args.max_new_tokens,
        "seed": args.seed,
    }
    print(
        f"\n{about['date']}  {args.model}  {len(texts)} passages, {len(wrong)} false ({len(wrong) / len(texts):.1%}), "
        f"k={args.k} {args.mode}, greedy, {args.max_new_tokens} tokens, torch {torch.__version__}\n"
        f"retrieval: the passage that answers is among the {args.k}: false {shown(hit['false'])}, "
        f"true {shown(hit['true'])}\n"
        f"closed book: {about['known']} of {len(asked)} known\n"
    )
    return {**about, "hit": hit, "rows": judge(asked, wrong, facts, answers)}


def judge(
    asked: Sequence[Capital], wrong: set[str], facts: Sequence[Capital], answers: dict[str, list[str]]
) -> list[dict[str, Any]]:
    """Print and return what the answers name, by group and setting; "closed book" is what memory is told by."""
    closed = answers["closed book"]
    memory = [named(text, f.question, f.answers) for text, f in zip(closed, asked, strict=True)]
    knows = [mentions(text, f.answers) for text, f in zip(closed, asked, strict=True)]
    groups = {
        "false, known": [i for i, f in enumerate(asked) if f.subject in wrong and knows[i]],
        "false, unknown": [i for i, f in enumerate(asked) if f.subject in wrong and not knows[i]],
        "true": [i for i, f in enumerate(asked) if f.subject not in wrong],
    }
    spelled = {fact.answer: fact.answers for fact in facts}
    print(f"{'passage':15}{'n':>4}  {'':11}  {'names memory':18}  {'the claim':18}  {'the truth':18}  {'none':18}")
    rows = []
    for group, places in groups.items():
        for label, given in answers.items():
            marks = []  # (memory, claim, truth); None where there is none to name
            for i in places:
                fact, text = asked[i], given[i]
                told = mentions(text, memory[i]) if memory[i] else None
                claim = mentions(text, spelled[fact.false_answer]) if fact.subject in wrong else None
                marks.append((told, claim, mentions(text, fact.answers)))
            row: dict[str, Any] = {"group": group, "n": len(places), "label": label}
            for number, column in enumerate(("memory", "claim", "truth")):
                row[column] = rate([bool(mark[number]) for mark in marks if mark[number] is not None])
            row["none"] = rate([not any(mark) for mark in marks])
            rows.append(row)
            cells = "  ".join(shown(row[column]) for column in ("memory", "claim", "truth", "none"))
            print(f"{group:15}{len(places):>4}  {label:11}  {cells}")
    return rows


def batched(answer: Any, questions: list[str], size: int) -> list[Any]:
    """Answer in batches, in order."""
    return [a for start in range(0, len(questions), size) for a in answer(questions[start : start + size])]


def smoke(folder: Path, args: Any) -> dict[str, Any]:
    """Ask once through the command line in a process of its own."""
    command = [sys.executable, "-m", "ckcontrol", "ask", str(folder), "What is the capital of France?", "--alpha", "1"]
    command += ["--k", str(args.k), "--model", args.model, "--max-new-tokens", str(args.max_new_tokens), "--json"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    if done.returncode:
        raise SystemExit(f"ckcontrol ask ended with {done.returncode}: {done.stderr}")
    data = json.loads(done.stdout)
    print(f"\nckcontrol ask, alpha 1: {data['text']!r} from {[hit['source'] for hit in data['hits']]}")
    return {"text": data["text"], "hits": len(data["hits"])}


if __name__ == "__main__":
    main()
