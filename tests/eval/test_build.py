"""Facts files to sets, and the facts we ship."""

from __future__ import annotations

import json
import re
from collections import Counter
from importlib.resources import files
from pathlib import Path

import pytest

from ckcontrol.errors import EvalError
from ckcontrol.eval import load_capitals, mentions
from ckcontrol.eval.tasks.build_conflicts import build_conflicts, read_known
from ckcontrol.eval.tasks.load import load_task

from .data import fixture


def test_a_set_is_read_back_as_it_was_built(tmp_path: Path) -> None:
    out = tmp_path / "set.jsonl"
    built = build_conflicts(fixture("facts.jsonl"), ["conflict", "noisy"], out)
    assert built.path == out and built.facts == 8
    assert built.records == {"conflict": 8, "noisy": 8}
    assert [item.reason for item in built.rejected] == ["malformed", "malformed", "id given twice"]
    task = load_task(str(out))
    assert task.name == "set" and len(task.records) == 16 and not task.rejected
    assert {record.meta["known"] for record in task.records} == {None}
    first = out.read_bytes()
    build_conflicts(fixture("facts.jsonl"), ["conflict", "noisy"], out)
    assert out.read_bytes() == first, "the same bytes again"
    build_conflicts(fixture("facts.jsonl"), ["conflict", "noisy"], out, seed=1)
    assert out.read_bytes() != first


def test_the_shipped_facts_make_a_clean_set(tmp_path: Path) -> None:
    built = build_conflicts(None, out=tmp_path / "set.jsonl")
    assert not built.rejected and set(built.records.values()) == {built.facts}
    assert not load_task(str(built.path)).rejected


@pytest.mark.parametrize("text", ['{"home/Ada": true, "home/Bo": false}', None])
def test_what_the_model_knows_from_a_file(tmp_path: Path, text: str | None) -> None:
    known = tmp_path / "known.json"
    lines = '{"id": "home/Ada", "known": true}\n{"id": "home/Bo", "known": false}\n'
    known.write_text(text or lines, encoding="utf-8")
    assert read_known(known) == {"home/Ada": True, "home/Bo": False}
    build_conflicts(fixture("facts.jsonl"), out=tmp_path / "set.jsonl", known=known, cloze=True)
    states = Counter()
    for record in load_task(str(tmp_path / "set.jsonl")).records:
        assert record.cloze
        if record.meta["fact"] in ("home/Ada", "home/Bo"):
            states[record.meta["fact"], record.state] += 1
    assert states == {
        ("home/Ada", "conflict"): 1,
        ("home/Ada", "agree"): 1,
        ("home/Ada", "irrelevant"): 1,
        ("home/Ada", "noisy"): 1,
        ("home/Bo", "helpful"): 1,
    }


def test_one_line_of_known(tmp_path: Path) -> None:
    (tmp_path / "known.jsonl").write_text('{"id": "home/Ada", "known": true}\n', encoding="utf-8")
    assert read_known(tmp_path / "known.jsonl") == {"home/Ada": True}


def test_what_cannot_be_built(tmp_path: Path) -> None:
    out = tmp_path / "set.jsonl"
    with pytest.raises(EvalError, match="known names 'home/Zed', which is not a fact"):
        build_conflicts(fixture("facts.jsonl"), out=out, known={"home/Zed": True})
    with pytest.raises(EvalError, match="helpful needs unknown facts"):
        known = {f"home/{name}": True for name in ("Ada", "Bo", "Cy", "Di", "Ed")}
        known |= {f"boat/{name}": True for name in ("Ada", "Bo", "Cy")}
        build_conflicts(fixture("facts.jsonl"), "helpful", out, known=known)
    with pytest.raises(EvalError, match="holds no fact, and 5 lines"):
        build_conflicts(fixture("nq_swap.jsonl"), out=out)
    with pytest.raises(EvalError, match="cannot be written"):
        build_conflicts(fixture("facts.jsonl"), out=tmp_path / "no" / "folder" / "set.jsonl")
    with pytest.raises(EvalError, match="Did you mean 'conflict'"):
        build_conflicts(fixture("facts.jsonl"), ["conflicts"], out)
    (tmp_path / "known.json").write_text('{"home/Ada": "yes"}', encoding="utf-8")
    with pytest.raises(EvalError, match="'home/Ada' is said to be 'yes'"):
        read_known(tmp_path / "known.json")
    assert not out.exists()


# --- the facts we ship ----------------------------------------------------------------------------------------------

SHIPPED = [
    json.loads(line)
    for line in (files("ckcontrol.eval") / "data" / "facts.jsonl").read_text(encoding="utf-8").split("\n")
    if line
]


def test_enough_of_each_relation_in_little_space() -> None:
    counts = Counter(fact["relation"] for fact in SHIPPED)
    assert counts == {"us_state_capital": 48, "currency": 165, "continent": 149, "element_symbol": 41}
    assert (files("ckcontrol.eval") / "data" / "facts.jsonl").stat().st_size <= 200_000
    assert len({(fact["relation"], fact["subject"]) for fact in SHIPPED}) == len(SHIPPED)


@pytest.mark.parametrize("relation", ["us_state_capital", "currency", "continent", "element_symbol"])
def test_shipped_facts_read_like_english_and_give_nothing_away(relation: str) -> None:
    for fact in SHIPPED:
        if fact["relation"] != relation:
            continue
        told = fact["context_template"].replace("{answer}", fact["answer"])
        texts = (fact["question"], fact["cloze"], told)
        assert all(text.isascii() and text == " ".join(text.split()) and text[0].isupper() for text in texts)
        assert fact["question"].endswith("?") and told.endswith(".") and not fact["cloze"].endswith(".")
        assert all(re.search(rf"\b{re.escape(fact['subject'])}\b", text) for text in texts)
        assert not re.search(r"\b(the|of|is) \1\b|[{}]", " ".join(texts))
        assert told.count(fact["answer"]) >= 1 and fact["context_template"].count("{answer}") == 1
        for answer in (fact["answer"], *fact["aliases"]):
            assert answer == answer.strip() and not mentions(fact["question"], [answer])
        assert fact["answer"].casefold() not in fact["subject"].casefold(), "no answer by copying"


def test_countries_take_their_article_everywhere() -> None:
    articles = {"United Kingdom", "Netherlands", "Philippines", "Bahamas", "United States", "Gambia"}
    for fact in SHIPPED:
        if fact["subject"] in articles:
            for text in (fact["question"], fact["cloze"], fact["context_template"]):
                assert re.search(rf"\b[Tt]he {fact['subject']}", text)


def test_no_alias_is_an_everyday_word() -> None:
    """Codes such as ALL and TOP would be found in any sentence."""
    words = "all top cup try pen cop gel mad sos bob mop bam lak cad".split()
    assert not [fact for fact in SHIPPED for alias in fact["aliases"] if alias.casefold() in words]
    assert not [fact for fact in SHIPPED if fact["answer"].casefold() in "as at be am no i in he ho pa".split()]


def test_the_capitals_are_told_as_their_file_tells_them() -> None:
    facts = {fact.subject: fact for fact in load_task("facts?relations=capital").facts}
    for capital in load_capitals():
        fact = facts[capital.subject]
        assert fact.told(capital.answer) == capital.passage_true
        assert fact.told(capital.false_answer) == capital.passage_false
        assert fact.false_answers[0] == capital.false_answer
