"""On a CUDA GPU: parity of ordinary steps and of captured ones, the late stop flag, errors, threads, half precision.

Skipped without one. A captured step is the step that tests/parity/test_static.py runs plain on a CPU.
"""

from __future__ import annotations

import math
import threading
import warnings

import pytest
import torch

import ckcontrol as ck
from ckcontrol.decoding import static_cache, static_step
from ckcontrol.decoding.refusals import eos_ids
from ckcontrol.errors import NonFiniteLogits
from ckcontrol.heads.apply import pruned
from ckcontrol.heads.mask import HeadMask
from ckcontrol.models.tiny import FAMILIES, tiny_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

QUESTIONS = ["Who?", "What is the name of the longest river of all?", "Where did it begin?"]
PASSAGES = [["It was the postman, always."], ["Short."], ["A long one. " * 6, "And another."]]
STEER = ck.Control("ck-plug", alpha=0.2, gate=2.0)
SAMPLED = {"do_sample": True, "seed": 7, "temperature": 0.8, "top_k": 40, "top_p": 0.95}


@pytest.fixture
def captures(monkeypatch):
    """One entry per graph that was captured."""
    made: list[int] = []
    capture = static_step._capture

    def counted(run, device):
        graph = capture(run, device)
        made.append(1)
        return graph

    monkeypatch.setattr(static_step, "_capture", counted)
    return made


def answer(model, tokenizer, control=STEER, new=12, **options):
    return ck.generate(model, tokenizer, QUESTIONS, PASSAGES, control=control, max_new_tokens=new, **options)


def ids(answers):
    return [list(a.token_ids) for a in answers]


def early_end(answers, length):
    """A token that ends one of the answers early and leaves another at least `length` tokens, or None."""
    rows = ids(answers)
    ends = (t for row in rows for t in row[3:12] if any(len(r) >= length and t not in r[:length] for r in rows))
    return next(ends, None)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("control", [STEER, ck.Control("dial", alpha=0.6)], ids=repr)
@pytest.mark.parametrize("plain", [False, True], ids=["graph", "kernel by kernel"])
def test_batch_equals_reference_on_the_gpu(family, control, plain, captures):
    model, tokenizer = tiny_model(family)
    model.cuda()
    how = {"compile": False} if plain else {}
    stop = answer(model, tokenizer, control, **how)[0].token_ids[3]
    answers = answer(model, tokenizer, control, stop_token_ids=(stop,), **how)
    assert bool(captures) is not plain
    for i, made in enumerate(answers):
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
        assert list(made.token_ids) == want


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
    """Its forward is nobody's that is known, so no step is captured."""
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


@pytest.mark.parametrize("family", FAMILIES)
def test_buckets_outgrown_in_the_middle_are_captured_again(family, captures, monkeypatch):
    monkeypatch.setattr(static_cache, "BUCKET", 8)
    monkeypatch.setattr(static_cache, "AHEAD", 8)
    model, tokenizer = tiny_model(family)
    model.cuda()
    controls = [ck.Control("ck-plug", alpha=0.3), ck.Control("dial", alpha=0.4), ck.Control("coiecd")]
    for seed in range(50):
        how = SAMPLED | {"seed": seed}
        end = early_end(answer(model, tokenizer, controls, 40, **how, compile=False), 24)
        if end is not None:
            break
    wanted = answer(model, tokenizer, controls, 40, **how, stop_token_ids=(end,), compile=False)
    assert not captures
    answers = answer(model, tokenizer, controls, 40, **how, stop_token_ids=(end,))
    assert ids(answers) == ids(wanted)
    assert len(captures) > 1
    for ours, theirs in zip(answers, wanted, strict=True):
        for a, b in zip(ours.tokens, theirs.tokens, strict=True):
            assert (a.gain, a.logp_final) == pytest.approx((b.gain, b.logp_final), abs=2e-4)


def test_the_global_generator_draws_the_same_beside_a_graph(captures):
    model, tokenizer = tiny_model()
    model.cuda()
    drawn = []
    for compile in (False, None):
        torch.manual_seed(5)
        drawn.append(ids(answer(model, tokenizer, do_sample=True, compile=compile)))
    assert drawn[0] == drawn[1]
    assert captures


def test_head_masks_of_either_stream_are_captured(captures):
    model, tokenizer = tiny_model("qwen3")
    model.cuda()
    masks = {"contextual": HeadMask.of(model, [(0, 1)]), "parametric": HeadMask.of(model, [(1, 2), (0, 3)])}
    free = ids(answer(model, tokenizer))
    with pruned(model, **masks):
        assert ids(answer(model, tokenizer)) == ids(answer(model, tokenizer, compile=False)) != free
    assert len(captures) == 2


def test_nan_in_a_replayed_step_is_reported_with_row_and_step(captures):
    model, tokenizer = tiny_model("gpt_neox")
    model.cuda()
    prompts = {t for q, p in zip(QUESTIONS, PASSAGES, strict=True) for t in ck.build_pair(tokenizer, q, p).contextual}
    said = ids(answer(model, tokenizer))
    row, step = next(
        (row, step)
        for step in range(3, 10)
        for row in range(3)
        if said[row][step] not in prompts | {t for other in range(3) for t in said[other][: step + (other != row)]}
    )
    model.get_input_embeddings().weight.data[said[row][step]] = math.nan
    with pytest.raises(NonFiniteLogits) as caught:
        answer(model, tokenizer)
    assert (caught.value.row, caught.value.step) == (row, step + 1)
    assert len(captures) == 2


def test_threads_on_one_model_capture_by_turns(captures):
    model, tokenizer = tiny_model()
    model.cuda()
    controls = [ck.Control("ck-plug", alpha=a) for a in (0.0, 0.2, 0.8, 1.0)]
    alone = [ids(answer(model, tokenizer, control, 40)) for control in controls]
    beside: dict[int, list[list[int]]] = {}

    def work(i):
        beside[i] = ids(answer(model, tokenizer, controls[i], 40))
        answer(model, tokenizer, controls[i], 8, do_sample=True)  # from the global generator, while others capture

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(controls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [beside.get(i) for i in range(len(controls))] == alone
    assert len(captures) >= 8


def test_a_step_that_cannot_be_captured_goes_on_with_one_warning(captures, monkeypatch):
    """A hook that asks the device; afterwards torch's global generator and the stream are as they were."""
    model, tokenizer = tiny_model()
    model.cuda()
    wanted = ids(answer(model, tokenizer))
    captures.clear()
    stream = torch.cuda.current_stream()
    monkeypatch.setattr(static_step, "_unknown_code", lambda model: None)
    model.model.norm.register_forward_hook(lambda module, args, out: out * float(out.isfinite().all()))
    with pytest.warns(RuntimeWarning, match="not captured in a CUDA graph") as told:
        assert ids(answer(model, tokenizer)) == wanted
    assert len([w for w in told if "captured" in str(w.message)]) == 1
    assert not captures
    assert torch.cuda.current_stream() == stream
    torch.manual_seed(1)
    torch.rand(3, device="cuda")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ids(answer(model, tokenizer)) == wanted


def test_unknown_hooks_are_never_captured(captures):
    model, tokenizer = tiny_model()
    model.cuda()
    calls = []
    model.model.norm.register_forward_hook(lambda *args: calls.append(1))
    answer(model, tokenizer)
    assert not captures
    assert len(calls) >= 13  # two prompts and eleven steps


def test_an_interrupt_in_a_capture_leaves_torch_as_it_was(captures, monkeypatch):
    model, tokenizer = tiny_model()
    model.cuda()
    wanted = ids(answer(model, tokenizer))
    stream, real = torch.cuda.current_stream(), static_step.StaticStreams._step

    def interrupted(self):
        made = real(self)
        if torch.cuda.is_current_stream_capturing():
            raise KeyboardInterrupt
        return made

    with monkeypatch.context() as patch:
        patch.setattr(static_step.StaticStreams, "_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            answer(model, tokenizer)
    assert torch.cuda.current_stream() == stream
    assert not torch.cuda.is_current_stream_capturing()
    assert torch.backends.cuda.cudnn_sdp_enabled()
    assert model.config._attn_implementation == "sdpa"
    assert ids(answer(model, tokenizer)) == wanted


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_compiled_and_captured_equals_kernel_by_kernel(family, captures):
    model, tokenizer = tiny_model(family)
    model.cuda()
    assert ids(answer(model, tokenizer, compile=True)) == ids(answer(model, tokenizer, compile=False))
    assert captures


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_answers_are_finite_and_repeat(dtype, captures):
    """Which token wins a near tie is the kernel's; that it is the same each time is ours."""
    model, tokenizer = tiny_model()
    model.cuda().to(dtype)
    first, again = answer(model, tokenizer), answer(model, tokenizer)
    assert ids(first) == ids(again)
    assert all(math.isfinite(t.logp_final) for a in first for t in a.tokens)
    assert captures


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
