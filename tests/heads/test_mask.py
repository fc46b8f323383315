"""Masks as data: what they hold, what they refuse, and that a file gives back what was written."""

from __future__ import annotations

import json

import pytest
import torch

from ckcontrol.errors import HeadsError
from ckcontrol.heads.fingerprint import Fingerprint
from ckcontrol.heads.mask import LIMIT, HeadMask
from ckcontrol.models.tiny import FAMILIES, tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")[0]


# --- fingerprints ---


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fingerprint_survives_reloading_in_another_dtype_and_nothing_else(family):
    model = tiny_model(family)[0]
    mine = Fingerprint.of(model)
    assert mine == Fingerprint.of(tiny_model(family)[0])
    assert mine != Fingerprint.of(tiny_model(family, seed=1)[0])
    assert mine == Fingerprint.of(model.to(torch.bfloat16)) == Fingerprint.of(model.float())
    assert mine == Fingerprint.from_dict(json.loads(json.dumps(mine.to_dict())))


def test_the_fingerprint_counts_query_heads(model):
    """With grouped queries the model has 4 query heads and 2 key-value heads; a mask has one factor per query head."""
    mine = Fingerprint.of(model)
    assert (mine.layers, mine.heads, mine.head_dim) == (2, 4, 8) and model.config.num_key_value_heads == 2


def test_the_digest_sees_a_pruned_projection(model):
    changed = tiny_model("llama")[0]
    with torch.no_grad():
        changed.model.layers[1].self_attn.o_proj.weight[:, 8:16] = 0
    assert Fingerprint.of(model).differs(Fingerprint.of(changed))[0] == "weights"


@pytest.mark.parametrize(
    ("field", "value"),
    [("layers", 3), ("heads", 2), ("head_dim", 4), ("hidden", 64), ("vocabulary", 5), ("family", "gpt2")],
)
def test_a_wrong_model_is_refused_by_the_name_of_the_field(model, field, value):
    mask = HeadMask(Fingerprint(**{**Fingerprint.of(model).to_dict(), field: value}), {(0, 0): 0.0})
    for strict in (True, False):
        with pytest.raises(HeadsError, match=f"{field} is {value!r} there") as caught:
            mask.check(model, strict=strict)
        assert "score this model anew" in caught.value.hint


def test_other_weights_are_refused_unless_asked_for(model):
    mask = HeadMask.of(tiny_model("llama", seed=1)[0], [(0, 0)])
    with pytest.raises(HeadsError, match=r"weights is '\w{16}' there and '\w{16}' here.*strict=False"):
        mask.check(model)
    mask.check(model, strict=False)


@pytest.mark.parametrize(
    "change",
    [{"layers": True}, {"layers": "2"}, {"heads": 0}, {"weights": 7}, {"extra": 1}, {"family": None}],
    ids=str,
)
def test_damaged_fingerprints_are_refused(model, change):
    with pytest.raises(HeadsError):
        Fingerprint.from_dict({**Fingerprint.of(model).to_dict(), **change})
    with pytest.raises(HeadsError):
        Fingerprint.from_dict([])


# --- masks ---


def test_a_mask_keeps_only_what_differs_from_one_and_in_order(model):
    mine = Fingerprint.of(model)
    mask = HeadMask(mine, {(1, 3): 0, (0, 2): 1.5, (0, 0): 1.0})
    assert mask.heads == ((0, 2), (1, 3)) and mask.row(0) == [1, 1, 1.5, 1] and mask.row(1) == [1, 1, 1, 0]
    assert mask == HeadMask(mine, {(0, 2): 1.5, (1, 3): 0.0}, {"note": "is not compared"})
    assert hash(mask) == hash(HeadMask(mine, {(0, 2): 1.5, (1, 3): 0.0}))
    assert repr(mask) == "HeadMask(llama 2×4: 0.2×1.5, 1.3)" and "identity" in repr(HeadMask.of(model))


def test_masks_are_frozen(model):
    mask = HeadMask.of(model, [(0, 0)], scores="x.json")
    with pytest.raises(TypeError):
        mask.factors[0, 0] = 2.0
    with pytest.raises(TypeError):
        mask.note["scores"] = ""
    with pytest.raises(AttributeError):
        mask.factors = {}


def test_factors_multiply(model):
    a, b = HeadMask.of(model, [(0, 0), (0, 1)], 0.5), HeadMask.of(model, [(0, 1), (1, 1)], 2.0)
    assert dict((a * b).factors) == {(0, 0): 0.5, (1, 1): 2.0}  # 0.5 * 2 is the identity on head 0.1
    assert a * HeadMask.of(model) == a and a * b == b * a
    with pytest.raises(HeadsError, match="weights is"):
        a * HeadMask.of(tiny_model("llama", seed=1)[0])


@pytest.mark.parametrize("head", [(2, 0), (0, 4), (-1, 0), (0, -1), (0, True), (0.0, 0), (0,), "00"])
def test_heads_that_do_not_exist_are_refused(model, head):
    with pytest.raises(HeadsError, match="does not exist"):
        HeadMask(Fingerprint.of(model), {head: 0.0})


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 1e6, True, "0", None])
def test_factors_that_mean_nothing_are_refused(model, factor):
    with pytest.raises(HeadsError, match="factor"):
        HeadMask(Fingerprint.of(model), {(0, 0): factor})


# --- files ---


def test_a_file_gives_back_what_was_written(model, tmp_path):
    mask = HeadMask(Fingerprint.of(model), {(1, 3): 0, (0, 2): 1.5, (1, 0): 1 / 3}, {"from": "memory:3", "n": [1, 2]})
    mask.save(tmp_path / "mask.json")
    again = HeadMask.load(tmp_path / "mask.json")
    assert again == mask and dict(again.note) == {"from": "memory:3", "n": [1, 2]}
    again.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "mask.json").read_bytes()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kind": "scores"}, "not a head mask"),
        ({"schema": 2}, "schema 2"),
        ({"heads": {}}, "not a list"),
        ({"heads": [{"layer": 0, "head": 0}]}, "is not a head"),
        ({"heads": [{"layer": 0, "head": 0, "factor": 0}] * 2}, "twice"),
        ({"heads": [{"layer": 9, "head": 0, "factor": 0}]}, "does not exist"),
        ({"heads": [{"layer": [], "head": 0, "factor": 0}]}, "does not exist"),
        ({"heads": [{"layer": 0, "head": 0, "factor": "0"}]}, "factor '0'"),
        ({"model": None}, "fingerprint"),
        ({"note": 3}, "note"),
    ],
    ids=str,
)
def test_damaged_files_are_refused(model, tmp_path, change, says):
    path = tmp_path / "mask.json"
    path.write_text(json.dumps({**HeadMask.of(model, [(0, 0)]).to_dict(), **change}), encoding="utf-8")
    with pytest.raises(HeadsError, match=says):
        HeadMask.load(path)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[NaN]", b'"text"'])
def test_what_is_not_json_is_refused(tmp_path, data):
    path = tmp_path / "mask.json"
    path.write_bytes(data)
    with pytest.raises(HeadsError):
        HeadMask.load(path)


def test_a_huge_file_is_not_read(tmp_path):
    path = tmp_path / "mask.json"
    with path.open("wb") as file:
        file.truncate(LIMIT + 1)
    with pytest.raises(HeadsError, match="larger than 50 MB"):
        HeadMask.load(path)
