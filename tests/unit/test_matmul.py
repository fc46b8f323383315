"""The faster product is the same product, only where it helps, and never leaks out of its block."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch.nn.functional import linear

from ckcontrol.decoding import matmul
from ckcontrol.decoding.matmul import few_row_linear, few_row_products, leave_few_row_products, pays
from ckcontrol.decoding.static_step import _unknown_code
from ckcontrol.errors import HeadsError
from ckcontrol.heads.families import describe
from ckcontrol.models.tiny import tiny_model


@pytest.mark.parametrize("shape", [(2, 1, 12), (1, 7, 12), (64, 12), (3, 2, 5, 12)])
@pytest.mark.parametrize("out", [20, 768, 1001])  # below, at and beside blocks of a tall weight
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_same_product_same_layout(shape, out, biased, turned):
    x, w = torch.randn(*shape), torch.randn(12, out).t() if turned else torch.randn(out, 12)
    bias = torch.randn(out) if biased else None
    got, want = few_row_linear(x, w, bias), linear(x, w, bias)
    assert got.shape == want.shape and got.is_contiguous()
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [2, 16])
def test_error_is_that_of_float32(rows):
    """Against float64: no lower precision is taken on the way, whatever the processor."""
    x, w = torch.randn(rows, 576), torch.randn(1536, 576)
    error = (few_row_linear(x, w) - linear(x.double(), w.double())).abs()
    assert (error <= 32 * torch.finfo(torch.float32).eps * linear(x.abs(), w.abs())).all()


class Run:
    """Stands for a run."""


@pytest.fixture
def seen(monkeypatch):
    """The numbers of rows that our product is asked for, on a machine where it is the faster one."""
    seen = []
    monkeypatch.setattr("ckcontrol.decoding.matmul.pays", lambda rows: True)
    monkeypatch.setattr(
        "ckcontrol.decoding.matmul.few_row_linear", lambda x, w, b=None: seen.append(x.shape[0]) or linear(x, w, b)
    )
    return seen


def own_forwards(model):
    return [name for name, module in model.named_modules() if "forward" in module.__dict__]


def test_only_few_rows_are_ours_and_only_inside(seen):
    model, run = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ReLU()), Run()
    for _ in range(2):
        with few_row_products(model, run):
            assert own_forwards(model) == ["0"]
            for rows in (1, 2, 64, 65):
                model(torch.randn(rows, 4))
        model(torch.randn(2, 4))
        assert own_forwards(model) == []
    assert seen == [2, 64] * 2


def test_another_thread_keeps_torchs_product_and_the_last_one_out_puts_back(seen):
    model, first, second = torch.nn.Linear(4, 5), Run(), Run()
    entered, leave = threading.Event(), threading.Event()

    def other():
        model(torch.randn(3, 4))  # the forward is ours, the thread is not
        with few_row_products(model, second):
            entered.set()
            leave.wait(10)
            model(torch.randn(4, 4))

    with few_row_products(model, first):
        thread = threading.Thread(target=other)
        thread.start()
        assert entered.wait(10)
        model(torch.randn(2, 4))
    assert own_forwards(model) == [""]
    leave.set()
    thread.join()
    assert own_forwards(model) == []
    assert seen == [2, 4]


def test_a_forward_that_somebody_gave_a_layer_is_kept(seen):
    model, run = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)), Run()
    model[0].forward = theirs = lambda x: x + 1
    with few_row_products(model, run):
        model(torch.randn(2, 4))
    assert seen == [2] and model[0].forward is theirs and own_forwards(model) == ["0"]


def test_beside_a_run_a_model_is_not_taken_for_one_with_foreign_code():
    """A second thread asks while the first is in a forward: whether the step can be captured must not hang on that."""
    model, run = tiny_model("llama")[0], Run()
    with few_row_products(model, run):
        assert own_forwards(model) and _unknown_code(model) is None
        model.lm_head.forward = lambda x: x
        assert _unknown_code(model) == "the forward of lm_head is not torch's or transformers' own"


def test_a_copy_made_inside_and_what_an_interrupt_left_are_put_back():
    model, run = torch.nn.Sequential(torch.nn.Linear(4, 5)), Run()
    with few_row_products(model, run):
        copied = copy.deepcopy(model)
    assert copied[0].forward.__self__ is copied[0]
    leave_few_row_products(copied, run)
    assert own_forwards(copied) == own_forwards(model) == []


class Packed(torch.Tensor):
    """A weight of its own type, as quantisers make them: it knows `linear`, and no product that we turn it into."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func in (torch.mm, torch.matmul):
            raise NotImplementedError
        return super().__torch_function__(func, types, args, kwargs or {})


def test_a_weight_of_its_own_type_multiplies_by_its_own_rule(seen):
    layer, x, run = torch.nn.Linear(12, 20, bias=False), torch.randn(2, 1, 12), Run()
    want = layer(x)
    layer.weight = torch.nn.Parameter(layer.weight.detach().as_subclass(Packed))
    with few_row_products(layer, run):
        got = layer(x)
    assert torch.equal(got.as_subclass(torch.Tensor), want) and not seen


def test_heads_of_such_weights_are_refused():
    model = tiny_model("llama")[0]
    layer = model.model.layers[0].self_attn.o_proj
    layer.weight = torch.nn.Parameter(layer.weight.detach().as_subclass(Packed))
    with pytest.raises(HeadsError, match=r"hold Packed, not plain weights.*without quantisation"):
        describe(model)


@pytest.mark.parametrize("where", [{"dtype": torch.bfloat16}, {"device": "meta"}])
def test_nothing_happens_in_half_precision_or_elsewhere(where):
    layer, run = torch.nn.Linear(4, 5, **where), Run()
    with few_row_products(layer, run):
        assert own_forwards(layer) == []


@pytest.mark.parametrize(
    ("slow", "fast", "ours"), [("linear", "few_row_linear", True), ("few_row_linear", "linear", False)]
)
def test_the_faster_product_is_taken(monkeypatch, slow, fast, ours):
    """Whichever it is on this machine: the other one is made to multiply 20 times."""
    where = {"linear": torch.nn.functional, "few_row_linear": matmul}
    product = getattr(where[slow], slow)
    monkeypatch.setattr(where[slow], slow, lambda x, w: [product(x, w) for _ in range(20)][-1])
    matmul._tried.cache_clear()
    assert pays(3) is ours
    matmul._tried.cache_clear()


def test_torchs_own_product_where_torch_is_to_be_deterministic(monkeypatch):
    monkeypatch.setattr("ckcontrol.decoding.matmul._tried", lambda rows, threads: True)
    assert pays(2)
    torch.use_deterministic_algorithms(True)
    try:
        assert not pays(2)
    finally:
        torch.use_deterministic_algorithms(False)
