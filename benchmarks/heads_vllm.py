"""Exports of pruned models in vLLM: the tokens of the hooked transformers model, from checkpoint and LoRA adapter.

Runs in an environment with vLLM; heads_export.py, run in one with ckcontrol, writes its folder. The adapter needs
the unpruned checkpoint as well (`model.save_pretrained`).

    python benchmarks/heads_export.py --out exports/
    python benchmarks/heads_vllm.py exports/                     # the checkpoint
    python benchmarks/heads_vllm.py exports/ --base MODEL        # the adapter on MODEL, and MODEL alone
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest


def same(made: Sequence[Any], wanted: Sequence[list[int]]) -> str:
    """Count the answers that equal the wanted ones, as far as both go."""
    count = 0
    for output, ids in zip(made, wanted, strict=True):
        ours = list(output.outputs[0].token_ids)
        count += ours[: len(ids)] == ids[: len(ours)]
    return f"{count} of {len(wanted)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exports", type=Path)
    parser.add_argument("--base", help="the unpruned checkpoint")
    parser.add_argument("--rank", type=int, default=128, help="at least the adapter's")
    args = parser.parse_args()
    told = json.loads((args.exports / "tokens.json").read_text(encoding="utf-8"))
    prompts = [{"prompt_token_ids": ids} for ids in told["prompts"]]
    params = SamplingParams(temperature=0, max_tokens=max(map(len, told["hooked"])))
    more: dict[str, Any] = {"dtype": "float32", "enforce_eager": True, "max_model_len": 256, "disable_log_stats": True}
    if args.base is None:
        made = LLM(str(args.exports / "checkpoint"), **more).generate(prompts, params)
        print(
            "checkpoint, as the hooked model:", same(made, told["hooked"]), "· as the whole:", same(made, told["plain"])
        )
        return
    llm = LLM(args.base, enable_lora=True, max_lora_rank=args.rank, **more)
    pruned = llm.generate(prompts, params, lora_request=LoRARequest("pruned", 1, str(args.exports / "lora")))
    print("adapter, as the hooked model:", same(pruned, told["hooked"]))
    print("base alone, as the whole model:", same(llm.generate(prompts, params), told["plain"]))


if __name__ == "__main__":
    main()
