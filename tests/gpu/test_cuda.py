"""The device-generic paths on a CUDA GPU: parity, the late stop flag, errors, half precision. Skipped without one."""

from __future__ import annotations

import math

import pytest
import torch

import ckcontrol as ck
from ckcontrol.decoding.refusals import eos_ids
from ckcontrol.errors import NonFiniteLogits
from ckcontrol.models.tiny import FAMILIES, tiny_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

QUESTIONS = ["Who?", "What is the name of the longest river of all?", "Where did it begin?"]
PASSAGES = [["It was the postman, always."], ["Short."], ["A long one. " * 6, "And another."]]
STEER = ck.Control("ck-plug", alpha=0.2, gate=2.0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("control", [STEER, ck.Control("dial", alpha=0.6)], ids=repr)
def test_batch_equals_reference_on_the_gpu(family, control):
    model, tokenizer = tiny_model(family)
    model.cuda()
    stop = ck.generate(model, tokenizer, QUESTIONS, PASSAGES, control=control, max_new_tokens=12)[0].token_ids[3]
    answers = ck.generate(
        model, tokenizer, QUESTIONS, PASSAGES, control=control, max_new_tokens=12, stop_token_ids=(stop,)
    )
    for i, answer in enumerate(answers):
        pair = ck.build_pair(tokenizer, QUESTIONS[i], PASSAGES[i])
        want = ck.reference_generate(
            model,
            pair.contextual,
            pair.parametric,
            control,
            max_new_tokens=12,
            eos={*eos_ids(model, tokenizer), stop},
            vocab_size=len(tokenizer),
        )
        assert list(answer.token_ids) == want


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_off_is_generate(dtype):
    model, tokenizer = tiny_model()
    model.cuda().to(dtype)
    ids = torch.tensor([ck.build_pair(tokenizer, QUESTIONS[2], PASSAGES[2]).contextual], device="cuda")
    loop = ck.decoding_loop(ck.Control("off"), parametric_ids=ids, recorder=ck.Recorder())
    more = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 12, "do_sample": True, "pad_token_id": 256}
    torch.manual_seed(0)
    plain = model.generate(ids, **more)
    torch.manual_seed(0)
    assert torch.equal(model.generate(ids, custom_generate=loop, **more), plain)


def test_nan_is_reported_although_the_flag_is_late(monkeypatch):
    model, tokenizer = tiny_model()
    model.cuda()
    real, calls = type(model).forward, {"n": 0}

    def forward(self, *args, **kwargs):
        out = real(self, *args, **kwargs)
        calls["n"] += 1
        if calls["n"] == 5:  # two prefills, then the third decode step
            out.logits[0, -1, 5] = math.nan
        return out

    monkeypatch.setattr(type(model), "forward", forward)
    with pytest.raises(NonFiniteLogits) as caught:
        ck.generate(
            model, tokenizer, QUESTIONS[0], PASSAGES[0], control=STEER, max_new_tokens=12, do_sample=True, seed=1
        )
    assert (caught.value.row, caught.value.step) == (0, 3)


@pytest.mark.parametrize("how", [{}, {"do_sample": True, "seed": 2}], ids=["greedy", "sampled"])
def test_all_controls_of_a_pass_equal_generate(how):
    from ckcontrol.decoding.options import GenerateOptions
    from ckcontrol.eval.records import Record
    from ckcontrol.eval.running.arms import arms_for
    from ckcontrol.eval.running.engine import Local

    model, tokenizer = tiny_model()
    model.cuda()
    arms = [arm for arm in arms_for(["all"]) if arm.prompt == "base"]
    engine = Local(model, tokenizer, "tiny", options=GenerateOptions(max_new_tokens=8, **how))
    records = [Record(q, q, tuple(p), ("a",), ("b",)) for q, p in zip(QUESTIONS, PASSAGES, strict=True)]
    made = engine.run(records, arms, "base")
    assert math.isfinite(made[0][0]["tokens"]["gain"][0])
    for record, row in zip(records, made, strict=True):
        for arm, sample in zip(arms, row, strict=True):
            answer = ck.generate(
                model,
                tokenizer,
                record.question,
                list(record.passages),
                control=arm.control,
                template=engine.wording.templates["base"],
                max_new_tokens=8,
                **how,
            )
            assert sample["text"] == answer.text
