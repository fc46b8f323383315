"""Names, devices, dtypes: what a user types wrong must say so; what is loaded must be ready and exact."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ckcontrol.cli.main import main
from ckcontrol.errors import ControlError, ModelFolderBroken, ModelUnavailable
from ckcontrol.models import load as models
from ckcontrol.models.tiny import tiny_model


def test_import_is_light() -> None:
    code = (
        "import sys, ckcontrol.models.load as m; "
        "print([n for n in ('torch', 'transformers', 'gguf', 'sentence_transformers') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_tiny_is_ready_for_inference() -> None:
    model, tokenizer = models.load("tiny", device="cpu")
    assert not model.training
    assert model.dtype == torch.float32
    assert tokenizer("hi").input_ids
    assert models.load("tiny", device="cpu", dtype="bfloat16")[0].dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["", "  ", "./no/such/folder", "/no/such/folder", "~/no-such", "a/b/c", "a\\b"])
def test_what_cannot_be_an_id_fails_without_asking_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_from_pretrained", lambda *_: pytest.fail("asked transformers"))
    with pytest.raises(ModelUnavailable, match=r"is not a model folder\..*Give a folder"):
        models.load(name, device="cpu")


def cut(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])


def widen(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 2 * config["hidden_size"]}))


@pytest.mark.parametrize(
    ("spoil", "says", "remedy"),
    [
        (lambda f: [file.unlink() for file in f.iterdir()], "is empty", "save_pretrained"),
        (lambda f: (f / "config.json").unlink(), "has no config.json", "save_pretrained"),
        (lambda f: cut(f / "config.json", 9), r"config.json that is no JSON object \(9 bytes", "again"),
        (lambda f: (f / "config.json").write_text("{}"), "without model_type", "save_pretrained"),
        (widen, "other shapes than its config.json", "save_pretrained"),
        (lambda f: cut(f / "model.safetensors", 0), "damaged model.safetensors: its 0 bytes", "again"),
        (lambda f: cut(f / "model.safetensors", 2000), "damaged model.safetensors: its 2,000 bytes", "again"),
        (lambda f: cut(f / "model.safetensors", 30000), "damaged model.safetensors: it has 30,000 bytes", "again"),
        (lambda f: (f / "model.safetensors").unlink(), "no weights as safetensors", "save_pretrained"),
        (lambda f: (f / "model.safetensors").rename(f / "model.bin"), "only model.bin", "save_pretrained"),
        (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer", "tokenizer.save_pretrained"),
        (lambda f: cut(f / "tokenizer.json", 7), "tokenizer.json that is no JSON object", "again"),
        (
            lambda f: (
                (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-2.safetensors"}}')
                and (f / "model.safetensors").rename(f / "model-1.safetensors")
            ),
            "lacks model-2.safetensors, which model.safetensors.index.json names",
            "again",
        ),
    ],
)
def test_a_broken_folder_is_told_what_is_wrong_with_it(
    tmp_path: Path, spoil: Callable[[Path], object], says: str, remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    for part in tiny_model():
        part.save_pretrained(folder)
    spoil(folder)
    with pytest.raises(ModelFolderBroken, match=rf"{re.escape(repr(str(folder)))}.*{says}") as told:
        models.load(str(folder), device="cpu")
    assert remedy in told.value.hint and "network" not in str(told.value) and "spelling" not in str(told.value)
    assert main(["run", "--model", str(folder), "-q", "Who?"]) == 2
    assert remedy in capsys.readouterr().err.splitlines()[-1]


def test_unknown_id_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelUnavailable, match=r"'nobody/no-such-model' could not be loaded: .*network"):
        models.load("nobody/no-such-model", device="cpu")
    with pytest.raises(ModelUnavailable, match="Did you mean 'demo'"):
        models.load("Demo", device="cpu")


def test_an_unknown_id_without_a_network_is_one_sentence_at_once(tmp_path: Path) -> None:
    """Nobody listens at the hub's address; left to themselves, the loaders would ask twelve times in 74 seconds."""
    code = (
        "import ckcontrol.models.load as m; from ckcontrol.errors import ModelUnavailable\n"
        "import transformers, torch\n"
        "try: m.load('nobody/no-such-model', device='cpu')\n"
        "except ModelUnavailable as error: print(error)\n"
    )
    environ = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environ |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    (said,) = done.stdout.splitlines()
    assert said.startswith("'nobody/no-such-model' could not be loaded: ") and "network" in said
    assert "Retrying" not in done.stderr


@pytest.mark.parametrize("offline", ["0", "1"])
def test_a_model_in_the_hubs_cache_loads_without_a_network(tmp_path: Path, llama, offline: str) -> None:
    model, tokenizer = llama
    cached = tmp_path / "hub" / "models--nobody--small"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc")
    model.save_pretrained(cached / "snapshots" / "abc")
    tokenizer.save_pretrained(cached / "snapshots" / "abc")
    code = "import ckcontrol; print(ckcontrol.load('nobody/small', device='cpu')[0].config._name_or_path)"
    environ = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": offline}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout == "nobody/small\n"
    assert "Retrying" not in done.stderr and "Loading weights" not in done.stderr  # bars are for terminals


def test_local_folder_loads_and_a_cut_off_weight_file_is_named(tmp_path: Path, llama) -> None:
    model, tokenizer = llama
    folder = tmp_path / "checkpoint"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    again, _ = models.load(str(folder), device="cpu")
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name

    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelUnavailable, match=r"checkpoint' has a damaged model\.safetensors: it has"):
        models.load(str(folder), device="cpu")


def test_code_in_a_checkpoint_is_refused(tmp_path: Path) -> None:
    """The file would leave a mark when imported."""
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass C: pass\n")
    config = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.C"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelUnavailable):
        models.load(str(tmp_path), device="cpu")
    assert not (tmp_path / "ran").exists()


def test_pickled_weights_are_refused(tmp_path: Path, llama) -> None:
    model, tokenizer = llama
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelUnavailable, match="safetensors"):
        models.load(str(tmp_path), device="cpu")


@pytest.mark.parametrize("device", ["gpu", "cuda:99", 3.5])
def test_bad_device(device: str) -> None:
    with pytest.raises(ControlError, match=r"device=.* cannot be used"):
        models.load("tiny", device=device)


@pytest.mark.parametrize("dtype", ["bf16", "int8", torch.int64, "nn"])
def test_bad_dtype(dtype: str | torch.dtype) -> None:
    with pytest.raises(ControlError, match="not a floating-point type"):
        models.load("tiny", device="cpu", dtype=dtype)


def test_embedder_path_passes_folders_and_ids_through(tmp_path: Path) -> None:
    assert models.embedder_path(str(tmp_path)) == str(tmp_path)
    assert models.embedder_path("org/embedder") == "org/embedder"
    with pytest.raises(ModelUnavailable):
        models.embedder_path("./no-such")


@pytest.mark.real
def test_demo_loads_and_knows_something(real) -> None:
    model, tokenizer = real
    assert (model.dtype, model.training) == (torch.float32, False)
    assert model.config.architectures == ["LlamaForCausalLM"]
    assert model.config.eos_token_id == tokenizer.eos_token_id == tokenizer.pad_token_id == 2
    assert not hasattr(model.config, "quantization_config")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert tokenizer.model_max_length == 8192
    # SmolLM2 was trained with single digits; a plain GPT-2 split makes "\n\n" before one two tokens.
    assert tokenizer.tokenize("In\n\n1945") == ["In", "ĊĊ", "1", "9", "4", "5"]
    prompt = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    new = model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(new)


@pytest.mark.real
def test_demo_cache_is_what_its_manifest_says(real) -> None:
    folder = models.demo_path(verify=True, on_status=lambda text: pytest.fail(f"rebuilt: {text}"))
    assert not list(folder.glob("*.gguf"))
    assert str(folder) not in "".join(p.read_text() for p in folder.glob("*config.json"))
