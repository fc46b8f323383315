"""Search by words and its fusion with search by meaning, against both computed naively."""

from __future__ import annotations

import math
import random
import unicodedata
from collections import Counter
from collections.abc import Iterator

import pytest

from ckcontrol.errors import RetrievalError
from ckcontrol.retrieval import Index, Passage
from ckcontrol.retrieval.store.snapshot import fuse_ranks

from .hashes import Hashes

VOCABULARY = "river city bridge salt gold moon ocean king stone apple".split()


def texts(count: int) -> list[str]:
    chance = random.Random(3)
    return [" ".join(chance.choices(VOCABULARY, k=chance.randint(1, 12))) + f" n{n}" for n in range(count)]


def naive(corpus: list[str], query: str) -> list[tuple[int, float]]:
    """BM25 with k1 1.2 and b 0.75, as FTS5 defines it."""
    split = [text.split() for text in corpus]
    mean = sum(map(len, split)) / len(split)
    scores: dict[int, float] = {}
    for word in dict.fromkeys(query.lower().split()):
        holding = sum(word in words for words in split)
        weight = max(math.log((len(split) - holding + 0.5) / (holding + 0.5)), 1e-6)
        for number, words in enumerate(split):
            if count := Counter(words)[word]:
                score = weight * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * len(words) / mean))
                scores[number] = scores.get(number, 0) + score
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))


def build(corpus: list[str]) -> Index:
    return Index.build((Passage(f"p{n}", text, metadata={"n": n}) for n, text in enumerate(corpus)), Hashes())


@pytest.mark.parametrize("query", ["moon", "King gold", "salt salt river unknown", "n7", "stone apple n30 n31"])
def test_bm25_against_its_formula(query: str) -> None:
    corpus = texts(200)
    with build(corpus) as index:
        hits = index.search(query, k=25, mode="bm25")
    expected = naive(corpus, query)[:25]
    assert [hit.score for hit in hits] == pytest.approx([score for _, score in expected])
    by_number = dict(naive(corpus, query))
    assert [by_number[hit.passage.metadata["n"]] for hit in hits] == pytest.approx([hit.score for hit in hits])
    assert [hit.rank for hit in hits] == list(range(1, len(expected) + 1))


def test_after_removals_and_squeezing_the_words_are_those_that_are_left() -> None:
    corpus = texts(120)
    with build(corpus) as index:
        index.remove(where={"n": {"$lt": 20}})
        few = index.info()
        assert (few["dead"], few["texts"]) == (20, 100)
        for kept in (range(20, 120), range(70, 120)):
            index.remove(where={"n": {"$lt": kept[0]}}) if kept[0] > 20 else None
            left = [corpus[n] for n in kept]
            for query in ("moon river", "gold", "n30"):
                hits = index.search(query, k=200, mode="bm25")
                expected = naive(left, query)
                assert [hit.score for hit in hits] == pytest.approx([score for _, score in expected])
                assert {hit.passage.id for hit in hits} == {f"p{kept[place]}" for place, _ in expected}
        assert index.info()["dead"] == 0


def test_fusion_by_hand() -> None:
    fused = fuse_ranks([[(7, 0.9), (3, 0.8), (5, 0.1)], [(3, 12.0), (9, 8.0)]])
    assert fused == [
        (3, round(1 / 62 + 1 / 61, 6)),
        (7, round(1 / 61, 6)),
        (9, round(1 / 62, 6)),
        (5, round(1 / 63, 6)),
    ]
    assert fuse_ranks([[(2, 1.0)], [(1, 1.0)]]) == [(1, round(1 / 61, 6)), (2, round(1 / 61, 6))]  # a tie: corpus order
    assert fuse_ranks([[], []]) == []


@pytest.mark.parametrize("where", [None, {"n": {"$gte": 100}}])
def test_hybrid_is_the_fusion_of_both(where: dict[str, dict[str, int]] | None) -> None:
    corpus = texts(300)
    with build(corpus) as index:
        for query in ("moon river", "gold n200", "nothing known"):
            halves = [index.search(query, k=100, mode=mode, where=where) for mode in ("dense", "bm25")]
            scores: dict[int, float] = {}
            for hits in halves:
                for hit in hits:
                    number = hit.passage.metadata["n"]
                    scores[number] = scores.get(number, 0) + 1 / (60 + hit.rank)
            best = sorted(scores, key=lambda number: (-round(scores[number], 6), number))[:10]
            found = index.search(query, k=10, mode="hybrid", where=where)
            assert [hit.passage.metadata["n"] for hit in found] == best
            assert [hit.score for hit in found] == pytest.approx([scores[n] for n in best], abs=1e-6)


@pytest.mark.parametrize(
    "query",
    [
        '"gold', "gold AND", "NOT gold", "gold*", "gold^2", "text: gold", "{gold}", "NEAR(gold moon)", "-gold", "a OR",
        "''", "();--", "gold\0moon", "???", "_", "²", "漢字", "gold " * 3000,
        " ".join(f"w{n}" for n in range(3000)) + " gold",
    ],
)  # fmt: skip
def test_any_text_is_a_question(query: str) -> None:
    """The query language of FTS5 is not ours: its signs are blanks, its operators words."""
    with build([*texts(20), "pure gold"]) as index:
        hits = index.search(query, k=30, mode="bm25")
        expected = {f"p{n}" for n, text in enumerate([*texts(20), "pure gold"]) if "gold" in text}
        assert {hit.passage.id for hit in hits} >= (expected if "gold" in query else set())


def test_words_are_found_without_case_accents_and_endings() -> None:
    with build(["The Café closes", "Bridges were crossing", "snake_case", "C3PO"]) as index:
        for query, wanted in (("cafe closing", 0), ("BRIDGE", 1), ("case", 2), ("snake_case", 2), ("c3po", 3)):
            assert index.search(query, mode="bm25")[0].passage.id == f"p{wanted}"
        assert index.search("absent", mode="bm25") == []


def test_equal_texts_keep_corpus_order_at_every_k() -> None:
    with build([f"gold {'x' * (n + 1)}" for n in range(30)]) as index:
        for k in (1, 7, 29, 30, 10**30):
            hits = index.search("gold", k=k, mode="bm25")
            assert [hit.passage.metadata["n"] for hit in hits] == list(range(min(k, 30)))


def test_a_common_word_does_not_hide_a_rare_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Words are taken from the rarest on, until they touch so many passages; one is always taken."""
    monkeypatch.setattr("ckcontrol.retrieval.store.texts.BUDGET", 10)
    with build([*(f"common w{n}" for n in range(50)), "rare common"]) as index:
        assert [hit.passage.id for hit in index.search("common rare", k=60, mode="bm25")] == ["p50"]
        assert len(index.search("common", k=60, mode="bm25")) == 51


# --- words outside spaced Latin text ------------------------------------------------------------------------------

CORPUS = {
    "zh": "退款需要七天时间",
    "zh wrapped": "我们支持多种付\n款方式",
    "zh mixed": "我们用SQLite存储数据",
    "ja": "返金には七日かかります。ﾃﾞｰﾀﾍﾞｰｽ",
    "ko": "환불은 일주일이 걸립니다",
    "ko jamo": unicodedata.normalize("NFD", "배송료는 무료"),
    "th": "การคืนเงินภายในเจ็ดวัน",
    "km": "ការសងប្រាក់វិញ",
    "hi": "पैसे की वापसी हिन्दी में",
    "ar": "الْكِتَابُ كتـــاب",
    "ligature": "The ﬁnancial oﬃce",
    "wide": "Ｒｅｆｕｎｄ ａｇａｉｎ",
    "soft": "un\u00adbreak\u00adable",
    "zero": "ware\u200bhouse\ufeffman",
    "hyphens": "infor-\nmation on a well-known coun-\r\n  ter-\nmeasure, soft\u00ad\nware",
    "german": "STRAßE",
    "plain": "nothing of the kind",
}
ASKED = [
    ("退款", {"zh"}),
    ("七天", {"zh"}),
    ("退", {"zh"}),
    ("间", {"zh"}),
    ("付款", {"zh wrapped"}),
    ("数据", {"zh mixed"}),
    ("SQLite", {"zh mixed"}),
    ("如何退款？", {"zh"}),
    ("返金", {"ja"}),
    ("かかります", {"ja"}),
    ("データベース", {"ja"}),
    ("ﾃﾞｰﾀ", {"ja"}),
    ("환불", {"ko"}),
    ("일주일", {"ko"}),
    ("배송료", {"ko jamo"}),
    ("เงิน", {"th"}),
    ("คืนเงิน", {"th"}),
    ("ប្រាក់", {"km"}),
    ("वापसी", {"hi"}),
    ("हिन्दी", {"hi"}),
    ("الكتاب", {"ar"}),
    ("كتاب", {"ar"}),
    ("financial", {"ligature"}),
    ("office", {"ligature"}),
    ("ﬁnancial", {"ligature"}),
    ("refund", {"wide"}),
    ("ＲＥＦＵＮＤ", {"wide"}),
    ("unbreakable", {"soft"}),
    ("warehouseman", {"zero"}),
    ("ware\u200bhouseman", {"zero"}),
    ("information", {"hyphens"}),
    ("countermeasure", {"hyphens"}),
    ("software", {"hyphens"}),
    ("infor", {"hyphens"}),
    ("known", {"hyphens"}),
    ("no\u00adthing", {"plain"}),
    ("strasse", {"german"}),
    ("Straße", {"german"}),
    ("猫", set()),
    ("款退", set()),
    ("고양이", set()),
]


@pytest.fixture(scope="module")
def many_scripts() -> Iterator[Index]:
    with Index.build((Passage(name, text) for name, text in CORPUS.items()), Hashes()) as index:
        yield index


@pytest.mark.parametrize(("query", "expected"), ASKED)
def test_words_of_every_script_are_found(many_scripts: Index, query: str, expected: set[str]) -> None:
    assert {hit.passage.id for hit in many_scripts.search(query, k=99, mode="bm25")} == expected
    if expected:
        best = many_scripts.search(query, k=99, mode="hybrid")
        assert len(best) == len(CORPUS)
        assert next(hit.passage.text for hit in best if hit.passage.id in expected) in CORPUS.values(), "as it was"


def test_words_of_every_script_go_and_come_with_their_texts() -> None:
    passages = [Passage(name, text) for name, text in CORPUS.items()]
    with Index.build(passages, Hashes()) as index:
        index.remove(passages=["zh", "hyphens"])
        assert index.search("退款 information", mode="bm25") == []
        index.remove(passages=["plain", "german", "zero", "soft", "wide"])
        assert index.info()["dead"] == 0, "squeezed: the words are written anew"
        assert index.search("데이터 환불 数据", mode="bm25")[0].passage.id in ("ko", "zh mixed")
        index.add(passages)
        assert index.search("退款", mode="bm25")[0].passage.id == "zh"
        assert all(finding.ok for finding in Index.verify(index.path))


def test_a_long_question_without_blanks() -> None:
    chance = random.Random(1)
    text = "".join(chr(chance.randint(0x4E00, 0x9FFF)) for _ in range(5000))
    with build([text, "x" + text[:7]]) as index:
        assert [hit.passage.id for hit in index.search(text, mode="bm25")] == ["p0", "p1"]


# --- the floor ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
@pytest.mark.parametrize("mode", ["dense", "bm25", "hybrid"])
def test_a_floor_leaves_out_what_scores_less(mode: str, kind: str) -> None:
    index = Index.build([Passage(str(n), text) for n, text in enumerate(texts(120))], Hashes(), kind=kind)
    queries = ["river bridge", "salt moon apple"]
    every = index.search(queries, 120, mode=mode)
    scores = {(q, hit.passage.id): hit.score for q, found in enumerate(every) for hit in found}
    if mode == "hybrid":  # its own scores are places; the floor is on the cosine
        near = index.search(queries, 120)
        scores = {(q, hit.passage.id): hit.score for q, found in enumerate(near) for hit in found}
    floor = sorted(scores.values())[len(scores) // 2]
    kept = index.search(queries, 120, mode=mode, min_score=floor)
    for q, (found, all_of_them) in enumerate(zip(kept, every, strict=True)):
        wanted = [hit.passage.id for hit in all_of_them if scores[q, hit.passage.id] >= floor]
        assert 0 < len(wanted) < len(all_of_them)
        if mode == "hybrid":  # places are counted among those that are left
            assert {hit.passage.id for hit in found} == set(wanted)
        else:
            assert [hit.passage.id for hit in found] == wanted
        assert [hit.rank for hit in found] == list(range(1, len(found) + 1))
    assert index.search("river", 3, mode=mode, min_score=1e9) == []


@pytest.mark.parametrize("floor", [float("nan"), float("inf"), "0.3", True])
def test_a_floor_is_a_finite_number(floor: object) -> None:
    index = Index.build([Passage("1", "river")], Hashes())
    with pytest.raises(RetrievalError, match="min_score"):
        index.search("river", min_score=floor)  # type: ignore[arg-type]
