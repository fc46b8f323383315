"""Run many seeds: ``python -m tests.fuzz --seeds 5000``; exits 1 if anything differed."""

from __future__ import annotations

import argparse
import time

import torch

from .differential import run


def main() -> int:
    """Print every difference and a count."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--seeds", type=int, default=400)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    given = parser.parse_args()
    torch.set_num_threads(1)
    begun, differences = time.process_time(), 0
    for seed in range(given.first, given.first + given.seeds):
        for text in run(seed):
            differences += 1
            print(text, flush=True)
    print(f"{given.seeds} seeds, {differences} differences, {time.process_time() - begun:.0f} s of one core")
    return min(differences, 1)


if __name__ == "__main__":
    raise SystemExit(main())
