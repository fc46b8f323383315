"""A real embedder of random weights, and an index made with it through the command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from ckcontrol.cli.main import main

TEXTS = {
    "bridge.txt": "The stone bridge of Orvendale was finished in 1884.",
    "ferry.md": "The ferry crosses the river every twenty minutes.",
    "library.html": "<p>The town library keeps three thousand maps.</p>",
}
ROWS = '{"id": "row-a", "text": "Salt was sold by the bag.", "year": 1900, "lang": "en"}\n' + (
    '{"id": "row-b", "text": "Salz wurde im Sack verkauft.", "year": 2001, "lang": "de"}\n'
)


@pytest.fixture(scope="session")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a one-layer BERT with a vocabulary of letters."""
    pytest.importorskip("faiss")
    pytest.importorskip("sentence_transformers")
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("embedder")
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    BertTokenizer(str(folder / "vocab.txt"), model_max_length=128).save_pretrained(folder)
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=128, initializer_range=0.5,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """A folder of small files."""
    return write_docs(tmp_path / "docs")


def write_docs(folder: Path) -> Path:
    folder.mkdir()
    for name, text in TEXTS.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "rows.jsonl").write_text(ROWS, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, embedder: str) -> Path:
    """An index of such a folder."""
    base = tmp_path_factory.mktemp("built")
    source, out = str(write_docs(base / "docs")), str(base / "idx")
    assert main(["index", "build", source, "--out", out, "--embedder", embedder]) == 0
    return base / "idx"


@pytest.fixture
def index(tmp_path: Path, built: Path) -> str:
    """A copy of that index: an index can be copied and moved."""
    return str(shutil.copytree(built, tmp_path / "idx"))
