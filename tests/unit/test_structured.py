"""Processors, criteria, JSON schemas, grammars and regular expressions in `generate`."""

from __future__ import annotations

import copy
import json
import re
import sys

import pytest
import torch
from transformers import LogitsProcessorList
from transformers.generation import RepetitionPenaltyLogitsProcessor, SuppressTokensLogitsProcessor

import ckcontrol as ck
from ckcontrol.decoding.options import GenerateOptions
from ckcontrol.decoding.refusals import eos_ids
from ckcontrol.errors import ControlError, MissingExtra, installable
from ckcontrol.fusion.kernel import fuse
from ckcontrol.fusion.signals import Signals
from ckcontrol.models.tiny import tiny_model
from ckcontrol.policies import names

ASK = (["Who?", "When did it all begin, then?"], [["He did."], ["In 1990. Not now."]])
NAME = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 3}, "old": {"type": "boolean"}},
    "required": ["name", "old"],
    "additionalProperties": False,
}
STEERED = ck.Control("cad", alpha=0.2)


def control(name: str) -> ck.Control:
    try:
        return ck.Control(name, alpha=0.2)
    except ControlError:
        return ck.Control(name)


# --- processors and criteria ----------------------------------------------------------------------------------------


FREE = ck.Control("cad", alpha=0.2, candidate_ratio=0)  # a shortlist might hold nothing that is let through


@pytest.mark.parametrize("by", [FREE, ck.Control("off"), ck.Control("dial", alpha=0.8)], ids=repr)
def test_processors_see_the_fused_scores_once_and_each_row_is_a_question(llama, by):
    allowed = [[65, 66, 67], [97, 98, 99]]
    seen: list[int] = []

    class Letters:
        def __call__(self, ids, scores):
            seen.append(len(ids))
            for row, letters in enumerate(allowed):
                kept = scores[row, letters].clone()
                scores[row] = -torch.inf
                scores[row, letters] = kept
            return scores

    made = ck.generate(*llama, *ASK, control=by, processors=[Letters()], max_new_tokens=5)
    for answer, letters in zip(made, allowed, strict=True):
        assert len(answer.token_ids) == 5 and set(answer.token_ids) <= set(letters)
    drafts = max(1, len(made[0].drafts))
    assert set(seen) == {2} and len(seen) == (5 if drafts == 1 else sum(len(d.token_ids) for d in made[0].drafts))


def test_processors_are_those_of_the_reference(llama):
    more = [SuppressTokensLogitsProcessor(list(range(97, 123))), RepetitionPenaltyLogitsProcessor(1.5)]
    pair = ck.build_pair(llama[1], ASK[0][0], ASK[1][0])
    naive = ck.reference_generate(
        llama[0],
        pair.contextual,
        pair.parametric,
        STEERED,
        max_new_tokens=8,
        eos=set(eos_ids(*llama)),
        processors=LogitsProcessorList(more),
        vocab_size=260,
    )
    made = ck.generate(*llama, ASK[0][0], ASK[1][0], control=STEERED, processors=more, max_new_tokens=8)
    assert list(made.token_ids) == naive
    assert naive != list(ck.generate(*llama, ASK[0][0], ASK[1][0], control=STEERED, max_new_tokens=8).token_ids)


def test_a_criterion_ends_its_own_row(llama):
    def second_row(ids, scores, **_):
        return torch.tensor([False, True])

    made = ck.generate(*llama, *ASK, criteria=[second_row], max_new_tokens=4)
    assert [len(answer.token_ids) for answer in made] == [4, 1] and made[1].finish_reason == "stop"


@pytest.mark.parametrize("given", [{"processors": print}, {"criteria": ["x"]}, {"processors": [dict]}, {"criteria": 5}])
def test_what_is_no_list_of_functions_is_refused(llama, given):
    with pytest.raises(ControlError, match="is no list of functions"):
        ck.generate(*llama, *ASK, **given)


# --- structured answers ---------------------------------------------------------------------------------------------


def test_without_the_extra_the_error_says_how_to_get_it(llama, monkeypatch):
    monkeypatch.setitem(sys.modules, "xgrammar", None)
    with pytest.raises(MissingExtra, match=re.escape(f"Run: pip install {installable('grammar')}")):
        ck.generate(*llama, *ASK, json_schema=NAME)


@pytest.fixture
def xgrammar():
    return pytest.importorskip("xgrammar")


@pytest.mark.parametrize("name", [name for name in names() if name != "weights"])  # which needs a dial on the model
def test_every_method_answers_to_the_schema_and_ends(llama, xgrammar, name):
    made = ck.generate(*llama, *ASK, control=control(name), json_schema=NAME, max_new_tokens=60)
    for answer in made:
        told = json.loads(answer.text)
        assert set(told) == {"name", "old"} and len(told["name"]) <= 3 and isinstance(told["old"], bool)
        assert answer.finish_reason == "stop" and answer.token_ids[-1] in eos_ids(*llama)
        for draft in answer.drafts:
            assert set(json.loads(draft.text)) == {"name", "old"}


def naive(model, pair, matcher, by, steps):
    """Both prompts in full for every token; what xgrammar forbids is masked in both, bit by bit."""
    import xgrammar

    answer: list[int] = []
    while len(answer) < steps and not matcher.is_terminated():
        bits = xgrammar.allocate_token_bitmask(1, 320)
        matcher.fill_next_token_bitmask(bits, 0)
        words = bits[0].tolist()
        forbidden = torch.tensor([not words[i // 32] >> i % 32 & 1 or 256 <= i < 258 for i in range(320)])
        with torch.no_grad():
            ctx, par = (
                model(torch.tensor([[*ids, *answer]]), use_cache=False).logits[:, -1].float()
                for ids in (pair.contextual, pair.parametric)
            )
        ctx[0, forbidden] = par[0, forbidden] = -torch.inf
        signals = Signals(ctx, par, shortlist=by.shortlist)
        decision = by.policy().decide(signals)
        scores = fuse(signals.logp_ctx, signals.logp_par, decision.tau, shortlisted=signals.shortlisted)
        answer.append(int(scores.argmax()))
        assert matcher.accept_token(answer[-1])
    return answer


@pytest.mark.parametrize(
    "by", [STEERED, ck.Control("ck-plug", alpha=0.1), ck.Control("adacad"), ck.Control("arr")], ids=repr
)
def test_answers_are_those_of_the_naive_loop(llama, xgrammar, by):
    model, tokenizer = llama
    info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=320, stop_token_ids=list(eos_ids(*llama)))
    compiled = xgrammar.GrammarCompiler(info).compile_regex("(yes|no|perhaps) [a-z]{4,9}")
    made = ck.generate(*llama, *ASK, control=by, regex="(yes|no|perhaps) [a-z]{4,9}", max_new_tokens=20)
    for question, passages, answer in zip(*ASK, made, strict=True):
        pair = ck.build_pair(tokenizer, question, passages)
        assert list(answer.token_ids) == naive(model, pair, xgrammar.GrammarMatcher(compiled), by, 20)


def test_unsteered_it_is_xgrammars_own_processor_in_transformers(llama, xgrammar):
    from xgrammar.contrib.hf import LogitsProcessor

    model, tokenizer = llama
    ends = sorted(eos_ids(*llama))
    info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=320, stop_token_ids=ends)
    compiled = xgrammar.GrammarCompiler(info).compile_grammar('root ::= [a-z]+ " " ("1" | "2")')
    ids = torch.tensor([ck.build_pair(tokenizer, ASK[0][0], ASK[1][0]).contextual])
    own = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=12,
        do_sample=False,
        pad_token_id=256,
        eos_token_id=ends,
        logits_processor=[LogitsProcessor(compiled)],
    )
    grammar = 'root ::= [a-z]+ " " ("1" | "2")'
    made = ck.generate(*llama, ASK[0][0], ASK[1][0], control=ck.Control("off"), grammar=grammar, max_new_tokens=12)
    assert list(made.token_ids) == own[0, ids.shape[1] :].tolist()


def test_text_is_made_of_no_special_token_and_no_control_character(xgrammar):
    """Random models, drawn from: whatever they say is JSON, and no marker of the tokenizer stands in it."""
    schema = {
        "type": "array",
        "items": {"type": "string", "minLength": 2, "maxLength": 4},
        "minItems": 2,
        "maxItems": 2,
    }
    for seed in range(3):
        llama = tiny_model("llama", seed)
        for drawn in range(3):
            options = GenerateOptions(max_new_tokens=60, do_sample=True, seed=drawn, temperature=3.0, trace=False)
            made = ck.generate(*llama, *ASK, control=STEERED, json_schema=schema, options=options)
            for answer in made:
                assert len(json.loads(answer.text)) == 2 and answer.token_ids[-1] in eos_ids(*llama)
                assert not set(answer.token_ids[:-1]) & set(llama[1].all_special_ids)


def test_schemas_come_as_mappings_texts_and_classes(llama, xgrammar):
    from pydantic import BaseModel

    class Year(BaseModel):
        leap: bool

    told = [
        ck.generate(*llama, ASK[0][0], ASK[1][0], json_schema=schema, max_new_tokens=30).text
        for schema in (Year, Year.model_json_schema(), json.dumps(Year.model_json_schema()))
    ]
    assert told[0] == told[1] == told[2] and isinstance(json.loads(told[0])["leap"], bool)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"json_schema": "nope"}, "json_schema cannot be read: .*Failed to parse JSON"),
        ({"json_schema": {"type": "objekt"}}, "Unsupported type"),
        ({"json_schema": {"a": {1}}}, "json_schema is no JSON"),
        ({"json_schema": 5}, "json_schema is 5. Give a mapping, a text or a pydantic class"),
        ({"grammar": 'x ::= "a"'}, 'grammar cannot be read: .*"root" is not found'),
        ({"regex": "("}, "regex cannot be read"),
        ({"regex": ""}, "regex is ''"),
        ({"regex": "a", "grammar": "b"}, "grammar and regex were given. Give one"),
        ({"grammar": 'root ::= root "a"'}, "row 0: the grammar or schema came to a point where it allows no token"),
    ],
    ids=str,
)
def test_what_cannot_be_read_or_has_no_way_out_is_refused(llama, xgrammar, given, told):
    with pytest.raises(ControlError, match=told):
        ck.generate(*llama, *ASK, **given)


def test_what_stands_in_the_way_of_a_structure_is_refused(xgrammar):
    model, tokenizer = tiny_model("llama")

    def allow_all(ids, scores):
        return torch.zeros_like(scores)

    with pytest.raises(ControlError, match="a processor let through token 0"):
        ck.generate(model, tokenizer, *ASK, regex="abc", processors=[allow_all])
    tokenizer.chat_template += "<think>\n"
    with pytest.raises(ControlError, match="opened a thought"):
        ck.generate(model, tokenizer, *ASK, regex="abc")
    tokenizer.eos_token, config = None, copy.deepcopy(model.config)
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    with pytest.raises(ControlError, match="regex needs an end token"):
        ck.generate(model, tokenizer, *ASK, regex="abc")
    model.config = config
