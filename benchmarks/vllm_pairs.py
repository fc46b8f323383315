"""What a pair costs in vLLM: added time per step, and pairs per second against plain requests. Needs vLLM.

    python benchmarks/vllm_pairs.py step                      scheduler and processor alone, no model
    python benchmarks/vllm_pairs.py engine --model FOLDER     pairs/s against requests/s of the same prompts and lengths

Prints one JSON object; `--json FILE` writes it too. On CPU set VLLM_CPU_OMP_THREADS_BIND=nobind OMP_NUM_THREADS=1
VLLM_ENABLE_V1_MULTIPROCESSING=0.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from ckcontrol import Control, GenerateOptions
from ckcontrol.vllm import params

ENDLESS = {"ignore_eos": True, "detokenize": False}


def rows_of(control: Control, options: GenerateOptions, longest: int) -> list[Any]:
    """Return the SamplingParams of both rows of a new pair."""
    pair = params.new_pair()
    return [
        params.sampling_params(params.extra_args(pair, role, control, options), max_tokens=longest, **ENDLESS)
        for role in params.ROLES
    ]


def processor_ms(pairs: int, options: GenerateOptions, controls: list[Control], vocab: int, steps: int) -> float:
    """Return the median milliseconds of one `apply` on a full batch of pairs."""
    from ckcontrol.vllm import PairLogitsProcessor

    processor = PairLogitsProcessor(None, torch.device("cpu"), False)
    outputs: list[list[int]] = []
    added = []
    for i in range(pairs):
        for asked in rows_of(controls[i % len(controls)], options, 64):
            outputs.append([])
            added.append((len(added), asked, list(range(50)), outputs[-1]))
    processor.update_state(SimpleNamespace(removed=[], added=added, moved=[]))
    logits = torch.randn(2 * pairs, vocab) * 3
    times = []
    for _ in range(steps + 2):
        batch = logits.clone()
        start = time.perf_counter()
        processor.apply(batch)
        times.append(time.perf_counter() - start)
        for output in outputs:
            output.append(5)
    return 1000 * statistics.median(times[2:])


def scheduler_ms(pairs: int, paired: bool, steps: int) -> float:
    """Return the median milliseconds of `schedule` and `update_from_output` with `pairs` pairs (or 2 x plain rows)."""
    from vllm import SamplingParams
    from vllm.v1.outputs import ModelRunnerOutput
    from vllm.v1.request import Request

    from tests.vllm import fuzz

    fuzz.LONGEST = 2048
    scheduler = fuzz.make_scheduler("async0", 20 * pairs + 50, 512, 256, False)
    for i in range(pairs):
        asked = rows_of(Control(alpha=0.2), GenerateOptions(), 200)
        for k in (0, 1):
            one = asked[k] if paired else SamplingParams(temperature=0, max_tokens=200, **ENDLESS)
            scheduler.add_request(Request(f"{i}-{k}", list(range(10, 20)), one, None))
    times = []
    for step in range(steps + 12):
        start = time.perf_counter()
        output = scheduler.schedule()
        spent = time.perf_counter() - start
        names = list(output.num_scheduled_tokens)
        made = ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: i for i, name in enumerate(names)},
            sampled_token_ids=[[] if scheduler.requests[name].is_prefill_chunk else [7] for name in names],
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
        )
        start = time.perf_counter()
        scheduler.update_from_output(output, made)
        if step >= 12:
            times.append(spent + time.perf_counter() - start)
    return 1000 * statistics.median(times)


def measure_step(vocab: int, steps: int) -> dict[str, Any]:
    """Added time per step at 1, 32 and 128 pairs."""
    found: dict[str, Any] = {"vocab": vocab, "unit": "ms per step, median"}
    kinds = {
        "greedy, one control": (GenerateOptions(), [Control(alpha=0.2)]),
        "sampled, top-p, one control": (GenerateOptions(do_sample=True, seed=1, top_p=0.9), [Control(alpha=0.2)]),
        "greedy, 8 alphas": (GenerateOptions(), [Control(alpha=0.1 + 0.05 * i) for i in range(8)]),
    }
    for pairs in (1, 32, 128):
        row: dict[str, Any] = {
            name: round(processor_ms(pairs, *kind, vocab, steps if pairs < 128 else 4), 2)
            for name, kind in kinds.items()
        }
        row["scheduler, pairs"] = round(scheduler_ms(pairs, True, 40), 3)
        row["scheduler, plain rows"] = round(scheduler_ms(pairs, False, 40), 3)
        found[f"{pairs} pairs"] = row
    return found


def measure_engine(model: str, items: int, longest: int) -> dict[str, Any]:
    """Pairs per second against plain requests per second, and the mean time of a step."""
    from ckcontrol.vllm import SteeredLLM

    steered = SteeredLLM(
        model, dtype="float32", enforce_eager=True, max_model_len=1024, max_num_seqs=64, enable_prefix_caching=False
    )
    r = random.Random(0)
    contextual = [[r.randint(100, 5000) for _ in range(r.randint(60, 160))] for _ in range(items)]
    parametric = [ids[: r.randint(15, 30)] for ids in contextual]
    plain = params.sampling_params({}, max_tokens=longest, **ENDLESS)

    def seconds(prompts: list[list[int]], asked: list[Any]) -> float:
        start = time.perf_counter()
        steered.llm.generate([{"prompt_token_ids": ids} for ids in prompts], asked, use_tqdm=False)
        return time.perf_counter() - start

    seconds(contextual[:2], [plain] * 2)
    found: dict[str, Any] = {"items": items, "new_tokens": longest}
    plains, pairs = [], []
    for _ in range(2):
        plains.append(seconds(contextual, [plain] * items))
        both = [ids for pair in zip(contextual, parametric, strict=True) for ids in pair]
        asked = [row for _ in contextual for row in rows_of(Control(alpha=0.2), GenerateOptions(), longest)]
        pairs.append(seconds(both, asked))
    found |= {"requests_per_s": items / min(plains), "pairs_per_s": items / min(pairs)}
    return found | {"ratio": min(plains) / min(pairs)}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", choices=["step", "engine"])
    parser.add_argument("--model", default="")
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--items", type=int, default=48)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.part == "step":
        found = measure_step(given.vocab, given.steps)
    else:
        found = measure_engine(given.model, given.items, given.new_tokens)
    text = json.dumps(found, indent=2)
    print(text)
    if given.json:
        given.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
