"""A run small enough to count by hand: three questions, four states, answers written out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Line = dict[str, Any]
ARMS = ("off", "closed-book", "ck-plug@0", "ck-plug@1")
FACTS = {"Italy": ("Rome", "Oslo"), "France": ("Paris", "Lima"), "Japan": ("Tokyo", "Accra")}
# What each arm says, by state: t the truth, f the passage's false answer, n neither.
SAYS = {
    "conflict": {"off": "tff", "closed-book": "ttn", "ck-plug@0": "fff", "ck-plug@1": "ttf"},
    "agree": {"off": "ttt", "ck-plug@0": "ttt", "ck-plug@1": "ttn"},
    "irrelevant": {"off": "ttn", "ck-plug@0": "tfn", "ck-plug@1": "ttn"},
}


def arm(name: str) -> Line:
    method, _, alpha = name.partition("@")
    return {"name": name, "method": method, "alpha": float(alpha) if alpha else None, "control": {}, "prompt": "base"}


def run() -> Line:
    return {
        "schema": 1,
        "started": "2000-01-01",
        "model": "invented",
        "options": {"max_new_tokens": 8},
        "seed": 0,
        "tasks": {"capitals": {"kind": "generate", "records": 9}},
        "arms": [arm(name) for name in ARMS],
    }


def items() -> list[Line]:
    out = []
    for state in SAYS:
        for country, (truth, false) in FACTS.items():
            stated = truth if state == "agree" else false
            out.append(
                {
                    "task": "capitals",
                    "id": f"{country}/{state}",
                    "question": f"What is the capital of {country}?",
                    "context": f"It is {stated}.",
                    "ctx_answers": [stated],
                    "par_answers": [truth],
                    "meta": {"state": state},
                }
            )
    return out


def sample(key: str, arm_name: str, text: str, **more: Any) -> Line:
    pieces = [piece + " " for piece in text.split()] + [""]
    tokens: Mapping[str, Any] = {
        "text": pieces,
        "switched": [int("@" in arm_name and piece.strip(" .").istitle()) for piece in pieces],
        "logp_par": [-1.0] * len(pieces),
    }
    line = {"task": "capitals", "id": key, "arm": arm_name, "text": text, "n": len(pieces), "finish": "stop"}
    return line | {"tokens": tokens} | more


def samples() -> list[Line]:
    out = []
    for state, said in SAYS.items():
        for name, letters in said.items():
            for (country, (truth, false)), letter in zip(FACTS.items(), letters, strict=True):
                text = {"t": f"it is {truth}.", "f": f"it is {false}.", "n": "unknown"}[letter]
                out.append(sample(f"{country}/{state}", name, text))
    return out
