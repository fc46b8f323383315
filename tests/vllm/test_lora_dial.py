"""A dial of adapters in vLLM: a stock engine takes its folders, and ours an adapter per request.

What an adapter is meant to do is computed by hand here, from PEFT's files; tests/weights holds PEFT to the same.
"""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import ckcontrol as ck
from ckcontrol.errors import ControlError, ServingError, WeightsError
from ckcontrol.heads.directions.direction import Direction
from ckcontrol.heads.fingerprint import Fingerprint
from ckcontrol.models.load import load
from ckcontrol.weights.manifest import Manifest

from ..weights.by_hand import merged, write_adapter
from .inner import Inner, ask
from .test_http_live import post, raw, serving

QUESTIONS = [("Who rules Oz?", ["Ozma rules Oz."]), ("Where is Ys?", []), ("What is Mu's capital?", ["Mu: Ra."])]
ENGINE: dict[str, Any] = {"dtype": "float32", "enforce_eager": True, "max_model_len": 512, "max_num_seqs": 12}


@pytest.fixture(scope="module")
def dial(small: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dial over the small model: two adapters of random weights, in the files that PEFT writes."""
    _, model, _ = small
    folder = tmp_path_factory.mktemp("dials") / "dial"
    for name, seed in (("step0", 1), ("step2", 2)):
        write_adapter(model, folder / name, seed)
    Manifest("linear", Fingerprint.of(model), {0.0: "step0", 0.5: None, 1.0: "step2"}).write(folder)
    return folder


def by_hand(
    folder: str, adapter: Path | None, ids: list[int], length: int, *changes: Callable[[Any], Any]
) -> list[int]:
    """Greedy tokens of the small model with an adapter merged into its weights, and changed further."""
    import torch

    model, _ = load(folder, device="cpu")
    if adapter is not None:
        merged(model, adapter)
    prompt = torch.tensor([ids])
    with ExitStack() as stack:
        for change in changes:
            stack.enter_context(change(model))
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


@pytest.mark.usefixtures("vllm_here")
def test_one_request_per_question_takes_the_adapter_of_its_alpha(small: Any, dial: Path) -> None:
    """In one engine: stock requests for each adapter, the same through `SteeredLLM`, and beside a pair."""
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    from ckcontrol.vllm import SteeredLLM

    folder, model, tokenizer = small
    asked = [(question, alpha) for question in QUESTIONS for alpha in (0.0, 0.3, 0.5, 0.9)]
    names = {0.0: "step0", 0.3: None, 0.5: None, 0.9: "step2"}  # 0.3 is nearer to 0.5
    with SteeredLLM(folder, weights=dial, **ENGINE) as llm:
        ids = [list(ck.build_pair(tokenizer, *question).contextual) for question, _ in asked]
        stock = llm.llm.generate(
            [{"prompt_token_ids": row} for row in ids],
            SamplingParams(temperature=0.0, max_tokens=10),
            lora_request=[
                None if name is None else LoRARequest(name, 1 + int(name[-1]) // 2, str(dial / name))  # as ours
                for name in (names[alpha] for _, alpha in asked)
            ],
            use_tqdm=False,
        )
        wanted = {name: by_hand(folder, name and dial / name, ids[0], 10) for name in (None, "step0", "step2")}
        for (question, alpha), made in zip(asked, stock, strict=True):
            if question == QUESTIONS[0]:
                assert list(made.outputs[0].token_ids) == wanted[names[alpha]], alpha  # as PEFT's files say
        assert len({tuple(row) for row in wanted.values()}) == 3
        controls = [ck.Control("weights", alpha=alpha) for _, alpha in asked]
        answers = llm.generate([question for question, _ in asked], control=controls, max_new_tokens=10)
        for answer, made, control in zip(answers, stock, controls, strict=True):
            end = [*made.outputs[0].token_ids, 258].index(258) + 1  # ours ends there, as `ckcontrol.generate` does
            assert list(answer.token_ids) == list(made.outputs[0].token_ids)[:end]
            assert answer.control == control and not answer.tokens
        pair = ck.Control("cad", alpha=0.2)
        both = llm.generate([QUESTIONS[0], QUESTIONS[0]], control=[pair, controls[0]], max_new_tokens=10)
        assert both[1].token_ids == answers[0].token_ids
        alone = ck.generate(model, tokenizer, *QUESTIONS[0], control=pair, max_new_tokens=10)
        assert both[0].token_ids == alone.token_ids
        for options, named in (
            ({"trace": True}, "trace=True"),
            ({"do_sample": True, "seed": 3}, "seed=3"),
            ({"repetition_penalty": 1.2, "penalty_scope": "generated"}, "penalty_scope='generated'"),
        ):
            with pytest.raises(ControlError, match=rf"{named}.*alpha=0\.0\).*ckcontrol\.generate"):
                llm.generate([QUESTIONS[0]], control=controls[0], **options)


@pytest.mark.usefixtures("vllm_here")
def test_an_engine_without_lora_or_a_dial_of_other_ranks_is_refused(small: Any, dial: Path, tmp_path: Path) -> None:
    from ckcontrol.vllm import SteeredLLM

    folder, _, _ = small
    with pytest.raises(ServingError, match=r"enable_lora=True, and False was given.*Leave enable_lora out"):
        SteeredLLM(folder, weights=dial, enable_lora=False, **ENGINE)
    with pytest.raises(ServingError, match=r"max_lora_rank=8, and 1 was given"):
        SteeredLLM(folder, weights=dial, max_lora_rank=1, **ENGINE)
    with pytest.raises(ServingError, match=r"max_loras=3, and 2 was given"):
        SteeredLLM(folder, weights=dial, max_loras=2, **ENGINE)
    with pytest.raises(WeightsError, match=r"is no dial.*weights mix"):
        SteeredLLM(folder, weights=tmp_path, **ENGINE)


def test_the_method_without_a_dial_is_refused_before_the_engine_is_asked() -> None:
    from ckcontrol.vllm import SteeredLLM

    llm = SteeredLLM.__new__(SteeredLLM)
    llm.dial = None
    with pytest.raises(ControlError, match=r"alpha=0\.2\).*without a dial.*SteeredLLM\(model, weights="):
        llm._check_single([ck.Control("weights", alpha=0.2)], ck.GenerateOptions())


def test_a_dial_of_another_model_is_refused_by_its_shape(dial: Path) -> None:
    from ckcontrol.vllm.contract.lora_dial import LoraDial

    here = SimpleNamespace(model_type="llama", num_hidden_layers=3, num_attention_heads=2, hidden_size=64)
    with pytest.raises(WeightsError, match=r"\('llama', 2, 2, 64\).*\('llama', 3, 2, 64\).*that its adapters"):
        LoraDial(dial).check(here)


def body(**fields: Any) -> dict[str, Any]:
    """A chat with one of `QUESTIONS` and the method weights."""
    question, passages = QUESTIONS[0]
    ck = {"passages": passages, "method": "weights", "alpha": 0.1} | fields.pop("ck", {})
    return {"messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 10, "ck": ck} | fields


@pytest.mark.usefixtures("vllm_here")
def test_a_server_answers_with_the_adapter_nearest_to_alpha_beside_pairs(
    small: Any, dial: Path, tmp_path: Path
) -> None:
    import torch

    folder, model, tokenizer = small
    ids = list(ck.build_pair(tokenizer, *QUESTIONS[0]).contextual)
    pair = ck.Control("cad", alpha=0.2)
    found = Direction(Fingerprint.of(model), 0, torch.randn(64, generator=torch.manual_seed(3)), 12.0, 8.0)
    found.save(tmp_path / "direction")
    mask = ck.heads.HeadMask.of(model, [(0, 1), (1, 0)])
    options = ["--weights", str(dial), "--heads", "--direction", str(tmp_path / "direction")]
    with serving(folder, tmp_path, *options) as url:
        with urllib.request.urlopen(url + "/v1/models") as reply:
            (listed,) = json.load(reply)["data"]
        assert listed["id"] == "m" and "weights" in listed["ck"]["methods"] and "weights" in listed["ck"]["dials"]
        for alpha, name in ((0.1, "step0"), (0.5, None), (1.0, "step2"), (0.6, None)):
            for fields in ({}, {"stream": True}):
                asked = body(ck={"alpha": alpha}, return_token_ids=True, **fields)
                status, text = raw(url, asked)
                assert status == 200, text
                parts = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
                parts = parts or [json.loads(text)]
                made = [token for part in parts for choice in part["choices"] for token in choice["token_ids"] or ()]
                wanted = by_hand(folder, name and dial / name, ids, 10)
                assert made == wanted[: [*wanted, 258].index(258) + 1], (alpha, fields)
                assert {part["model"] for part in parts} == {"m"}
                told = parts[-1]["ck"]
                assert (told["method"], told["alpha"], told["passages"]) == ("weights", alpha, 1) and "seed" not in told
        changes = (
            partial(ck.heads.pruned, mask=mask, strict=False),
            partial(ck.heads.added, direction=found, alpha=0.2, strict=False),
        )
        wanted = by_hand(folder, dial / "step0", ids, 10, *changes)
        assert wanted != by_hand(folder, dial / "step0", ids, 10)
        entries = [{"layer": layer, "head": head} for layer, head in mask.factors]
        got = post(url, body(ck={"heads": entries, "direction": 0.2}, return_token_ids=True))
        assert got[1]["choices"][0]["token_ids"] == wanted[: [*wanted, 258].index(258) + 1]
        both = post(url, {**body(ck={"method": "cad", "alpha": 0.2, "trace": True}), "max_tokens": 10})
        alone = ck.generate(model, tokenizer, *QUESTIONS[0], control=pair, max_new_tokens=10)
        assert [entry["id"] for entry in both[1]["ck"]["trace"]] == list(alone.token_ids)
        drawn = post(url, body(temperature=0.9))
        assert drawn[0] == 200 and "seed" not in drawn[1]["ck"]
        for fields, status, said in (
            ({"ck": {"trace": True}}, 400, "ck.trace=true"),
            ({"temperature": 1.0, "seed": 0}, 400, "seed=0"),
            ({"model": "ck-weights-0"}, 404, "are those of 'm'"),
            ({"model": "other", "ck": {"alpha": 0.5}}, 404, "other"),
        ):
            got, answer = post(url, body(**fields))
            assert got == status and said in answer["error"]["message"], answer


def asked_through(given: dict[str, Any], dial: Path | None, fail: str = "") -> tuple[Any, Inner]:
    """Ask the middleware around an app that behaves like vLLM's; return what the client got, and that app."""
    from ckcontrol.models.tiny import tiny_model
    from ckcontrol.serving.limits import Limits
    from ckcontrol.vllm.http.middleware import CKMiddleware

    inner = Inner(fail=fail)
    app = CKMiddleware(inner, Limits(), tiny_model("llama")[1], weights=dial and str(dial))
    state = SimpleNamespace(args=SimpleNamespace(model="/models/m", served_model_name=["m", "alias"]))
    got = asyncio.run(ask(app, given, state=state))
    assert inner.running == 0 and app.pairs == 0
    return got, inner


def test_the_middleware_makes_it_one_ordinary_request(dial: Path) -> None:
    mask = [{"layer": 0, "head": 1}]
    got, inner = asked_through(body(model="alias", top_p=0.5, temperature=0.7, repetition_penalty=1.1), dial)
    ((path, seen),) = inner.seen
    assert got.status == 200 and path == "/v1/completions" and seen["model"] == "ck-weights-0"
    assert (seen["temperature"], seen["top_p"], seen["repetition_penalty"]) == (0.7, 0.5, 1.1)
    assert "vllm_xargs" not in seen and "seed" not in seen
    assert got.json["model"] == "alias" and got.json["ck"]["method"] == "weights"
    got, inner = asked_through(body(ck={"alpha": 0.5}), dial)
    assert "model" not in inner.seen[0][1] and got.json["model"] == "m"
    got, inner = asked_through(body(model="", ck={"alpha": 1}), dial)
    assert inner.seen[0][1]["model"] == "ck-weights-1" and got.json["model"] == "m", "an empty name is none, as in vLLM"
    for alpha in (0.1, 0.5):
        got, inner = asked_through(body(model="ck-weights-1", ck={"alpha": alpha}), dial)
        assert got.status == 404 and not inner.seen, "an adapter's answer is not told as another alpha's"
    got, _ = asked_through(body(), dial, "abort")
    assert got.status == 503 and "the engine gave the answer up. Try again" in got.message, "there is no pair"
    got, _ = asked_through(body(ck={"heads": mask}), dial)
    assert got.status == 400, "no engine to ask for heads: refused, not dropped"


def test_a_server_without_a_dial_refuses_the_method_and_says_how_to_start_it() -> None:
    got, inner = asked_through(body(), None)
    assert got.status == 400 and "'weights'" in got.message and "--weights FOLDER" in got.message and not inner.seen


@pytest.mark.parametrize("alpha", [0.1, 0.5])
def test_a_prompt_of_one_token_is_not_refused_for_a_pair_that_there_is_not(alpha: float, dial: Path) -> None:
    from ckcontrol.models.tiny import tiny_model
    from ckcontrol.vllm.http.middleware import CKMiddleware

    ck = {"method": "weights", "alpha": alpha, "prompt": "b"}
    inner, given = Inner(), {"prompt": "a", "temperature": 0, "max_tokens": 4, "ck": ck}
    got = asyncio.run(
        ask(CKMiddleware(inner, tokenizer=tiny_model("llama")[1], weights=str(dial)), given, "/v1/completions")
    )
    assert got.status == 200 and [sent["prompt"] for _, sent in inner.seen] == ["a"]
