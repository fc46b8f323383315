"""Head masks in a flat batch of many requests: equal to `pruned` on each request alone; no engine, a runner's look."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ckcontrol.heads import HeadMask, pruned
from ckcontrol.models.tiny import tiny_model
from ckcontrol.serving.read_heads import read_heads
from ckcontrol.vllm.contract.changes import SECRET, pack, salt, unpack
from ckcontrol.vllm.engine.hooks import masked
from ckcontrol.vllm.engine.worker import HeadWorker


def worker(model: Any, eager: bool = True, family: str = "llama", **runner: Any) -> HeadWorker:
    made = HeadWorker()
    text = SimpleNamespace(model_type=family, num_attention_heads=model.config.num_attention_heads)
    made.vllm_config = SimpleNamespace(model_config=SimpleNamespace(hf_text_config=text, enforce_eager=eager))
    made.model_runner = SimpleNamespace(model=model, **runner)
    return made


def batch(masks: list[str | None], lengths: list[int]) -> dict[str, Any]:
    names = [f"r{i}" for i in range(len(masks))]
    requests = {
        name: SimpleNamespace(sampling_params=SimpleNamespace(extra_args={"ckheads": mask} if mask else None))
        for name, mask in zip(names, masks, strict=True)
    }
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return {
        "device": torch.device("cpu"),
        "requests": requests,
        "input_batch": SimpleNamespace(req_ids=names),
        "query_start_loc": SimpleNamespace(np=starts),
    }


def test_each_request_of_a_batch_gets_its_own_mask() -> None:
    """Equal lengths, so that transformers' [B, T, width] viewed flat is vLLM's layout."""
    torch.manual_seed(0)
    model = tiny_model("llama")[0]
    ids = torch.randint(5, 100, (3, 7))
    one, two = HeadMask.of(model, [(0, 1), (1, 3)]), HeadMask.of(model, [(1, 0)], factor=1.5)
    extra = [masked(one)[0]["ckheads"], None, masked(two)[0]["ckheads"]]
    with torch.no_grad():
        plain = model(ids).logits
        expected = plain.clone()
        for row, mask in ((0, one), (2, two)):
            with pruned(model, mask):
                expected[row] = model(ids[row : row + 1]).logits[0]
        made = worker(model, **batch(extra, [7, 7, 7]))
        flatten(model)
        heads = model.config.num_attention_heads
        assert made.ck_heads_install() == {"layers": model.config.num_hidden_layers, "heads": heads}
        made.ck_heads_install()  # once is enough
        got = model(ids).logits
        for request in made.model_runner.requests.values():
            request.sampling_params.extra_args = None
        without = model(ids).logits
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert not torch.equal(got[0], plain[0]) and torch.equal(got[1], plain[1])
    assert torch.equal(without, plain), "without masks nothing changes, bit for bit"


def flatten(model: Any) -> None:
    """Let the output projections take [tokens, width], as vLLM's do."""
    for block in model.model.layers:
        projection = block.self_attn.o_proj
        projection.register_forward_pre_hook(lambda _, args: (args[0].reshape(-1, args[0].shape[-1]),))
        projection.register_forward_hook(lambda _, args, out: out.reshape(3, -1, out.shape[-1]))


@pytest.mark.parametrize(
    ("change", "said"),
    [({"eager": False}, "eager"), ({"family": "unheard-of"}, "unheard-of"), ({}, "V1 model runner")],
)
def test_engines_in_which_masks_cannot_act_say_so(change: dict[str, Any], said: str) -> None:
    runner = {} if not change else batch([None], [1])
    got = worker(tiny_model("llama")[0], **change, **runner).ck_heads_install()
    assert said in got["refused"]


def test_every_mask_has_its_own_salt() -> None:
    one = read_heads([{"layer": 0, "head": 1}], 10)
    two = read_heads([{"layer": 0, "head": 1, "factor": 0.5}], 10)
    assert len({salt(one), salt(two), salt(()), salt(one, "mine"), salt(one, "other")}) == 5
    assert salt(one) == salt(read_heads([{"head": 1, "layer": 0, "factor": 0}], 10))
    assert unpack(pack(two)) == two == ((0, 1, 0.5),)


def test_nobody_outside_a_server_can_make_its_salts_and_its_processes_agree() -> None:
    def made(**variables: str) -> str:
        code = "from ckcontrol.vllm.contract.changes import salt; print(salt(((0, 1, 0.0),)))"
        done = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, **variables}, capture_output=True, text=True, check=True
        )
        return done.stdout

    assert made() != made()
    assert made(**{SECRET: "a"}) == made(**{SECRET: "a"}) != made(**{SECRET: "b"})
