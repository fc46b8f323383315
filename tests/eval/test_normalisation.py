"""One normalisation for metrics and verdicts: spellings that are the same, and numbers and names that are not."""

from __future__ import annotations

import unicodedata

import pytest

from ckcontrol.eval import mentions, normalize
from ckcontrol.eval.judging.verdict import exact_match, set_match, spoken, verdict
from ckcontrol.eval.word_spans import fold

SAME = [
    # numbers and their units
    ("10km", "10 km"),
    ("10㎞", "10 km"),
    ("5GHz", "5 GHz"),
    ("20°C", "20 °C"),
    ("20℃", "20 °C"),
    ("100m²", "100 m2"),
    ("10км", "10 км"),
    ("$5bn", "$5 bn"),
    ("30minutes", "30 minutes"),
    ("12:30pm", "12:30 PM"),
    ("12:30 p.m.", "12:30pm"),
    ("12:30p.m.", "12:30 PM"),
    ("9a.m.", "9 am"),
    ("300BC", "300 B.C."),
    ("1990's", "1990s"),
    ("1990’s", "1990s"),
    ("the '90s", "90s"),
    ("21ˢᵗ", "21st"),
    # thousands
    ("1 500 000", "1500000"),
    ("1.500.000", "1500000"),
    ("1,500,000", "1500000"),
    ("1’500’000", "1500000"),
    ("1\u202f500\u202f000", "1500000"),
    ("1.500.000,25", "1,500,000.25"),
    ("1 500 000,25", "1,500,000.25"),
    ("15,00,000", "1500000"),
    ("10 000", "10,000"),
    ("1 500", "1500"),
    # digits
    ("١٥٠٠", "1500"),
    ("١٬٥٠٠٫٥", "1,500.5"),
    ("१५००", "1500"),
    ("１５００", "1500"),
    ("１２：３０", "12:30"),
    ("½", "1/2"),
    ("3½", "3 1/2"),
    # what shows nothing
    ("Pa\u200bris", "Paris"),
    ("\ufeffParis", "Paris"),
    ("Pa\u00adris", "Paris"),
    ("P\u2060aris\ufe0f", "Paris"),
    ("\u202bParis\u202c", "Paris"),
    ("Pa\u034fris", "Paris"),
    ("1\u200b500", "1500"),
    ("می\u200cخواهم", "میخواهم"),
    # ways to write a letter
    (unicodedata.normalize("NFD", "서울"), "서울"),
    (unicodedata.normalize("NFD", "ガーナ"), "ガーナ"),
    (unicodedata.normalize("NFD", "Đồng Hới"), "Đồng Hới"),
    ("ｶﾞｰﾅ", "ガーナ"),
    ("Ｐａｒｉｓ", "Paris"),
    ("ﬁnance oﬃce", "finance office"),
    ("Louis Ⅳ", "Louis IV"),
    ("Hawai‘i", "Hawai'i"),
    ("Hawaiʻi", "Hawaii"),
    ("O′Neill", "O'Neill"),
    ("O＇Neill", "O’Neill"),
    ("№ 5", "No 5"),
    ("Coke™", "Coke"),
    ("H₂O", "H2O"),
]
APART = [
    ("1500", "15"),
    ("1500", "500"),
    ("1.5", "15"),
    ("1.5", "5"),
    ("3.14", "3"),
    ("3.14", "314"),
    ("1.500", "15"),
    ("1 500 000", "500"),
    ("1.500.000", "1.5"),
    ("10km", "0"),
    ("110km", "10 km"),
    ("10²", "102"),
    ("3½", "31"),
    ("47th", "47"),
    ("1990s", "1990"),
    ("1990", "1990's"),
    ("3D", "3"),
    ("2Pac", "2"),
    ("10:30", "30"),
    ("192.168.1.10", "10"),
    ("١٥٠٠", "15"),
    ("パリ", "バリ"),
    ("Romans", "Rome"),
    ("Ro\u200bmans", "Rome"),
    ("Ｒｏｍａｎｓ", "Rome"),
]


@pytest.mark.parametrize(("a", "b"), SAME)
def test_the_same_however_it_is_written(a: str, b: str) -> None:
    for said, answer in ((a, b), (b, a)):
        text = f"It was {said}, they say."
        assert verdict(text, [answer], ["Oslo"]).source == "contextual"
        assert verdict(text, ["Oslo"], [answer]).source == "parametric"
        assert verdict(f"It was not {said} but Oslo.", [answer], ["Oslo"]).source == "parametric"
        assert mentions(text, answer)
        assert normalize(normalize(said)) == normalize(said)


@pytest.mark.parametrize(("text", "answer"), APART)
def test_a_part_is_not_the_whole(text: str, answer: str) -> None:
    assert verdict(f"It was {text}.", [answer], ["Oslo"]).source == "neither"
    assert not mentions(f"It was {text}.", answer)


def test_a_decade_and_its_possessive() -> None:
    """In a text "1990's" may belong to the year; as an answer it is the decade."""
    assert verdict("1990's biggest hit", ["1990"], ["1991"]).source == "contextual"
    assert verdict("in 1990", ["1990"], ["the 1990's"]).source == "contextual"


def test_the_place_is_that_in_the_text_as_it_was() -> None:
    text = "\u200bIt is ﬁrst Pa\u00adri\u0301s!"
    span = verdict(text, ["Paris"], ["Rome"]).span
    assert span is not None
    assert text[slice(*span)] == "Pa\u00adri\u0301s"
    plain, starts, ends = fold(text)
    assert len(plain) == len(starts) == len(ends)
    assert plain.startswith("It is first ")


@pytest.mark.parametrize(
    ("text", "source", "answer"),
    [
        ("<think>The passage says Rome…</think>Paris", "parametric", "Paris"),
        ("<think>\nRome\n</think>\n\nParis.", "parametric", "Paris."),
        ("<think>The passage says Rome and I", "neither", ""),
        ("The passage says Rome.</think>Paris", "parametric", "Paris"),
        ("<thinking>Rome</thinking>Paris", "parametric", "Paris"),
        ("<THINK>Rome</THINK> Paris", "parametric", "Paris"),
        ("<reasoning>Rome</reasoning>Paris", "parametric", "Paris"),
        ("<reasoning effort='low'>Rome</reasoning>Paris", "parametric", "Paris"),
        ("<thought>Rome</thought>Paris", "parametric", "Paris"),
        ("[THINK]Rome[/THINK]Paris", "parametric", "Paris"),
        ("◁think▷Rome◁/think▷Paris", "parametric", "Paris"),
        ("<seed:think>Rome</seed:think>Paris", "parametric", "Paris"),
        ("<|begin_of_thought|>Rome<|end_of_thought|>Paris", "parametric", "Paris"),
        ("<think>a <think>Rome</think> Rome</think>Paris", "parametric", "Paris"),
        ("<think>x</think>Rome, so</think>Paris", "parametric", "Paris"),
        ("Paris <think>or Rome?", "parametric", "Paris"),
        ("<think></think>Rome", "contextual", "Rome"),
        ("Rome, I think", "contextual", "Rome, I think"),
        ("I <b>think</b> Rome", "contextual", "I <b>think</b> Rome"),
        ("<thinkpad> Rome", "contextual", "<thinkpad> Rome"),
    ],
)
def test_what_is_thought_aloud_is_no_answer(text: str, source: str, answer: str) -> None:
    assert verdict(text, ["Rome"], ["Paris"]).source == source
    assert verdict(text, ["Rome"], ["Paris"], "ckplug").source == source
    assert spoken(text).strip() == answer
    assert len(spoken(text)) == len(text)


def test_thinking_counts_in_no_other_match() -> None:
    assert exact_match("<think>Rome</think>Paris", ["Paris"])
    assert set_match("<think>not Rome</think>1856 and 1857", ["1856", "1857"], ["Rome"])
    assert not set_match("<think>1856 and 1857", ["1856", "1857"], [])
