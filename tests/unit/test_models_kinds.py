"""Every kind of model at every door: it works, equal to the model's own loop and to the naive one, or is refused."""

from __future__ import annotations

import re

import pytest
import torch
from transformers import GenerationConfig

import ckcontrol as ck
from ckcontrol.decoding.refusals import check_mode, check_model
from ckcontrol.decoding.streams import Stream
from ckcontrol.errors import UnsupportedMode
from tests.kinds import DOORS, KINDS, STATES, build, judge
from tests.unit.test_repository import ROOT

# What peft does when an adapter is made or asked: names that transformers is about to drop, and advice.
PEFT_WARNS = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("FutureWarning", "UserWarning")]
JUDGED = [pytest.param(state, marks=PEFT_WARNS if "PEFT" in state else ()) for state in STATES]

PAGE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
ROWS = {cells[0]: cells[1:] for cells in (re.split(r" ?\| ?", line)[1:-1] for line in PAGE.splitlines() if "|" in line)}
SAID = dict(re.findall(r"^- (\[\d+\]) (.+)$", PAGE, re.M))


def agrees(cell: str, said: str) -> bool:
    if cell == "works":
        return said == "works"
    if cell == "not described":
        return "are not described" in said
    return SAID[cell.removeprefix("refused ")] == said


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_does_what_the_page_says(kind):
    said = judge(build(kind))
    assert [agrees(cell, said[door]) for door, cell in zip(DOORS, ROWS[kind], strict=False)] == [True] * 4, said


@pytest.mark.parametrize("state", JUDGED)
def test_a_state_does_what_the_page_says(state):
    said = judge(STATES[state](build("llama")))
    assert [agrees(cell, said[door]) for door, cell in zip(DOORS, ROWS[state], strict=False)] == [True] * 4, said


def test_the_page_says_nothing_is_wrong():
    assert len(KINDS) >= 60
    assert {cell for row in ROWS.values() for cell in row[:4]} <= {
        *("works", "not described", *DOORS, "---"),
        *(f"refused {mark}" for mark in SAID),
    }
    assert not any("is not" in text and ("model.generate" in text or "reference" in text) for text in SAID.values())


@pytest.mark.parametrize("kind", ["mamba", "falcon_h1", "minimax"])
def test_drafts_of_recurrent_models_keep_their_own_states(kind):
    """`dial` widens the rows after the prompts; transformers' own selection of rows forgets recurrent states."""
    model = build(kind)
    ids = torch.tensor([[9, 70, 71], [3, 90, 12]])
    wide = Stream(model, ids, None)
    wide.prefill()
    wide.select(torch.tensor([1, 0, 1]))
    one = Stream(model, ids[1:], None)
    one.prefill()
    got, want = wide.step(torch.tensor([5, 6, 5])), one.step(torch.tensor([5]))
    torch.testing.assert_close(got[[0, 2]], want.expand(2, -1), rtol=0, atol=1e-4)
    assert (got[1] - want[0]).abs().max() > 1e-2


def test_state_in_modules_is_found_by_the_second_stream():
    """RecurrentGemma takes and returns past_key_values like any model; one stream alone would be right."""
    model = build("recurrent_gemma")
    check_model(model)
    with pytest.raises(UnsupportedMode, match=r"beside another.*reference_generate"):
        Stream(model, torch.tensor([[9, 70, 71]]), None).prefill()


def test_the_check_runs_once_for_a_model_and_draws_nothing():
    model, calls = build("llama"), []
    model.register_forward_hook(lambda *_: calls.append(1))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for expected in (6, 7):  # two tokens of generate, two and a neighbour of ours, and the prompt; then the prompt
        Stream(model, torch.tensor([[9, 70, 71]]), None).prefill()
        assert len(calls) == expected
    assert torch.equal(torch.get_rng_state(), before)


def test_a_broken_model_is_not_called_a_foreign_one():
    model = build("llama")
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    assert Stream(model, torch.tensor([[9, 70, 71]]), None).prefill().isnan().all()


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_dropout_of_any_make_is_refused_by_name(kind):
    model = build(kind).train()
    with pytest.raises(UnsupportedMode, match=r"training mode, where .*drop.*=0\.1 .*model\.eval\(\)"):
        check_model(model)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_a_disabled_prompt_adapter_is_the_base_model():
    model = STATES["PEFT prompt tuning"](build("llama"))
    with pytest.raises(UnsupportedMode, match="prompt tuning adapter"):
        check_model(model)
    with model.disable_adapter():
        check_model(model)


@pytest.mark.parametrize("setting", [{"use_cache": False}, {"cache_implementation": "static"}])
def test_what_a_checkpoint_sets_is_not_told_to_its_user(setting):
    asked, plain = GenerationConfig(**setting), GenerationConfig()
    check_mode(asked, asked)
    with pytest.raises(UnsupportedMode, match="is not supported"):
        check_mode(asked, plain)
    beams = GenerationConfig(num_beams=4)
    with pytest.raises(UnsupportedMode, match="checkpoint's generation_config asks for"):
        check_mode(beams, beams)


def test_text_alone_may_carry_the_marks_of_text(byte):
    """Processors of Gemma 3 and Qwen2-VL add token types; zeros say text, and ones an image the other stream lacks."""
    model, ids = build("gemma3"), torch.tensor([[9, 70, 71]])
    loop = ck.decoding_loop(ck.Control("off"), parametric_ids=ids)
    more = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 3, "do_sample": False}
    types = torch.zeros_like(ids)
    own = model.generate(ids, token_type_ids=types, **more)
    assert torch.equal(model.generate(ids, token_type_ids=types, custom_generate=loop, **more), own)
    with pytest.raises(UnsupportedMode, match="token_type_ids"):
        model.generate(ids, token_type_ids=types + 1, custom_generate=loop, **more)


@pytest.mark.filterwarnings("ignore")
def test_dynamic_quantisation_runs_the_streams_apart(byte):
    model = torch.ao.quantization.quantize_dynamic(build("llama"), {torch.nn.Linear}, dtype=torch.qint8)
    control = ck.Control("cad", cad_alpha=1.0, candidate_ratio=0.0)
    pair = ck.build_pair(byte, "Who?", ["He did."])
    ids, par = (torch.tensor([each]) for each in (pair.contextual, pair.parametric))
    own = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 5, "do_sample": False, "pad_token_id": 256}
    processor = ck.CKLogitsProcessor(model, par, control=control, vocab_size=len(byte))
    want = model.generate(ids, logits_processor=[processor], **own)[0, ids.shape[1] :].tolist()
    answer = ck.generate(model, byte, "Who?", ["He did."], control=control, max_new_tokens=5)
    assert list(answer.token_ids) == want
