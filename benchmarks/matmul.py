"""Why matmul.py exists: one decode step's weight products on one CPU thread, by torch and by us, for a row count each.

Shapes are those of the demo model; figures are the second least of interleaved runs, in milliseconds of processor time.

    python benchmarks/matmul.py
"""

from __future__ import annotations

import platform
import time
from datetime import date

import torch

from ckcontrol.decoding.matmul import few_row_linear, pays

SHAPES = [((1536, 576), 60), ((576, 1536), 30), ((576, 576), 60), ((192, 576), 60), ((49152, 576), 1)]


def main() -> None:
    weights = [torch.randn(*shape) for shape, count in SHAPES for _ in range(count)]
    torch.set_num_threads(1)
    print(f"{date.today()}  torch {torch.__version__}  {torch.get_num_threads()} threads  {platform.machine()}")
    print(f"{'rows':>5} {'F.linear':>9} {'few rows':>9} {'ratio':>7}  taken")
    with torch.inference_mode():
        for rows in (2, 4, 8, 16, 32, 64):
            inputs = {width: torch.randn(rows, 1, width) for width in (576, 1536)}
            times: dict[str, list[float]] = {"linear": [], "few": []}
            for _ in range(9):
                for name, product in (("linear", torch.nn.functional.linear), ("few", few_row_linear)):
                    started = time.process_time()
                    for weight in weights:
                        product(inputs[weight.shape[1]], weight)
                    times[name].append(1e3 * (time.process_time() - started))
            a, b = sorted(times["linear"])[1], sorted(times["few"])[1]
            print(f"{rows:5} {a:9.1f} {b:9.1f} {a / b:6.2f}x  {'few rows' if pays(rows) else 'linear'}", flush=True)


if __name__ == "__main__":
    main()
