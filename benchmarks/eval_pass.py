"""What a shared pass saves: every method and alpha in one pass against each of them alone.

alone    `ckcontrol.generate` once per control, on the same batches
shared   `ckcontrol.eval.running.fan`: prompts run once, answers share every forward until they part

Both answer the same records; rounds are interleaved, ratios are within a round. "rows" is how many rows the shared pass
decoded of those that were asked for.

    python benchmarks/eval_pass.py                                   # the demo model, shipped facts, all methods
    python benchmarks/eval_pass.py --task nq_swap=FILE --records 8
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from datetime import date
from statistics import median

import torch

import ckcontrol as ck
from ckcontrol.decoding.options import GenerateOptions
from ckcontrol.eval.running.arms import arms_for
from ckcontrol.eval.running.engine import Local
from ckcontrol.eval.tasks.load import load_task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--device")
    parser.add_argument("--task", nargs="+", default=["facts?states=conflict"])
    parser.add_argument("--methods", default="all")
    parser.add_argument("--records", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json")
    args = parser.parse_args()
    model, tokenizer = ck.load(args.model, device=args.device, dtype="float32")
    arms = [arm for arm in arms_for(args.methods.split(",")) if arm.prompt == "base"]
    rows = []
    for spec in args.task:
        records = sorted(load_task(spec, limit=args.records).records, key=lambda record: len(record.context))
        batches = [records[i : i + args.batch] for i in range(0, len(records), args.batch)]
        engine = Local(model, tokenizer, args.model, options=GenerateOptions(max_new_tokens=args.tokens))
        shared, alone, same = [], [], 0
        for _ in range(args.rounds):
            started = time.perf_counter()
            found = [sample for batch in batches for sample in engine.run(batch, arms, "base")]
            shared.append(time.perf_counter() - started)
            started = time.perf_counter()
            made = [
                ck.generate(
                    model,
                    tokenizer,
                    [record.question for record in batch],
                    [record.passages for record in batch],
                    control=arm.control,
                    template=engine.wording.templates["base"],
                    max_new_tokens=args.tokens,
                    trace=False,
                )
                for arm in arms
                for batch in batches
            ]
            alone.append(time.perf_counter() - started)
            answers = [answer.text for each in made for answer in each]
            texts = [row[i]["text"] for i in range(len(arms)) for row in found]
            same = sum(a == b for a, b in zip(answers, texts, strict=True))
        ratios = sorted(a / b for a, b in zip(alone, shared, strict=True))
        name = spec.split("=")[0].split("?")[0]
        rows.append(
            {
                "task": name,
                "records": len(records),
                "arms": len(arms),
                "alone_s": median(alone),
                "shared_s": median(shared),
                "ratio": median(ratios),
                "ratio_low": ratios[0],
                "ratio_high": ratios[-1],
                "rows": engine.width.rows / engine.width.asked,
                "same": same / (len(records) * len(arms)),
            }
        )
        row = rows[-1]
        print(
            f"{name}: {len(records)} records x {len(arms)} arms: alone {row['alone_s']:.1f} s, shared "
            f"{row['shared_s']:.1f} s, {row['ratio']:.1f}x ({ratios[0]:.1f}-{ratios[-1]:.1f}); "
            f"{row['rows']:.0%} of the rows; {row['same']:.1%} of the answers are the same text",
            flush=True,
        )
    if args.json:
        about = {"date": str(date.today()), "model": args.model, "torch": torch.__version__}
        about |= {"machine": platform.machine(), "device": str(model.device), "threads": str(torch.get_num_threads())}
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({**about, "rows": rows}, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
