"""Head scoring: the exact sweep against whole forwards with frozen heads, in wall clock and in agreement.

naive   2 + L*H forwards per prompt; timed on a sample of heads and scaled to all of them (the forwards are equal work)
sweep   2 forwards and one stack of MLP products per prompt

Both score the same prompts of random tokens with the same corrupted prompts and read two logits. Figures are medians of
interleaved repeats; "agree" is the largest difference between the two methods over the sampled heads.

    python benchmarks/heads.py                          # demo model, prompts of 30, 200 and 1000 tokens
    python benchmarks/heads.py --tokens 200 --sample 40 --repeats 5
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

import ckcontrol as ck
from ckcontrol.heads.families import HeadLayout, describe
from ckcontrol.heads.finding.path_patching import capture, sweep
from ckcontrol.heads.finding.path_patching_naive import naive_patch, record_heads
from ckcontrol.heads.forward import Batch, run


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started, result


def flops_ratio(layout: HeadLayout, model: Any, tokens: int) -> float:
    """Naive over sweep in floating-point operations: the ratio a perfect implementation could reach."""
    block = layout.blocks[0]
    weights = sum(p.numel() for p in block.module.parameters() if p.ndim == 2)
    mlp = sum(p.numel() for part in block.feed_forward for p in part.parameters() if p.ndim == 2)
    layers, heads, width = layout.layers, layout.heads, layout.heads * layout.head_dim
    forward = layers * tokens * 2 * (weights + 2 * tokens * width) + 2 * layout.unembed.weight.numel()
    swept = 2 * mlp * heads * layers * (layers + 1) / 2 + layers * heads * 2 * layout.head_dim * layout.hidden
    return (2 + layers * heads) * forward / (2 * forward + swept)


def compare(model: Any, layout: HeadLayout, tokens: int, sample: int, repeats: int, seed: int = 0) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(seed)
    vocabulary = min(model.config.vocab_size, 40_000)
    clean, corrupted = (
        Batch(ids.to(model.device), torch.ones_like(ids).to(model.device))
        for ids in torch.randint(3, vocabulary, (2, 1, tokens), generator=draw)
    )
    targets = torch.randint(3, vocabulary, (1, 2), generator=draw).to(model.device)
    count = layout.layers * layout.heads
    picked = [divmod(int(i), layout.heads) for i in torch.randperm(count, generator=draw)[:sample]]

    def swept() -> Any:
        before = capture(model, layout, clean)
        return sweep(layout, before, capture(model, layout, corrupted).heads, targets)

    def recorded() -> Any:
        return record_heads(model, layout, clean), record_heads(model, layout, corrupted)

    swept(), run(model, clean)  # warm up
    times: dict[str, list[float]] = {"sweep": [], "naive": []}
    worst = 0.0
    for _ in range(repeats):
        seconds, mine = timed(swept)
        times["sweep"].append(seconds)
        both, _ = timed(recorded)
        seconds, theirs = timed(lambda: naive_patch(model, layout, clean, corrupted, targets, picked))
        times["naive"].append(both + (seconds - both) * count / sample)
        ours = torch.stack([mine.logits[:, layer, head] for layer, head in picked], dim=1)
        worst = max(worst, float((ours - theirs).abs().max()))
    ratios = sorted(n / s for n, s in zip(times["naive"], times["sweep"], strict=True))
    return {
        "tokens": tokens,
        "naive_s": median(times["naive"]),
        "sweep_s": median(times["sweep"]),
        "ratio": median(ratios),
        "ratio_low": ratios[0],
        "ratio_high": ratios[-1],
        "flops_allow": flops_ratio(layout, model, tokens),
        "agree": worst,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--tokens", type=int, nargs="+", default=[30, 200, 1000])
    parser.add_argument("--sample", type=int, default=10, help="heads the naive method is timed on")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device")
    parser.add_argument("--out", help="write the figures as JSON")
    options = parser.parse_args()

    model, _ = ck.load(options.model, device=options.device, dtype="float32")
    layout = describe(model)
    print(
        f"{options.model}: {layout.layers} layers x {layout.heads} heads, "
        f"{model.device}, {torch.get_num_threads()} threads"
    )
    print("tokens   naive s   sweep s   naive:sweep (low-high)   FLOPs allow   agree")
    rows = []
    for tokens in options.tokens:
        row = compare(model, layout, tokens, options.sample, options.repeats)
        rows.append(row)
        print(
            f"{tokens:6d} {row['naive_s']:9.1f} {row['sweep_s']:9.2f} {row['ratio']:12.0f}x "
            f"({row['ratio_low']:.0f}-{row['ratio_high']:.0f}) {row['flops_allow']:12.0f}x {row['agree']:10.1e}",
            flush=True,
        )
    if options.out:
        about = {"torch": torch.__version__, "machine": platform.machine(), "threads": torch.get_num_threads()}
        with open(options.out, "w", encoding="utf-8") as file:
            json.dump({"model": options.model, **about, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
