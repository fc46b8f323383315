"""N streams side by side against N separate forwards without a cache, for every family and kinds outside."""

from __future__ import annotations

import pytest
import torch

from ckcontrol.decoding.inputs import stream_of
from ckcontrol.decoding.pair_cache import can_share_forward
from ckcontrol.decoding.source_streams import SourceStreams, slots
from ckcontrol.decoding.sources import build_sources
from ckcontrol.models.tiny import FAMILIES, tiny_tokenizer
from tests.kinds import build

QUESTIONS = ["Who?", "What is the name of the longest river of all?", "Where did it begin?"]
PASSAGES = [["It was the postman.", "The baker. " * 8, "Nobody."], ["Short."], []]
OUTSIDE = ["opt", "mamba", "bloom"]


@pytest.fixture(params=[*FAMILIES, *OUTSIDE])
def any_model(request, tiny):
    return tiny(request.param) if request.param in FAMILIES else (build(request.param), tiny_tokenizer())


def prompts_of(tokenizer):
    return [build_sources(tokenizer, q, p) for q, p in zip(QUESTIONS, PASSAGES, strict=True)]


def streams_of(model, prompts, **more):
    rows = [[one.ids[i or 0] for one, i in zip(prompts, places, strict=True)] for places in slots(prompts)]
    return SourceStreams([stream_of(model, row, 256) for row in rows], reserve=8, **more)


@torch.no_grad()
def naive(model, ids):
    return model(torch.tensor([ids]), use_cache=False).logits[0].float()


def test_slots_put_memory_first_and_all_last(byte):
    assert slots(prompts_of(byte)) == [[0, 0, 0], [1, 1, None], [2, None, None], [3, None, None], [4, 1, 0]]


def test_every_stream_is_a_forward_of_its_own(any_model):
    model, tokenizer = any_model
    prompts = prompts_of(tokenizer)
    streams = streams_of(model, prompts)
    assert streams._groups[0].shares == can_share_forward(model)
    logits, said = streams.prefill(), [[], [], []]
    for step in range(4):
        for slot, places in enumerate(slots(prompts)):
            for row, place in enumerate(places):
                if place is not None:
                    wanted = naive(model, [*prompts[row].ids[place], *said[row]])[-1]
                    torch.testing.assert_close(logits[slot, row], wanted, atol=2e-3, rtol=1e-3)
        tokens = torch.tensor([65 + step, 97, 110 - step])
        for row, token in enumerate(tokens.tolist()):
            said[row].append(token)
        logits = streams.step(tokens)


def test_every_source_may_write_its_own_and_rows_are_picked(any_model):
    model, tokenizer = any_model
    prompts = prompts_of(tokenizer)
    streams = streams_of(model, prompts)
    streams.prefill()
    own = torch.arange(15).view(5, 3) + 70
    streams.step(own)
    streams.select(torch.tensor([0, 0]))
    logits = streams.step(torch.tensor([[80, 81]]).expand(5, 2))
    for slot in range(5):
        for row, token in enumerate((80, 81)):
            wanted = naive(model, [*prompts[0].ids[slot], int(own[slot, 0]), token])[-1]
            torch.testing.assert_close(logits[slot, row], wanted, atol=2e-3, rtol=1e-3)


def test_drafts_are_read_after_every_prompt(any_model):
    """Read on from the kept prompts, also after steps were made; the same numbers as forwards over prompt and draft."""
    model, tokenizer = any_model
    prompts = prompts_of(tokenizer)
    streams = streams_of(model, prompts, keep=True, vocab_size=260)
    streams.prefill()
    streams.step(torch.tensor([70, 71, 72]))
    drafts = [[72, 101, 108, 108, 111], [66], [72, 105]]
    for row in (0, 1):
        found = streams.score(row, drafts)
        for slot, places in enumerate(slots(prompts)):
            if places[row] is None:
                continue
            prompt = prompts[row].ids[places[row]]
            for draft, reading in zip(drafts, found[slot], strict=True):
                logp = naive(model, [*prompt, *draft])[len(prompt) - 1 : -1, :260].log_softmax(-1)
                own = logp.gather(-1, torch.tensor(draft)[:, None])
                torch.testing.assert_close(torch.tensor(reading.logp), own[:, 0], atol=2e-3, rtol=1e-3)
                torch.testing.assert_close(torch.tensor(reading.best), logp.amax(-1), atol=2e-3, rtol=1e-3)
                torch.testing.assert_close(torch.tensor(reading.h), -(logp.exp() * logp).sum(-1), atol=2e-3, rtol=1e-3)
                assert list(reading.rank) == (logp > own).sum(-1).tolist()


def test_two_models_side_by_side(tiny):
    from ckcontrol.models.tiny import tiny_model

    (model, tokenizer), other = tiny("llama"), tiny_model("gpt2", seed=3)[0]
    one = build_sources(tokenizer, QUESTIONS[0], PASSAGES[0][:2])
    models = [model, model, other, model]
    streams = SourceStreams(
        [stream_of(m, [ids], 256) for m, ids in zip(models, one.ids, strict=True)], reserve=4, keep=True
    )
    streams.prefill()
    logits = streams.step(torch.tensor([75]))
    for m, ids, row in zip(models, one.ids, logits, strict=True):
        torch.testing.assert_close(row[0], naive(m, [*ids, 75])[-1], atol=2e-3, rtol=1e-3)
    reading = streams.score(0, [[70, 71]])[2][0]
    logp = naive(other, [*one.ids[2], 70, 71])[-3:-1].log_softmax(-1)
    assert reading.logp == pytest.approx([float(logp[0, 70]), float(logp[1, 71])], abs=2e-3)
