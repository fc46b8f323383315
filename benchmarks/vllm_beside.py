"""Ordinary requests beside steered ones, against a vLLM engine started without any of ours. Needs vLLM, and the tests.

    python benchmarks/vllm_beside.py --model FOLDER --json benchmarks/results/vllm_beside.json

Three engines in processes of their own, in float32: ours with pairs and ordinary requests; stock with the ordinary
ones alone; stock with the same and as many others as there were pairs, which tells what another batch changes by
itself. Compared are tokens, and the log-probabilities of the best five of every token up to the first that differs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from ckcontrol.models.load import load
from tests.vllm import parity


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="a folder")
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--requests", type=int, default=12)
    parser.add_argument("--longest", type=int, default=400, help="tokens of the longest prompt, about")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = load(given.model, device="cpu")
    cases = parity.make_cases(model, tokenizer, given.pairs, longest=given.longest, new_tokens=16)
    ordinary = [
        {"ids": cases[i % len(cases)].contextual[: 60 + 7 * i], "max": 24, "at": 2 * i, "logprobs": 5}
        for i in range(given.requests)
    ]
    engine = {"max_model_len": 2048, "block_size": 32, "max_num_batched_tokens": 256, "max_num_seqs": 48}
    engine |= {"enable_prefix_caching": False}
    found = parity.beside(given.model, model, tokenizer, cases, ordinary, engine)
    text = json.dumps(found, indent=2)
    print(text)
    if given.json:
        given.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
