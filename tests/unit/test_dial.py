"""Policies that choose between whole answers: the algebra of the choice, and what generation makes of it."""

from __future__ import annotations

import itertools
import json
import math
import random
from dataclasses import replace

import pytest
import torch

import ckcontrol as ck
from ckcontrol.answer import Answer
from ckcontrol.decoding.options import GenerateOptions
from ckcontrol.decoding.prompts import build_pair
from ckcontrol.decoding.refusals import eos_ids
from ckcontrol.errors import ControlError, NonFiniteLogits, UnsupportedMode
from ckcontrol.eval.running.fan import fan
from ckcontrol.fusion.signals import Signals
from ckcontrol.policies import NWCAD, CKPlug, Dial, Evidence, idle_drafts, names
from ckcontrol.policies.answer_policy import surprise
from ckcontrol.policies.dial import evidence as weight

QUESTIONS = ["Who?", "What is the name of the longest river of all?", "Where did it begin?"]
PASSAGES = [["It was the postman, always."], ["Short."], ["A long one. " * 6, "And another."]]
ALPHAS = [i / 40 for i in range(41)]


def evidence(ctx: list[float], par: list[float]) -> Evidence:
    zeros = [0.0] * len(ctx)
    return Evidence(ctx, par, zeros, zeros, [0] * len(ctx), zeros)


def one(ctx: float, par: float) -> Evidence:
    """A draft of one token that surprises the streams so much."""
    return evidence([-ctx], [-par])


# --- the choice ---------------------------------------------------------------------------------------------------


def test_the_surprise_is_the_length_of_the_token_surprises():
    assert surprise([-3.0, 0.0, -4.0]) == 5
    assert surprise([]) == 0
    assert surprise([-math.inf, -1.0]) == math.inf


@pytest.mark.parametrize(
    ("alpha", "gain", "cost", "own", "given"),
    [  # memory's draft iff sqrt(gain / max(cost, .05)) / max(own, .05) > t; t(0.6) = log 5, t(0.75) = log 2
        (0.6, 2.60, 1.0, 1.0, 1),
        (0.6, 2.58, 1.0, 1.0, 0),
        (0.75, 0.49, 1.0, 1.0, 1),
        (0.75, 0.47, 1.0, 1.0, 0),
        (0.75, 4.31, 1.0, 3.0, 0),  # a third as sure of its own words: nine times the gain is needed
        (0.75, 4.34, 1.0, 3.0, 1),
        (0.75, 1.43, 3.0, 1.0, 0),  # the context minds three times as much
        (0.75, 1.45, 3.0, 1.0, 1),
        (0.9, -0.1, -5.0, 1.0, 0),  # memory likes the other answer better: no matter that the context does not
        (0.6, 2.0, -1.0, 1.0, 1),  # better for both, and for memory more so
        (0.6, 1.0, -2.0, 1.0, 0),  # better for both, but it leans to the context
    ],
)
def test_memory_needs_evidence(alpha, gain, cost, own, given):
    drafts = [one(5, own + gain), one(5 + cost, own)]
    assert Dial(alpha).choose(drafts) == given


@pytest.mark.parametrize(
    ("alpha", "gain", "cost", "own", "given"),
    [  # the amplified draft iff gain / (max(cost, .05) * max(own, .05)) > t; t(0) = 1/2, t(0.4) = 1/2 + log 5
        (0.0, 1.52, 1.0, 3.0, 1),
        (0.0, 1.48, 1.0, 3.0, 0),  # alpha = 0 is no licence for whatever memory minds
        (0.4, 2.12, 1.0, 1.0, 1),
        (0.4, 2.10, 1.0, 1.0, 0),
        (0.0, 9.0, 4.0, 6.0, 0),  # the context itself would never have said so
    ],
)
def test_the_context_needs_evidence_too(alpha, gain, cost, own, given):
    assert Dial(alpha).choose([one(own - cost, 2), one(own, 2 + gain)]) == given


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.6, 0.99])
def test_a_draft_that_says_nothing_is_never_given(alpha):
    plain, other = (one(1.5, 9), one(2, 1)) if alpha > 0.5 else (one(1.5, 1), one(2, 99))
    assert Dial(alpha).choose([plain, other]) == 1
    assert Dial(alpha).choose([plain, replace(other, idle=True)]) == 0


def test_what_is_said_after_the_first_sentence_does_not_count_as_memorys_own():
    plain, memory = evidence([-1.0], [-9.0]), evidence([-2.0, -0.5], [-1.0, -2.0])
    assert not Dial(0.6).choose([plain, replace(memory, logp_ctx=[-5.0, -1.0])])
    assert Dial(0.6).choose([plain, replace(memory, sentence=1)])
    whole, first = (replace(memory, logp_ctx=[-3.2, -0.5], sentence=n) for n in (None, 1))
    assert (Dial(0.6).choose([plain, whole]), Dial(0.6).choose([plain, first])) == (0, 1)


def test_adaptive_is_one_setting_of_memorys_side():
    """Evidence above 2."""
    dial = Dial(adaptive=True)
    assert dial.choose([one(1, 5.1), one(2, 1)]) == 1
    assert dial.choose([one(1, 5.0), one(2, 1)]) == 0


def test_evidence_grows_with_gain_and_falls_with_cost_and_own_surprise():
    r = random.Random(1)
    for _ in range(200):
        gain, cost, own = r.uniform(0.1, 9), r.uniform(0.1, 9), r.uniform(0, 5)
        base = weight(gain, cost, own)
        assert weight(gain + 1, cost, own) > base > weight(gain, cost + 1, own)
        assert base > weight(gain, cost, own + 1)


@pytest.mark.parametrize("seed", range(200))
def test_the_dial_turns_one_way(seed):
    """S_ctx - S_par of the answer given never falls as alpha rises, and an answer changes once a side at most."""
    r = random.Random(seed)
    plain, memory, context = (one(r.uniform(0, 10), r.uniform(0, 10)) for _ in range(3))
    lean: list[float] = []
    given: list[str] = []
    for alpha in ALPHAS:
        drafts = {"unmodified": plain, "memory": memory, "context": context}
        offered = list(Dial(alpha).drafts)
        name = offered[Dial(alpha).choose([drafts[n] for n in offered])]
        given.append(name)
        if alpha < 1:  # there memory's answer is given whatever it is
            lean.append(drafts[name].surprise_ctx - drafts[name].surprise_par)
    assert all(b >= a - 1e-9 for a, b in itertools.pairwise(lean)), (given, lean)
    runs = [name for name, _ in itertools.groupby(given)]
    assert (
        runs in ([*a, "unmodified", *b, "memory"] for a in ([], ["context"], ["unmodified", "context"]) for b in ([],))
        or len(runs) <= 4
    )


def test_the_ends_and_the_middle_need_no_choice():
    assert Dial(0.5).neutral and Dial().neutral
    assert list(Dial(1.0).drafts) == ["memory"]
    assert list(Dial(0.0).drafts) == ["unmodified", "context"]
    assert list(Dial(0.7).drafts) == list(Dial(adaptive=True).drafts) == ["unmodified", "memory"]
    assert not Dial(adaptive=True).neutral
    assert Dial(0.2).amplifies and not Dial(0.7).amplifies


def test_an_impossible_token_loses_or_decides_nothing():
    never = evidence([-1.0, -math.inf], [-1.0, -math.inf])
    assert Dial(0.7).choose([one(1, 1), never]) == 0
    assert Dial(0.7).choose([never, never]) == 0
    assert Dial(0.7).choose([evidence([-1.0], [-math.inf]), one(2, 1)]) == 1


def test_given_endings_are_weighed_by_the_same_equation():
    assert Dial(0.5).weigh([-3.0, -4.0], [-math.inf]) == -5
    assert Dial(1.0).weigh([-math.inf], [-3.0, -4.0]) == -5
    assert Dial(0.75).weigh([-3.0], [-6.0]) == pytest.approx(-(3 / 3 + 2 * 6 / 3))
    assert Dial(adaptive=True).weigh([-3.0], [-6.0]) == pytest.approx(-(2 * 3 + 6) / 3)


@pytest.mark.parametrize(
    ("params", "match"),
    [
        ({"alpha": 0.2, "adaptive": True}, "alpha=0.2 would be ignored"),
        ({"adaptive": 1}, "adaptive=1 is not True or False"),
        ({"amplify": 0}, "amplify=0 is out of range"),
        ({"gate": 2}, "no parameter 'gate'"),
    ],
)
def test_bad_parameters_are_refused_by_name(params, match):
    with pytest.raises(ControlError, match=match):
        ck.Control("dial", **params)


def test_a_token_policy_is_not_asked_for():
    signals = Signals(torch.randn(2, 9), torch.randn(2, 9))
    with pytest.raises(UnsupportedMode, match="whole answers"):
        ck.Control("dial", alpha=0.7).policy().decide(signals)
    assert {"dial", "grd", "nwcad"} <= set(names())


# --- generation -----------------------------------------------------------------------------------------------------


def drafts_of(llama, alpha: float, **options) -> Answer:
    model, tokenizer = llama
    return ck.generate(
        model,
        tokenizer,
        QUESTIONS[0],
        PASSAGES[0],
        control=ck.Control("dial", alpha=alpha),
        max_new_tokens=10,
        **options,
    )


def plain_of(llama, alpha: float | None, **options) -> Answer:
    model, tokenizer = llama
    """CAD's answer; for None the unmodified model's among the tokenizer's ids (a gate at 0 never opens)."""
    control = ck.Control("ck-plug", alpha=0.2, gate=0.0) if alpha is None else ck.Control("cad", cad_alpha=alpha)
    return ck.generate(model, tokenizer, QUESTIONS[0], PASSAGES[0], control=control, max_new_tokens=10, **options)


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "seed": 3, "temperature": 0.7}], ids=["greedy", "sampled"])
def test_the_drafts_are_what_their_policies_write(llama, options):
    for alpha, other in ((0.7, -1.0), (0.2, 0.5)):
        answer = drafts_of(llama, alpha, **options)
        assert answer.drafts[0].token_ids == plain_of(llama, None, **options).token_ids
        assert answer.drafts[1].token_ids == plain_of(llama, other, **options).token_ids
        (given,) = [d for d in answer.drafts if d.given]
        assert answer.token_ids == given.token_ids and answer.text == given.text
        assert given.surprise_par == pytest.approx(surprise([t.logp_par for t in answer.tokens]), rel=1e-5)
        assert given.surprise_ctx == pytest.approx(surprise([t.logp_ctx for t in answer.tokens]), rel=1e-5)


def test_off_and_the_closed_book_are_exact(llama):
    model, tokenizer = llama
    off = ck.generate(model, tokenizer, QUESTIONS[0], PASSAGES[0], control=ck.Control("off"), max_new_tokens=10)
    assert drafts_of(llama, 0.5).token_ids == off.token_ids
    assert drafts_of(llama, 1.0).token_ids == plain_of(llama, -1.0).token_ids
    assert drafts_of(llama, 0.5).drafts == drafts_of(llama, 1.0).drafts == ()


def test_a_batch_may_mix_it_with_token_policies(llama):
    model, tokenizer = llama
    controls = [ck.Control("dial", alpha=0.6), ck.Control("ck-plug", alpha=0.2, gate=3.0), ck.Control("grd", sure=0.01)]
    mixed = ck.generate(model, tokenizer, QUESTIONS, PASSAGES, control=controls, max_new_tokens=10)
    for i, control in enumerate(controls):
        alone = ck.generate(model, tokenizer, QUESTIONS[i], PASSAGES[i], control=control, max_new_tokens=10)
        assert mixed[i].token_ids == alone.token_ids
        assert [d.token_ids for d in mixed[i].drafts] == [d.token_ids for d in alone.drafts]
        assert [t.rank_ctx for t in mixed[i].tokens] == [t.rank_ctx for t in alone.tokens]
    assert [len(a.drafts) for a in mixed] == [2, 0, 2]


def test_without_passages_there_is_nothing_to_choose(llama):
    model, tokenizer = llama
    control = ck.Control("dial", alpha=0.7)
    answer = ck.generate(model, tokenizer, QUESTIONS[0], control=control, max_new_tokens=6)
    plain = ck.generate(model, tokenizer, QUESTIONS[0], control=ck.Control("off"), max_new_tokens=6)
    assert answer.token_ids == plain.token_ids and answer.drafts == ()


def test_trace_off_changes_nothing_but_the_trace(llama):
    traced, bare = drafts_of(llama, 0.7), drafts_of(llama, 0.7, trace=False)
    assert traced.token_ids == bare.token_ids and traced.drafts == bare.drafts
    assert bare.tokens == () and len(traced.tokens) == len(traced.token_ids)


def test_answers_with_drafts_survive_json(llama):
    answer = drafts_of(llama, 0.7)
    assert Answer.from_dict(json.loads(answer.to_json())) == answer
    old = {k: v for k, v in answer.to_dict().items() if k != "drafts"}
    assert Answer.from_dict(old).drafts == ()


class Streamer:
    def __init__(self) -> None:
        self.got: list[list[int]] = []
        self.ended = 0

    def put(self, value: torch.Tensor) -> None:
        self.got.append(value.flatten().tolist())

    def end(self) -> None:
        self.ended += 1


def test_a_streamer_gets_the_given_answer_and_no_other(llama):
    streamer = Streamer()
    answer = drafts_of(llama, 0.7, streamer=streamer)
    assert streamer.ended == 1
    assert [token for step in streamer.got[1:] for token in step] == list(answer.token_ids)


def test_transformers_generate_takes_it_too(llama):
    model, tokenizer = llama
    pair = build_pair(tokenizer, QUESTIONS[0], PASSAGES[0])
    inputs = torch.tensor([pair.contextual])
    loop = ck.decoding_loop(
        ck.Control("dial", alpha=0.7), parametric_ids=torch.tensor([pair.parametric]), vocab_size=len(tokenizer)
    )
    made = model.generate(
        inputs, attention_mask=torch.ones_like(inputs), custom_generate=loop, max_new_tokens=10, do_sample=False,
        eos_token_id=sorted(eos_ids(model, tokenizer)), return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    answer = drafts_of(llama, 0.7)
    ids = made.sequences[0, inputs.shape[1] :].tolist()
    assert ids == list(answer.token_ids)
    assert [int(step[0].argmax()) for step in made.scores] == ids


def test_a_broken_model_is_told_by_question(llama):
    model, tokenizer = llama
    calls = {"n": 0}

    def spoil(module, args, output):
        calls["n"] += 1
        if calls["n"] == 4:  # two prefills, one step, then this
            output.logits[-1] = math.nan
        return output

    handle = model.register_forward_hook(spoil)
    try:
        with pytest.raises(NonFiniteLogits) as caught:
            ck.generate(model, tokenizer, QUESTIONS, PASSAGES, control=ck.Control("dial", alpha=0.7), max_new_tokens=8)
    finally:
        handle.remove()
    assert caught.value.row == 2 and caught.value.step == 2
    assert caught.value.partial is not None and len(caught.value.partial) == 3


def test_drafts_share_their_rows_until_they_part_and_give_them_up_when_they_end(llama):
    model, tokenizer = llama
    controls = [ck.Control("dial", alpha=0.2, amplify=amplify) for amplify in (0.2, 0.2, 0.5)]
    first = ck.generate(model, tokenizer, QUESTIONS[2], PASSAGES[2], control=controls[2], max_new_tokens=10).drafts[1]
    rows: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(kwargs["input_ids"].shape[0]), with_kwargs=True
    )
    eos = model.generation_config.eos_token_id
    try:
        model.generation_config.eos_token_id = [first.token_ids[5]]  # so that some drafts end before others
        answers = ck.generate(model, tokenizer, QUESTIONS, PASSAGES, control=controls, max_new_tokens=10)
    finally:
        handle.remove()
        model.generation_config.eos_token_id = eos
    drafts = {(i, d.token_ids) for i, answer in enumerate(answers) for d in answer.drafts}
    lengths = [len(ids) for _, ids in drafts]
    # Two prefills; then a step holds both streams of every beginning that some draft goes on from.
    going = [{(i, ids[:step]) for i, ids in drafts if len(ids) > step} for step in range(1, max(lengths))]
    assert rows == [3, 3, *(2 * len(each) for each in going)]
    assert max(lengths) > min(lengths) and len({*map(len, going)}) > 2, "the case must have drafts that part and end"


@pytest.mark.parametrize(
    ("control", "instead"),
    [
        (ck.Control(alpha=0.0), CKPlug(1 / 3)),
        (ck.Control(alpha=0.4), CKPlug(0.4)),
        (ck.Control(alpha=0.7), CKPlug(0.7)),
        (ck.Control(adaptive=True), CKPlug(adaptive=True)),
    ],
)
def test_a_logits_processor_says_what_stands_in_for_it(llama, control, instead):
    model, _ = llama
    ids = torch.tensor([[1, 2]])
    with pytest.warns(UserWarning, match="'ck-plug' acts in its place, with tau at most 2"):
        processor = ck.CKLogitsProcessor(model, ids, control=control)
    scores = torch.randn(1, model.config.vocab_size)
    named = ck.Control("ck-plug", instead.alpha, adaptive=instead.adaptive)
    wanted = ck.CKLogitsProcessor(model, ids, control=named)
    prompt = torch.tensor([[1, 2, 3]])
    assert torch.equal(processor(prompt, scores), wanted(prompt, scores))


def test_a_logits_processor_needs_no_stand_in_at_the_middle_and_at_memorys_end(llama):
    model, _ = llama
    for alpha in (None, 0.5, 1.0):  # warnings are errors here
        ck.CKLogitsProcessor(model, torch.tensor([[1, 2]]), control=ck.Control(alpha=alpha))
    with pytest.raises(UnsupportedMode, match="one token at a time"):
        ck.CKLogitsProcessor(model, torch.tensor([[1, 2]]), control=ck.Control("grd"))


@pytest.mark.parametrize("door", ["generate", "loop", "reference", "fan"])
def test_every_door_tells_drafts_that_say_nothing(llama, door, monkeypatch):
    """A draft that would be given is not once its words are those of the question."""
    model, tokenizer = llama
    pair = build_pair(tokenizer, QUESTIONS[0], PASSAGES[0])
    ends = sorted(eos_ids(model, tokenizer))
    control = ck.Control(alpha=0.999)
    monkeypatch.setattr(Dial, "choose", lambda self, drafts: int(not drafts[1].idle))  # whatever the evidence
    monkeypatch.setattr(idle_drafts, "_names", lambda *_, **__: False)  # random texts have names by chance

    def read(ids):
        return tokenizer.decode(ids, skip_special_tokens=True)

    def ids(question: str) -> list[int]:
        if door == "reference":
            return ck.reference_generate(
                model, pair.contextual, pair.parametric, control, max_new_tokens=8, eos=ends,
                vocab_size=len(tokenizer), question=question, read=read,
            )  # fmt: skip
        return fan(
            model, [pair], [control.policy()], options=GenerateOptions(max_new_tokens=8), ends=ends, pad=0,
            vocab_size=len(tokenizer), questions=[question], read=read,
        )[0][0].ids  # fmt: skip

    plain, memory = (list(d.token_ids) for d in drafts_of(llama, 0.999).drafts)
    plain, memory = plain[:8], memory[:8]
    assert plain != memory
    if door in ("reference", "fan"):
        assert ids("Who?") == memory and ids(read(memory)) == plain
    elif door == "generate":
        said = read(memory)
        answer = ck.generate(model, tokenizer, QUESTIONS[0], PASSAGES[0], control=control, max_new_tokens=8)
        assert list(answer.token_ids) == memory
        monkeypatch.setattr(idle_drafts, "idle", lambda names, texts, question, _: [False, texts[1] == said.strip()])
        again = ck.generate(model, tokenizer, QUESTIONS[0], PASSAGES[0], control=control, max_new_tokens=8)
        assert list(again.token_ids) == plain
    else:
        monkeypatch.setattr(idle_drafts, "idle", lambda names, texts, question, _: [False, QUESTIONS[0] in question])
        inputs = torch.tensor([pair.contextual])
        made = {}
        for known in (None, tokenizer):
            loop = ck.decoding_loop(
                control, parametric_ids=torch.tensor([pair.parametric]), vocab_size=len(tokenizer), tokenizer=known
            )
            out = model.generate(
                inputs, attention_mask=torch.ones_like(inputs), custom_generate=loop, max_new_tokens=8,
                do_sample=False, eos_token_id=ends,
            )  # fmt: skip
            made[known is None] = out[0, inputs.shape[1] :].tolist()
        assert made == {True: memory, False: plain}


# --- peers -----------------------------------------------------------------------------------------------------------


def grd_on_the_way(model, contextual, parametric, ends, vocab_size, new, relax, sure, mode="full"):
    """The paper's loop: greedy, whom to trust decided at the first disagreement."""
    answer: list[int] = []
    memory = None
    for _ in range(new):
        with torch.no_grad():
            rows = [
                model(torch.tensor([[*p, *answer]])).logits[0, -1, :vocab_size].float()
                for p in (contextual, parametric)
            ]
        ctx, par = (row.log_softmax(-1) for row in rows)
        a_c, a_p = int(ctx.argmax()), int(par.argmax())
        token = a_c
        if a_c != a_p:
            if memory is None:
                h_ctx, h_par = (-(x.exp() * x).sum() for x in (ctx, par))
                gates = {"conf_only": par.max().exp() > sure, "ent_only": h_par < h_ctx}
                memory = all(bool(open) for name, open in gates.items() if mode in ("full", name))
            if memory:
                m_c, m_p = ctx[a_c] - ctx[a_p], par[a_p] - par[a_c]
                tau = (1 - relax) * m_p / (m_c + m_p)
                token = int((tau * ctx + (1 - tau) * par).argmax())
        answer.append(token)
        if token in ends:
            break
    return answer


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "qwen3"])
@pytest.mark.parametrize(
    ("sure", "mode"), [(0.0, "full"), (0.01, "full"), (0.5, "full"), (0.004, "conf_only"), (0.5, "ent_only")]
)
def test_grd_decides_as_if_on_the_way(tiny, family, sure, mode):
    model, tokenizer = tiny(family)
    ends = eos_ids(model, tokenizer)
    control = ck.Control("grd", sure=sure, gate_mode=mode)
    answers = ck.generate(model, tokenizer, QUESTIONS, PASSAGES, control=control, max_new_tokens=12)
    for question, passages, answer in zip(QUESTIONS, PASSAGES, answers, strict=True):
        pair = build_pair(tokenizer, question, passages)
        wanted = grd_on_the_way(
            model, pair.contextual, pair.parametric, ends, len(tokenizer), 12, relax=0.75, sure=sure, mode=mode
        )
        assert list(answer.token_ids) == wanted


def test_grd_names_the_gates_it_has():
    with pytest.raises(ControlError, match="conf_only"):
        ck.Control("grd", gate_mode="conf_onli")


def trust(rag, direct, **params):
    """The draft TrustMargin gives, from (log p_ctx, log p_par, log p alone) of both answers."""
    drafts = [Evidence(ctx, par, [0.0], [0.0], [0], [0.0], logp_alone=told) for ctx, par, told in (rag, direct)]
    return ck.Control("trustmargin", **params).policy().choose(drafts)


def test_trustmargin_weighs_means_and_discounts_what_passages_say_anyway():
    direct = ([-6.0], [-1.0], [-6.0])
    assert trust(([-1.0], [-2.4], [-1.0]), direct) == 0  # M = -1.4
    assert trust(([-1.0], [-2.6], [-1.0]), direct) == 1  # M = -1.6: memory minds too much
    assert trust(([-1.0] * 3, [-2.4] * 3, [-1.0] * 3), direct) == 0  # means, not sums
    assert trust(([-1.0], [-2.6], [-1.3]), direct) == 0  # the question bound it by .3, of which half counts
    assert trust(([-1.0], [-2.6], [-1.3]), direct, lambda_bind=0.0) == 1
    assert trust(([-1.0], [-2.6], [-1.0]), direct, margin=-2.0) == 0
    assert trust(([-torch.inf], [-2.0], [-torch.inf]), direct) == 0  # no difference of infinities


def test_trustmargin_reads_the_passages_without_the_question(tiny):
    model, tokenizer = tiny("llama")
    pair = build_pair(tokenizer, "Who?", ["It was he."])
    words = len(pair.contextual) - len(pair.alone)
    assert words == len(tokenizer("Who?", add_special_tokens=False)["input_ids"])
    control = ck.Control("trustmargin")
    with pytest.raises(UnsupportedMode, match="without the question, which decoding_loop does not have"):
        loop = ck.decoding_loop(control, parametric_ids=torch.tensor([pair.parametric]))
        model.generate(torch.tensor([pair.contextual]), custom_generate=loop, max_new_tokens=4)
    bare = [Evidence([-1.0], [-1.0], [0.0], [0.0], [0], [0.0])] * 2
    with pytest.raises(UnsupportedMode, match=r"Use ckcontrol\.generate"):
        control.policy().choose(bare)


def test_nwcad_takes_the_first_stage_that_applies():
    sure, flat, other = (torch.tensor(x).log() for x in ([0.9, 0.05, 0.05], [0.4, 0.35, 0.25], [0.05, 0.9, 0.05]))
    ctx, par = torch.stack([sure, sure, flat]), torch.stack([sure, other, sure])
    assert NWCAD(js=0.1, k_par=0.5, k_ctx=0.3).decide(Signals(ctx, par)).tau.tolist() == [0.0, 1.0, 0.5]
