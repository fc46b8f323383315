"""What a pair costs in vLLM: added time per step, and pairs per second against plain requests. Needs vLLM.

    python benchmarks/vllm_pairs.py step                      scheduler and processor alone, no model
    python benchmarks/vllm_pairs.py engine --model FOLDER     pairs/s against plain requests/s and `ckcontrol.generate`,
                                                              same prompts and lengths; what of a step is ours
    python benchmarks/vllm_pairs.py shares --model FOLDER     the last alone, in seconds of the processor

Prints one JSON object; `--json FILE` writes it too. On CPU set VLLM_CPU_OMP_THREADS_BIND=nobind OMP_NUM_THREADS=1
VLLM_ENABLE_V1_MULTIPROCESSING=0.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from ckcontrol import Control, GenerateOptions, generate
from ckcontrol.vllm.contract import pair_params as params

ENDLESS = {"ignore_eos": True, "detokenize": False}


def rows_of(control: Control, options: GenerateOptions, longest: int) -> list[Any]:
    """Return the SamplingParams of both rows of a new pair; of one per draft, where the method writes several."""
    asked = []
    for draft in params.drafts(control):
        pair = params.new_pair()
        for role in params.ROLES:
            args = params.extra_args(pair, role, control, options, draft=draft)
            asked.append(params.sampling_params(args, max_tokens=longest, **ENDLESS))
    return asked


def processor_and_logits(
    pairs: int, options: GenerateOptions, controls: list[Control], spread: float, vocab: int, device: str = "cpu"
) -> tuple[Any, torch.Tensor, list[list[int]]]:
    """Return `apply` of a processor with a full batch of pairs, random logits that wide, and the rows' outputs."""
    from ckcontrol.vllm import PairLogitsProcessor

    processor = PairLogitsProcessor(None, torch.device(device), False)
    outputs: list[list[int]] = []
    added = []
    for i in range(pairs):
        for asked in rows_of(controls[i % len(controls)], options, 64):
            outputs.append([])
            added.append((len(added), asked, list(range(50)), outputs[-1]))
    processor.update_state(SimpleNamespace(removed=[], added=added, moved=[]))
    logits = torch.randn(2 * pairs, vocab, generator=torch.Generator().manual_seed(0)) * spread
    return processor.apply, logits.to(device), outputs


def processor_ms(
    pairs: int, options: GenerateOptions, controls: list[Control], spread: float, vocab: int, steps: int
) -> float:
    """Return the median milliseconds of one `apply` on a full batch of pairs, with random logits that wide."""
    apply, logits, outputs = processor_and_logits(pairs, options, controls, spread, vocab)
    times = []
    for _ in range(steps + 2):
        batch = logits.clone()
        start = time.perf_counter()
        apply(batch)
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
        asked = rows_of(Control("ck-plug", alpha=0.2), GenerateOptions(), 200)
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
        "greedy": (GenerateOptions(), [Control("ck-plug", alpha=0.2)], 6.0),
        "greedy, 8 alphas": (GenerateOptions(), [Control("ck-plug", alpha=0.1 + 0.05 * i) for i in range(8)], 6.0),
        "sampled": (GenerateOptions(do_sample=True, seed=1), [Control("ck-plug", alpha=0.2)], 6.0),
        "sampled, top-p 0.9": (
            GenerateOptions(do_sample=True, seed=1, top_p=0.9),
            [Control("ck-plug", alpha=0.2)],
            6.0,
        ),
        "sampled, top-p 0.9, flat": (
            GenerateOptions(do_sample=True, seed=1, top_p=0.9),
            [Control("ck-plug", alpha=0.2)],
            3.0,
        ),
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


class Clock:
    """Adds up the seconds, told by `now`, that are spent in methods of a class, call by call."""

    def __init__(self, now: Any) -> None:
        self.spent = 0.0
        self.now = now

    def wind(self, owner: Any, *names: str) -> None:
        """Time these methods of a class or an object from now on."""
        for name in names:
            setattr(owner, name, self._timed(getattr(owner, name)))

    def _timed(self, method: Any) -> Any:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = self.now()
            try:
                return method(*args, **kwargs)
            finally:
                self.spent += self.now() - start

        return timed


def real_prompts(tokenizer: Any, count: int) -> list[Any]:
    """Return questions of the demo with two to four passages of its corpus each, and both prompts."""
    from ckcontrol.decoding.prompts import build_pair

    folder = Path(__file__).resolve().parents[1] / "ckcontrol" / "demo"
    questions, corpus = (
        [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]
        for name in ("questions.jsonl", "corpus.jsonl")
    )
    by_id, r, found = {passage["id"]: passage["text"] for passage in corpus}, random.Random(0), []
    for i in range(count):
        asked = questions[i % len(questions)]
        passages = [by_id[asked["passage_id"]], *(one["text"] for one in r.sample(corpus, r.randint(1, 3)))]
        found.append((asked["question"], passages, build_pair(tokenizer, asked["question"], passages)))
    return found


def spread(values: list[float], digits: int = 3) -> dict[str, float]:
    """Return median, least and greatest."""
    made = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, digits) for name, value in made.items()}


def measure_engine(
    model: str, items: int, longest: int, rounds: int, counts: list[int], alone: bool = False
) -> dict[str, Any]:
    """Pairs per second against plain requests and against `ckcontrol.generate`, and what of a step is ours."""
    from vllm import SamplingParams

    from ckcontrol.models.load import load
    from ckcontrol.vllm import PairLogitsProcessor, SteeredLLM

    steered = SteeredLLM(
        model, dtype="float32", enforce_eager=True, max_model_len=1024, max_num_seqs=256, enable_prefix_caching=False
    )
    core = steered.llm.llm_engine.engine_core.engine_core
    prompts = real_prompts(steered.llm.get_tokenizer(), max(0 if alone else items, *counts))
    control, dial, options = Control("ck-plug", alpha=0.2), Control("dial", alpha=0.6), GenerateOptions()
    plain = SamplingParams(temperature=0, max_tokens=longest, **ENDLESS)

    def seconds(chosen: list[Any], by: Control | None, rows: int, tokens: int = longest) -> float:
        core.scheduler.max_num_running_reqs = core.scheduler.max_num_active_reqs = rows
        given, asked = [], []
        for _, _, pair in chosen:
            each = rows_of(by, options, tokens) if by else [plain]
            sides = (pair.contextual, pair.parametric) * len(each)
            given += [{"prompt_token_ids": list(ids)} for ids in sides[: len(each)]]
            asked += each
        start = time.perf_counter()
        steered.llm.generate(given, asked, use_tqdm=False)
        return time.perf_counter() - start

    def shares(count: int, now: Any) -> dict[str, Any]:
        made = step_shares(
            steered, core, PairLogitsProcessor, lambda c: seconds(c, control, 256, 12), prompts[:count], now
        )
        print(count, made, flush=True, file=sys.stderr)
        return made

    if alone:
        return {f"{count} pairs": shares(count, time.process_time) for count in counts}
    for by in (None, control, dial):
        seconds(prompts[:2], by, 64)
    lengths = [
        [len(side) for _, _, pair in prompts[:items] for side in (getattr(pair, name),)] for name in params.ROLES
    ]
    found: dict[str, Any] = {
        "items": items,
        "new_tokens": longest,
        "rounds": rounds,
        "prompt_tokens": {name: spread(each, 0) for name, each in zip(params.ROLES, lengths, strict=True)},
        "rows_at_once": 64,
    }

    reference, tokenizer = load(model, device="cpu")
    for owner in (reference.generation_config, reference.config, tokenizer):
        owner.eos_token_id = None  # every answer has its full length, as ENDLESS says to vLLM
    own_items = {batch: min(items, max(6, batch)) for batch in (1, 8, 32)}

    def own(batch: int) -> float:
        chosen = prompts[: own_items[batch]]
        start = time.perf_counter()
        for i in range(0, len(chosen), batch):
            part = chosen[i : i + batch]
            made = generate(
                reference,
                tokenizer,
                [question for question, _, _ in part],
                [passages for _, passages, _ in part],
                control=control,
                max_new_tokens=longest,
                trace=False,
            )
            if any(len(answer.token_ids) != longest for answer in made):
                raise RuntimeError("an answer ended early; the comparison would not be fair")
        return time.perf_counter() - start

    rates: dict[str, list[float]] = {}
    for _ in range(rounds):
        this = {"plain requests, vLLM": items / seconds(prompts[:items], None, 64)}
        this["pairs, vLLM"] = items / seconds(prompts[:items], control, 64)
        this["questions under dial (two pairs each), vLLM"] = items / seconds(prompts[:items], dial, 64)
        for batch, count in own_items.items():
            this[f"ckcontrol.generate, batch {batch}"] = count / own(batch)
        for name, rate in this.items():
            rates.setdefault(name, []).append(rate)
        print({name: round(rate, 2) for name, rate in this.items()}, flush=True, file=sys.stderr)
    found["answers_per_s"] = {name: spread(each) for name, each in rates.items()}
    pairs = rates["pairs, vLLM"]
    found["pairs_per"] = {
        name: spread([a / b for a, b in zip(pairs, each, strict=True)])
        for name, each in rates.items()
        if name != "pairs, vLLM"
    }
    found["step"] = {f"{count} pairs": shares(count, time.perf_counter) for count in counts}
    return found


def step_shares(steered: Any, core: Any, processor: Any, run: Any, prompts: list[Any], now: Any) -> dict[str, Any]:
    """Milliseconds of a step in which all pairs decode; of processor and of scheduler (with vLLM's part) in it."""
    ours, planned, steps = Clock(now), Clock(now), []
    kept = {name: getattr(processor, name) for name in ("apply", "update_state")}
    ours.wind(processor, *kept)
    planned.wind(core.scheduler, "schedule", "update_from_output")
    plain_step, execute = core.step_fn, core.model_executor.execute_model
    rows: list[int] = []

    def executed(output: Any, *args: Any, **kwargs: Any) -> Any:
        rows.append(output.total_num_scheduled_tokens)
        return execute(output, *args, **kwargs)

    def step() -> Any:
        before, start = (ours.spent, planned.spent), now()
        rows.clear()
        result = plain_step()
        if rows == [2 * len(prompts)]:
            total = now() - start
            steps.append((total, ours.spent - before[0], planned.spent - before[1]))
        return result

    core.step_fn, core.model_executor.execute_model = step, executed
    try:
        run(prompts)
    finally:
        core.step_fn, core.model_executor.execute_model = plain_step, execute
        for name, method in kept.items():
            setattr(processor, name, method)
        for name in ("schedule", "update_from_output"):
            delattr(core.scheduler, name)
    steps = steps[1:]
    if not steps:
        raise RuntimeError(f"no step held all {len(prompts)} pairs: give the cache more room (VLLM_CPU_KVCACHE_SPACE)")
    total, mine, planner = (statistics.median(column) for column in zip(*steps, strict=True))
    return {
        "steps": len(steps),
        "step_ms": round(1000 * total, 2),
        "processor_ms": round(1000 * mine, 2),
        "scheduler_ms": round(1000 * planner, 2),
        "processor_share": round(statistics.median(b / a for a, b, _ in steps), 4),
        "scheduler_share": round(statistics.median(c / a for a, _, c in steps), 4),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", choices=["step", "engine", "shares"])
    parser.add_argument("--model", default="")
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--items", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairs", type=int, nargs="+", default=[1, 32, 128], help="at once, of which shares are told")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.part == "step":
        found = measure_step(given.vocab, given.steps)
    else:
        alone = given.part == "shares"
        found = measure_engine(given.model, given.items, given.new_tokens, given.rounds, given.pairs, alone)
    text = json.dumps(found, indent=2)
    print(text)
    if given.json:
        given.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
