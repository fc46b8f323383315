"""Verdicts by hand: one table of predictions with what each mode must say of them, and what the modes are made of."""

from __future__ import annotations

import doctest
import random
import sys
from itertools import pairwise

import pytest

from ckcontrol.errors import EvalError
from ckcontrol.eval.judging.verdict import exact_match, set_match, verdict
from ckcontrol.word_spans import words

P, C, B, N = "parametric", "contextual", "both", "neither"

# prediction, contextual answers, parametric answers, strict source, ckplug source
CASES: list[tuple[str, list[str], list[str], str, str]] = [
    # plain
    ("Rome", ["Paris"], ["Rome"], P, P),
    ("Paris.", ["Paris"], ["Rome"], C, C),
    ("The capital is Paris, of course.", ["Paris"], ["Rome"], C, C),
    ("Berlin", ["Paris"], ["Rome"], N, N),
    ("PARIS", ["Paris"], ["Rome"], C, C),
    ("", ["Paris"], ["Rome"], N, N),
    ("   \n ", ["Paris"], ["Rome"], N, N),
    ("Rome", [], ["Rome"], P, P),
    ("Rome", ["Rome"], [], C, C),
    ("Rome", [], [], N, N),
    # order, both named
    ("Rome, although the passage says Paris", ["Paris"], ["Rome"], P, B),
    ("Paris (formerly Rome)", ["Paris"], ["Rome"], C, B),
    ("Paris\nRome", ["Paris"], ["Rome"], C, B),
    ("First Rome, then Paris, then Rome", ["Paris"], ["Rome"], P, B),
    ("Unknown.\nQ: Where is Paris?\nA: France", ["Paris"], ["Rome"], N, C),  # the next question is not an answer
    ("Rome\nQuestion: Paris?", ["Paris"], ["Rome"], P, B),
    # token boundaries: digits
    ("In 2023", ["23"], ["24"], N, C),
    ("It had 23 episodes in 2024", ["23"], ["24"], C, B),
    ("It had 775.", ["775"], ["23"], C, C),
    ("3.5 million", ["3"], ["5"], N, B),
    ("about 1,500 people", ["1500"], ["1"], C, B),
    ("about 1500 people", ["1,500"], ["500"], C, B),
    ("1 500", ["500"], ["15"], C, C),  # an ordinary space does separate
    ("1\u00a0500", ["500"], ["1500"], P, C),  # one that never breaks does not
    ("1,2345", ["1234"], ["1"], P, B),
    ("12,345,678", ["12345678"], ["345"], C, B),
    ("the 47th state", ["623"], ["47th"], P, P),
    ("the 47th state", ["47"], ["623"], N, C),
    ("at 10:30", ["10"], ["30"], N, B),
    ("In 1998, 1999 and 2000", ["1999"], ["2000"], C, B),
    ("$23", ["23"], ["24"], C, C),
    ("1998–99 season", ["1998"], ["1997"], C, C),
    # token boundaries: letters
    ("The Romans built it", ["Roman"], ["Rome"], N, C),
    ("Nigerian food", ["Niger"], ["Chad"], N, C),
    ("Somalia", ["Mali"], ["Chad"], N, C),
    ("Paris-based", ["Paris"], ["Rome"], C, C),
    # one answer inside the other
    ("New York City", ["York"], ["New York City"], P, B),
    ("New York", ["York"], ["New York"], P, B),
    ("York, not New York", ["York"], ["New York"], C, B),
    ("New York", ["New York City"], ["New York"], P, P),
    ("New York City", ["New York City"], ["New York"], C, B),
    ("South Korea", ["Korea"], ["South Korea"], P, B),
    ("the American Football League", ["Football"], ["American Football League"], P, B),
    # aliases, and a name both sides share
    ("It was Kiev", ["Minsk"], ["Kyiv", "Kiev"], P, P),
    ("Lorne David Roderick Balfe", ["Petri Alanko"], ["Lorne Balfe", "Lorne David Roderick Balfe"], P, P),
    ("Rome", ["Rome"], ["Rome"], B, B),
    ("Roma, that is Rome", ["Rome", "Roma"], ["Rome"], C, B),  # Roma tells, Rome does not
    ("Rome, or Roma", ["Rome", "Roma"], ["Rome"], C, B),
    ("Georgia", ["Georgia", "Sakartvelo"], ["Georgia", "Peach State"], B, B),
    # accents, letters, apostrophes
    ("Bogota", ["Bogotá"], ["Lima"], C, N),
    ("Bogotá", ["Bogota"], ["Lima"], C, N),
    ("cafe\u0301 society", ["café"], ["tea"], C, N),
    ("Lodz", ["Łódź"], ["Oslo"], C, N),
    ("Kobenhavn", ["København"], ["Oslo"], C, N),
    ("N’Djamena", ["N'Djamena"], ["Oslo"], C, N),
    ("Paris's tower", ["Paris"], ["Rome"], C, C),
    ("McDonalds", ["McDonald's"], ["Burger King"], C, C),
    ("St John's", ["St. John's"], ["Gander"], C, C),
    ("STRASSE", ["Straße"], ["Weg"], C, N),
    # articles, hyphens, initials
    ("the Hague", ["Hague"], ["Delft"], C, C),
    ("Hague", ["The Hague"], ["Delft"], C, C),
    ("Bank of the West", ["Bank of West"], ["Chase"], C, C),
    ("Port au Prince", ["Port-au-Prince"], ["Lima"], C, N),
    ("Port-au-Prince", ["Port au Prince"], ["Lima"], C, N),
    ("J.R.R. Tolkien", ["J. R. R. Tolkien"], ["C. S. Lewis"], C, N),
    ("JRR Tolkien", ["J. R. R. Tolkien"], ["C. S. Lewis"], C, N),
    ("Washington, DC", ["Boston"], ["Washington, D.C."], P, P),
    ("in the U.S.", ["US"], ["UK"], C, C),
    ("They told us nothing", ["US"], ["UK"], N, C),  # a pronoun, not the country
    ("He said so", ["so"], ["U"], C, C),
    ("who knows", ["The Who"], ["Queen"], N, C),
    ("The Who", ["The Who"], ["Queen"], C, C),
    ("Au", ["Ag"], ["Au"], P, P),
    ("as it is", ["As"], ["Fe"], N, C),
    # an answer that normalises to nothing; the published scripts find it everywhere
    ("The answer", ["The"], ["Rome"], N, C),
    ("anything", ["!!!"], ["Rome"], N, C),
    ("!!!", ["!!!"], ["Rome"], C, C),
    ("A", ["A"], ["B"], C, C),
    ("A.", ["A"], ["B"], C, C),
    ("anything", [""], ["Rome"], N, C),
    ("", [""], ["Rome"], N, C),
    # negation
    ("not Paris but Rome", ["Paris"], ["Rome"], P, B),
    ("It isn't Paris. It is Rome.", ["Paris"], ["Rome"], P, B),
    ("It isn’t Paris", ["Paris"], ["Rome"], N, C),
    ("Never Paris, Rome", ["Paris"], ["Rome"], P, B),
    ("No, Paris.", ["Paris"], ["Rome"], C, C),
    ("Paris, not Rome", ["Paris"], ["Rome"], C, B),
    ("neither Paris nor Rome", ["Paris"], ["Rome"], N, B),
    ("not Paris or Rome", ["Paris"], ["Rome"], N, B),
    ("not Paris and Rome", ["Paris"], ["Rome"], N, B),
    ("It is not Paris and it is Rome", ["Paris"], ["Rome"], P, B),
    ("Rather than Paris, Rome", ["Paris"], ["Rome"], P, B),
    ("Rome instead of Paris", ["Paris"], ["Rome"], P, B),
    ("Instead of Paris it is, I think, Rome", ["Paris"], ["Rome"], P, B),
    ("none other than Paris", ["Paris"], ["Rome"], C, C),
    ("any city other than Paris", ["Paris"], ["Rome"], N, C),
    ("not only Paris", ["Paris"], ["Rome"], C, C),
    ("no doubt Paris", ["Paris"], ["Rome"], C, C),
    ("not until 1998", ["1998"], ["1999"], C, C),
    ("No. 23", ["23"], ["24"], C, C),
    ("no 23", ["23"], ["24"], C, C),
    ("I do not think it is Paris", ["Paris"], ["Rome"], N, C),
    ("There is no evidence that Paris is the capital", ["Paris"], ["Rome"], N, C),
    ("Paris is not the capital; Rome is", ["Paris"], ["Rome"], P, B),
    ("Paris isn't, Rome is", ["Paris"], ["Rome"], P, B),
    ("I know where Paris is. Not Rome.", ["Paris"], ["Rome"], C, B),
    ("Paris, isn't it?", ["Paris"], ["Rome"], C, C),
    ("Paris is wrong", ["Paris"], ["Rome"], N, C),
    ("Paris is not only big, it is the capital", ["Paris"], ["Rome"], C, C),
    ("non-French", ["French"], ["German"], N, C),
    ("non-lexical vocals by Clare Torry", ["Clare Torry"], ["Roger Waters"], C, C),
    ("no longer part of Helena", ["Helena"], ["England"], N, C),
    ("Nothing is known, it is Paris", ["Paris"], ["Rome"], C, C),
    ("Not Paris. Paris it was, though.", ["Paris"], ["Rome"], C, C),  # a second mention without negation
    ("The film was never shown; it was made in Rome", ["Paris"], ["Rome"], P, P),
    # scripts without spaces
    ("答案是东京。", ["东京"], ["大阪"], C, C),
    ("2023年", ["2023"], ["23"], C, B),
    ("東京都です", ["京都"], ["東京"], P, B),  # earliest wins where no border tells
    ("ソマリア", ["マリ"], ["チャド"], N, C),
    ("首都はローマです", ["ローマ"], ["パリ"], C, C),
    ("กรุงเทพมหานครเป็นเมืองหลวง", ["กรุงเทพมหานคร"], ["ลาว"], C, C),
    ("서울입니다", ["서울"], ["부산"], C, C),
    ("यह दिल्ली है", ["दिल्ली"], ["मुंबई"], C, C),
    ("Это Москва.", ["Москва"], ["Киев"], C, C),
    ("Москвами", ["Москва"], ["Киев"], N, C),
    ("ＴＯＫＹＯ", ["Tokyo"], ["Osaka"], C, N),
]


@pytest.mark.parametrize(("prediction", "ctx", "par", "strict", "ckplug"), CASES)
def test_verdicts(prediction: str, ctx: list[str], par: list[str], strict: str, ckplug: str) -> None:
    assert verdict(prediction, ctx, par).source == strict
    assert verdict(prediction, ctx, par, "ckplug").source == ckplug


def test_swapping_the_sides_swaps_the_verdict() -> None:
    mirror = {P: C, C: P, B: B, N: N}
    for prediction, ctx, par, strict, ckplug in CASES:
        assert verdict(prediction, par, ctx).source == mirror[strict], prediction
        assert verdict(prediction, par, ctx, "ckplug").source == mirror[ckplug], prediction


@pytest.mark.parametrize(
    ("prediction", "ctx", "par", "mention"),
    [
        ("It is Bogotá’s port.", ["Bogota"], ["Lima"], "Bogotá’s"),
        ("not Paris but the New  York City", ["Paris"], ["New York City"], "New  York City"),
        ("by J. R. R. Tolkien", ["JRR Tolkien"], ["Lewis"], "J. R. R. Tolkien"),
        ("答案是东京。", ["东京"], ["大阪"], "东京"),
        ("about 1,500 people", ["1500"], ["23"], "1,500"),
        ("Lorne David Balfe", ["x"], ["Lorne", "Lorne David Balfe"], "Lorne David Balfe"),  # the longest alias
        ("Not Paris. Paris!", ["Paris"], ["Rome"], "Paris"),
        (" \n!!! \nnext", ["!!!"], ["Rome"], "!!!"),
    ],
)
def test_the_span_is_the_mention_in_the_original_text(
    prediction: str, ctx: list[str], par: list[str], mention: str
) -> None:
    span = verdict(prediction, ctx, par).span
    assert span is not None
    assert prediction[slice(*span)] == mention


def test_the_second_mention_has_its_own_place() -> None:
    assert verdict("Not Paris. Paris!", ["Paris"], ["Rome"]).span == (11, 16)


def test_flags_tell_what_else_was_named() -> None:
    found = verdict("Rome, although the passage says Paris", ["Paris"], ["Rome"])
    assert (found.parametric, found.contextual) == (True, True)
    found = verdict("Rome, not Paris", ["Paris"], ["Rome"])
    assert (found.parametric, found.contextual) == (True, False)
    assert verdict("Oslo", ["Paris"], ["Rome"]).span is None


def test_an_unknown_mode_is_refused_with_the_known_ones() -> None:
    with pytest.raises(EvalError, match=r"'strikt' is not a scoring mode\. Did you mean 'strict'"):
        verdict("", [], [], "strikt")


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("Rome", ["Rome"], True),
        ("\n The Rome! \nQ: Paris", ["Paris", "rome"], True),
        ("It is Rome", ["Rome"], False),
        ("Bogota", ["Bogotá"], False),  # SQuAD keeps accents
        ("", [""], False),
        ("The", ["A"], False),
        ("Rome", [], False),
    ],
)
def test_exact_match(prediction: str, answers: list[str], expected: bool) -> None:
    assert exact_match(prediction, answers) is expected


@pytest.mark.parametrize(
    ("prediction", "golds", "wrong", "expected"),
    [
        ("1856 and 1857", ["1856", "1857"], ["1900"], True),
        ("1856", ["1856", "1857"], ["1900"], False),
        ("1856, 1857 or 1900", ["1856", "1857"], ["1900"], False),
        ("1856 and 1857, not 1900", ["1856", "1857"], ["1900"], True),
        ("American football", ["American football", "football"], [], True),
        ("National Football League", ["National Football League"], ["Football"], True),
        ("anything", [], ["1900"], False),
        ("", ["1856"], [], False),
    ],
)
def test_set_match(prediction: str, golds: list[str], wrong: list[str], expected: bool) -> None:
    assert set_match(prediction, golds, wrong) is expected


def test_words_keep_their_place_in_any_text() -> None:
    rng = random.Random(1)
    alphabet = "aZ é'’.,:-0１½ \u00a0\n東ア가ก็द्ß\u0301\u200d🙂"
    for _ in range(2000):
        text = "".join(rng.choice(alphabet) for _ in range(rng.randint(0, 12)))
        found = words(text)
        assert all(0 <= w.start < w.end <= len(text) and all(w.forms) for w in found), text
        assert all(a.start <= b.start and a.end <= b.end for a, b in pairwise(found)), text  # ½ is two
        verdict(text, [text[:3]], [text[3:6]])


@pytest.mark.parametrize("module", ["eval.judging.verdict", "word_spans"])
def test_examples_in_docstrings(module: str) -> None:
    done = doctest.testmod(sys.modules[f"ckcontrol.{module}"])
    assert done.attempted
    assert not done.failed
