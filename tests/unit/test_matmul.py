"""The faster product is the same product, only where it helps, and never leaks out of its block."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear

from ckcontrol.decoding.matmul import few_row_linear, few_row_products
from ckcontrol.errors import HeadsError
from ckcontrol.heads.families import describe
from ckcontrol.models.tiny import tiny_model

CPU = torch.device("cpu")


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
    """Against float64 the product is as exact as torch's own."""
    x, w = torch.randn(rows, 576), torch.randn(1536, 576)
    exact = linear(x.double(), w.double())
    ours, theirs = ((p - exact).abs().max().item() for p in (few_row_linear(x, w), linear(x, w)))
    assert ours < 3 * theirs


def test_only_few_rows_are_ours(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "ckcontrol.decoding.matmul.few_row_linear", lambda x, w, b=None: seen.append(x.shape[0]) or linear(x, w, b)
    )
    w = torch.randn(5, 4)
    with few_row_products(CPU, torch.float32):
        for rows in (1, 2, 64, 65):
            linear(torch.randn(rows, 4), w)
    linear(torch.randn(2, 4), w)
    assert seen == [2, 64]


class Packed(torch.Tensor):
    """A weight of its own type, as quantisers make them: it knows `linear`, and no product that we turn it into."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func in (torch.mm, torch.matmul):
            raise NotImplementedError
        return super().__torch_function__(func, types, args, kwargs or {})


def test_a_weight_of_its_own_type_multiplies_by_its_own_rule():
    x, w = torch.randn(2, 1, 12), torch.randn(20, 12)
    want = linear(x, w)
    with few_row_products(CPU, torch.float32):
        got = linear(x, w.as_subclass(Packed))
    assert torch.equal(got.as_subclass(torch.Tensor), want)


def test_heads_of_such_weights_are_refused():
    model = tiny_model("llama")[0]
    layer = model.model.layers[0].self_attn.o_proj
    layer.weight = torch.nn.Parameter(layer.weight.detach().as_subclass(Packed))
    with pytest.raises(HeadsError, match=r"hold Packed, not plain weights.*without quantisation"):
        describe(model)


def test_nothing_happens_in_half_precision_or_elsewhere():
    for device, dtype in ((CPU, torch.bfloat16), (torch.device("cuda"), torch.float32)):
        with few_row_products(device, dtype) as mode:
            assert mode is None
