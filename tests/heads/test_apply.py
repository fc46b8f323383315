"""Pruned models: against weights zeroed by hand, bit-equal restoration, rows, nesting, and the two-stream engine."""

from __future__ import annotations

import copy

import pytest
import torch

import ckcontrol as ck
from ckcontrol.decoding.prompts import build_pair
from ckcontrol.decoding.refusals import eos_ids
from ckcontrol.errors import HeadsError
from ckcontrol.heads.apply import pruned
from ckcontrol.heads.families import describe
from ckcontrol.heads.mask import HeadMask
from ckcontrol.models.tiny import FAMILIES, tiny_model

IDS = torch.tensor([[257, 72, 105, 32, 119, 104, 111], [257, 65, 66, 67, 68, 69, 70], [257, 9, 8, 7, 6, 5, 4]])
QUESTIONS = ["Who?", "What is the name of the longest river of all?", "Where did it begin?"]
PASSAGES = [["It was the postman, always."], ["Short."], ["A long one. " * 6, "And another."]]


@pytest.fixture(scope="module")
def llama_copy():
    return tiny_model("llama")


@torch.no_grad()
def logits(model, ids=IDS, **kwargs):
    return model(ids, **kwargs).logits


def by_hand(model, mask):
    """A copy whose weights carry the mask: the oracle, which shares no code with the hooks but the module names."""
    other = copy.deepcopy(model)
    layout = describe(other)
    with torch.no_grad():
        for (layer, head), factor in mask.factors.items():
            module, columns = layout.projections[layer], slice(head * layout.head_dim, (head + 1) * layout.head_dim)
            block = module.weight[columns] if layout.transposed else module.weight[:, columns]
            block.mul_(factor)
    return other


@pytest.mark.parametrize("family", FAMILIES)
def test_the_hook_equals_weights_changed_by_hand(family):
    model, _ = tiny_model(family)
    mask = HeadMask.of(model, [(0, 1), (1, 3)]) * HeadMask.of(model, [(1, 0)], 1.5)
    plain = logits(model)
    with pruned(model, mask):
        inside = logits(model)
    torch.testing.assert_close(inside, logits(by_hand(model, mask)), rtol=0, atol=2e-5)
    assert (inside - plain).abs().max() > 1e-2
    assert torch.equal(logits(model), plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_zeroing_every_head_of_a_layer_changes_the_output(family):
    """The canary: a hook on a module that the forward does not use would pass every equality test."""
    model, _ = tiny_model(family)
    for layer in range(describe(model).layers):
        with pruned(model, HeadMask.of(model, [(layer, head) for head in range(4)])):
            changed = logits(model)
        assert (changed - logits(model)).abs().max() > 1e-3


def test_ones_change_no_bit(llama_copy):
    model, _ = llama_copy
    plain = logits(model)
    with pruned(model, HeadMask.of(model)), pruned(model), pruned(model, [None, HeadMask.of(model), None]):
        assert torch.equal(logits(model), plain)


def test_an_exception_restores_the_model(llama_copy):
    model, _ = llama_copy
    plain = logits(model)
    with pytest.raises(RuntimeError, match="mine"), pruned(model, HeadMask.of(model, [(0, 0), (1, 1)])):
        raise RuntimeError("mine")
    assert torch.equal(logits(model), plain)
    assert not any(p._forward_pre_hooks for p in describe(model).projections)


def test_a_refused_mask_leaves_no_hook_behind(llama_copy):
    model, _ = llama_copy
    wrong = HeadMask.of(tiny_model("llama", seed=1)[0], [(1, 1)])
    with pytest.raises(HeadsError, match="weights is"), pruned(model, [HeadMask.of(model, [(0, 0)]), wrong]):
        pass
    with pruned(model, wrong, strict=False):
        pass
    assert not any(p._forward_pre_hooks for p in describe(model).projections)


def test_blocks_nest_and_multiply(llama_copy):
    model, _ = llama_copy
    a, b = HeadMask.of(model, [(0, 0), (1, 2)], 0.5), HeadMask.of(model, [(0, 0), (1, 1)], 3.0)
    with pruned(model, a * b):
        expected = logits(model)
    with pruned(model, a):
        outer = logits(model)
        with pruned(model, b):
            torch.testing.assert_close(logits(model), expected)
        assert torch.equal(logits(model), outer)


def test_every_row_has_its_own_mask(llama_copy):
    model, _ = llama_copy
    masks = [HeadMask.of(model, [(0, 1)]), None, HeadMask.of(model, [(1, 2), (1, 3)], 2.0)]
    with pruned(model, masks):
        together = logits(model)
    for i, mask in enumerate(masks):
        with pruned(model, mask):
            torch.testing.assert_close(together[i : i + 1], logits(model, IDS[i : i + 1]))


def test_rows_and_masks_must_agree(llama_copy):
    model, _ = llama_copy
    with (
        pruned(model, [HeadMask.of(model, [(0, 1)])] * 2),
        pytest.raises(HeadsError, match="2 masks meet a batch of 3"),
    ):
        logits(model)
    for bad in ([], ["memory"], 7):
        with pytest.raises((HeadsError, TypeError)), pruned(model, bad):
            pass


def test_padding_does_not_matter(llama_copy):
    """Masks act at every position, so a left-padded row equals the row alone."""
    model, _ = llama_copy
    ids = torch.cat([torch.full((1, 3), 256), IDS[:1, :4]], dim=1)
    keep = (ids != 256).long()
    position = (keep.cumsum(-1) - 1).clamp(min=0)
    with pruned(model, HeadMask.of(model, [(0, 1), (1, 0)])):
        padded = logits(model, ids, attention_mask=keep, position_ids=position)
        torch.testing.assert_close(padded[:, 3:], logits(model, IDS[:1, :4]))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_prefill_and_decode_are_pruned_alike(family):
    """`generate` with its cache equals the naive loop that runs the whole prompt for every token."""
    model, _ = tiny_model(family)
    with pruned(model, HeadMask.of(model, [(0, 1), (1, 0)])):
        made = model.generate(IDS[:1], max_new_tokens=10, do_sample=False, eos_token_id=None, pad_token_id=256)
        ids = IDS[:1]
        for _ in range(10):
            ids = torch.cat([ids, logits(model, ids)[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(made, ids)


def test_bfloat16_keeps_its_dtype():
    model = tiny_model("llama")[0].to(torch.bfloat16)
    with pruned(model, HeadMask.of(model, [(0, 1)], 0.5)):
        assert logits(model).dtype == torch.bfloat16


# --- two streams ---


class Alternating:
    """Stands in for a model in the naive loop: the contextual prompt runs in one model, the parametric in another."""

    def __init__(self, contextual, parametric):
        self.models, self.calls = (contextual, parametric), 0

    def parameters(self):
        return self.models[0].parameters()

    def __call__(self, *args, **kwargs):
        self.calls += 1
        return self.models[(self.calls - 1) % 2](*args, **kwargs)


def expected(model, tokenizer, control, i, contextual, parametric):
    pair = build_pair(tokenizer, QUESTIONS[i], PASSAGES[i])
    two = Alternating(by_hand(model, contextual), by_hand(model, parametric))
    return ck.reference_generate(
        two,
        pair.contextual,
        pair.parametric,
        control,
        max_new_tokens=12,
        eos=eos_ids(model, tokenizer),
        vocab_size=len(tokenizer),
    )


def ids(answers):
    return [list(a.token_ids) for a in answers]


@pytest.mark.parametrize("share", [True, False], ids=["one forward", "two forwards"])
@pytest.mark.parametrize("where", ["contextual", "parametric", "both", "each"])
@pytest.mark.parametrize("family", FAMILIES)
def test_streams_under_masks_equal_each_stream_alone(family, where, share, monkeypatch):
    model, tokenizer = tiny_model(family)
    if not share:
        monkeypatch.setattr("ckcontrol.decoding.pair_cache.can_share_forward", lambda model: False)
    none, one, two = HeadMask.of(model), HeadMask.of(model, [(0, 1), (1, 3)]), HeadMask.of(model, [(1, 0)], 2.0)
    kwargs, masks = {
        "contextual": ({"contextual": one}, (one, none)),
        "parametric": ({"parametric": one}, (none, one)),
        "both": ({"mask": one}, (one, one)),
        "each": ({"contextual": one, "parametric": two}, (one, two)),
    }[where]
    control = ck.Control("ck-plug", alpha=0.3, gate=3.0)
    with pruned(model, **kwargs):
        answers = ck.generate(model, tokenizer, QUESTIONS, PASSAGES, control=control, max_new_tokens=12)
    assert ids(answers) == [expected(model, tokenizer, control, i, *masks) for i in range(3)]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_rows_and_streams_together(family):
    model, tokenizer = tiny_model(family)
    none = HeadMask.of(model)
    rows = [HeadMask.of(model, [(0, 1)]), none, HeadMask.of(model, [(1, 2)], 3.0)]
    other = HeadMask.of(model, [(0, 0)])
    control = ck.Control("cad", alpha=1 / 3)
    with pruned(model, contextual=rows, parametric=other):
        answers = ck.generate(model, tokenizer, QUESTIONS, PASSAGES, control=control, max_new_tokens=12)
    assert ids(answers) == [expected(model, tokenizer, control, i, rows[i], other) for i in range(3)]


def test_a_neutral_control_runs_the_contextual_stream_alone(llama_copy):
    model, tokenizer = llama_copy
    mask = HeadMask.of(model, [(0, 1), (1, 3)])
    with pruned(model, contextual=mask):
        answer = ck.generate(model, tokenizer, QUESTIONS[0], PASSAGES[0], max_new_tokens=8, trace=False)
    pair = build_pair(tokenizer, QUESTIONS[0], PASSAGES[0])
    made = by_hand(model, mask).generate(
        torch.tensor([pair.contextual]), max_new_tokens=8, do_sample=False, pad_token_id=256
    )
    assert list(answer.token_ids) == made[0, len(pair.contextual) :].tolist()


def test_the_native_door_knows_its_streams(llama_copy):
    model, tokenizer = llama_copy
    mask, control = HeadMask.of(model, [(0, 1), (1, 3)]), ck.Control("ck-plug", alpha=0.3, gate=3.0)
    pair = build_pair(tokenizer, QUESTIONS[0], PASSAGES[0])
    loop = ck.decoding_loop(control, parametric_ids=torch.tensor([pair.parametric]), vocab_size=len(tokenizer))
    with pruned(model, parametric=mask):
        made = model.generate(
            torch.tensor([pair.contextual]), custom_generate=loop, max_new_tokens=12, do_sample=False, pad_token_id=256
        )
    new = made[0, len(pair.contextual) :].tolist()
    assert new == expected(model, tokenizer, control, 0, HeadMask.of(model), mask)


def test_masks_of_single_streams_refuse_other_forwards(llama_copy):
    model, _ = llama_copy
    mask = HeadMask.of(model, [(0, 1)])
    with pruned(model, contextual=mask), pytest.raises(HeadsError, match="outside two-stream decoding"):
        logits(model)
    with pytest.raises(HeadsError, match="one per stream"), pruned(model, mask, parametric=mask):
        pass


@pytest.mark.parametrize("how", ["compile", "wrapper", "layers", "wrapped layers", "wrapper of another name"])
@pytest.mark.parametrize("run_before", [True, False])
def test_compiled_code_sees_the_mask_and_forgets_it(how, run_before):
    """Compiled code has no hooks in it: without the way around, a mask changes nothing, or stays for ever."""
    model, called = tiny_model("llama")[0], None
    want_plain = logits(model)
    mask = HeadMask.of(model, [(0, 1), (1, 2)])
    want = logits(by_hand(model, mask))
    if how == "compile":
        model.compile(backend="eager")
    elif how == "layers":
        for layer in model.model.layers:
            layer.compile(backend="eager")
    elif how == "wrapped layers":
        for i, layer in enumerate(model.model.layers):
            model.model.layers[i] = torch.compile(layer, backend="eager")
    else:
        called = torch.compile(model, backend="eager")
    called = model if called is None else called
    masked = model if how == "wrapper of another name" else called
    if run_before:
        logits(called)
    with pruned(masked, mask):
        torch.testing.assert_close(logits(called), want, rtol=0, atol=2e-5)
        with pruned(masked, mask):
            pass
        torch.testing.assert_close(logits(called), want, rtol=0, atol=2e-5)
    torch.testing.assert_close(logits(called), want_plain, rtol=0, atol=2e-5)


def test_blocks_of_two_threads_may_end_in_any_order():
    """The thread that ends first must not give compiled code back to the other."""
    model, _ = tiny_model("llama")
    mask = HeadMask.of(model, [(0, 1), (1, 2)])
    want = logits(by_hand(model, mask))
    model.model.layers[0].compile(backend="eager")
    model.model.layers[1].compile(backend="eager")
    logits(model)
    first, second = pruned(model, mask), pruned(model)
    first.__enter__()
    second.__enter__()
    second.__exit__(None, None, None)
    third = pruned(model)
    third.__enter__()
    torch.testing.assert_close(logits(model), want, rtol=0, atol=2e-5)
    first.__exit__(None, None, None)
    fourth = pruned(model, mask)
    fourth.__enter__()
    third.__exit__(None, None, None)
    torch.testing.assert_close(logits(model), want, rtol=0, atol=2e-5)
    fourth.__exit__(None, None, None)
