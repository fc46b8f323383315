"""Which kinds of model work with which door: writes docs/models.md, over tiny random models of every kind.

    python benchmarks/models.py             write the page
    python benchmarks/models.py --check     exit 1 where the page is not what the models do

vLLM's column is read from benchmarks/results/vllm_architectures.json: `ModelRegistry.get_supported_archs()` of vLLM.

Every "works" of the page is a comparison that held: see `judge` in tests/kinds.py. Nothing is downloaded.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

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
`heads` knows the families in `ckcontrol/heads/families.py`.

The vLLM door serves what vLLM serves, one pair of engine requests per steered request ([vllm.md](vllm.md)). Pairs were
run there with a llama (`make test-vllm`). The rest of the column is no run: "in vLLM" says that vLLM 0.32.0 has code
for the architecture, "not in vLLM" that it has none, and then takes its transformers backend or refuses. Models with
recurrent state have never been steered there. The second table's states are those of objects in this process.

`torch.ao.quantization.quantize_dynamic` works, in two forwards: its scale is one for all rows and positions of a
forward, so that answers depend on the batch there as they do in `model.generate`. Heads need plain weights.

torchao's int8 weights (`Int8WeightOnlyConfig`, `Int8DynamicActivationInt8WeightConfig`) work at the first three
doors, and heads are refused: "the output projections hold Int8Tensor, not plain weights." Judged once
like the kinds above, with torchao 0.18.0 and torch 2.13.0 on a CPU; torchao is no dependency of the tests.
"""


def table(
    title: str,
    found: Mapping[str, Mapping[str, str]],
    letters: dict[str, str],
    vllm: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """One row per kind; a refusal is a letter, given out in order in `letters`. `vllm` fills a last column."""

    def cell(said: str) -> str:
        said = said if said == "works" else said.partition(" Known: ")[0]
        if "are not described" in said:
            return "not described"
        return said if said == "works" else letters.setdefault(said, f"refused [{len(letters) + 1}]")

    head = f"| {title} | {' | '.join(DOORS)}{' | vLLM' * bool(vllm)} |\n|---|{'---|' * (len(DOORS) + bool(vllm))}\n"
    rows = [
        f"| {kind} | {' | '.join(cell(says[door]) for door in DOORS)}{' | ' * bool(vllm)}{vllm.get(kind, '')} |"
        for kind, says in found.items()
    ]
    return head + "\n".join(rows) + "\n"


def in_vllm(kind: str, architecture: str) -> str:
    """What the last column says of a kind whose model class is `architecture`."""
    known = json.loads((ROOT / "benchmarks/results/vllm_architectures.json").read_text(encoding="utf-8"))
    return "run" if kind == "llama" else "in vLLM" if architecture in known["architectures"] else "not in vLLM"


def page(
    kinds: Mapping[str, Mapping[str, str]], states: Mapping[str, Mapping[str, str]], vllm: Mapping[str, str]
) -> str:
    """The whole page."""
    letters: dict[str, str] = {}
    tables = [table("model type", kinds, letters, vllm), table("a Llama under", states, letters)]
    told = "\n".join(f"- {mark.removeprefix('refused ')} {said}" for said, mark in letters.items())
    return "\n".join([INTRO, *tables, f"## What is said\n\n{told}", OUTRO])


def main() -> int:
    """Run every kind; write or compare the page."""
    transformers.logging.set_verbosity_error()
    written = page(
        {kind: judge(build(kind)) for kind in KINDS},
        {name: judge(change(build("llama"))) for name, change in STATES.items()},
        {kind: in_vllm(kind, type(build(kind)).__name__) for kind in KINDS},
    )
    if "--check" in sys.argv:
        return int(PAGE.read_text(encoding="utf-8") != written)
    PAGE.write_text(written, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
