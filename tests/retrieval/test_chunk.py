"""Passages fit the embedder, lie where they say they lie, and leave nothing out."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from ckcontrol.errors import RetrievalError
from ckcontrol.retrieval.chunk import Chunker
from ckcontrol.retrieval.types import Document, Passage


def core(kind: str) -> Tokenizer:
    """Two small but real tokenizers: one token a byte, and one a word of at most eight letters (else unknown)."""
    if kind == "bytes":
        made = Tokenizer(
            models.BPE({char: n for n, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, [])
        )
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        letters = "abcdefghijklmnopqrstuvwxyz"
        words = ["[UNK]", *letters, *(f"##{letter}" for letter in letters), ".", "river", "bridge", "salt", "gold"]
        vocabulary = {word: n for n, word in enumerate(words)}
        made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=8))
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.add_special_tokens(["[CLS]"])
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", special_tokens=[("[CLS]", made.get_vocab_size() - 1)]
    )
    made.enable_truncation(6)
    made.enable_padding(length=6)
    return made


CORES = {kind: core(kind) for kind in ("bytes", "words")}


def count(tokenizer: Tokenizer, text: str) -> int:
    free = copy.deepcopy(tokenizer)
    free.no_truncation()
    free.no_padding()
    return len(free.encode(text, add_special_tokens=False).ids)


def check(text: str, passages: list[Passage], tokenizer: Tokenizer, size: int, overlap: int) -> None:
    """What holds for every text, size and overlap."""
    covered, before = 0, -1
    for number, passage in enumerate(passages):
        start, end = passage.metadata["start"], passage.metadata["end"]
        assert passage.id == f"d#{number}" and passage.metadata["document"] == "d"
        assert passage.text == text[start:end] == passage.text.strip() != ""
        assert start > before and end > covered, "no passage lies inside another"
        assert not text[covered:start].strip(), "nothing but blanks between two passages"
        assert count(tokenizer, passage.text) <= size and len(passage.text) <= 8 * size
        if start < covered:
            assert count(tokenizer, text[start:covered]) <= overlap
        covered, before = end, start
    assert not text[covered:].strip()


def split(text: str, kind: str = "words", size: int = 8, overlap: int = 2, **metadata: Any) -> list[Passage]:
    passages = Chunker(CORES[kind], size, overlap).split(Document("d", text, "s", metadata))
    check(text, passages, CORES[kind], size, overlap)
    return passages


PIECES = [
    "river ",
    "Bridge. ",
    "salt\n",
    "\n\n",
    "\r\n",
    " ",
    "\t" * 9,
    "漢字",
    "é",
    "e\u0301",
    "👩‍👩‍👧",
    "🇩🇪",
    "\u200b",
    "\x1c",
]
PIECES += [
    "# ",
    "- a\n",
    "> ",
    "```\n",
    "|a|b|\n",
    "*",
    "<b>",
    "[",
    "---\n",
    "x" * 9,
    "y" * 200,
    "\n" * 120,
    "\ufeff",
    "\0",
]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(PIECES) | st.text(max_size=6), max_size=80).map("".join),
    st.sampled_from(["bytes", "words"]),
    st.integers(8, 40),
    st.integers(0, 39),
    st.sampled_from(["a.txt", "a.md"]),
)
def test_any_text(text: str, kind: str, size: int, overlap: int, path: str) -> None:
    split(text, kind, size, min(overlap, size - 1), path=path)


def test_what_a_passage_carries() -> None:
    document = Document("docs/a", "  river salt. \n", "A book", {"year": 1900})
    assert Chunker(CORES["words"], 8, 2).split(document) == [
        Passage("docs/a#0", "river salt.", "A book", {"year": 1900, "document": "docs/a", "start": 2, "end": 13})
    ]


@pytest.mark.parametrize("text", ["", " \n\t", "\r\n" * 500, "\x1c\x1d", "\u3000" * 999])
def test_blank_documents_have_no_passages(text: str) -> None:
    assert split(text) == []


def test_sentences_stay_whole() -> None:
    texts = [passage.text for passage in split("A river is a. The salt is b. Gold is c. " * 20, overlap=0, size=12)]
    assert all(text.endswith(".") for text in texts) and len(texts) > 20
    with_overlap = split("River salt. Gold a. Bridge b. " * 20, overlap=4, size=10)
    assert all(passage.text.endswith(".") for passage in with_overlap)
    starts_and_ends = zip(with_overlap[1:], with_overlap, strict=False)
    assert all(later.metadata["start"] < earlier.metadata["end"] for later, earlier in starts_and_ends)


def test_paragraphs_go_before_sentences() -> None:
    assert [p.text for p in split("a b. c d.\n\ne f. a b.\n\nc d.", overlap=0, size=8)] == [
        "a b. c d.",
        "e f. a b.",
        "c d.",
    ]


@pytest.mark.parametrize("name", ["path", "id"])
def test_markdown_is_cut_at_headings(name: str) -> None:
    text = "# A\nriver salt. gold.\n# B\nriver salt.\n"
    chunks = ["# A\nriver salt. gold.", "# B\nriver salt."]
    metadata = {"path": "x/a.MD"} if name == "path" else {}
    document = Document("d" if name == "path" else "a.markdown", text, metadata=metadata)
    assert [p.text for p in Chunker(CORES["words"], 10, 0).split(document)] == chunks
    assert [p.text for p in split(text, overlap=0, size=10, path="a.txt")] != chunks


def test_short_sections_of_markdown_stay_together() -> None:
    text = "# One\n\na b c\n\n# Two\n\nd e f\n"
    assert [passage.text for passage in split(text, size=32, path="a.md")] == [text.strip()]
    assert [passage.text[:5] for passage in split(text, size=8, overlap=0, path="a.md")] == ["# One", "# Two"]


def test_an_endless_word_is_one_token_and_still_bounded() -> None:
    """WordPiece takes any long word for one unknown token, so tokens alone would allow a passage of a megabyte."""
    passages = split("x" * 5000 + " river", "words", 8, 0)
    assert max(len(passage.text) for passage in passages) == 64
    assert len(split("x" * 5000, "bytes", 100, 0)) == 50


@pytest.mark.parametrize("path", ["a.txt", "a.md"])
@pytest.mark.parametrize(
    "piece", ["A river runs. The salt is gold.\n\n", "漢字仮名交文", "x", "\n", "👩‍👩‍👧", "a\r\n", "*", "| a "]
)
def test_long_documents_take_linear_time(piece: str, path: str) -> None:
    """Two of these take the library alone minutes: it looks at the whole text again for every chunk."""
    text = piece * (200_000 // len(piece))
    passages = Chunker(CORES["words"], 250, 32).split(Document("d", text, metadata={"path": path}))
    assert "".join(passages[-1:][0].text.split()) if passages else piece == "\n"
    covered = 0
    for passage in passages:
        assert text[passage.metadata["start"] : passage.metadata["end"]] == passage.text
        assert not text[covered : passage.metadata["start"]].strip()
        covered = passage.metadata["end"]
    assert not text[covered:].strip()


def test_windows_leave_no_seam() -> None:
    """Chunks of a long text are those the library makes of all of it at once."""
    from semantic_text_splitter import TextSplitter

    free = copy.deepcopy(CORES["words"])
    free.no_truncation()
    free.no_padding()
    sentences = [f"{'abcdefgh'[n % 7]} river {'gold ' * (n % 5)}salt. " for n in range(400)]
    for overlap in (0, 10):
        whole = TextSplitter.from_huggingface_tokenizer(free, 40, overlap).chunks("".join(sentences))
        assert [passage.text for passage in split("".join(sentences), size=40, overlap=overlap)] == whole


@pytest.mark.parametrize("wrap", [lambda c: c, lambda c: PreTrainedTokenizerFast(tokenizer_object=c)])
def test_the_tokenizer_is_not_changed(wrap: Any) -> None:
    tokenizer = core("words")
    given_one = wrap(tokenizer)
    inner = getattr(given_one, "backend_tokenizer", tokenizer)
    before = inner.to_str()
    assert len(Chunker(given_one, 8, 0).split(Document("d", "river salt " * 40))) == 10
    assert inner.to_str() == before


@pytest.mark.parametrize(
    ("size", "overlap", "message"),
    [
        (7, 2, "size=7 is not a chunk size"),
        (True, 0, "size=True"),
        (20.0, 2, "size=20.0"),
        (20, 20, "overlap=20 does not suit size=20"),
        (20, -1, "overlap=-1"),
        (20, "2", "overlap='2'"),
    ],
)
def test_bad_sizes(size: Any, overlap: Any, message: str) -> None:
    with pytest.raises(RetrievalError, match=message) as caught:
        Chunker(CORES["words"], size, overlap)
    assert caught.value.hint


def test_bad_documents_and_tokenizers() -> None:
    chunker = Chunker(CORES["words"], 8, 2)
    with pytest.raises(RetrievalError, match=r"'d' has metadata named 'start'.*Rename it"):
        chunker.split(Document("d", "x", metadata={"start": 1}))
    with pytest.raises(RetrievalError, match="'d' holds half a surrogate pair at character 2"):
        chunker.split(Document("d", "ab\ud83d"))
    with pytest.raises(RetrievalError, match="object is not a fast tokenizer"):
        Chunker(object(), 8, 2)


@pytest.mark.real
def test_passages_fit_the_demo_embedder() -> None:
    from transformers import AutoTokenizer

    from ckcontrol.errors import ModelUnavailable
    from ckcontrol.models.load import embedder_path

    try:
        tokenizer = AutoTokenizer.from_pretrained(embedder_path("demo"))
    except ModelUnavailable as error:
        pytest.skip(f"demo embedder unavailable: {error}")
    window = 256
    size = window - tokenizer.num_special_tokens_to_add()
    text = "The bridge over the Limmat was built in 1838, of stone. 漢字も書ける。 It stands. " * 300
    passages = Chunker(tokenizer, size, 32).split(Document("d", text))
    lengths = [len(tokenizer.backend_tokenizer.encode(passage.text).ids) for passage in passages]
    assert len(passages) > 10 and max(lengths) <= window
    check(text, passages, tokenizer.backend_tokenizer, size, 32)
