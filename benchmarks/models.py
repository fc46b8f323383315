"""Which kinds of model work with which door: writes docs/models.md, over tiny random models of every kind.

    python benchmarks/models.py             write the page
    python benchmarks/models.py --check     exit 1 where the page is not what the models do

Every "works" of the page is a comparison that held: see `judge` in tests/kinds.py. Nothing is downloaded.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import transformers  # noqa: E402

from tests.kinds import DOORS, KINDS, STATES, build, judge  # noqa: E402

PAGE = ROOT / "docs" / "models.md"
INTRO = """# Models

Written by `python benchmarks/models.py`, which runs every door on a tiny random model of every kind: two prompts of
different lengths in one batch. "works" means that unsteered answers are those of `model.generate` and steered ones
those of `ckcontrol.reference_generate`, token by token, and that a head mask does what zeroed weights do. A number is
a refusal, raised before the first token; its sentence stands below.

A kind that is not listed needs no entry: the first prompt of a model object is preceded by two tokens of `off` that are
compared with the model's own loop, and a model that cannot be run as two streams is refused there. What decides is the
cache: each stream must be able to own it.
"""
OUTRO = """
`heads` knows the families in `ckcontrol/heads/families.py`. The vLLM door was not run here: it serves what vLLM serves,
one pair of engine requests per steered request ([vllm.md](vllm.md)).

`torch.ao.quantization.quantize_dynamic` works, in two forwards: its scale is one for all rows and positions of a
forward, so that answers depend on the batch there as they do in `model.generate`. Heads need plain weights.

torchao's int8 weights (`Int8WeightOnlyConfig`, `Int8DynamicActivationInt8WeightConfig`) work at the first three
doors, and heads are refused: "the output projections hold Int8Tensor, not plain weights." Judged once
like the kinds above, with torchao 0.18.0 and torch 2.13.0 on a CPU; torchao is no dependency of the tests.
"""


def table(title: str, found: Mapping[str, Mapping[str, str]], letters: dict[str, str]) -> str:
    """One row per kind; a refusal is a letter, given out in order in `letters`."""

    def cell(said: str) -> str:
        said = said if said == "works" else said.partition(" Known: ")[0]
        if "are not described" in said:
            return "not described"
        return said if said == "works" else letters.setdefault(said, f"refused [{len(letters) + 1}]")

    head = f"| {title} | {' | '.join(DOORS)} | vLLM |\n|---|{'---|' * (len(DOORS) + 1)}\n"
    rows = [f"| {kind} | {' | '.join(cell(says[door]) for door in DOORS)} | not run |" for kind, says in found.items()]
    return head + "\n".join(rows) + "\n"


def page(kinds: Mapping[str, Mapping[str, str]], states: Mapping[str, Mapping[str, str]]) -> str:
    """The whole page."""
    letters: dict[str, str] = {}
    tables = [table("model type", kinds, letters), table("a Llama under", states, letters)]
    told = "\n".join(f"- {mark.removeprefix('refused ')} {said}" for said, mark in letters.items())
    return "\n".join([INTRO, *tables, f"## What is said\n\n{told}", OUTRO])


def main() -> int:
    """Run every kind; write or compare the page."""
    transformers.logging.set_verbosity_error()
    written = page(
        {kind: judge(build(kind)) for kind in KINDS},
        {name: judge(change(build("llama"))) for name, change in STATES.items()},
    )
    if "--check" in sys.argv:
        return int(PAGE.read_text(encoding="utf-8") != written)
    PAGE.write_text(written, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
