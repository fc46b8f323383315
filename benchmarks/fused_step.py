"""What the fused step saves: policy, fusion and the greedy choice of P pairs, against the plain arithmetic.

(a) plain   `Signals`, `decide`, `fuse_all`, the checks for NaN and the maximum: every operation over the whole [P, V]
(b) tokens  `fused_step(pick=True)`; (b') scores: `fused_step` without it

Each policy runs the three in turn, several times; figures are the least milliseconds of processor time (wall clock on
an accelerator) and the ratio a / b within the run. Logits are random: half of the rows are surer with the passages.

    python benchmarks/fused_step.py                                  # P = 1, 8, 32, 128; V = 49,152; one thread
    python benchmarks/fused_step.py --device cuda --vocab 128256     # needs a GPU
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

import ckcontrol as ck
from ckcontrol.decoding.fused_step import fuse_all, fused_step
from ckcontrol.fusion.distributions import Shortlist, nonfinite_rows
from ckcontrol.fusion.signals import Signals
from ckcontrol.policies import Policy, draft_policies, per_row

CONTROLS = {
    "ck-plug 0.2": ck.Control("ck-plug", alpha=0.2),
    "ck-plug 0.8": ck.Control("ck-plug", alpha=0.8),
    "ck-plug adaptive": ck.Control("ck-plug", adaptive=True),
    "ck-plug-repo": ck.Control("ck-plug-repo", alpha=0.2),
    "cad 0.2": ck.Control("cad", alpha=0.2),
    "cad 0.8": ck.Control("cad", alpha=0.8),
    "adacad": ck.Control("adacad"),
    "coiecd": ck.Control("coiecd"),
    "acd": ck.Control("acd"),
    "arr": ck.Control("arr"),
    "nwcad": ck.Control("nwcad"),
    "grd, memory": ck.Control("grd"),
    "dial, memory": ck.Control("dial", alpha=0.7),
    "off": ck.Control("off"),
}


def ways(policy: Policy, ctx: torch.Tensor, par: torch.Tensor) -> dict[str, Callable[[], Any]]:
    """Return the three ways of one step."""

    def plain() -> None:
        signals = Signals(ctx, par, shortlist=Shortlist())
        scores = fuse_all(policy, signals, policy.decide(signals))
        for each in (ctx, par, scores):
            nonfinite_rows(each)
        scores.argmax(-1)

    return {
        "plain": plain,
        "tokens": lambda: fused_step(policy, ctx, par, pick=True),
        "scores": lambda: fused_step(policy, ctx, par),
    }


def milliseconds(run: Callable[[], Any], device: torch.device) -> float:
    """Return what one call takes."""
    clock = time.process_time
    if device.type != "cpu":
        clock = time.perf_counter
        torch.accelerator.synchronize()
    start = clock()
    run()
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return 1000 * (clock() - start)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--policies", nargs="+", default=list(CONTROLS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(args.device)
    print(f"V = {args.vocab}, {device}, torch {torch.__version__}, least of {args.repeats}, ms\n")
    print(
        f"{'policy':18} {'pairs':>5} {'plain':>9} {'tokens':>9} {'scores':>9} {'plain/tokens':>13} {'plain/scores':>13}"
    )
    for pairs in args.pairs:
        draw = torch.Generator().manual_seed(0)
        par = torch.randn(pairs, args.vocab, generator=draw) * 4
        sure = torch.tensor([0.8, 1.4])[torch.arange(pairs) % 2, None]
        ctx = (par * sure + torch.randn(pairs, args.vocab, generator=draw)).to(device)
        par = par.to(device)
        for name in args.policies:
            policy = per_row([list(draft_policies(CONTROLS[name].policy()).values())[-1]] * pairs)
            runs = ways(policy, ctx, par)
            spent: dict[str, list[float]] = {way: [] for way in runs}
            for turn in range(args.repeats + 1):
                for way, run in runs.items():
                    took = milliseconds(run, device)
                    if turn:
                        spent[way].append(took)
            a, b, c = (min(each) for each in spent.values())
            print(f"{name:18} {pairs:5} {a:9.2f} {b:9.2f} {c:9.2f} {a / b:12.1f}x {a / c:12.1f}x", flush=True)


if __name__ == "__main__":
    main()
