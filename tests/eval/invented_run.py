"""An invented run directory: the files of the design with plausible, seeded numbers. No measurement of anything."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from ckcontrol.eval.figures.rows import with_holm

STATES = ("conflict", "agree", "helpful", "irrelevant", "noisy")
TASKS = ("capitals", "confiqa_mr", "counterfact", "mquake", "nq_swap")
DIALS = {"ck-plug": (0.0, 0.25, 0.5, 0.75, 1.0), "cad": (0.1, 0.25, 0.5, 0.75, 0.9)}
FLAT = ("off", "closed-book", "prompt", "ck-plug-adaptive", "adacad", "coiecd", "acd", "arr")
# Memory ratio in conflict and loss of accuracy elsewhere, of methods without a dial.
TEMPER = {
    "off": (0.36, 0.0),
    "closed-book": (0.93, 0.22),
    "prompt": (0.31, 0.01),
    "ck-plug-adaptive": (0.44, 0.005),
    "adacad": (0.24, 0.02),
    "coiecd": (0.27, 0.03),
    "acd": (0.41, -0.03),
    "arr": (0.42, -0.02),
}
NAMES = ("Oslo", "Lima", "Accra", "Hanoi", "Quito", "Riga", "Doha", "Suva")


def arms(dials: dict[str, tuple[float, ...]] | None = None, flat: tuple[str, ...] = FLAT) -> list[dict[str, Any]]:
    plain: list[dict[str, Any]] = [
        {"name": n, "method": n, "alpha": None, "control": {}, "prompt": "base"} for n in flat
    ]
    turned = [
        {"name": f"{m}@{a:g}", "method": m, "alpha": a, "control": {"method": m, "alpha": a}, "prompt": "base"}
        for m, values in (DIALS if dials is None else dials).items()
        for a in values
    ]
    return plain[:3] + turned + plain[3:]


def temper(arm: dict[str, Any]) -> tuple[float, float]:
    alpha, method = arm["alpha"], arm["method"]
    if alpha is None:
        return TEMPER.get(method, (0.4, 0.05))
    reach, cost = (6.0, 0.5) if method == "ck-plug" else (3.5, 0.75)
    return 1 / (1 + math.exp(-(alpha - 0.5) * reach + 0.55)), cost * abs(alpha - 0.5) ** 2


def estimate(value: float, n: int) -> dict[str, Any]:
    value = min(max(value, 0.0), 1.0)
    half = 1.96 * math.sqrt(max(value * (1 - value), 0.002) / n)
    low, high = max(value - half, 0.0), min(value + half, 1.0)
    return {"value": round(value, 6), "low": round(low, 6), "high": round(high, 6), "n": n}


def metrics(arm: dict[str, Any], state: str, hard: float, rng: Random, n: int) -> dict[str, Any]:
    ratio, cost = temper(arm)
    noise = rng.gauss(0, 0.012)
    if state == "conflict":
        neither = min(0.06 + 0.9 * cost + 0.2 * hard, 0.8)
        ratio = min(max(ratio - 0.3 * hard + noise, 0.01), 0.99)
        parr = (1 - neither) * ratio
        found = {"mr": ratio, "parr": parr, "conr": 1 - neither - parr, "neither": neither, "both": 0.03}
        found |= {"accuracy": parr, "em": (1 - neither - parr) * 0.7, "gate": 0.21, "repeat4": 0.02}
    else:
        best = {"agree": 0.96, "helpful": 0.81, "irrelevant": 0.62, "noisy": 0.55}[state]
        drop = cost * (0.4 if state in ("agree", "irrelevant") and ratio > 0.5 else 1.0)
        found = {"accuracy": best - 0.25 * hard - drop + noise, "neither": 0.1 + drop}
    return {name: estimate(value, n) for name, value in found.items()}


def pair(cell: dict[str, Any], off: dict[str, Any], metric: str, rng: Random) -> dict[str, Any]:
    difference = cell["metrics"][metric]["value"] - off["metrics"][metric]["value"]
    half = 0.045 + 0.02 * rng.random()
    p = math.erfc(abs(difference) / half * 1.96 / math.sqrt(2))
    place = {key: cell[key] for key in ("task", "state", "arm")}
    numbers = {"difference": difference, "low": difference - half, "high": difference + half, "p": max(p, 0.0002)}
    return place | {"against": "off", "metric": metric, "n": cell["n"]} | {k: round(v, 6) for k, v in numbers.items()}


def results(run: dict[str, Any], tasks: tuple[str, ...], seed: int) -> dict[str, Any]:
    rng = Random(seed)
    cells, pairs, curves = [], [], []
    for place, task in enumerate(tasks):
        n = 200 - 23 * place
        for state in STATES:
            row = [
                {
                    "task": task,
                    "state": state,
                    "arm": arm["name"],
                    "n": n,
                    "groups": n - 7,
                    "errors": int(rng.random() < 0.02),
                }
                | {"metrics": metrics(arm, state, 0.12 * place, rng, n)}
                for arm in run["arms"]
            ]
            cells += row
            off = next((cell for cell in row if cell["arm"] == "off"), None)
            if off is not None:
                names = ("mr", "accuracy") if state == "conflict" else ("accuracy",)
                pairs += with_holm([pair(c, off, m, rng) for c in row if c is not off for m in names])
        curves += [_curve(run, task, cells, m) for m in {a["method"]: 0 for a in run["arms"] if a["alpha"] is not None}]
    return {
        "schema": 1,
        "run": {k: v for k, v in run.items() if k != "started"},
        "tasks": run["tasks"],
        "cells": cells,
        "pairs": pairs,
        "curves": curves,
    }


def _curve(run: dict[str, Any], task: str, cells: list[dict[str, Any]], method: str) -> dict[str, Any]:
    at = {c["arm"]: c["metrics"] for c in cells if c["task"] == task and c["state"] == "conflict"}
    points = [
        {"alpha": a["alpha"], "arm": a["name"]} | {m: at[a["name"]][m] for m in ("mr", "parr", "conr", "accuracy")}
        for a in run["arms"]
        if a["method"] == method
    ]
    values = [p["mr"]["value"] for p in points]
    summary = {
        "mr_range": [min(values), max(values)],
        "spearman": 1.0,
        "violations": 0,
        "ceiling_memory": 0.82,
        "ceiling_context": 0.88,
        "area_gap": 0.31,
        "harm": {"agree": 0.03, "helpful": 0.11, "irrelevant": 0.06},
    }
    return {"task": task, "state": "conflict", "method": method, "points": points, "summary": summary}


def items(tasks: tuple[str, ...], per_state: int) -> Iterator[dict[str, Any]]:
    for task in tasks:
        for state in STATES:
            for index in range(per_state):
                truth, false = NAMES[index % 8], NAMES[(index + 3) % 8]
                claim = {"conflict": false, "agree": truth, "helpful": truth}.get(state)
                said = f"The capital of Place {index} is {claim}." if claim else f"Place {index} exports tin and rope."
                yield {
                    "task": task,
                    "id": f"{state}-{index}",
                    "question": f"What is the capital of Place {index}?",
                    "context": said,
                    "ctx_answers": [claim] if claim else [],
                    "par_answers": [truth],
                    "meta": {"docs": [said], "state": state},
                    "state": state,
                }


def sample(item: dict[str, Any], arm: dict[str, Any], rng: Random) -> dict[str, Any]:
    ratio, cost = temper(arm)
    place = {"task": item["task"], "id": item["id"], "arm": arm["name"]}
    if rng.random() < 0.004:
        return place | {"error": "NonFiniteLogits: row 0, step 3, contextual stream"}
    claimed = item["ctx_answers"] or item["par_answers"]
    named = item["par_answers"][0] if rng.random() < ratio else claimed[0]
    if rng.random() < cost + 0.05:
        named = "a city that I cannot name"
    words = ["The", " capital", f" of Place {item['id'].split('-')[1]}", " is", f" {named}", ".", ""]
    switched = [int(rng.random() < 0.25) for _ in words]
    tokens = {
        "text": words,
        "gain": [round(rng.gauss(0.2, 1.2), 4) for _ in words],
        "tau": [0.5 if on else 1.0 for on in switched],
        "switched": switched,
        "logp_ctx": [-0.3] * len(words),
        "logp_par": [-0.9] * len(words),
    }
    return place | {"text": "".join(words).strip(), "n": len(words), "finish": "stop", "tokens": tokens}


def card(tasks: tuple[str, ...], listed: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    told = {
        "source": "invented",
        "licence": "Apache-2.0",
        "sha256": "5f2c" * 16,
        "kind": "generate",
        "settings": {"clean": True},
        "records": 1000,
        "rejected": {"answers contain each other": 12, "truth in the passage": 7},
    }
    return {
        "schema": 1,
        "started": "2026-01-02T03:04:05+00:00",
        "model": "invented-1b-instruct",
        "model_fingerprint": "sha256:" + "9ab3" * 16,
        "dtype": "bfloat16",
        "device": "cpu",
        "versions": {"ckcontrol": "0.1.0", "torch": "2.9.0", "transformers": "5.16.1", "python": "3.11.9"},
        "options": {"max_new_tokens": 64, "temperature": 0.0},
        "style": "base",
        "prompts": {"base": {"contextual": "{context}\nQ: {question}\nA:", "parametric": "Q: {question}\nA:"}},
        "seed": seed,
        "tasks": {task: dict(told) for task in tasks},
        "arms": listed,
    }


def write_run(
    folder: Path,
    *,
    tasks: tuple[str, ...] = TASKS,
    listed: list[dict[str, Any]] | None = None,
    per_state: int = 6,
    seed: int = 0,
) -> Path:
    """Write run.json, results.json, items.jsonl and samples.jsonl; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    run = card(tasks, arms() if listed is None else listed, seed)
    rng = Random(seed + 1)
    records = list(items(tasks, per_state))
    samples = [sample(item, arm, rng) for item in records for arm in run["arms"]]
    write_json(folder / "run.json", run)
    write_json(folder / "results.json", results(run, tasks, seed))
    write_lines(folder / "items.jsonl", records)
    write_lines(folder / "samples.jsonl", samples)
    return folder


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
