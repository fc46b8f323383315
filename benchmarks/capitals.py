"""Country capitals with a false passage: where does each method and alpha take the answer from?

Every capital is asked closed-book first. Those the model knows are asked again with a passage that names another
capital. Printed per method and alpha: ParR (names the memory answer), ConR (names the passage's), MR, neither, both,
with 95 % Wilson intervals for ParR and ConR. Checked on the way: ``off`` and ``alpha = 0.5`` are token-identical to
``model.generate`` on the same prompt, greedy and sampled.

    python benchmarks/capitals.py                 # the demo model, all capitals
    python benchmarks/capitals.py --model ID --limit 40 --json out.json
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from typing import Any

import torch
import transformers

import ckcontrol as ck
from ckcontrol.answer import write_jsonl
from ckcontrol.decoding.prompts import build_pair
from ckcontrol.decoding.refusals import eos_ids
from ckcontrol.eval.items.shipped_facts import Capital, load_capitals
from ckcontrol.eval.metrics import Conflict, mentions, wilson

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
GRID: list[tuple[str, ck.Control]] = [
    ("off", ck.Control("off")),
    *((f"ck-plug a={a:g}", ck.Control("ck-plug", alpha=a)) for a in ALPHAS),
    ("ck-plug adaptive", ck.Control("ck-plug", adaptive=True)),
    *((f"ck-plug-repo a={a:g}", ck.Control("ck-plug-repo", alpha=a)) for a in ALPHAS),
    ("ck-plug-repo adaptive", ck.Control("ck-plug-repo", adaptive=True)),
    *((f"cad a={a:g}", ck.Control("cad", alpha=a)) for a in ALPHAS),
    ("adacad", ck.Control("adacad")),
    ("coiecd", ck.Control("coiecd")),
    ("acd", ck.Control("acd")),
    ("arr", ck.Control("arr")),
]


def ask(
    model: Any,
    tokenizer: Any,
    facts: Sequence[Capital],
    passages: Sequence[list[str]],
    batch: int,
    **options: Any,
) -> list[ck.Answer]:
    """Answer all facts in batches of similar length, in the given order."""
    order = sorted(range(len(facts)), key=lambda i: sum(map(len, passages[i])) + len(facts[i].question))
    answers: list[ck.Answer | None] = [None] * len(facts)
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        made = ck.generate(model, tokenizer, [facts[i].question for i in rows], [passages[i] for i in rows], **options)
        for i, answer in zip(rows, made, strict=True):
            answers[i] = answer
    return [a for a in answers if a is not None]


def identical(
    model: Any, tokenizer: Any, facts: Sequence[Capital], control: ck.Control, batch: int, new: int, sample: bool
) -> int:
    """Count the answers whose tokens are the very ones of ``model.generate`` on the same batch of prompts."""
    how = {"do_sample": True, "temperature": 0.8, "top_p": 0.95, "top_k": 0} if sample else {"do_sample": False}
    ends, pad = list(eos_ids(model, tokenizer)), tokenizer.pad_token_id
    same = 0
    for start in range(0, len(facts), batch):
        rows = facts[start : start + batch]
        torch.manual_seed(start)
        ours = ck.generate(
            model,
            tokenizer,
            [f.question for f in rows],
            [[f.passage_false] for f in rows],
            control=control,
            max_new_tokens=new,
            **how,
        )
        prompts = [list(build_pair(tokenizer, f.question, [f.passage_false]).contextual) for f in rows]
        width = max(map(len, prompts))
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=model.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
        torch.manual_seed(start)
        plain = model.generate(
            ids, attention_mask=mask, max_new_tokens=new, eos_token_id=ends, pad_token_id=pad, **how
        )[:, width:].tolist()
        same += sum(list(a.token_ids) == row[: len(a.token_ids)] for a, row in zip(ours, plain, strict=True))
    return same


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=16)
    parser.add_argument("--json", default=None, help="also write the rates to this file")
    parser.add_argument("--answers", default=None, help="append every answer with its trace to this JSONL file")
    args = parser.parse_args()

    model, tokenizer = ck.load(args.model)
    facts = load_capitals()[: args.limit]
    new = args.max_new_tokens
    common = {"max_new_tokens": new, "batch": args.batch}
    started = time.perf_counter()
    closed = ask(model, tokenizer, facts, [[]] * len(facts), **common, trace=False)
    known = [f for f, a in zip(facts, closed, strict=True) if mentions(a.text, f.answers)]
    print(
        f"{date.today()}  {args.model}  torch {torch.__version__}  transformers {transformers.__version__}  "
        f"{platform.machine()}  greedy, {new} tokens\n"
        f"closed book: {len(known)} of {len(facts)} capitals known; each known one is asked with a false passage.\n"
    )
    print(f"{'':24}{'ParR':>6} {'95 %':>11}  {'ConR':>5} {'95 %':>11}  {'MR':>5}  {'neither':>7}  {'both':>5}  gate")
    rows = []
    for label, control in GRID:
        answers = ask(model, tokenizer, known, [[f.passage_false] for f in known], **common, control=control)
        hits = [
            (mentions(a.text, f.answers), mentions(a.text, f.false_answer)) for f, a in zip(known, answers, strict=True)
        ]
        rate = Conflict.from_hits(hits)
        gate = sum(a.switched for a in answers) / max(1, sum(len(a.tokens) for a in answers))
        par, con = (wilson(sum(h[i] for h in hits), rate.n) for i in (0, 1))
        print(
            f"{label:24}{rate.parr:6.2f} [{par[0]:.2f}, {par[1]:.2f}] {rate.conr:6.2f} [{con[0]:.2f}, {con[1]:.2f}]"
            f" {rate.mr:6.2f}  {rate.neither:7.2f}  {rate.both:5.2f}  {gate:.2f}",
            flush=True,
        )
        rows.append({"label": label, **asdict(rate), "parr_ci": par, "conr_ci": con, "gate": gate})
        if args.answers:
            write_jsonl(answers, args.answers)
    same = {}
    for label in ("off", "ck-plug a=0.5", "cad a=0.5"):
        control = dict(GRID)[label]
        greedy, sampled = (identical(model, tokenizer, known, control, args.batch, new, s) for s in (False, True))
        same[label] = (greedy, sampled)
        print(f"{label}: identical to model.generate: greedy {greedy}/{len(known)}, sampled {sampled}/{len(known)}")
    print(f"{time.perf_counter() - started:.0f} s")
    if args.json:
        about = {"date": str(date.today()), "model": args.model, "known": len(known), "asked": len(facts)}
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({**about, "rows": rows, "identical": same}, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
