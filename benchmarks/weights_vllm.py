"""What a row with an adapter of a dial costs in vLLM, beside a plain row and a pair. Needs vLLM and a model folder.

    python benchmarks/weights_vllm.py MODEL dial/ --rounds 5

One engine with LoRA, and one without for what plain rows cost there. Ways in turn, B questions at once with answers of
one length; seconds of this process per decode step, the prefill of the same prompts taken off; the median over rounds.
On a CPU set VLLM_CPU_OMP_THREADS_BIND=nobind OMP_NUM_THREADS=1 VLLM_ENABLE_V1_MULTIPROCESSING=0.
"""

from __future__ import annotations

import argparse
import json
import time
from statistics import median
from typing import Any

import ckcontrol as ck
from ckcontrol.vllm import SteeredLLM
from ckcontrol.vllm.contract import pair_params as params

SHORT, LONG = 4, 36
PASSAGE = "The capital of Peru is Lima, by the sea. It was founded in 1535 and has nine million inhabitants."


def seconds(llm: SteeredLLM, control: ck.Control, batch: int) -> float:
    """Return the seconds of one decode step of B questions."""
    asked = [(f"Tell story number {i} about Lima, a long one.", [PASSAGE]) for i in range(batch)]
    spent = []
    for tokens in (SHORT, LONG):
        start = time.process_time()
        llm.generate(asked, control=control, max_new_tokens=tokens)
        spent.append(time.process_time() - start)
    return (spent[1] - spent[0]) / (LONG - SHORT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("dial")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    made, endless = params.sampling_params, {"ignore_eos": True, "stop_token_ids": ()}  # answers of one length
    params.sampling_params = lambda *given, **rest: made(*given, **rest | endless)
    settings: dict[str, Any] = {"dtype": "float32", "enforce_eager": True, "max_model_len": 512, "max_num_seqs": 64}
    settings |= {"gpu_memory_utilization": 0.3, "kv_cache_memory_bytes": 1 << 29}
    ways = {
        "without LoRA": ck.Control("off"),
        "no adapter": ck.Control("off"),
        "one adapter": ck.Control("weights", alpha=0.0),
        "pairs, ck-plug": ck.Control("ck-plug", alpha=0.25),
    }
    with SteeredLLM(args.model, **settings) as plain, SteeredLLM(args.model, weights=args.dial, **settings) as dialled:
        for batch in (1, 8, 32):
            found: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(args.rounds + 1):
                for name, control in ways.items():
                    found[name].append(seconds(plain if name == "without LoRA" else dialled, control, batch))
            base = median(found["without LoRA"][1:])
            row = {name: [round(1000 * median(v[1:]), 1), round(base / median(v[1:]), 2)] for name, v in found.items()}
            print(json.dumps({"batch": batch, "ms a step, share of plain": row}), flush=True)


if __name__ == "__main__":
    main()
