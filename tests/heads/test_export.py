"""Exports: the reloaded checkpoint and the adapter do what the hooks did, and nothing is left behind on failure."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from ckcontrol.errors import HeadsError
from ckcontrol.heads import export
from ckcontrol.heads.apply import pruned
from ckcontrol.heads.checkpoint import compare, probes
from ckcontrol.heads.export import export_checkpoint, export_lora, lora_applied
from ckcontrol.heads.families import describe
from ckcontrol.heads.mask import HeadMask
from ckcontrol.models.tiny import FAMILIES, tiny_model

IDS = torch.tensor([[257, 72, 105, 32, 119, 104, 111, 63]])


@pytest.fixture
def llama():
    return tiny_model("llama")


def reload(path, model):
    return AutoModelForCausalLM.from_pretrained(
        path, dtype=model.dtype, attn_implementation=model.config._attn_implementation
    ).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_reloaded_checkpoint_is_the_pruned_model_bit_for_bit(family, tmp_path):
    model, tokenizer = tiny_model(family)
    mask = HeadMask.of(model, [(0, 1), (1, 0), (1, 3)])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = export_checkpoint(model, mask, tmp_path / "out", tokenizer=tokenizer)
    assert (found.difference, found.same, found.prompts) == (0.0, 8, 8)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())

    again = reload(tmp_path / "out", model)
    with torch.no_grad(), pruned(model, mask):
        assert torch.equal(again(IDS).logits, model(IDS).logits)
    layout = describe(again)
    assert layout.weight(1)[:, layout.columns(3)].abs().sum() == 0 < layout.weight(1)[:, layout.columns(2)].abs().sum()
    assert type(again) is type(model)
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("hi").input_ids == tokenizer("hi").input_ids
    assert HeadMask.load(tmp_path / "out" / "head_mask.json") == mask
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_read_back_is_the_pruned_model(family, tmp_path):
    model, tokenizer = tiny_model(family)
    mask = HeadMask.of(model, [(0, 1), (1, 0), (1, 3)]) * HeadMask.of(model, [(0, 2)], 1.75)
    found = export_lora(model, mask, tmp_path / "lora", tokenizer=tokenizer)
    assert found.difference < 1e-4 and found.same == 8
    with torch.no_grad():
        with pruned(model, mask):
            wanted = model(IDS).logits
        with lora_applied(model, tmp_path / "lora"):
            torch.testing.assert_close(model(IDS).logits, wanted, rtol=0, atol=1e-4)
        assert (model(IDS).logits - wanted).abs().max() > 1e-2  # the adapter is off again


def test_the_rank_is_that_of_the_fullest_layer(llama, tmp_path):
    model, _ = llama
    export_lora(model, HeadMask.of(model, [(0, 1), (1, 0), (1, 3)]), tmp_path / "lora")
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert config["r"] == config["lora_alpha"] == 2 * 8
    assert config["target_modules"] == ["model.layers.0.self_attn.o_proj", "model.layers.1.self_attn.o_proj"]
    assert config["base_model_name_or_path"] is None  # never a path of this machine
    assert {t.shape for t in tensors.values()} == {torch.Size([16, 32]), torch.Size([32, 16])}
    assert tensors["base_model.model.model.layers.0.self_attn.o_proj.lora_A.weight"][8:].abs().sum() == 0


@pytest.mark.filterwarnings("ignore::FutureWarning")  # transformers', met by PEFT's copy of the model
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_peft_reads_the_adapter_the_same_way(family, tmp_path):
    peft = pytest.importorskip("peft")
    model, _ = tiny_model(family)
    mask = HeadMask.of(model, [(0, 1), (1, 0), (1, 3)])
    export_lora(model, mask, tmp_path / "lora")
    with torch.no_grad():
        with pruned(model, mask):
            wanted = model(IDS).logits
        adapted = peft.PeftModel.from_pretrained(model, tmp_path / "lora").eval()
        torch.testing.assert_close(adapted(IDS).logits, wanted, rtol=0, atol=1e-4)


def test_scaled_heads_and_half_precision(tmp_path):
    model, tokenizer = tiny_model("llama")
    mask = HeadMask.of(model, [(0, 1)]) * HeadMask.of(model, [(1, 2)], -0.5)
    assert export_checkpoint(model, mask, tmp_path / "f32", tokenizer=tokenizer).difference < 1e-4
    model.to(torch.bfloat16).save_pretrained(tmp_path / "base")
    model = reload(tmp_path / "base", model)  # not the cast model itself: .to() rounds the rotary frequencies too
    found = export_checkpoint(model, HeadMask.of(model, [(0, 1)]), tmp_path / "bf16")
    assert found.difference == 0.0  # zeroed columns are exact in every dtype
    assert reload(tmp_path / "bf16", model).dtype == torch.bfloat16
    lora = export_lora(model, HeadMask.of(model, [(0, 1)]), tmp_path / "lora")
    assert 0 < lora.difference < 0.1 * lora.scale


def test_a_model_that_says_it_came_from_gguf_can_be_exported(llama, tmp_path):
    """transformers marks such models as quantised and refuses to save them, though their weights are plain."""
    model, _ = llama

    class Quantizer:
        class quantization_config:
            quant_method = "gguf"

    model.hf_quantizer = Quantizer()
    model.config.quantization_config = {"quant_method": "gguf"}
    with pytest.raises(ValueError, match="not serializable"):
        model.save_pretrained(tmp_path / "direct")
    assert export_checkpoint(model, HeadMask.of(model, [(0, 0)]), tmp_path / "out").difference == 0.0
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_tied_embeddings_stay_tied(tmp_path):
    model, _ = tiny_model("llama")
    model.config.tie_word_embeddings = True
    model.tie_weights()
    export_checkpoint(model, HeadMask.of(model, [(0, 0)]), tmp_path / "out")
    again = reload(tmp_path / "out", model)
    assert again.lm_head.weight.data_ptr() == again.model.embed_tokens.weight.data_ptr()
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")


# --- refusals ---


@pytest.mark.parametrize("write", [export_checkpoint, export_lora])
def test_nothing_is_overwritten_and_no_other_model_exported(llama, tmp_path, write):
    model, _ = llama
    (tmp_path / "there").mkdir()
    with pytest.raises(HeadsError, match="exists"):
        write(model, HeadMask.of(model, [(0, 0)]), tmp_path / "there")
    with pytest.raises(HeadsError, match="weights is"):
        write(model, HeadMask.of(tiny_model("llama", seed=1)[0], [(0, 0)]), tmp_path / "new")
    assert [p.name for p in tmp_path.iterdir()] == ["there"] and not list((tmp_path / "there").iterdir())


def test_an_export_that_disagrees_is_not_left_behind(llama, tmp_path, monkeypatch):
    model, _ = llama
    unpruned = HeadMask.of(model)
    changed = export._changed
    monkeypatch.setattr(export, "_changed", lambda model, mask: changed(model, unpruned))
    with pytest.raises(HeadsError, match="disagrees with the hooks"):
        export_checkpoint(model, HeadMask.of(model, [(0, 0)]), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_identity_adapter_is_refused(llama, tmp_path):
    with pytest.raises(HeadsError, match="identity"):
        export_lora(llama[0], HeadMask.of(llama[0]), tmp_path / "lora")


def test_an_adapter_of_another_model_is_refused(llama, tmp_path):
    model, _ = llama
    export_lora(model, HeadMask.of(model, [(1, 0)]), tmp_path / "lora")
    with pytest.raises(HeadsError, match="no module"), lora_applied(tiny_model("gpt2")[0], tmp_path / "lora"):
        pass


def test_compare_tells_what_differs(llama):
    model, tokenizer = llama
    other, _ = tiny_model("llama", seed=1)
    prompts = probes(model, tokenizer)
    assert compare(model, model, prompts, 4).difference == 0
    found = compare(model, other, prompts, 4)
    assert found.difference > 1 and found.same < 8 and "of 8 greedy continuations of 4 tokens" in str(found)


@pytest.mark.real
def test_the_demo_model_exports(real, tmp_path):
    """Six prompts here; `python benchmarks/heads_export.py` compares on 64."""
    model, tokenizer = real
    mask = HeadMask.of(model, [(5, 2), (18, 8), (18, 0), (24, 5), (29, 1)])
    prompts = probes(model, tokenizer)[:6]
    found = export_checkpoint(model, mask, tmp_path / "out", prompts=prompts, new_tokens=4)
    assert found.prompts == found.same == 6 and found.difference <= 1e-5
    found = export_lora(model, mask, tmp_path / "lora", prompts=prompts, new_tokens=4)
    assert found.same == 6 and found.difference <= 1e-3
