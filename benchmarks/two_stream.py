"""Speed of two-stream decoding against two baselines, in one run, as ratios.

(a) plain   model.generate on the contextual prompt: the floor, one stream
(b) ours    model.generate(custom_generate=ck.decoding_loop(...)), both streams; (b') the same with a trace
(c) cfg     transformers' guidance_scale with the parametric prompt as negative prompt: what one would use today

Every case runs the three in turn, several times; figures are medians. Time to first token covers both prefills.
Token ids are random, end tokens are off, so every run makes the same number of tokens. On one CPU thread, time is the
processor's, which a busy machine disturbs least; otherwise it is by the clock.

    python benchmarks/two_stream.py                     # demo model, batch 1, 4, 16, context 64, 512, 2048
    python benchmarks/two_stream.py --batch 1 --context 512 --repeats 5 --dtype bfloat16
    python benchmarks/two_stream.py --fresh-lengths     # instead: every request has lengths that none before it had

Repeating a length hides what a new one costs: a kernel library may build a plan for each. With --fresh-lengths a
request runs when its lengths are new to the process, and then again; the figure is the first time over the second.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from datetime import date
from statistics import median
from typing import Any

import torch
import transformers

import ckcontrol as ck


def now() -> float:
    """Return seconds: of the processor on one CPU thread, else by the clock."""
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    return time.process_time() if alone else time.perf_counter()


class Clock:
    """A streamer that notes when each token arrives."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(now())

    def end(self) -> None:
        pass


def runners(
    model: Any, ids: torch.Tensor, par: torch.Tensor, new: int, compile: bool | None = None
) -> dict[str, Callable[[Clock], Any]]:
    control = ck.Control("ck-plug", alpha=0.25)
    common = {"attention_mask": torch.ones_like(ids), "max_new_tokens": new, "do_sample": False, "pad_token_id": 0}

    def ours(clock: Clock, recorder: ck.Recorder | None = None) -> Any:
        loop = ck.decoding_loop(control, parametric_ids=par, streamer=clock, recorder=recorder, compile=compile)
        return model.generate(ids, custom_generate=loop, **common)

    return {
        "plain": lambda clock: model.generate(ids, streamer=clock, **common),
        "ours": ours,
        "traced": lambda clock: ours(clock, ck.Recorder()),
        "cfg": lambda clock: model.generate(
            ids,
            streamer=clock,
            guidance_scale=1.5,
            negative_prompt_ids=par,
            negative_prompt_attention_mask=torch.ones_like(par),
            **common,
        ),
    }


def measure(run: Callable[[Clock], Any], batch: int) -> tuple[float, float]:
    """Return seconds to the first token and tokens per second after it."""
    clock = Clock()
    started = now()
    run(clock)
    first = clock.times[1]  # times[0] is the prompt
    return first - started, batch * (len(clock.times) - 2) / (clock.times[-1] - first)


def fresh_lengths(
    model: Any, batch: int, context: int, parametric: int, new: int, requests: int, compile: bool | None
) -> dict[str, list[tuple[float, float]]]:
    """Return seconds of each request the first time and again; no step of one has the length of another's."""
    generator = torch.Generator().manual_seed(1)
    width = model.get_input_embeddings().weight.shape[0]
    seconds: dict[str, list[tuple[float, float]]] = {"plain": [], "ours": []}
    for request in range(requests + 1):
        further = request * (new + 1)
        for stream, name in enumerate(seconds):  # nor has a step of the other runner
            lengths = (context + 2 * further + stream * (new + 1), parametric + 2 * further + stream * (new + 1))
            ids, par = (torch.randint(10, width, (batch, n), generator=generator).to(model.device) for n in lengths)
            run, taken = runners(model, ids, par, new, compile)[name], []
            for _ in range(2):
                started = now()
                run(Clock())
                taken.append(now() - started)
            if request:  # the first warms up what has nothing to do with lengths
                seconds[name].append((taken[0], taken[1]))
    return seconds


def tell_fresh_lengths(model: Any, args: Any, compile: bool | None) -> list[dict[str, Any]]:
    print(f"{'batch':>5} {'context':>7} | first time / again, median (least to greatest) of {args.repeats} requests")
    rows = []
    for batch in args.batch:
        for context in args.context:
            seconds = fresh_lengths(model, batch, context, args.parametric, args.new, args.repeats, compile)
            ratios = {name: sorted(first / again for first, again in taken) for name, taken in seconds.items()}
            told = "   ".join(f"{name} {median(r):.2f} ({r[0]:.2f} to {r[-1]:.2f})" for name, r in ratios.items())
            print(f"{batch:5} {context:7} | {told}", flush=True)
            rows.append({"batch": batch, "context": context, "fresh": seconds})
    return rows


def tell_speed(model: Any, args: Any, compile: bool | None) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    width = model.get_input_embeddings().weight.shape[0]
    print(
        f"median of {args.repeats}\n"
        f"{'batch':>5} {'context':>7} | {'plain':>8} {'ours':>8} {'cfg':>8} tok/s | {'ours/plain':>10} {'ours/cfg':>8}"
        f" {'trace':>6} | first token: {'plain':>6} {'ours':>6} {'cfg':>6} s  ours/plain  (bound)"
    )
    rows = []
    for batch in args.batch:
        for context in args.context:
            ids = torch.randint(10, width, (batch, context), generator=generator).to(model.device)
            par = torch.randint(10, width, (batch, args.parametric), generator=generator).to(model.device)
            runs = runners(model, ids, par, args.new, compile)
            figures: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
            if batch * context <= 4096:
                for run in runs.values():
                    run(Clock())  # warm-up
            for _ in range(args.repeats if batch * context <= 4096 else 1):
                for name, run in runs.items():
                    figures[name].append(measure(run, batch))
            first = {name: median(f[0] for f in got) for name, got in figures.items()}
            speed = {name: median(f[1] for f in got) for name, got in figures.items()}
            ratio = {n: median(o[1] / f[1] for o, f in zip(figures["ours"], figures[n], strict=True)) for n in figures}
            bound = 1.1 * (context + args.parametric) / context
            print(
                f"{batch:5} {context:7} | {speed['plain']:8.1f} {speed['ours']:8.1f} {speed['cfg']:8.1f}       | "
                f"{ratio['plain']:9.2f}x {ratio['cfg']:7.2f}x {ratio['traced'] - 1:+6.1%} |              "
                f"{first['plain']:6.2f} {first['ours']:6.2f} {first['cfg']:6.2f}    "
                f"{first['ours'] / first['plain']:9.2f}x"
                f"  ({bound:.2f}x)",
                flush=True,
            )
            rows.append({"batch": batch, "context": context, "speed": speed, "first": first, "ratio": ratio})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--device", default=None)
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--context", type=int, nargs="+", default=[64, 512, 2048])
    parser.add_argument("--parametric", type=int, default=32)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", default=None)
    parser.add_argument("--compile", choices=["auto", "yes", "no"], default="auto", help="GenerateOptions.compile")
    parser.add_argument("--fresh-lengths", action="store_true", help="what a length costs that was not seen before")
    args = parser.parse_args()

    model, _ = ck.load(args.model, device=args.device, dtype=args.dtype)
    model.generation_config.eos_token_id = None
    compile = {"auto": None, "yes": True, "no": False}[args.compile]
    print(
        f"{date.today()}  {args.model}  {model.device} {model.dtype}  {torch.get_num_threads()} threads  "
        f"torch {torch.__version__}  transformers {transformers.__version__}  {platform.machine()}\n"
        f"parametric prompt {args.parametric} tokens, {args.new} new tokens, compile={compile}\n"
    )
    rows = (tell_fresh_lengths if args.fresh_lengths else tell_speed)(model, args, compile)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            about = {"date": str(date.today()), "model": args.model, "device": str(model.device), "new": args.new}
            about |= {
                "dtype": str(model.dtype),
                "threads": torch.get_num_threads(),
                "parametric": args.parametric,
                "compile": compile,
            }
            json.dump({**about, "rows": rows}, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
