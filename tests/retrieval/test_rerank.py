"""Re-ranking: order, ties and refusals with scorers known by hand; a real cross-encoder with random weights."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from ckcontrol.errors import MissingExtra, RetrievalError
from ckcontrol.retrieval import Hit, Passage
from ckcontrol.retrieval.rerank import Reranker, TextScorer, rerank

HITS = [
    Hit(Passage(name, text), 0.9 - rank / 10, rank)
    for rank, (name, text) in enumerate([("a", "gold"), ("b", "salt and gold"), ("c", "moon"), ("d", "salt")], 1)
]


class Fixed:
    """Scores from a table."""

    def __init__(self, *scores: float) -> None:
        self.scores = scores

    def score(self, query: str, texts: Sequence[str]) -> Sequence[float]:
        return self.scores


def order(hits: list[Hit]) -> str:
    return "".join(hit.passage.id for hit in hits)


def test_order_scores_and_ranks() -> None:
    hits = rerank("q", HITS, Fixed(-1, 3, 0, 2), k=3)
    assert order(hits) == "bdc"
    assert [(hit.score, hit.rank) for hit in hits] == [(3, 1), (2, 2), (0, 3)]
    assert [hit.rank for hit in HITS] == [1, 2, 3, 4], "the hits given are left alone"


def test_ties_keep_their_order() -> None:
    assert order(rerank("q", HITS, Fixed(1, 1, 1, 1))) == "abcd"
    assert order(rerank("q", HITS, Fixed(0, 1, 0, 1), k=3)) == "bda"


def test_few_or_no_hits() -> None:
    assert rerank("q", [], Fixed(), k=3) == []
    assert order(rerank("q", HITS[:1], Fixed(0), k=9)) == "a"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_no_numbers(bad: float) -> None:
    with pytest.raises(RetrievalError, match="Fixed scored passage 'c'"):
        rerank("q", HITS, Fixed(1, 2, bad, 3))


def test_too_few_scores_and_bad_k() -> None:
    with pytest.raises(RetrievalError, match="2 scores for 4 texts"):
        rerank("q", HITS, Fixed(1, 2))
    for k in (0, True, 1.5):
        with pytest.raises(RetrievalError, match="positive whole number"):
            rerank("q", HITS, Fixed(1, 2, 3, 4), k=k)  # type: ignore[arg-type]


def save(folder: Path, outputs: int = 1, *, safetensors: bool = True) -> str:
    """A cross-encoder of two layers with random weights, as sentence-transformers would save it."""
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "gold", "salt", "moon", "and"]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    BertTokenizer(str(folder / "vocab.txt"), model_max_length=32).save_pretrained(folder)
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32, num_labels=outputs, initializer_range=0.5,
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    if safetensors:
        model.save_pretrained(folder)
    else:
        config.save_pretrained(folder)
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return str(folder)


def test_a_real_cross_encoder(tmp_path: Path) -> None:
    """Scores equal the model's own, in the caller's order whatever the batches; long texts are cut, not refused."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    path = save(tmp_path / "model")
    scorer: TextScorer = Reranker(path, device="cpu", batch_size=2)
    texts = [hit.passage.text for hit in HITS] + ["gold and salt " * 50]
    scores = list(scorer.score("gold", texts))
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    with torch.no_grad():
        for text, score in zip(texts, scores, strict=True):
            pair = tokenizer("gold", text, truncation=True, max_length=32, return_tensors="pt")
            assert torch.sigmoid(model(**pair).logits).item() == pytest.approx(score, abs=1e-5)
    assert len({round(score, 4) for score in scores}) == len(texts)
    best = rerank("gold", HITS, scorer, k=2)
    assert [hit.score for hit in best] == pytest.approx(sorted(scores[:4], reverse=True)[:2], abs=1e-6)
    assert scorer.score("gold", []) == []


def test_weights_gone_bad_are_named(tmp_path: Path) -> None:
    scorer = Reranker(save(tmp_path / "model"), device="cpu")
    with torch.no_grad():
        for weight in scorer._model.parameters():
            weight.fill_(math.nan)
    with pytest.raises(RetrievalError, match="Reranker scored passage 'a' nan"):
        rerank("gold", HITS, scorer)


def test_a_classifier_is_no_reranker(tmp_path: Path) -> None:
    with pytest.raises(RetrievalError, match="has 3 outputs"):
        Reranker(save(tmp_path / "model", outputs=3), device="cpu")


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RetrievalError, match="could not be loaded"):
        Reranker(save(tmp_path / "model", safetensors=False), device="cpu")


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    path = Path(save(tmp_path / "model"))
    config = json.loads((path / "config.json").read_text())
    config |= {
        "model_type": "evil",
        "auto_map": {"AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Model"},
    }
    (path / "config.json").write_text(json.dumps(config))
    (path / "evil.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Config: pass\nclass Model: pass"
    )
    with pytest.raises(RetrievalError, match="could not be loaded"):
        Reranker(str(path), device="cpu")
    assert not (tmp_path / "ran").exists()


def test_no_model_and_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (str(tmp_path), str(tmp_path / "absent")):
        with pytest.raises(RetrievalError, match="could not be loaded"):
            Reranker(name, device="cpu")
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtra, match=r"sentence-transformers.*\[retrieval\]"):
        Reranker("anywhere")
