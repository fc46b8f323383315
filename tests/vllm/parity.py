"""Pairs to run, what `ckcontrol.generate` makes of them, and the comparison with what a vLLM engine made.

Knows both engines by their front doors; the vLLM one lives in a process of its own (live.py).
"""

from __future__ import annotations

import atexit
import json
import os
import random
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ckcontrol import Control, GenerateOptions, generate
from ckcontrol.decoding.prompts import build_pair
from ckcontrol.decoding.refusals import eos_ids

from ..warm import Warm

ROOT = Path(__file__).resolve().parents[2]
CONTROLS = [
    Control("ck-plug", alpha=0.2),
    Control(method="cad", alpha=0.35),
    Control("ck-plug", alpha=0.9),
    Control(method="adacad"),
    Control(method="coiecd"),
    Control(method="acd"),
    Control(method="arr"),
    Control(method="nwcad"),
    Control(method="ck-plug-repo", alpha=0.4),
    Control("ck-plug", adaptive=True, gate=2.0),
    Control(method="off"),
    Control("ck-plug", alpha=0.1, candidates=4, candidate_ratio=0.1),
]
DRAWS: list[dict[str, Any]] = [
    {},
    {"do_sample": True, "temperature": 0.8},
    {"repetition_penalty": 1.2},
    {"do_sample": True, "top_k": 20, "top_p": 0.9},
    {},
    {"do_sample": True, "temperature": 1.3, "top_p": 0.7, "repetition_penalty": 1.1, "penalty_scope": "generated"},
]
QUESTIONS = [
    "Who wrote the novel Moby Dick?",
    "What is the capital of Australia?",
    "How many legs does a spider have?",
    "Which planet is the largest?",
    "When did the Second World War end?",
    "What is the chemical symbol of gold?",
    "Who painted the Mona Lisa?",
]
FACTS = [
    "According to the museum leaflet, the answer is Henry Ford.",
    "The guide book says the town of Burville was founded in 1432 by two monks.",
    "A recent letter to the editor claims that spiders have twelve legs.",
    "The archive lists Canberra, Sydney and Perth as candidates.",
    "In this story gold is written as Xy, and silver as Zk.",
    "The treaty was signed on a rainy Tuesday in 1951, the report says.",
    "Jupiter lost its title to the newly found planet Vulcan.",
]


@dataclass(frozen=True)
class Case:
    """One steered question, both its prompts, and the answer of `ckcontrol.generate`."""

    contextual: list[int]
    parametric: list[int]
    control: Control
    options: GenerateOptions
    want: list[int]
    taus: list[float]
    final: list[float]
    plain: list[int] | None


def make_cases(
    model: Any,
    tokenizer: Any,
    count: int,
    *,
    longest: int = 1500,
    new_tokens: int = 24,
    first: int | None = None,
    plain: bool = False,
) -> list[Case]:
    """Return `count` cases with contexts of 20 to `longest` tokens, every policy and way of drawing among them.

    Or the `first` of them; `plain` says whether to ask without steering too.
    """
    r, cases = random.Random(0), []
    for i in range(count if first is None else first):
        control, draw = CONTROLS[i % len(CONTROLS)], DRAWS[(i // 2) % len(DRAWS)]
        options = GenerateOptions(max_new_tokens=new_tokens + i % 5, seed=100 + i, **draw)
        size = int(20 * (longest / 20) ** (i / max(1, count - 1)))
        passages = [r.choice(FACTS)]
        while len(tokenizer(" ".join(passages))["input_ids"]) < size - 10:
            passages.append(r.choice(FACTS))
        question = QUESTIONS[i % len(QUESTIONS)]
        pair = build_pair(tokenizer, question, passages)
        answer = generate(model, tokenizer, question, passages, control=control, **options.to_dict())
        off = Control("off")
        alone = generate(model, tokenizer, question, passages, control=off, **options.to_dict()) if plain else None
        cases.append(
            Case(
                list(pair.contextual),
                list(pair.parametric),
                control,
                options,
                list(answer.token_ids),
                [t.tau for t in answer.tokens],
                [t.logp_final for t in answer.tokens],
                list(alone.token_ids) if alone else None,
            )
        )
    return cases


def job(
    folder: str, model: Any, tokenizer: Any, cases: list[Case], engine: dict[str, Any], **more: Any
) -> dict[str, Any]:
    """Return a job for live.py; `stagger` spreads the arrivals, `late` lets partners come later."""
    ends = list(eos_ids(model, tokenizer))
    stagger, late = more.pop("stagger", 0), more.pop("late", 0)
    pairs = [
        {
            "contextual": case.contextual,
            "parametric": case.parametric,
            "control": case.control.to_dict(),
            "options": {**case.options.to_dict(), "stop_token_ids": []},
            "ends": ends,
            "at": i * stagger,
            "late": late * (i % 2),
        }
        for i, case in enumerate(cases)
    ]
    return {"model": folder, "engine": engine, "pairs": pairs, **more}


SETTINGS = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "PYTHONWARNINGS": "ignore",
}
ENGINE = (  # what an engine imports, three quarters of the time it takes to start
    "vllm.engine.arg_utils",
    "vllm.v1.engine.llm_engine",
    "vllm.v1.engine.core",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.worker.cpu_worker",
    "vllm.model_executor.model_loader",
    "vllm.model_executor.models.llama",
    "compressed_tensors",
)


@cache
def _warm() -> Warm:
    started = Warm(ENGINE, **SETTINGS)
    atexit.register(started.close)
    return started


def live(work: dict[str, Any], seconds: int = 900, path: str = "") -> dict[str, Any]:
    """Run a job in a fresh process; return its result. `path`: a folder of installed packages beside ours."""
    settings = dict(SETTINGS)
    with tempfile.TemporaryDirectory() as folder:
        if path:
            settings["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), path]))
        task, result = Path(folder) / "job.json", Path(folder) / "result.json"
        task.write_text(json.dumps(work))
        done = subprocess.run(
            [_warm().python, "-m", "tests.vllm.live", str(task), str(result)],
            cwd=ROOT,
            env={**os.environ, **settings},
            capture_output=True,
            encoding="utf-8",
            timeout=seconds,
        )
        if not result.exists():
            raise RuntimeError(done.stderr[-4000:])
        return json.loads(result.read_text())  # type: ignore[no-any-return]


def differences(cases: list[Case], lap: dict[str, Any], number: int = 0) -> list[str]:
    """Return one sentence per row that is not what `ckcontrol.generate` gave; a cut row must be a beginning of it."""
    found = []
    for i, case in enumerate(cases):
        rows = [lap["outputs"].get(f"{number}-{i}-{role}", {}) for role in ("contextual", "parametric")]
        if rows[0].get("ids") != rows[1].get("ids"):
            found.append(f"pair {i}: the rows differ: {rows[0].get('ids')} {rows[1].get('ids')}")
        elif rows[0].get("ids") != case.want:
            got = rows[0].get("ids") or []
            at = next((k for k, (a, b) in enumerate(zip(got, case.want, strict=False)) if a != b), len(got))
            found.append(f"pair {i} ({case.control}, {case.options.do_sample}): {len(got)} tokens, differs at {at}")
    return found


def beside(
    folder: str, model: Any, tokenizer: Any, cases: list[Case], ordinary: list[dict[str, Any]], engine: dict[str, Any]
) -> dict[str, Any]:
    """Run ordinary requests beside pairs, alone in a stock engine, and in a stock engine beside other requests.

    Returns:
        ``same_tokens`` of ``requests``, ours against stock; ``furthest``, the largest difference of a log-probability
        among the best five of any of their tokens; the same for the stock engine against itself, in another batch.
    """
    engine = engine | {"logprobs_mode": "processed_logprobs"}  # what `serve-vllm` sets
    work = job(folder, model, tokenizer, cases, engine, ordinary=ordinary, stagger=1)
    crowd = [{"ids": ids, "max": 16, "at": i} for i, case in enumerate(cases) for ids in (case.contextual,)]
    alone = {**work, "pairs": [], "stock": True}
    runs = [live(work), live(alone), live(alone | {"ordinary": [*ordinary, *crowd]})]
    rows = [[run["laps"][0]["outputs"][f"0-o{i}"] for i in range(len(ordinary))] for run in runs]
    found: dict[str, Any] = {"requests": len(ordinary), "pairs": len(cases)}
    for name, other in (("ours beside pairs", 0), ("stock in another batch", 2)):
        same = [a["ids"] == b["ids"] for a, b in zip(rows[other], rows[1], strict=True)]
        far, bits = 0.0, 0
        for a, b in zip(rows[other], rows[1], strict=True):
            steps = next((k for k, (x, y) in enumerate(zip(a["ids"], b["ids"], strict=True)) if x != y), len(a["ids"]))
            for x, y in zip(a["tops"][:steps], b["tops"][:steps], strict=True):
                far = max([far, *(abs(x[t] - y[t]) for t in x.keys() & y.keys() if x[t] != y[t])])
            bits += a["tops"] == b["tops"]
        found[name] = {"same_tokens": sum(same), "same_bits": bits, "furthest": far}
    return found | {"wrong_pairs": len(differences(cases, runs[0]["laps"][0]))}
