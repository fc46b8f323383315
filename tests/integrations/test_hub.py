"""The folder for the Hub: what the command writes is what the repository shows, and transformers decodes by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import ckcontrol as ck
from ckcontrol.cli.main import main
from ckcontrol.errors import UnsupportedMode
from ckcontrol.hub import FILES

SHOWN = Path(__file__).resolve().parents[2] / "hub" / "ck-plug"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    import transformers.dynamic_module_utils as modules

    monkeypatch.setattr(modules, "HF_MODULES_CACHE", str(tmp_path / "modules"))  # where transformers copies the code
    assert main(["export-hub", str(tmp_path / "ck-plug")]) == 0
    return str(tmp_path / "ck-plug")


def test_the_repository_shows_what_the_command_writes(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name, text in FILES.items():
        assert (SHOWN / name).read_text(encoding="utf-8") == text == (Path(folder) / name).read_text(encoding="utf-8")
    files = {path.relative_to(SHOWN).as_posix() for path in SHOWN.rglob("*") if path.is_file()}
    assert {name for name in files if "__pycache__" not in name} == set(FILES)


def test_transformers_decodes_by_the_folder(folder: str, llama: Any) -> None:
    model, tokenizer = llama
    passages = ["The Tellin is 88 km long."]
    pair = ck.build_pair(tokenizer, "How long is it?", passages)
    asked: dict[str, Any] = {
        "input_ids": torch.tensor([pair.contextual]),
        "parametric_ids": torch.tensor([pair.parametric]),
        "vocab_size": len(tokenizer),
        "custom_generate": folder,
        "trust_remote_code": True,  # the caller's own consent, which transformers asks for
        "max_new_tokens": 8,
        "do_sample": False,
    }
    for method, alpha in (("cad", 0.1), ("ck-plug", 0.8)):
        made = model.generate(**asked, method=method, alpha=alpha)[0, len(pair.contextual) :].tolist()
        control = ck.Control(method, alpha)
        answer = ck.generate(model, tokenizer, "How long is it?", passages, control=control, max_new_tokens=8)
        assert made == list(answer.token_ids)
    plain = model.generate(torch.tensor([pair.contextual]), max_new_tokens=8, do_sample=False)
    assert model.generate(**asked, method="off").equal(plain)
    with pytest.raises(UnsupportedMode):
        model.generate(**asked, num_beams=2)
    with pytest.raises(ValueError, match="trust_remote_code"):
        model.generate(**{**asked, "trust_remote_code": False})
