"""Prompts that do not fit: what is told, what is cut, what is kept."""

from __future__ import annotations

import pytest

import ckcontrol as ck
from ckcontrol.errors import PromptTooLong

from .test_prompts import ASK, without_span


def test_too_long_carries_both_lengths(byte):
    whole = ck.build_pair(byte, *ASK)
    limit = len(whole.contextual) - 1
    with pytest.raises(PromptTooLong) as caught:
        ck.build_pair(byte, *ASK, limit=limit, max_new_tokens=7)
    error = caught.value
    assert (error.context_tokens, error.parametric_tokens) == (len(whole.contextual), len(whole.parametric))
    assert error.limit == limit and "max_new_tokens=7" in str(error) and "truncate='passages'" in str(error)
    assert " ".join(error.parts("max_tokens")).endswith("beside max_tokens=7. Pass fewer or shorter passages.")
    assert ck.build_pair(byte, *ASK, limit=limit + 1) == whole, "what fits is not touched"


def test_a_question_that_does_not_fit_is_refused_even_with_truncation(byte):
    bare = len(ck.build_pair(byte, *ASK).parametric)
    with pytest.raises(PromptTooLong):
        ck.build_pair(byte, *ASK, limit=bare - 1, truncate="passages")


def test_truncation_fits_exactly_and_keeps_the_order(byte):
    passages = ["a" * 40, "b" * 40, "c" * 40]  # one byte a token, no spaces: every limit can be met exactly
    whole = ck.build_pair(byte, "Who?", passages)
    bare = len(whole.parametric)
    for limit in range(bare, len(whole.contextual) + 1):
        pair = ck.build_pair(byte, "Who?", passages, limit=limit, truncate="passages")
        assert len(pair.contextual) <= limit and pair.parametric == whole.parametric
        assert without_span(pair) == pair.parametric
        block = byte.decode(pair.contextual[slice(*pair.span)])
        assert block == ("Background:\n" + "".join(f"{p}\n" for p in pair.passages) if pair.passages else "")
        kept = "".join(pair.passages)
        assert ("a" * 40 + "b" * 40 + "c" * 40).startswith(kept)
        assert all(len(p) >= 8 for p in pair.passages), "a sliver of a passage is dropped, not kept"
        if pair.passages and len(pair.passages[-1]) < 40:
            assert len(pair.contextual) == limit, "a cut passage uses the room there is"


def test_truncation_never_leaves_half_a_character(byte):
    passages = ["é" * 30 + "漢字" * 20 + "🙂" * 10]
    bare = len(ck.build_pair(byte, "Who?", []).parametric)
    for limit in range(bare + 12, bare + 210):
        pair = ck.build_pair(byte, "Who?", passages, limit=limit, truncate="passages")
        assert len(pair.contextual) <= limit
        assert all(passages[0].startswith(p) and "�" not in p for p in pair.passages)


@pytest.mark.real
def test_truncation_with_the_demo_tokenizer(real):
    tokenizer = real[1]
    passages = ["The bridge of Orvendale has nine arches, " * 12, "It was rebuilt in 1904 by Ada Kern. " * 12]
    bare = len(ck.build_pair(tokenizer, "Who?", []).parametric)
    for limit in range(bare, bare + 260, 7):
        pair = ck.build_pair(tokenizer, "Who?", passages, limit=limit, truncate="passages")
        assert len(pair.contextual) <= limit and without_span(pair) == pair.parametric
        assert all(" ".join(p.split()).startswith(kept) for p, kept in zip(passages, pair.passages, strict=False))


def test_answer_tells_which_passages_were_kept(llama):
    model, tokenizer = llama
    passages = ["first " * 20, "second " * 2000, "third"]
    answer = ck.generate(model, tokenizer, "Who?", passages, truncate="passages", max_new_tokens=2, trace=False)
    assert answer.passages[0] == passages[0].strip() and len(answer.passages) == 2
    assert passages[1].startswith(answer.passages[1]) and 8 <= len(answer.passages[1]) < len(passages[1])
    assert answer.context_tokens == 4096 - 2
