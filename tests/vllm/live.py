"""A real engine, stepped by hand in a process of its own: ``python -m tests.vllm.live job.json result.json``.

The job says which engine, which pairs and ordinary requests arrive at which step and which are aborted, and what a pair
changes in the model; the result says what every row put out and what is left in the engine. Knows vLLM's in-process
engine; compares nothing.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from ckcontrol import Control, GenerateOptions
from ckcontrol.vllm.contract import changes
from ckcontrol.vllm.contract import pair_params as params

ROLES = ("contextual", "parametric")


def force_async() -> None:
    """Turn asynchronous scheduling on where vLLM's CPU platform switches it off."""
    from vllm.platforms import current_platform

    platform = type(current_platform)
    check = platform.check_and_update_config.__func__

    def checked(cls: Any, config: Any) -> None:
        check(cls, config)
        config.scheduler_config.async_scheduling = True

    platform.check_and_update_config = classmethod(checked)


def start(job: dict[str, Any]) -> Any:
    """Start the engine: with pairs, or stock where the job says so."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    if job.get("async"):
        force_async()
    ours: dict[str, Any] = {}
    if not job.get("stock"):
        from ckcontrol.vllm.offline.steered_llm import engine_arguments

        ours = engine_arguments()
    return LLMEngine.from_engine_args(
        EngineArgs(
            model=job["model"], dtype="float32", enforce_eager=True, disable_log_stats=True, **ours, **job["engine"]
        )
    )


def submissions(job: dict[str, Any], lap: int) -> list[tuple[int, str, dict[str, Any], Any]]:
    """Return (step, name, prompt, SamplingParams) of every row, in order of arrival."""
    from vllm import SamplingParams

    rows = []
    for i, pair in enumerate(job["pairs"]):
        name = f"{lap}-{i}-" + "x" * 8
        options = GenerateOptions(**pair["options"])
        control = Control.from_dict(pair["control"])
        order = ROLES if i % 3 else ROLES[::-1]
        for k, role in enumerate(order):
            args = params.extra_args(name, role, control, options, trace=True) | pair.get("changes", {})
            asked = params.sampling_params(
                args, max_tokens=options.max_new_tokens, stop_token_ids=tuple(pair["ends"]), detokenize=False
            )
            at = pair.get("at", 0) + k * pair.get("late", 0)
            salt = {"cache_salt": job.get("salt") or changes.own_salt()} if "changes" in pair else {}
            rows.append((at, f"{lap}-{i}-{role}", {"prompt_token_ids": pair[role], **salt}, asked))
    for i, other in enumerate(job.get("ordinary", [])):
        asked = SamplingParams(
            temperature=0, max_tokens=other["max"], ignore_eos=True, detokenize=False, logprobs=other.get("logprobs")
        )
        rows.append((other.get("at", 0), f"{lap}-o{i}", {"prompt_token_ids": other["ids"]}, asked))
    return sorted(rows, key=lambda row: row[0])


def run(engine: Any, job: dict[str, Any], lap: int) -> dict[str, Any]:
    """Live through one lap; return the output of every row."""
    coming = submissions(job, lap)
    aborts = {f"0-{a['pair']}-{a['role']}": a["after"] for a in job.get("aborts", [])}  # of the first lap
    outputs: dict[str, Any] = {}
    step, begun = 0, time.perf_counter()
    while coming or engine.has_unfinished_requests():
        while coming and coming[0][0] <= step:
            _, name, prompt, asked = coming.pop(0)
            engine.add_request(name, prompt, asked)
        for told in engine.step():
            made = told.outputs[0]
            logprobs = tops = None
            if made.logprobs:
                logprobs = [entry[t].logprob for entry, t in zip(made.logprobs, made.token_ids, strict=True)]
                tops = [{token: one.logprob for token, one in entry.items()} for entry in made.logprobs]
            outputs[told.request_id] = {
                "ids": list(made.token_ids),
                "reason": made.finish_reason,
                "why": made.stop_reason,
                "logprobs": logprobs,
                "tops": tops,
            }
            if len(made.token_ids) >= aborts.get(told.request_id, 10**9):
                del aborts[told.request_id]
                engine.abort_request([told.request_id])
        step += 1
        if step > 50_000:
            return {"outputs": outputs, "steps": step, "stuck": True}
    return {"outputs": outputs, "steps": step, "seconds": time.perf_counter() - begun}


def main(job_path: str, result_path: str) -> None:
    """Read the job, live, write the result."""
    job = json.loads(Path(job_path).read_text())
    engine = start(job)
    core = engine.engine_core.engine_core
    if "direction" in job:
        (refused,) = engine.collective_rpc("ck_direction_install", args=job["direction"])
        if refused:
            Path(result_path).write_text(json.dumps({"refused": refused}))
            return
        engine.collective_rpc("ck_heads_install")
    laps = [run(engine, job, lap) for lap in range(job.get("laps", 1))]
    for _ in range(5):  # let aborted rows leave the batch
        engine.step()
    traces: dict[str, Any] = {}
    if not job.get("stock"):
        names = [f"0-{i}-" + "x" * 8 for i in range(len(job["pairs"]))]
        traces = engine.collective_rpc("ck_take_traces", args=(names,))[0]
    scheduler = core.scheduler
    result = {
        "runner": type(core.model_executor.driver_worker.worker.model_runner).__mro__[1].__module__,
        "laps": laps,
        "traces": traces,
        "async": engine.vllm_config.scheduler_config.async_scheduling,
        "queue": core.batch_queue_size,
        "left": len(scheduler.requests) + len(getattr(scheduler, "_ck_pairs", ())),
        "free": scheduler.kv_cache_manager.block_pool.get_num_free_blocks(),
        "blocks": engine.vllm_config.cache_config.num_gpu_blocks,
        "counts": getattr(scheduler, "ck_counts", {}),
    }
    Path(result_path).write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:3])
