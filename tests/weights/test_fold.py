"""A dial's adapter in the model's own weights: an ordinary checkpoint that answers as model and adapter do."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import ckcontrol as ck
from ckcontrol.errors import CKError, WeightsError
from ckcontrol.models.tiny import tiny_model
from ckcontrol.weights import export, load, mix, unload

from .by_hand import merged, write_adapter

peft = pytest.importorskip("peft")
ASKED = ["Who rules Oz?", "Where is Ys?"], [["Ozma rules Oz."], ["Ys lies under the sea, they say."]]


@pytest.fixture(scope="module")
def dial(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("fold")
    model, _ = tiny_model()
    mix(
        model, *(write_adapter(model, home / side, seed) for side, seed in (("c", 1), ("m", 2))), home / "dial", steps=5
    )
    return home / "dial"


def test_stock_transformers_reads_the_weights_that_adding_by_hand_gives(dial, tmp_path):
    model, tokenizer = tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = export(model, dial, 0.3, tmp_path / "made", tokenizer=tokenizer)  # nearest: 0.25
    assert found.same == found.prompts == 8 and found.difference < 1e-3
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    told = json.loads((tmp_path / "made" / "ckcontrol-folded.json").read_text())
    assert told["alpha"] == 0.25 and told["dial"]["method"] == "scale"
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "made").eval()
    merged(model, dial / "step1")
    for name, value in again.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=0, atol=1e-5)


def test_the_checkpoint_answers_as_the_dial_does(dial, tmp_path):
    model, tokenizer = tiny_model()
    export(model, dial, 1.0, tmp_path / "made", tokenizer=tokenizer)
    load(model, dial)
    beside = ck.generate(model, tokenizer, *ASKED, control=ck.Control("weights", alpha=1.0), max_new_tokens=16)
    unload(model)
    plain, read = ck.load(str(tmp_path / "made"), device="cpu")
    folded = ck.generate(plain, read, *ASKED, control=ck.Control("off"), max_new_tokens=16)
    assert [a.token_ids for a in folded] == [a.token_ids for a in beside]
    free = ck.generate(model, tokenizer, *ASKED, control=ck.Control("off"), max_new_tokens=16)
    assert [a.token_ids for a in free] != [a.token_ids for a in beside]


def test_weights_of_the_other_orientation(tmp_path):
    """GPT-2's layers keep [in, out], and a square one must be turned as well."""
    model, tokenizer = tiny_model("gpt2")
    folders = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        config = peft.LoraConfig(
            r=2, lora_alpha=8, target_modules=["c_attn", "c_proj"], init_lora_weights=False, fan_in_fan_out=True
        )
        copy, _ = tiny_model("gpt2")
        peft.get_peft_model(copy, config).save_pretrained(str(tmp_path / f"a{seed}"))
        folders.append(tmp_path / f"a{seed}")
    mix(model, *folders, tmp_path / "dial", steps=3)
    found = export(model, tmp_path / "dial", 0.0, tmp_path / "made", tokenizer=tokenizer)
    assert found.same == found.prompts


def test_half_precision_is_rounded_once(dial, tmp_path):
    model, tokenizer = tiny_model()
    model = model.to(torch.bfloat16)
    found = export(model, dial, 0.0, tmp_path / "made", tokenizer=tokenizer)
    assert found.difference <= 8 * 2**-7 * max(1.0, found.scale)


@pytest.mark.parametrize(
    ("change", "named", "remedy"),
    [
        ("half", "alpha=0.45", "0.25, 0.75"),
        ("alpha", "1.5", "0"),
        ("exists", "made", "new folder"),
        ("other", "another model", "Load the model"),
        ("damaged", "step0", "anew"),
        ("none", "no dial", "weights mix"),
    ],
)
def test_what_cannot_be_exported_leaves_nothing(dial, tmp_path, change, named, remedy):
    model, _ = tiny_model("qwen2" if change == "other" else "llama")
    mine, alpha, out = tmp_path / "dial", {"half": 0.45, "alpha": 1.5}.get(change, 0.0), tmp_path / "made"
    if change == "none":
        mine.mkdir()
    else:
        shutil.copytree(dial, mine)
    if change == "exists":
        out.mkdir()
    if change == "damaged":
        (mine / "step0" / "adapter_model.safetensors").unlink()
    there = sorted(tmp_path.iterdir())
    with pytest.raises(CKError, match=named) as caught:
        export(model, mine, alpha, out)
    assert remedy in str(caught.value)
    assert sorted(tmp_path.iterdir()) == there


def test_a_failed_export_takes_the_folders_above_with_it(dial, tmp_path, monkeypatch):
    from ckcontrol.weights import fold

    model, _ = tiny_model()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fold, "compare", lambda *args: signal.raise_signal(signal.SIGINT))
        export(model, dial, 0.0, tmp_path / "new" / "deep" / "made")
    assert not list(tmp_path.iterdir())
    export(model, dial, 0.0, tmp_path / "new" / "deep" / "made")
    assert [path.name for path in (tmp_path / "new" / "deep").iterdir()] == ["made"]


def test_a_disk_without_room_is_named_with_the_remedy(dial, tmp_path):
    """A limit on the size of a file stands for the full disk: both are errors of the write itself."""
    resource = pytest.importorskip("resource")
    model, _ = tiny_model()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(WeightsError, match=r"made' cannot be written.*room"):
            export(model, dial, 0.0, tmp_path / "made")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_an_adapter_cut_short_is_named_as_damaged(dial, tmp_path):
    model, _ = tiny_model()
    cut = shutil.copytree(dial, tmp_path / "dial") / "step0" / "adapter_model.safetensors"
    cut.write_bytes(cut.read_bytes()[:500])
    for call in (lambda: load(model, tmp_path / "dial"), lambda: export(model, tmp_path / "dial", 0.0, tmp_path / "o")):
        with pytest.raises(WeightsError, match=r"step0' is damaged.*anew"):
            call()
    assert not (tmp_path / "o").exists()


def test_a_compiled_model_is_exported_as_the_model_inside(dial, tmp_path):
    model, _ = tiny_model()
    found = export(torch.compile(model), dial, 0.0, tmp_path / "made")
    assert found.same == found.prompts


def test_a_model_in_peft_is_told_what_takes_adapters_off(dial, tmp_path):
    model, _ = tiny_model()
    wrapped = peft.PeftModel.from_pretrained(model, str(dial / "step0"))
    with pytest.raises(WeightsError, match=r"PeftModel\.unload\(\)"):
        export(wrapped, dial, 0.0, tmp_path / "made")
    export(wrapped.unload(), dial, 0.0, tmp_path / "made")


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
def test_an_output_tied_to_the_embedding_is_refused(tmp_path):
    model, _ = tiny_model()
    model.lm_head.weight = model.get_input_embeddings().weight
    model.config.tie_word_embeddings = True
    folders = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        config = peft.LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False)
        copy, _ = tiny_model()
        peft.get_peft_model(copy, config).save_pretrained(str(tmp_path / f"a{seed}"), save_embedding_layers=False)
        folders.append(tmp_path / f"a{seed}")
    mix(model, *folders, tmp_path / "dial", steps=3)
    with pytest.raises(WeightsError, match=r"lm_head\.weight.*adapter itself"):
        export(model, tmp_path / "dial", 0.0, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_the_command(dial, tmp_path):
    from ckcontrol.cli.main import app

    out = tmp_path / "made"
    told = CliRunner().invoke(
        app, ["weights", "export", str(dial), "--alpha", "0", "--model", "tiny", "--out", str(out)]
    )
    assert told.exit_code == 0 and "8 of 8 greedy continuations" in told.output.replace("\n", " ")
    again = CliRunner().invoke(
        app, ["weights", "export", str(dial), "--alpha", "0", "--model", "tiny", "--out", str(out)]
    )
    assert again.exit_code != 0 and "exists" in str(again.output) + str(again.exception)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"new_tokens": -3}, "-3"),
        ({"prompts": [[]]}, r"\[\]"),
        ({"prompts": [[7, 10**7]]}, "10000000"),
        ({"prompts": ["hi"]}, "hi"),
    ],
)
def test_what_it_is_compared_on_is_checked_before_anything_is_written(dial, tmp_path, monkeypatch, options, named):
    from ckcontrol.heads import export as heads_export
    from ckcontrol.heads.mask import HeadMask
    from ckcontrol.weights import fold

    for module in (fold, heads_export):
        monkeypatch.setattr(module, "write_checkpoint", lambda *args: pytest.fail("written"))
    model, _ = tiny_model()
    with pytest.raises(CKError, match=named):
        export(model, dial, 0.0, tmp_path / "made", **options)
    with pytest.raises(CKError, match=named):
        heads_export.export_checkpoint(model, HeadMask.of(model, [(0, 1)]), tmp_path / "made", **options)
