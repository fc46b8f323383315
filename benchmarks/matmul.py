"""Why matmul.py exists: one decode step's weight products on CPU, both orientations, for a row count each.

Shapes are those of the demo model; figures are medians of interleaved runs, in milliseconds.

    python benchmarks/matmul.py
"""

from __future__ import annotations

import platform
import time
from datetime import date
from statistics import median

import torch

from ckcontrol.decoding.matmul import turned_linear

SHAPES = [((1536, 576), 60), ((576, 1536), 30), ((576, 576), 60), ((192, 576), 60), ((49152, 576), 1)]


def main() -> None:
    weights = [torch.randn(*shape) for shape, count in SHAPES for _ in range(count)]
    print(f"{date.today()}  torch {torch.__version__}  {torch.get_num_threads()} threads  {platform.machine()}")
    print(f"{'rows':>5} {'x @ W.T':>9} {'(W @ x.T).T':>12} {'ratio':>7}")
    with torch.inference_mode():
        for rows in (1, 2, 3, 4, 6, 8, 16, 32, 64):
            inputs = {width: torch.randn(rows, 1, width) for width in (576, 1536)}
            times: dict[str, list[float]] = {"linear": [], "turned": []}
            for _ in range(9):
                for name, product in (("linear", torch.nn.functional.linear), ("turned", turned_linear)):
                    started = time.perf_counter()
                    for weight in weights:
                        product(inputs[weight.shape[1]], weight)
                    times[name].append(1e3 * (time.perf_counter() - started))
            a, b = median(times["linear"]), median(times["turned"])
            print(f"{rows:5} {a:9.1f} {b:12.1f} {a / b:6.2f}x", flush=True)


if __name__ == "__main__":
    main()
