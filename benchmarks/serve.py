"""`ckcontrol serve` against `ckcontrol.generate`: what one request costs, and what concurrent ones gain.

    OMP_NUM_THREADS=1 python benchmarks/serve.py --model demo --new-tokens 24 --rounds 5
    OMP_NUM_THREADS=1 python benchmarks/serve.py --model demo --new-tokens 24 --rounds 5 --parts

The server runs in a process of its own, the official client here. In every round the same questions are asked of
`generate` one by one, of the server one by one, and of the server all at once; greedy, ck-plug at alpha 0.2. Prints
CPU seconds of the process that decodes (which on one thread are the time it takes on an idle machine), seconds by the
clock, and ratios of CPU seconds: median, least and greatest of the rounds. Answers that differ are an error.
Linux only. With --parts the batcher runs in this process, without HTTP, and tells what its time went into.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from openai import OpenAI

import ckcontrol as ck
from ckcontrol.decoding import running
from ckcontrol.decoding.streams import TwoStreams
from ckcontrol.serving.batcher import Batcher
from ckcontrol.serving.jobs import Job

TOWNS = ["Orvendale", "Marrowick", "Tellin", "Quarrow", "Vess", "Ilmar", "Dunhallow", "Pell"]
CASES = [
    (f"Which river runs through {a}?", [f"{a} lies on the river {b}sel, which runs through {a}. " * 4])
    for a, b in zip(TOWNS, [*TOWNS[1:], TOWNS[0]], strict=True)
]


def cpu_seconds(pid: int) -> float:
    """Return what all threads of a process have used of the processor."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def timed(pid: int, work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Return CPU seconds of a process and seconds by the clock, while something is done, and what came of it."""
    start, clock = cpu_seconds(pid), time.perf_counter()
    found = work()
    return cpu_seconds(pid) - start, time.perf_counter() - clock, found


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--parts", action="store_true", help="the batcher alone, and what its time goes into")
    given = parser.parse_args()
    model, tokenizer = ck.load(given.model, device="cpu")
    if given.parts:
        return tell_parts(model, tokenizer, given.new_tokens, given.rounds)
    line = [sys.executable, "-m", "ckcontrol", "serve", "--model", given.model, "--port", str(given.port)]
    server = subprocess.Popen([*line, "--device", "cpu"])
    client = OpenAI(base_url=f"http://127.0.0.1:{given.port}/v1", api_key="none", max_retries=0)

    def asked(case: tuple[str, list[str]]) -> list[int]:
        reply = client.chat.completions.create(
            model=given.model,
            messages=[{"role": "user", "content": case[0]}],
            temperature=0,
            max_tokens=given.new_tokens,
            extra_body={"ck": {"passages": case[1], "alpha": 0.2}, "return_token_ids": True},
        )
        return list(reply.choices[0].model_extra["token_ids"])  # type: ignore[index]

    def made(case: tuple[str, list[str]]) -> list[int]:
        control = ck.Control(alpha=0.2)
        answer = ck.generate(model, tokenizer, *case, control=control, max_new_tokens=given.new_tokens, trace=False)
        return list(answer.token_ids)

    def together() -> list[list[int]]:
        with ThreadPoolExecutor(len(CASES)) as pool:
            return list(pool.map(asked, CASES))

    rounds: list[tuple[list[float], list[float], list[float]]] = []
    differing = 0
    try:
        wait(given.port, server)
        asked(CASES[0]), made(CASES[0])
        for _ in range(given.rounds):
            *alone, want = timed(os.getpid(), lambda: [made(case) for case in CASES])
            *one, single = timed(server.pid, lambda: [asked(case) for case in CASES])
            *eight, many = timed(server.pid, together)
            rounds.append((alone, one, eight))
            print(f"CPU and clock seconds: {rounds[-1]}", file=sys.stderr, flush=True)
            differing += sum(a != b for a, b in zip(want + want, single + many, strict=True))
    finally:
        server.terminate()
        server.wait()
    arms = dict(zip(("generate", "served_one_by_one", "served_at_once"), zip(*rounds, strict=True), strict=True))
    told = {
        **{f"{name}_cpu_s": spread([cpu for cpu, _ in times]) for name, times in arms.items()},
        **{f"{name}_clock_s": spread([clock for _, clock in times]) for name, times in arms.items()},
        "cost_of_serving": spread([b[0] / a[0] - 1 for a, b, _ in rounds]),
        "gain_of_eight": spread([b[0] / c[0] for _, b, c in rounds]),
        "answers_that_differ": differing,
    }
    print(json.dumps({"model": given.model, "rounds": given.rounds, "questions": len(CASES), **told}, indent=1))
    return 1 if differing else 0


def tell_parts(model: Any, tokenizer: Any, new_tokens: int, rounds: int) -> int:
    """Print seconds of the batcher's thread, one question after another and all at once: in all, and in its parts.

    Of each part seconds and how often it ran.
    """
    spent: Counter[str] = Counter()
    calls: Counter[str] = Counter()

    def timed(owner: Any, name: str, part: str) -> None:
        function = getattr(owner, name)

        def run(*args: Any, **more: Any) -> Any:
            start = time.thread_time()
            try:
                return function(*args, **more)
            finally:
                spent[part] += time.thread_time() - start
                calls[part] += 1

        setattr(owner, name, run)

    timed(TwoStreams, "prefill", "prompts")
    timed(TwoStreams, "_shared_step", "steps")
    timed(TwoStreams, "join", "joining")
    timed(running, "_choose", "fusion and choice")
    batcher = Batcher(model, tokenizer, len(CASES))

    def answered(together: list[Any]) -> list[int]:
        given: list[list[Any]] = [[] for _ in together]
        over = threading.Semaphore(0)
        options = ck.GenerateOptions(max_new_tokens=new_tokens, trace=False)
        with batcher._changed:  # so that all are there when the first begins
            for pair, got in zip(together, given, strict=True):

                def tell(what: Any, got: list[Any] = got) -> None:
                    got.append(what)
                    if not isinstance(what, int):
                        over.release()

                batcher.submit(Job(pair, ck.Control(alpha=0.2), options, tell=tell))
        for _ in together:
            over.acquire()
        return [token for got in given for token in got[:-1]]

    pairs = [ck.build_pair(tokenizer, *case) for case in CASES]
    answered(pairs[:1])
    differing = 0
    for _ in range(rounds):
        found = []
        for name, groups in (("one by one", [[pair] for pair in pairs]), ("at once", [pairs])):
            spent.clear(), calls.clear()
            start = time.process_time()
            found.append([token for group in groups for token in answered(group)])
            took = time.process_time() - start
            parts = {part: (round(seconds, 2), calls[part]) for part, seconds in spent.items()}
            print(name, round(took, 2), parts, flush=True)
        differing += found[0] != found[1]
    batcher.close()
    return 1 if differing else 0


def wait(port: int, server: subprocess.Popen[bytes]) -> None:
    while server.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
            return
        except OSError:
            time.sleep(0.5)
    raise SystemExit("the server did not start")


def spread(values: list[float]) -> list[float]:
    return [round(value, 3) for value in (statistics.median(values), min(values), max(values))]


if __name__ == "__main__":
    sys.exit(main())
