"""One normalisation for metrics and verdicts: spellings that are the same, and numbers and names that are not."""

from __future__ import annotations

import unicodedata

import pytest

from ckcontrol.eval import mentions, normalize
from ckcontrol.eval.judging.verdict import exact_match, set_match, spoken, verdict
from ckcontrol.word_spans import fold

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
    # amounts
    ("5%", "5 percent"),
    ("5 %", "5 per cent"),
    ("5％", "5 percent"),
    ("0.5%", "0.5 percent"),
    ("$5", "5 dollars"),
    ("$ 5", "5 dollars"),
    ("US$5", "USD 5"),
    ("5 USD", "5$"),
    ("＄5", "5 dollars"),
    ("$1", "1 dollar"),
    ("$5bn", "5 bn dollars"),
    ("$5 million", "5 million dollars"),
    ("$1,500.50", "1500.50 dollars"),
    ("€5", "5 euros"),
    ("5€", "EUR 5"),
    ("£5", "5 pounds"),
    ("¥5", "5 yen"),
    ("¥5", "5 yuan"),
    ("50¢", "50 cents"),
    ("30s", "30 s"),
    # dates
    ("3 March 1990", "March 3, 1990"),
    ("3 March 1990", "1990-03-03"),
    ("March 3, 1990", "1990-03-03"),
    ("3rd of March 1990", "March 3rd, 1990"),
    ("03 March 1990", "Mar. 3, 1990"),
    ("3-Mar-1990", "1990/03/03"),
    ("25/12/1990", "12/25/1990"),
    ("December 25", "25 Dec"),
    ("Sept. 5, 2001", "5 September 2001"),
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
    ("15%", "5%"),
    ("5.5%", "5%"),
    ("5 %", "5 dollars"),
    ("$15", "$5"),
    ("$1,500", "$500"),
    ("$5", "5 euros"),
    ("$5 million", "$5"),
    ("5 yen", "5 yuan"),
    ("30 s", "30"),
    ("13 March 1990", "3 March 1990"),
    ("March 31, 1990", "March 3, 1990"),
    ("1990-03-03", "3 April 1990"),
    ("March 3, 1990", "3 March 1991"),
    ("03/04/1990", "3 April 1990"),
    ("1990-13-03", "3 March 1990"),
    ("March 32, 1990", "32 March"),
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


@pytest.mark.parametrize(
    ("text", "ctx", "par", "source"),
    [
        ("Not $5 but 6 dollars.", "5 dollars", "$6", "parametric"),
        ("Not 5% but 6 percent.", "5 percent", "6%", "parametric"),
        ("It was March 3, 1990, not 1990-04-03.", "3 March 1990", "3 April 1990", "contextual"),
        ("It wasn't on 1990-03-03 but on April 3, 1990.", "3 March 1990", "3 April 1990", "parametric"),
        ("It was March 3, 1990.", "3 March 1990", "1990", "contextual"),
        ("In May 5 people came.", "5 people", "6 people", "contextual"),
        ("In 1990, on March 3.", "March 3", "March 4", "contextual"),
    ],
)
def test_amounts_and_dates_keep_the_traps(text: str, ctx: str, par: str, source: str) -> None:
    assert verdict(text, [ctx], [par]).source == source


def test_the_place_of_a_date_is_all_of_it() -> None:
    for text in ("It was March 3, 1990, so.", "It was 1990-03-03.", "It cost US$5 bn."):
        span = verdict(text, ["3 March 1990", "5 bn dollars"], ["Rome"]).span
        assert span is not None and text[slice(*span)] in ("March 3, 1990", "1990-03-03", "US$5 bn")
