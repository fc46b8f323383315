"""What can go wrong around the loop: broken models, streamers, interruption, threads, odd input."""

from __future__ import annotations

import copy
import json
import math
import threading

import pytest
import torch

import ckcontrol as ck
from ckcontrol.answer import read_jsonl, write_jsonl
from ckcontrol.decoding import fused_step
from ckcontrol.errors import NonFiniteLogits, UnsupportedMode

ASK = ("Who did it?", ["It was the postman."])
STEER = ck.Control("ck-plug", alpha=0.1, gate=3.0)


class Streamer:
    """Records what a transformers streamer would get."""

    def __init__(self, fail_at: int | None = None, error: type[BaseException] = RuntimeError) -> None:
        self.got: list[list[int]] = []
        self.ended = 0
        self.fail_at, self.error = fail_at, error

    def put(self, value: torch.Tensor) -> None:
        if self.fail_at is not None and len(self.got) == self.fail_at:
            raise self.error("stop here")
        self.got.append(value.flatten().tolist())

    def end(self) -> None:
        self.ended += 1


# --- answers --------------------------------------------------------------------------------------------------


def test_no_passages_means_no_gain_no_switch_and_plain_text(llama):
    model, tokenizer = llama
    answer = ck.generate(model, tokenizer, "Who did it?", control=ck.Control("ck-plug", alpha=0.0), max_new_tokens=8)
    plain = ck.generate(model, tokenizer, "Who did it?", control=ck.Control("off"), max_new_tokens=8)
    assert answer.switched == 0 and answer.token_ids == plain.token_ids
    assert all(abs(t.gain) < 1e-4 for t in answer.tokens)


def test_answer_fields_and_json_round_trip(llama, tmp_path):
    answer = ck.generate(*llama, *ASK, control=STEER, max_new_tokens=6)
    assert len(answer.tokens) == len(answer.token_ids) == 6 and answer.finish_reason == "length"
    assert answer.switched == sum(t.switched for t in answer.tokens)
    assert answer.context_tokens > answer.parametric_tokens
    data = json.loads(answer.to_json())
    assert data["control"]["alpha"] == 0.1 and data["tokens"][0]["gain"] == answer.tokens[0].gain
    write_jsonl([answer, answer], tmp_path / "a.jsonl")
    with open(tmp_path / "a.jsonl", "a") as file:
        file.write(answer.to_json()[:50])  # a crash in the middle of a line
    assert read_jsonl(tmp_path / "a.jsonl") == [answer, answer]


def test_impossible_tokens_are_null_in_json(llama):
    """A padding id chosen by the unmodified model, or a forced token, must not make the trace unwritable."""
    answers = ck.generate(*llama, ["a?", "b?", "c?"], [["d"]] * 3, control=ck.Control("off"), max_new_tokens=30)
    assert all(json.loads(a.to_json()) for a in answers)
    token = ck.TokenTrace(id=1, text="x", logp_final=-math.inf)
    answer = ck.Answer("x", (token,), (1,), "q", (), ck.Control(), "stop", 1, 1)
    assert json.loads(answer.to_json())["tokens"][0]["logp_final"] is None


def test_a_list_gives_a_list_and_one_question_one_answer(llama):
    one = ck.generate(*llama, *ASK, max_new_tokens=2)
    many = ck.generate(*llama, [ASK[0]], [ASK[1]], max_new_tokens=2)
    assert isinstance(one, ck.Answer) and [one] == many


def test_untraced_answers_have_the_same_tokens(llama):
    traced = ck.generate(*llama, *ASK, control=STEER, max_new_tokens=6)
    bare = ck.generate(*llama, *ASK, control=STEER, max_new_tokens=6, trace=False)
    assert bare.tokens == () and bare.token_ids == traced.token_ids
    assert bare.summary()["mean_gain"] is None


def test_pieces_of_text_join_to_the_answer(llama):
    answer = ck.generate(*llama, *ASK, control=STEER, max_new_tokens=24)
    joined = "".join(t.text for t in answer.tokens if t.id < 256)
    assert joined.strip() == answer.text


def test_the_second_call_equals_the_first_and_the_model_is_left_as_it_was(tiny):
    model, tokenizer = tiny("gemma2")
    before = str(model.config._attn_implementation), copy.deepcopy(model.generation_config.to_dict())
    answers = [ck.generate(model, tokenizer, *ASK, control=STEER, max_new_tokens=6) for _ in range(2)]
    assert answers[0] == answers[1]
    assert (str(model.config._attn_implementation), model.generation_config.to_dict()) == before


def test_two_threads_on_one_model_do_not_mix(llama):
    model, tokenizer = llama
    asks = [(f"Question {i}?", [f"Passage {i}. " * (i + 1)]) for i in range(4)]
    alone = [ck.generate(model, tokenizer, *a, control=STEER, max_new_tokens=10) for a in asks]
    plain_ids = torch.randint(0, 250, (2, 9))
    plain_mask = torch.tensor([[0] * 3 + [1] * 6, [1] * 9])
    more = {"attention_mask": plain_mask, "max_new_tokens": 10, "do_sample": False, "pad_token_id": 256}
    plain = model.generate(plain_ids, **more)
    results: dict[int, object] = {}

    def run(i: int) -> None:
        for _ in range(3):
            results[i] = ck.generate(model, tokenizer, *asks[i], control=STEER, max_new_tokens=10)

    def run_plain() -> None:
        for _ in range(6):
            results[-1] = model.generate(plain_ids, **more)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)] + [threading.Thread(target=run_plain)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert [results[i] for i in range(4)] == alone
    assert torch.equal(results[-1], plain), "a plain generate beside a steered one must not notice it"
    assert model.config._attn_implementation == "sdpa"


# --- sampling -------------------------------------------------------------------------------------------------


def test_seeds_make_rows_independent_of_their_batch(llama):
    model, tokenizer = llama
    sampled = {"control": STEER, "max_new_tokens": 8, "do_sample": True, "seed": 3}
    batch = ck.generate(model, tokenizer, ["A?", "Who did it?"], [["B."], ASK[1]], **sampled)
    assert batch[1].token_ids == ck.generate(model, tokenizer, *ASK, **sampled).token_ids


def test_a_seed_leaves_the_global_generator_alone(llama):
    torch.manual_seed(0)
    want = torch.rand(3)
    torch.manual_seed(0)
    ck.generate(*llama, *ASK, max_new_tokens=3, do_sample=True, seed=9)
    assert torch.equal(torch.rand(3), want)


def test_sampling_follows_the_fused_distribution(llama):
    """2,000 first tokens at tau = 0.5 against the exact distribution; chance of a false alarm about 1e-6."""
    model, tokenizer = llama
    n = 2000
    control = ck.Control("cad", cad_alpha=-0.5)
    answers = ck.generate(
        model,
        tokenizer,
        [ASK[0]] * n,
        [ASK[1]] * n,
        control=control,
        max_new_tokens=1,
        do_sample=True,
        trace=False,
    )
    pair = ck.build_pair(tokenizer, *ASK)
    with torch.no_grad():
        logits = [model(torch.tensor([p])).logits[0, -1, : len(tokenizer)] for p in (pair.contextual, pair.parametric)]
    p = ck.fuse(logits[0].log_softmax(-1)[None], logits[1].log_softmax(-1)[None], 0.5)[0].exp()
    counts = torch.bincount(torch.tensor([a.token_ids[0] for a in answers]), minlength=len(tokenizer)).float()
    common = p * n >= 5
    chi2 = ((counts - n * p)[common] ** 2 / (n * p[common])).sum().item()
    df = int(common.sum())
    assert chi2 < df + 5 * math.sqrt(2 * df)


def test_penalty_scope_generated_spares_the_prompt(llama):
    model, tokenizer = llama
    answers = {
        scope: ck.generate(
            model,
            tokenizer,
            *ASK,
            control=ck.Control("off"),
            max_new_tokens=1,
            repetition_penalty=5.0,
            penalty_scope=scope,
        )
        for scope in ("all", "generated")
    }
    free = ck.generate(model, tokenizer, *ASK, control=ck.Control("off"), max_new_tokens=1)
    assert answers["generated"].token_ids == free.token_ids, "nothing was generated yet, so nothing is penalised"
    assert answers["all"].tokens[0].logp_final != free.tokens[0].logp_final


# --- broken numbers -------------------------------------------------------------------------------------------


def poison(model, monkeypatch, step: int, row: int, value: float, stream: int):
    """Make the model emit `value` once, in a row of one stream, at a decode step."""
    real, calls = type(model).forward, {"n": 0}

    def forward(self, *args, **kwargs):
        out = real(self, *args, **kwargs)
        if kwargs["input_ids"].shape[1] == 1:
            calls["n"] += 1
            if calls["n"] == step:
                out.logits[row + stream * 2, -1, 5] = value
        return out

    monkeypatch.setattr(type(model), "forward", forward)


@pytest.mark.parametrize("sample", [False, True])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("stream", ["contextual", "parametric"])
def test_nan_names_row_step_and_stream_and_keeps_the_work(llama, monkeypatch, value, stream, sample):
    model, tokenizer = llama
    good = ck.generate(model, tokenizer, [ASK[0]] * 2, [ASK[1]] * 2, control=STEER, max_new_tokens=6)
    poison(model, monkeypatch, 3, 1, value, ["contextual", "parametric"].index(stream))
    with pytest.raises(NonFiniteLogits) as caught:
        ck.generate(
            model,
            tokenizer,
            [ASK[0]] * 2,
            [ASK[1]] * 2,
            control=STEER,
            max_new_tokens=6,
            do_sample=sample,
            seed=1,
        )
    error = caught.value
    assert (error.row, error.step, error.stream) == (1, 3, stream)
    if not sample:
        assert error.partial[0].token_ids[:3] == good[0].token_ids[:3]


def test_a_processor_that_forbids_everything_is_reported(llama):
    model, tokenizer = llama
    ids = torch.tensor([ck.build_pair(tokenizer, *ASK).contextual])
    loop = ck.decoding_loop(STEER, parametric_ids=ids)
    with pytest.raises(NonFiniteLogits, match="masked away"):
        model.generate(
            ids, attention_mask=torch.ones_like(ids), custom_generate=loop, max_new_tokens=3,
            logits_processor=[lambda i, s: torch.full_like(s, -math.inf)], pad_token_id=256,
        )  # fmt: skip


def test_a_processor_that_writes_in_place_does_not_touch_the_trace(llama):
    model, tokenizer = llama
    ids = torch.tensor([ck.build_pair(tokenizer, *ASK).contextual])

    def spoil(input_ids, scores):
        return scores.mul_(0.5)

    for control in (ck.Control("off"), STEER):
        seen = []
        for processors in ([], [spoil]):
            recorder = ck.Recorder()
            loop = ck.decoding_loop(control, parametric_ids=ids[:, 4:], recorder=recorder)
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                custom_generate=loop,
                max_new_tokens=1,
                logits_processor=processors,
                do_sample=False,
                pad_token_id=256,
            )
            seen.append(recorder.traces(0, [""])[0])
        assert seen[0].h_ctx == seen[1].h_ctx and seen[0].logp_ctx == seen[1].logp_ctx
        assert seen[0].logp_final != seen[1].logp_final


def test_padded_vocabulary_never_wins(llama):
    """The tiny model's 60 spare ids win often when nobody looks; steered, they never do."""
    model, tokenizer = llama
    questions, passages = [f"Q{i}?" for i in range(40)], [[f"P{i}."] for i in range(40)]
    free = ck.generate(model, tokenizer, questions, passages, control=ck.Control("off"), max_new_tokens=6, trace=False)
    assert any(t >= len(tokenizer) for a in free for t in a.token_ids), "the case must be able to fail"
    for control in (
        STEER,
        ck.Control("ck-plug", alpha=0.0),
        ck.Control("ck-plug", alpha=1.0, gate=9.0),
        ck.Control("coiecd"),
    ):
        steered = ck.generate(model, tokenizer, questions, passages, control=control, max_new_tokens=6, trace=False)
        assert all(t < len(tokenizer) for a in steered for t in a.token_ids)


# --- streamers and interruption -------------------------------------------------------------------------------


def test_streamer_gets_prompt_and_every_token_then_one_end(llama):
    streamer = Streamer()
    answer = ck.generate(*llama, *ASK, control=STEER, max_new_tokens=5, streamer=streamer)
    assert len(streamer.got[0]) == answer.context_tokens
    assert [t for part in streamer.got[1:] for t in part] == list(answer.token_ids) and streamer.ended == 1


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("fail_at", [0, 3])
def test_streamer_ends_once_on_error_and_interrupt_and_the_model_recovers(llama, error, fail_at):
    model, tokenizer = llama
    streamer = Streamer(fail_at, error)
    with pytest.raises(error):
        ck.generate(model, tokenizer, *ASK, control=STEER, max_new_tokens=5, streamer=streamer)
    assert streamer.ended == 1 and model.config._attn_implementation == "sdpa"


def test_native_loop_carries_its_own_streamer(llama):
    model, tokenizer = llama
    ids = torch.tensor([ck.build_pair(tokenizer, *ASK).contextual])
    streamer = Streamer()
    loop = ck.decoding_loop(STEER, parametric_ids=ids, streamer=streamer)
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        custom_generate=loop,
        max_new_tokens=4,
        do_sample=False,
        pad_token_id=256,
    )
    assert [t for part in streamer.got for t in part] == out[0].tolist() and streamer.ended == 1


def test_an_off_row_beside_steered_rows_is_the_plain_model(llama):
    """Padded ids included: what steers the neighbours must not touch a row that is off."""
    model, tokenizer = llama
    questions, passages = [f"Q{i}?" for i in range(12)], [[f"P{i}."] for i in range(12)]
    controls = [ck.Control("off") if i % 2 else STEER for i in range(12)]
    mixed = ck.generate(model, tokenizer, questions, passages, control=controls, max_new_tokens=8)
    plain = ck.generate(model, tokenizer, questions, passages, control=ck.Control("off"), max_new_tokens=8)
    odd = [a.token_ids for a in plain][1::2]
    assert [a.token_ids for a in mixed][1::2] == odd
    assert any(t >= len(tokenizer) for ids in odd for t in ids), "the case must be able to fail"


def test_the_loop_reads_one_flag_per_token_from_the_device(llama, monkeypatch):
    """No entropy, tau or token is read back on an accelerator: only the stop flag (which CUDA gets a step late)."""
    monkeypatch.setattr(  # on a CPU there is nothing to wait for, and a step asks which rows to compute
        fused_step,
        "_on_cpu",
        lambda p, ctx, par, shortlist, _, pick: fused_step._plainly(p, ctx, par, shortlist, pick),
    )
    from torch.utils._python_dispatch import TorchDispatchMode

    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            Reads.count += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    counts = []
    for new in (6, 16):
        Reads.count = 0
        with Reads():
            answer = ck.generate(*llama, *ASK, control=ck.Control("adacad"), max_new_tokens=new)
        assert len(answer.tokens) == new
        counts.append(Reads.count)
    assert counts[1] - counts[0] == 10


def test_model_and_tokenizer_the_other_way_round(llama) -> None:
    with pytest.raises(UnsupportedMode, match=r"is no model.*model first"):
        ck.generate(llama[1], llama[0], "Who?", ["Ann."])
