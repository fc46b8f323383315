"""Questions that join and leave a running batch have the tokens, traces and drafts of `generate` alone."""

from __future__ import annotations

import gc
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers.cache_utils import CacheLayerMixin

import ckcontrol as ck
from ckcontrol.decoding import static_step
from ckcontrol.decoding.inputs import plan_of
from ckcontrol.decoding.pair_cache import _Buffer as Held
from ckcontrol.decoding.refusals import eos_ids
from ckcontrol.decoding.running import Row, RunningBatch
from ckcontrol.decoding.sources import cache_bytes
from ckcontrol.decoding.streams import Stream, side_by_side
from ckcontrol.errors import NonFiniteLogits
from ckcontrol.models.tiny import tiny_model

FAMILIES = ["llama", "gpt2", "gemma2", "gemma3", "mistral", "gpt_neox"]
TOWNS = ["Orvendale", "Vess", "Quarrow on the Tellin"]


def question(number: int, *, one_stream: bool = False) -> tuple[Any, ck.Control, ck.GenerateOptions]:
    """A pair's texts, a control and options, all different."""
    rng = random.Random(number)
    method = "off" if one_stream else rng.choice(["ck-plug", "cad", "adacad", "coiecd", "nwcad", "dial", "grd"])
    dial = {"alpha": rng.choice([0, 0.2, 0.8, 1])} if method in ("ck-plug", "cad", "dial") else {}
    more = {"candidates": rng.choice([4, 8])} if method == "ck-plug" and rng.random() < 0.5 else {}
    passages = [f"{rng.random()} lies there. " * rng.randint(1, 6)]
    options = {"max_new_tokens": rng.randint(1, 30), "trace": not one_stream and rng.random() < 0.5}
    if rng.random() < 0.4:
        options |= {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "top_k": 40, "seed": number}
    if rng.random() < 0.3:
        options |= {"repetition_penalty": 1.3, "penalty_scope": rng.choice(["all", "generated"])}
    asked = f"What of {rng.choice(TOWNS)}? " * rng.randint(1, 4), passages
    return asked, ck.Control(method, **dial, **more), ck.GenerateOptions(**options)


def run(model: Any, tokenizer: Any, numbers: list[int], seed: int, one_stream: bool = False) -> dict[int, list[Row]]:
    """Let questions join a batch at random steps, alone and together, some leaving early; return the others' rows."""
    rng = random.Random(seed)
    ends = sorted(eos_ids(model, tokenizer))
    batch, left, waiting = RunningBatch(), {}, list(numbers)
    under_way: dict[int, list[Row]] = {}
    while waiting or under_way:
        for _ in range(rng.choice([0, 1, 1, 3]) if under_way else 1):
            several = rng.choice([1, 1, 4])
            numbers, waiting = waiting[:several], waiting[several:]
            plans = []
            for number in numbers:
                asked, control, options = question(number, one_stream=one_stream)
                pair = ck.build_pair(tokenizer, *asked, ends=ends)
                plans.append(plan_of(model, tokenizer, [pair], [control], options, ends=ends))
            if plans:
                assert batch.joins
                under_way |= dict(zip(numbers, batch.join_together(plans), strict=True))
        for number, rows in list(under_way.items()):
            longest = rows[0].plan.max_new_tokens
            for row in rows:
                assert row.error is None
                row.ended = row.ended or row.tokens[-1] in ends or len(row.tokens) >= longest
            if number % 7 == 6 and len(rows[0].tokens) > 3:  # whoever asked has left
                for row in rows:
                    row.ended = True
                del under_way[number]
            elif all(row.ended for row in rows):
                left[number] = under_way.pop(number)
        batch.step()
    assert not batch.rows
    return left


def compare(model: Any, tokenizer: Any, made: dict[int, list[Row]], one_stream: bool = False) -> None:
    for number, rows in made.items():
        (text, passages), control, options = question(number, one_stream=one_stream)
        whole = replace(options, trace=options.trace or len(rows) > 1)
        answer = ck.generate(model, tokenizer, text, passages, control=control, options=whole)
        if answer.drafts:
            assert [row.tokens for row in rows] == [list(draft.token_ids) for draft in answer.drafts]
            evidence = [row.recorder.evidence(0) for row in rows if row.recorder]
            chosen = rows[0].plan.drafts.choose_one(0, [row.tokens for row in rows], evidence)
            assert [draft.given for draft in chosen] == [draft.given for draft in answer.drafts]
            continue
        (row,) = rows
        assert row.tokens == list(answer.token_ids), number
        if options.trace and row.recorder is not None:
            told = row.recorder.rows(0)
            assert len(told) == len(answer.tokens)
            for mine, theirs in zip(told, answer.tokens, strict=True):
                assert mine[0] == pytest.approx(theirs.logp_final, abs=1e-5 * max(1, theirs.tau))
                assert mine[1] == pytest.approx(theirs.h_par, abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_join_and_leave(family: str) -> None:
    model, tokenizer = tiny_model(family)
    made = run(model, tokenizer, list(range(24)), seed=1)
    assert len(made) > 16
    compare(model, tokenizer, made)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3"])
def test_rows_of_one_stream(family: str) -> None:
    model, tokenizer = tiny_model(family)
    compare(model, tokenizer, run(model, tokenizer, list(range(12)), seed=2, one_stream=True), one_stream=True)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_rows_of_static_steps(family: str, monkeypatch) -> None:
    """What a GPU does, without its graphs."""
    model, tokenizer = tiny_model(family)
    monkeypatch.setattr(static_step, "FORCED", True)
    made = run(model, tokenizer, list(range(12)), seed=3)
    monkeypatch.setattr(static_step, "FORCED", False)
    compare(model, tokenizer, made)


def test_tokens_are_those_of_the_reference() -> None:
    model, tokenizer = tiny_model("llama")
    ends = sorted(eos_ids(model, tokenizer))
    batch, control = RunningBatch(), ck.Control("cad", 0.2)
    pairs = [ck.build_pair(tokenizer, "Which? " * n, ["The Tellin. " * (5 - n)], ends=ends) for n in range(1, 5)]
    options = ck.GenerateOptions(max_new_tokens=12, trace=False)
    rows = []
    for pair in pairs:
        rows += batch.join(plan_of(model, tokenizer, [pair], [control], options, ends=ends))
        batch.step()
        batch.step()
    while not all(len(row.tokens) >= 12 for row in rows):
        batch.step()
    for pair, row in zip(pairs, rows, strict=True):
        want = ck.reference_generate(
            model, pair.contextual, pair.parametric, control, max_new_tokens=12, eos=ends, vocab_size=len(tokenizer)
        )
        assert row.tokens[: len(want)] == want


@pytest.mark.parametrize("family", FAMILIES)
def test_what_prompts_begin_with_is_run_once(family: str) -> None:
    """And leaves the logits and the past that prompts run whole leave; not where layers keep a window only."""
    model, tokenizer = tiny_model(family)
    fed: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda module, given, made: fed.append(given[0].numel()))
    prompts = [
        tuple(tokenizer("You answer in one word. " + rest)["input_ids"]) for rest in ("Who?", "Where is it?", "W")
    ]
    streams = [Stream(model, torch.tensor([prompt]), None) for prompt in prompts]
    once, whole = side_by_side(streams), side_by_side(streams)
    alike, longest = once.alike, max(map(len, prompts))
    assert 16 <= alike < min(map(len, prompts))
    whole.alike = 0
    with torch.no_grad():
        wanted = whole.prefill()
        fed.clear()
        found = once.prefill()
        slides = any(layer.is_sliding for layer in once.cache.layers)
        assert sum(fed) == (3 * longest if slides else alike + 3 * (longest - alike))
        assert torch.allclose(found, wanted, atol=1e-4) and once.keep is not None and whole.keep is not None
        for ours, theirs in zip(once.cache.layers, whole.cache.layers, strict=True):
            kept = once.keep[:, None, -ours.keys.shape[2] :, None]
            for name in ("keys", "values"):
                assert torch.allclose(getattr(ours, name) * kept, getattr(theirs, name) * kept, atol=1e-4)
        token = wanted.argmax(-1)
        assert torch.allclose(once.step(token), whole.step(token), atol=1e-4)


def test_prompts_that_are_equal_or_begin_otherwise() -> None:
    model, _ = tiny_model("llama")
    streams = {start: Stream(model, torch.tensor([[start, *range(1, 40)]]), None) for start in (50, 51)}
    assert side_by_side([streams[50], streams[51]]).alike == 0
    equal, whole = side_by_side([streams[50], streams[50]]), side_by_side([streams[50], streams[50]])
    assert equal.alike == 39 and equal.keep is None
    whole.alike = 0
    with torch.no_grad():
        assert torch.allclose(equal.prefill(), whole.prefill(), atol=1e-4)
    short = [Stream(model, torch.tensor([[token]]), None) for token in (50, 50)]
    assert side_by_side(short).alike == 0


def test_what_is_wrong_with_a_row_ends_it_alone() -> None:
    model, tokenizer = tiny_model("llama")
    with torch.no_grad():
        (at,) = tokenizer("@", add_special_tokens=False)["input_ids"]
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
        model.get_input_embeddings().weight[at] = torch.nan
        model.lm_head.weight[at] = 0
    batch, options = RunningBatch(), ck.GenerateOptions(max_new_tokens=6, trace=False)
    rows = []
    for text in ("What?", "What @?", "Who?"):
        pair = ck.build_pair(tokenizer, text, ["The Tellin."])
        rows += batch.join(plan_of(model, tokenizer, [pair], [ck.Control("cad", 0.2)], options, ends=[]))
    for _ in range(5):
        batch.step()
    assert isinstance(rows[1].error, NonFiniteLogits) and not rows[1].tokens
    for text, row in (("What?", rows[0]), ("Who?", rows[2])):
        answer = ck.generate(model, tokenizer, text, ["The Tellin."], control=ck.Control("cad", 0.2), options=options)
        assert row.error is None and row.tokens[: len(answer.token_ids)] == list(answer.token_ids)


def held() -> int:
    """How many bytes of keys and values are held by caches of this process."""
    stores = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for one in gc.get_objects()
        if issubclass(type(one), (CacheLayerMixin, Held))
        for tensor in (getattr(one, "keys", None), getattr(one, "values", None))
        if isinstance(tensor, torch.Tensor)
    }
    return sum(stores.values())


@pytest.mark.parametrize("together", [1, 3])
def test_what_a_batch_holds_is_bounded_by_its_rows(together: int) -> None:
    """As soon as a step is over, without the garbage collector: nothing of prompts and batches that were taken over."""
    model, tokenizer = tiny_model("llama")
    options = ck.GenerateOptions(max_new_tokens=200, trace=False)
    gc.collect()
    gc.disable()
    try:
        before, batch = held(), RunningBatch()
        for number in range(8):
            pairs = [ck.build_pair(tokenizer, f"{number}?", ["The Tellin. " * 20])] * together
            plans = [plan_of(model, tokenizer, [pair], [ck.Control("cad", 0.2)], options, ends=[]) for pair in pairs]
            batch.join_together(plans)
            batch.step()
            rows = len(batch.rows)
            longest = len(pairs[0].contextual) + len(pairs[0].parametric) + 2 * (number + 2 + 200)
            assert rows == together * (1 + min(number, 2))
            assert held() - before <= cache_bytes(model, rows * longest)
            for row in batch.rows[: max(0, rows - 2 * together)]:
                row.ended = True
        for row in batch.rows:
            row.ended = True
        batch.step()
        assert held() == before
    finally:
        gc.enable()


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_leaves_with_the_row_that_was_long(family: str) -> None:
    model, tokenizer = tiny_model(family)
    options = ck.GenerateOptions(max_new_tokens=20, trace=False)
    pairs = [ck.build_pair(tokenizer, "Which?", ["The Tellin. " * times]) for times in (2, 12)]
    plans = [plan_of(model, tokenizer, [pair], [ck.Control("cad", 0.2)], options, ends=[]) for pair in pairs]
    batch = RunningBatch()
    (short,), (long,) = (batch.join(plan) for plan in plans)
    batch.step()
    streams: Any = batch._streams
    assert streams.contextual.keep is not None and len(pairs[1].contextual) > 1.4 * len(pairs[0].contextual)
    long.ended = True
    while len(short.tokens) < 20:
        batch.step()
    assert streams.contextual.keep is None
    text, passages = "Which?", ["The Tellin. " * 2]
    answer = ck.generate(model, tokenizer, text, passages, control=ck.Control("cad", 0.2), options=options)
    assert short.tokens[: len(answer.token_ids)] == list(answer.token_ids)
