"""Decode steps over static buffers against the naive loop and the ordinary steps, for every family: plain, on a CPU.

The same step is captured in a CUDA graph by tests/gpu. A prompt here is longer than the tiny models' windows (64).
"""

from __future__ import annotations

import threading

import pytest
import torch

import ckcontrol as ck
from ckcontrol.decoding import attention_kernels, static_cache, static_step
from ckcontrol.decoding.static_cache import grouped_attention
from ckcontrol.errors import ControlError, NonFiniteLogits
from ckcontrol.heads.apply import pruned
from ckcontrol.heads.mask import HeadMask
from ckcontrol.models.tiny import FAMILIES, tiny_model

from ..kinds import build
from .test_doors import GREEDY, padded
from .test_reference import PASSAGES, QUESTIONS, expected, ids

STEER = ck.Control("ck-plug", alpha=0.2, gate=2.0)
SAMPLED = {"do_sample": True, "temperature": 0.8, "top_k": 40, "top_p": 0.95}


@pytest.fixture
def static(monkeypatch):
    """Static steps from here on; the streams that ran, and how often each made room for more."""
    ran: dict[static_step.StaticStreams, int] = {}
    join, make_room = static_step.StaticStreams._join, static_cache.StaticPair.make_room

    def joined(self, *streams):
        join(self, *streams)
        ran[self] = 0

    def made_room(self):
        grown = make_room(self)
        for streams in ran:
            ran[streams] += grown and streams._pair is self
        return grown

    monkeypatch.setattr(static_step.StaticStreams, "_join", joined)
    monkeypatch.setattr(static_cache.StaticPair, "make_room", made_room)
    monkeypatch.setattr(static_step, "FORCED", True)
    return ran


@pytest.fixture
def small_buckets(monkeypatch):
    monkeypatch.setattr(static_cache, "BUCKET", 8)
    monkeypatch.setattr(static_cache, "AHEAD", 4)


def answer(model, tokenizer, control=STEER, new=12, **options):
    return ck.generate(model, tokenizer, QUESTIONS, PASSAGES, control=control, max_new_tokens=new, **options)


def ordinary(monkeypatch, *args, **options):
    """The answers of the steps of `TwoStreams`."""
    with monkeypatch.context() as patch:
        patch.setattr(static_step, "FORCED", False)
        return answer(*args, **options)


def early_end(answers, length):
    """A token that ends one of the answers early and leaves another at least `length` tokens."""
    rows = ids(answers)
    return next(t for row in rows for t in row[3:12] if any(len(r) >= length and t not in r[:length] for r in rows))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("control", [STEER, ck.Control("dial", alpha=0.6)], ids=repr)
def test_ragged_batch_equals_reference(tiny, family, control, static):
    model, tokenizer = tiny(family)
    answers = answer(model, tokenizer, control)
    assert static
    assert ids(answers) == [expected(model, tokenizer, control, i) for i in range(3)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bucket_outgrown_in_the_middle_of_sampled_answers_that_end_early(
    tiny, family, static, small_buckets, monkeypatch
):
    """Seeds, warpers, several end tokens, rows of different length, drafts that part: token by token."""
    model, tokenizer = tiny(family)
    controls = [ck.Control("ck-plug", alpha=0.3), ck.Control("dial", alpha=0.4), ck.Control("coiecd")]
    free = ordinary(monkeypatch, model, tokenizer, controls, new=24, seed=7, **SAMPLED)
    options = {"new": 24, "seed": 7, "stop_token_ids": (early_end(free, 16), 259), **SAMPLED}
    wanted = ordinary(monkeypatch, model, tokenizer, controls, **options)
    assert not static
    answers = answer(model, tokenizer, controls, **options)
    assert ids(answers) == ids(wanted)
    assert len({len(a.token_ids) for a in answers}) > 1
    assert max(static.values()) >= 1
    for ours, theirs in zip(answers, wanted, strict=True):
        for a, b in zip(ours.tokens, theirs.tokens, strict=True):
            assert (a.gain, a.logp_final) == pytest.approx((b.gain, b.logp_final), abs=2e-4)


def test_new_lengths_meet_few_shapes_of_attention(tiny, static, monkeypatch):
    """A kernel may plan anew for every shape: 112 requests of new lengths once met 1,255 of them, here a bucket's."""
    model, tokenizer = tiny("llama")
    met: set[int] = set()
    attend = static_cache.grouped_attention

    def noting(query, key, *args, **options):
        met.add(key.shape[2])
        return attend(query, key, *args, **options)

    monkeypatch.setattr(static_cache, "grouped_attention", noting)
    for length in range(30, 220, 10):
        ck.generate(model, tokenizer, "Where?", ["x" * length], control=STEER, max_new_tokens=12, trace=False)
    assert met == {128, 256, 384}  # both streams' buffers; prompts of 58 to 298 tokens


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral", "gemma3", "gpt2", "gpt_neox"])
def test_eager_attention_is_eager_attention(tiny, family, static, small_buckets, monkeypatch):
    model, tokenizer = tiny(family)
    monkeypatch.setattr(model.config, "_attn_implementation_internal", "eager")
    wanted = ordinary(monkeypatch, model, tokenizer, new=16)
    assert ids(answer(model, tokenizer, new=16)) == ids(wanted)
    assert static


def test_windows_hold_what_they_can_see(tiny, static, small_buckets, monkeypatch):
    """Buffers of a window do not grow with the prompt or the answer; those of full attention do."""
    model, tokenizer = tiny("gemma2")
    wanted = ordinary(monkeypatch, model, tokenizer, new=40)
    assert ids(answer(model, tokenizer, new=40)) == ids(wanted)
    (streams,) = static
    tracks = {window: track for (_, window, _), track in streams._pair._tracks.items()}
    assert tracks[64].size <= 63 + 4 + 8 < tracks[None].size


def test_inside_generate_scores_and_logits_are_those_of_ordinary_steps(tiny, static, monkeypatch):
    """Left-padded, penalised, with what `return_dict_in_generate` keeps: nothing is a view of a buffer."""
    model, tokenizer = tiny("llama")
    prompt, mask = padded(tokenizer, "contextual")
    par, par_mask = padded(tokenizer, "parametric")
    more = {"max_new_tokens": 10, "repetition_penalty": 1.3, "return_dict_in_generate": True}
    more |= {"output_scores": True, "output_logits": True, **GREEDY}
    loop = ck.decoding_loop(STEER, parametric_ids=par, parametric_mask=par_mask, vocab_size=len(tokenizer))
    ours = model.generate(prompt, attention_mask=mask, custom_generate=loop, **more)
    assert static
    monkeypatch.setattr(static_step, "FORCED", False)
    theirs = model.generate(prompt, attention_mask=mask, custom_generate=loop, **more)
    assert torch.equal(ours.sequences, theirs.sequences)
    for name in ("scores", "logits"):
        for a, b in zip(ours[name], theirs[name], strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_head_masks_of_either_stream(tiny, static, monkeypatch):
    model, tokenizer = tiny("qwen3")
    masks = {"contextual": HeadMask.of(model, [(0, 1)]), "parametric": HeadMask.of(model, [(1, 2), (0, 3)])}
    free = ids(answer(model, tokenizer))
    with pruned(model, **masks):
        assert ids(answer(model, tokenizer)) == ids(ordinary(monkeypatch, model, tokenizer)) != free
    assert len(static) == 2


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "seed": 1}], ids=["greedy", "sampled"])
def test_nan_is_reported_with_row_and_step(static, options):
    """A token whose embedding is NaN breaks the row that says it, one step later."""
    model, tokenizer = tiny_model("gpt_neox")
    said = ids(answer(model, tokenizer, **options))
    taken = {
        token for which in ("contextual", "parametric") for token in padded(tokenizer, which)[0].flatten().tolist()
    }
    row, step = next(
        (row, step)
        for step in range(1, 10)
        for row in range(3)
        if said[row][step] not in taken | {t for other in range(3) for t in said[other][: step + (other != row)]}
    )
    token = said[row][step]
    model.get_input_embeddings().weight.data[token] = torch.nan
    with pytest.raises(NonFiniteLogits) as caught:
        answer(model, tokenizer, **options)
    assert (caught.value.row, caught.value.step) == (row, step + 1)
    assert len(static) == 2


def test_threads_on_one_model(tiny, static, small_buckets):
    model, tokenizer = tiny("llama")
    controls = [ck.Control("ck-plug", alpha=a) for a in (0.0, 0.2, 0.8, 1.0)]
    alone = [ids(answer(model, tokenizer, control)) for control in controls]
    beside: dict[int, list[list[int]]] = {}

    def work(i):
        beside[i] = ids(answer(model, tokenizer, controls[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(controls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [beside.get(i) for i in range(len(controls))] == alone
    assert len(static) == 8
    assert model.config._attn_implementation == "sdpa"


def test_off_and_the_default_of_a_cpu_take_no_static_step(tiny, static, monkeypatch):
    model, tokenizer = tiny("llama")
    answer(model, tokenizer, ck.Control("off"))
    monkeypatch.setattr(static_step, "FORCED", False)
    answer(model, tokenizer)
    assert not static


def test_the_compiled_forward_is_one_whole_graph_and_gives_the_same(tiny, static, monkeypatch):
    """Traced by torch for every length at once: a third length compiles nothing. Its kernels are a GPU's business."""
    import torch._dynamo as dynamo

    dynamo.reset()
    monkeypatch.setattr(static_step, "COMPILER", {"backend": "eager", "fullgraph": True})
    model, tokenizer = tiny("qwen2")
    counted = dynamo.utils.counters["stats"]
    compiled = []
    for passages in (PASSAGES, [[p[0] * 9] for p in PASSAGES], [[p[0] * 14] for p in PASSAGES]):
        given = (model, tokenizer, QUESTIONS, passages)
        ours = ck.generate(*given, control=STEER, max_new_tokens=6, compile=True)
        compiled.append(counted["unique_graphs"])
        theirs = ck.generate(*given, control=STEER, max_new_tokens=6, compile=False)
        assert ids(ours) == ids(theirs)
    assert compiled[0] > 0
    assert compiled[1] == compiled[2]
    assert len(static) == 3


def test_compile_where_it_changes_nothing_says_why(static):
    model, (_, tokenizer) = build("phi"), tiny_model()
    with pytest.warns(RuntimeWarning, match="changes nothing for PhiForCausalLM: its family shares no forward"):
        answer(model, tokenizer, compile=True, new=2)
    model, calls = tiny_model()[0], []
    model.model.norm.register_forward_hook(lambda *args: calls.append(1))
    with pytest.warns(RuntimeWarning, match=r"LlamaForCausalLM: model\.norm has forward hooks"):
        answer(model, tokenizer, compile=True, new=4)
    assert len(calls) >= 5  # two prompts and three steps
    assert not static


@pytest.mark.parametrize("value", [1, "yes", 0])
def test_compile_is_a_truth_value_or_none(value):
    with pytest.raises(ControlError, match="compile="):
        ck.GenerateOptions(compile=value)


def test_code_that_a_graph_might_not_repeat_is_named():
    model, _ = tiny_model()
    why = static_step._unknown_code
    assert "not on one CUDA GPU" in static_step.why_no_graph(model)
    assert why(model) is None
    with pruned(model, HeadMask.of(model, [(0, 1)])):
        assert why(model) is None
    handle = model.model.layers[1].mlp.register_forward_hook(lambda *args: None)
    assert why(model) == "model.layers.1.mlp has forward hooks"
    handle.remove()
    model.model.norm.forward = model.model.norm.forward
    assert "model.norm" in why(model)
    del model.model.norm.forward
    model.model.rotary_emb.rope_type = "dynamic"
    assert "dynamic" in why(model)
    model.model.rotary_emb.rope_type = "default"
    model.lm_head.__class__ = type("Quantized", (torch.nn.Linear,), {"__module__": "elsewhere"})
    assert "lm_head" in why(model)


@pytest.mark.parametrize(("plain", "softcap"), [(True, None), (True, 5.0), (False, None)])
def test_grouped_attention_is_attention_with_repeated_keys(plain, softcap):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(3, heads, t, 8, generator=generator) for heads, t in ((6, 1), (2, 16), (2, 16)))
    mask = torch.zeros(3, 1, 1, 16)
    mask[1, ..., :5] = mask[:, ..., 12:] = -torch.inf
    keys, values = (x.double().repeat_interleave(3, 1) for x in (key, value))
    weights = query.double() @ keys.transpose(2, 3) * 0.2
    weights = weights if softcap is None else torch.tanh(weights / softcap) * softcap
    wanted = ((weights + mask).softmax(-1) @ values).transpose(1, 2)
    made = grouped_attention(query, key, value, mask, scaling=0.2, softcap=softcap, plain=plain)
    torch.testing.assert_close(made.double(), wanted, atol=1e-6, rtol=1e-5)


def test_the_switch_of_attention_kernels_goes_back_when_the_last_run_leaves():
    allowed = torch.backends.cuda.cudnn_sdp_enabled
    before, cuda = allowed(), torch.device("cuda")
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        first, second = torch.nn.Identity(), torch.nn.Identity()
        with attention_kernels.steady_attention(torch.device("cpu"), first):
            assert allowed()
        outer = attention_kernels.steady_attention(cuda, first)
        outer.__enter__()  # as if an interrupt had come before the block
        with attention_kernels.steady_attention(cuda, second):
            assert not allowed()
        assert not allowed()
        attention_kernels.leave_steady_attention(first)
        assert allowed()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
