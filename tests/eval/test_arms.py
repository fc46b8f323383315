"""Methods to arms, records to prompts, work to passes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ckcontrol.errors import ControlError, EvalError
from ckcontrol.eval.records import Record
from ckcontrol.eval.running.arms import ALPHAS, arms_for, method_names
from ckcontrol.eval.running.passes import in_measuring_order, passes, shard_of
from ckcontrol.eval.running.prompt_styles import Wording


def names(methods, alphas=(0, 0.5, 1)):
    return [arm.name for arm in arms_for(methods, alphas)]


def test_one_arm_per_alpha_where_there_is_a_dial():
    assert names(["off", "ck-plug", "adacad", "ck-plug-adaptive"]) == [
        "off",
        "ck-plug@0",
        "ck-plug@0.5",
        "ck-plug@1",
        "adacad",
        "ck-plug-adaptive",
    ]


def test_all_is_every_policy_once():
    arms = arms_for(["all", "off", "cad"])
    assert len({arm.name for arm in arms}) == len(arms)
    assert {arm.method for arm in arms} == set(method_names()) - {"weights"}  # which needs a dial on the model
    assert names(["weights"]) == ["weights@0", "weights@0.5", "weights@1"]
    assert sum(arm.method == "cad" for arm in arms) == len(ALPHAS)


def test_closed_book_is_memory_alone_and_prompt_is_no_policy():
    closed, prompt, memory = arms_for(["closed-book", "prompt", "prompt-memory"])
    assert closed.control.policy().tau == 0
    assert prompt.control.policy().neutral
    assert (closed.prompt, prompt.prompt, memory.prompt) == ("base", "context-only", "memory-only")


def test_parameters_follow_the_name():
    (arm,) = arms_for(["cad:cad_alpha=1"])
    assert arm.control.policy().tau == 2
    gated = arms_for(["ck-plug:gate=2"], [0.25])[0]
    assert (gated.name, gated.control.policy().gate) == ("ck-plug:gate=2@0.25", 2)


def test_a_method_may_name_its_own_alpha():
    given = ["cad@0.6", "ck-plug:gate=2@0.75", "ck-plug", "cad@0.60", "cad@1"]
    assert names(given) == [
        "cad@0.6",
        "ck-plug:gate=2@0.75",
        "ck-plug@0",
        "ck-plug@0.5",
        "ck-plug@1",
        "cad@1",
    ]
    assert arms_for(["cad@0.6"]) == arms_for(["cad"], [0.6])
    (gated,) = arms_for(["ck-plug:gate=2@0.75"])
    assert (gated.method, gated.alpha, gated.control.policy().gate) == ("ck-plug:gate=2", 0.75, 2)


DOCS = Path(__file__).resolve().parents[2] / "docs" / "eval.md"


def documented():
    """What the docstring, and the documentation's section on methods, show as a method."""
    section = DOCS.read_text(encoding="utf-8").split("## What is compared")[1].split("\n## ")[0]
    shown = re.findall(r"``([^`\s]+)``", arms_for.__doc__) + re.findall(r"`([a-z-]+[:@][^`\s]+)`", section)
    assert len(shown) >= 7
    return sorted(set(shown))


@pytest.mark.parametrize("method", documented())
def test_what_is_documented_is_a_method(method):
    given, _, alpha = method.partition("@")
    name, *params = given.split(":")
    for arm in arms_for([method], [0.5]):
        assert (arm.method, arm.control.method) == (given, name)
        assert [f"{key}={value:g}" for key, value in arm.control.params.items()] == params
        assert not alpha or arm.alpha == float(alpha)


def test_the_card_holds_method_and_alpha_apart():
    """Whoever reads a run card need not read names."""
    told = [arm.to_dict() for arm in arms_for(["off", "ck-plug:gate=2", "cad@0.6", "prompt"], [0.25])]
    assert [(arm["name"], arm["method"], arm["alpha"]) for arm in told] == [
        ("off", "off", None),
        ("ck-plug:gate=2@0.25", "ck-plug:gate=2", 0.25),
        ("cad@0.6", "cad", 0.6),
        ("prompt", "prompt", None),
    ]


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (["adacad@0.5"], "'adacad' takes no alpha"),
        (["off@0.5"], "'off' takes no alpha"),
        (["ck-plug-adaptive@0.5"], "takes no alpha"),
        (["cad:cad_alpha=1@0.5"], "takes no alpha"),
        (["cad@high"], "'high' in 'cad@high' is not an alpha"),
        (["cadd@0.5"], "Did you mean 'cad'"),
        (["ck-plugg"], "Did you mean 'ck-plug'"),
        (["adacad-adaptive"], "no method 'adacad-adaptive'"),
        (["cad:what"], "is not a parameter"),
        ([], "no method"),
    ],
)
def test_unknown_methods_are_named(methods, message):
    with pytest.raises(EvalError, match=message):
        arms_for(methods)


def test_a_bad_alpha_or_parameter_is_the_policys_to_refuse():
    with pytest.raises(ControlError, match="alpha=2"):
        arms_for(["ck-plug"], [2])
    with pytest.raises(ControlError, match="alpha=2"):
        arms_for(["ck-plug@2"])
    with pytest.raises(ControlError, match="gatee"):
        arms_for(["ck-plug:gatee=1"])


def record(i, length=1, **more):
    return Record(str(i), "word " * length + f"{i}?", ("A passage.",), ("a",), ("b",), **more)


RECORDS = [record(i, (7 * i) % 11 + 1) for i in range(23)]


def cut(records=RECORDS, methods=("off", "ck-plug", "prompt"), batch_size=2):
    return passes([("t", records)], arms_for(methods), lambda r, _: len(r.question), batch_size=batch_size)


def test_passes_hold_everything_once_and_similar_lengths_together():
    work = cut()
    for prompt, count in (("base", 6), ("context-only", 1)):
        mine = [each for each in work if each.prompt == prompt]
        assert sorted(r.id for each in mine for r in each.records) == sorted(r.id for r in RECORDS)
        assert all(len(each.arms) == count for each in mine)
        lengths = [len(r.question) for each in mine for r in each.records]
        assert lengths == sorted(lengths, reverse=True)


def test_a_wording_with_few_arms_takes_more_records():
    sizes = {each.prompt: len(each.records) for each in reversed(cut())}
    assert sizes == {"base": 2, "context-only": 16}
    long = [record(i, 900) for i in range(23)]
    assert {len(each.records) for each in cut(long)} == {2, 1}


def test_keys_tell_content_and_order_does_not_matter():
    assert [each.key for each in cut()] == [each.key for each in cut(RECORDS[::-1])]
    assert not {each.key for each in cut()} & {each.key for each in cut(methods=("off", "cad", "prompt:")[:2])}
    other = [*RECORDS[:-1], record(22, 8, meta={"x": 1})]
    assert len({each.key for each in cut()} & {each.key for each in cut(other)}) < len(cut())


def test_texts_to_complete_have_no_wording_to_change():
    work = cut([record(0, cloze=True), record(1), record(2, choices=("x", "y"))])
    assert [r.id for each in work if each.prompt != "base" for r in each.records] == ["1"]


def test_shards_part_the_work():
    work = cut()
    parts = [shard_of(work, (i, 3)) for i in (1, 2, 3)]
    assert sorted(each.key for part in parts for each in part) == sorted(each.key for each in work)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_measuring_takes_long_and_short_first_and_loses_none():
    work = cut()
    order, count = in_measuring_order(work)
    assert sorted(each.key for each in order) == sorted(each.key for each in work)
    assert count == 2
    assert order[0].work > order[1].work
    assert in_measuring_order(work[:3]) == (work[:3], 0)


def decoded(tokenizer, pair):
    return tokenizer.decode(pair.contextual), tokenizer.decode(pair.parametric)


def test_styles(llama):
    _, tokenizer = llama
    chat, completion = (Wording(style, tokenizer) for style in ("auto", "completion"))
    assert chat.style == "chat"
    ctx, par = decoded(tokenizer, completion.pair(RECORDS[0]))
    assert ctx.endswith("?\nAnswer:")
    assert par == ctx.replace("Background:\nA passage.\n", "")
    assert "user:" in decoded(tokenizer, chat.pair(RECORDS[0]))[0]
    assert "background alone" in decoded(tokenizer, completion.pair(RECORDS[0], "context-only"))[1]
    assert "what you know" in decoded(tokenizer, completion.pair(RECORDS[0], "memory-only"))[1]
    with pytest.raises(EvalError, match="no prompt style 'chatt'"):
        Wording("chatt", tokenizer)


def test_a_text_to_complete_stands_raw(llama):
    _, tokenizer = llama
    wording = Wording("chat", tokenizer)
    plain = Record("1", "Rome is in", ("Rome is in Chile.", "So it is."), ("Chile",), ("Italy",), cloze=True)
    assert decoded(tokenizer, wording.pair(plain)) == ("Rome is in Chile.\nSo it is.\nRome is in", "Rome is in")
    joined = Record(
        "2", "to {be} or", ('End in "x":\n two  ',), ("x",), ("y",), cloze=True, meta={"join": ""}, choices=(" x", " y")
    )
    assert decoded(tokenizer, wording.pair(joined)) == ('End in "x":\n two  to {be} or', "  to {be} or")


def test_passages_too_long_are_cut(llama):
    _, tokenizer = llama
    long = Record("1", "What?", ("word " * 500,), ("a",), ("b",))
    pair = Wording("completion", tokenizer, limit=200).pair(long)
    assert len(pair.contextual) <= 200
