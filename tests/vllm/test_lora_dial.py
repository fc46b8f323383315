"""A dial of adapters in vLLM: a stock engine takes its folders, without anything of this library.

What an adapter is meant to do is computed by hand here, from PEFT's files; tests/weights holds PEFT to the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import ckcontrol as ck
from ckcontrol.heads.fingerprint import Fingerprint
from ckcontrol.models.load import load
from ckcontrol.weights.manifest import Manifest

from ..weights.by_hand import merged, write_adapter

QUESTIONS = [("Who rules Oz?", ["Ozma rules Oz."]), ("Where is Ys?", []), ("What is Mu's capital?", ["Mu: Ra."])]
ENGINE: dict[str, Any] = {"dtype": "float32", "enforce_eager": True, "max_model_len": 512, "max_num_seqs": 8}


@pytest.fixture(scope="module")
def dial(small: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dial over the small model: two adapters of random weights, in the files that PEFT writes."""
    _, model, _ = small
    folder = tmp_path_factory.mktemp("dials") / "dial"
    for name, seed in (("step0", 1), ("step2", 2)):
        write_adapter(model, folder / name, seed)
    Manifest("linear", Fingerprint.of(model), {0.0: "step0", 0.5: None, 1.0: "step2"}).write(folder)
    return folder


def by_hand(folder: str, adapter: Path | None, ids: list[int], length: int) -> list[int]:
    """Greedy tokens of the small model with an adapter merged into its weights."""
    import torch

    model, _ = load(folder, device="cpu")
    if adapter is not None:
        merged(model, adapter)
    prompt = torch.tensor([ids])
    made = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=length, do_sample=False)
    return made[0, len(ids) :].tolist()  # type: ignore[no-any-return]


@pytest.mark.usefixtures("vllm_here")
def test_stock_vllm_loads_an_exported_adapter_and_gives_its_tokens(small: Any, dial: Path) -> None:
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    folder, _, tokenizer = small
    ids = list(ck.build_pair(tokenizer, *QUESTIONS[0]).contextual)
    llm = LLM(folder, enable_lora=True, max_lora_rank=8, **ENGINE)
    try:
        asked = SamplingParams(temperature=0.0, max_tokens=10)
        for number, name in enumerate((None, "step0", "step2")):
            given = None if name is None else LoRARequest(name, number, str(dial / name))
            made = llm.generate([{"prompt_token_ids": ids}], asked, lora_request=given, use_tqdm=False)
            wanted = by_hand(folder, name and dial / name, ids, 10)
            assert list(made[0].outputs[0].token_ids) == wanted, name
    finally:
        llm.llm_engine.engine_core.shutdown()
