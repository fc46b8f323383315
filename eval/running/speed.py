"""What an arm costs by itself: time to the whole answer, tokens per second, memory. Not part of results.json.

A run decodes all arms together, so its times say nothing about any one of them; here each answers alone, one question
at a time, in rounds over all arms, and is compared with `off` in the same round. Knows engines; knows no task and no
file.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from ..records import Record
from .arms import Arm

if TYPE_CHECKING:
    from .engine import Local

__all__ = ["measure_speed", "one_arm_per_method"]


def one_arm_per_method(arms: Sequence[Arm]) -> list[Arm]:
    """Return `off` and one arm per method with the same wording of the prompts, a steered one if it has the dial."""
    chosen: dict[str, Arm] = {}
    for arm in sorted(arms, key=lambda arm: (arm.method != "off", arm.control.policy().neutral)):
        if arm.prompt == "base":
            chosen.setdefault(arm.method, arm)
    return list(chosen.values())


def measure_speed(engine: Local, records: Sequence[Record], arms: Sequence[Arm], *, rounds: int = 3) -> dict[str, Any]:
    """Time one arm of every method on the same records, one at a time.

    Args:
        engine: A model in this process.
        records: Questions, not choices.
        arms: `one_arm_per_method` chooses among them.
        rounds: How often everything is repeated; the figures are medians over the rounds.

    Returns:
        ``{"records", "rounds", "peak_rss_mb", "arms": [{"arm", "seconds", "tokens_per_s", "against_off",
        "peak_cuda_mb"}]}``: seconds per answer; `against_off`, the ratio of tokens per second in the same round;
        the peak memory of the process, in which arms cannot be told apart, and on a GPU that of each arm, else None.
    """
    import torch

    from ckcontrol.decoding.generate import generate

    chosen = one_arm_per_method(arms)
    cuda = engine.model.device.type == "cuda"
    seen: dict[str, list[tuple[float, float]]] = {arm.name: [] for arm in chosen}
    memory: dict[str, int] = {}

    def timed(arm: Arm) -> tuple[float, float]:
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        started, tokens = time.perf_counter(), 0
        for record in records:
            answer = generate(
                engine.model,
                engine.tokenizer,
                record.question,
                record.passages,
                control=arm.control,
                template=engine.wording.templates["base"],
                truncate="passages",
                trace=False,
                **{k: v for k, v in engine.options.to_dict().items() if k != "trace"},
            )
            tokens += len(answer.token_ids)
        if cuda:
            torch.cuda.synchronize()
            memory[arm.name] = max(memory.get(arm.name, 0), torch.cuda.max_memory_allocated() >> 20)
        seconds = time.perf_counter() - started
        return seconds / len(records), tokens / seconds

    timed(chosen[0])  # warm up
    for _ in range(rounds):
        for arm in chosen:
            seen[arm.name].append(timed(arm))
    base = seen.get("off")
    rows = []
    for arm in chosen:
        each = seen[arm.name]
        against = None if base is None else median(x[1] / y[1] for x, y in zip(each, base, strict=True))
        rows.append(
            {
                "arm": arm.name,
                "seconds": round(median(x[0] for x in each), 4),
                "tokens_per_s": round(median(x[1] for x in each), 2),
                "against_off": None if against is None else round(against, 3),
                "peak_cuda_mb": memory.get(arm.name),
            }
        )
    return {"records": len(records), "rounds": rounds, "peak_rss_mb": _peak_rss_mb(), "arms": rows}


def _peak_rss_mb() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak >> (20 if sys.platform == "darwin" else 10))
