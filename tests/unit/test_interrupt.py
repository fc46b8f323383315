"""Ctrl-C at any microsecond of a decode: the model, torch and this process are as before."""

from __future__ import annotations

import copy
import random
import signal
import time

import pytest
import torch

import ckcontrol as ck
from ckcontrol.decoding.prompts import build_pair
from ckcontrol.decoding.streams import running_streams
from ckcontrol.eval.running.fan import fan

ASK = ("Who?", ["It was he."])
INTERRUPTS = 2000
CONTROLS = [ck.Control("ck-plug", alpha=0.1, gate=3.0), ck.Control("dial", alpha=0.7), ck.Control("off")]


class Counting:
    """A streamer that counts what it gets."""

    def __init__(self, at=None):
        self.tokens = self.ended = 0
        self.at = at

    def put(self, value):
        self.tokens += 1
        if self.at is not None:
            self.at(self.tokens)

    def end(self):
        self.ended += 1


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def state(model):
    """What a run changes while it runs."""
    return (
        model.config._attn_implementation,
        hooks(model),
        [name for name, module in model.named_modules() if "forward" in module.__dict__],
        torch._C._len_torch_function_stack(),
        torch._C._len_torch_dispatch_stack(),
        torch.is_grad_enabled(),
        running_streams(),
    )


def ask(model, tokenizer, control, streamer=None):
    return ck.generate(
        model, tokenizer, *ASK, control=control, max_new_tokens=2, trace=False, streamer=streamer,
        template=ck.PromptTemplate(instruction="", intro="", chat=False),
    ).token_ids  # fmt: skip


@torch.no_grad()
def logits(model):
    """What the model says by itself, of two rows, one of which is padded."""
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, :4] = 0
    return model(torch.arange(18).view(2, 9) + 65, attention_mask=mask, use_cache=False).logits


# An interrupt may arrive in a callback of the garbage collector too (hypothesis has one), where Python only reports it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_two_thousand_interrupts_leave_everything_as_it_was(llama):
    model, tokenizer = llama
    wanted = [ask(model, tokenizer, control) for control in CONTROLS]
    before, alone, draw = state(model), logits(model), random.Random(1)
    took = []
    for control in CONTROLS:
        begun = time.perf_counter()
        ask(model, tokenizer, control)
        took.append(time.perf_counter() - begun)
    assert before == ("sdpa", hooks(model), [], 0, 0, True, None)

    def interrupt(number, frame):
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, interrupt)
    arrived = asked = 0
    try:
        while arrived < INTERRUPTS:
            asked += 1
            assert asked < 4 * INTERRUPTS, "the interrupts must arrive while a decode runs"
            which = draw.choice([0, 0, 1, 2])
            streamer = Counting()
            try:
                signal.setitimer(signal.ITIMER_REAL, max(1e-6, draw.random() * took[which]))
                ask(model, tokenizer, CONTROLS[which], streamer)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                arrived += 1
            assert state(model) == before, f"after {arrived} interrupts"
            assert not streamer.tokens or streamer.ended
            assert torch.equal(logits(model), alone), f"after {arrived} interrupts"
            if asked % 20 == 0:
                assert [ask(model, tokenizer, control) for control in CONTROLS] == wanted
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_interrupts_of_an_evaluation_leave_everything_as_it_was(llama):
    """`fan` is the other door to the two streams; it has the ending that `generate` has."""
    model, tokenizer = llama
    options = ck.GenerateOptions(max_new_tokens=2, do_sample=True, seed=1, repetition_penalty=1.2)
    pair = build_pair(tokenizer, *ASK)

    def answers():
        made = fan(
            model, [pair], [c.policy() for c in CONTROLS], options=options, ends=[], pad=0, vocab_size=len(tokenizer)
        )
        return [answer.ids for answer in made[0]]

    wanted, before, draw = answers(), state(model), random.Random(2)
    begun = time.perf_counter()
    assert answers() == wanted
    took = time.perf_counter() - begun

    def interrupt(number, frame):
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, interrupt)
    arrived = asked = 0
    try:
        while arrived < INTERRUPTS // 8:
            asked += 1
            assert asked < INTERRUPTS // 2, "the interrupts must arrive while a decode runs"
            try:
                signal.setitimer(signal.ITIMER_REAL, max(1e-6, draw.random() * took))
                answers()
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                arrived += 1
            assert state(model) == before, f"after {arrived} interrupts"
            if asked % 20 == 0:
                assert answers() == wanted
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


@pytest.mark.parametrize("where", [1, 2, 3])
def test_a_copy_made_while_a_run_goes_is_an_ordinary_model(llama, where):
    """`copy.deepcopy(model)` in a streamer: the copy has its own attention, and answers as the model does."""
    model, tokenizer = llama
    steer, copies = CONTROLS[0], []
    ask(model, tokenizer, steer, Counting(lambda put: put == where and copies.append(copy.deepcopy(model))))
    assert copies[0].config._attn_implementation == "sdpa"
    for control in CONTROLS:
        assert ask(copies[0], tokenizer, control) == ask(model, tokenizer, control)
    assert copies[0].config._attn_implementation == "sdpa"


@pytest.mark.parametrize("control", CONTROLS, ids=repr)
def test_a_copy_made_within_a_forward_is_repaired_when_it_is_asked(llama, control):
    model, tokenizer = llama
    copies = []

    def copied(module, args, output):
        if running_streams() == ("contextual", "parametric") and not copies:
            copies.append(None)  # a copy has the hook too
            copies[0] = copy.deepcopy(model)

    hook = model.model.layers[0].register_forward_hook(copied)
    try:
        ask(model, tokenizer, CONTROLS[0])
    finally:
        hook.remove()
    assert copies[0].config._attn_implementation == "ckcontrol_pair_sdpa", "the case must be able to fail"
    assert ask(copies[0], tokenizer, control) == ask(model, tokenizer, control)
    assert copies[0].config._attn_implementation == "sdpa"


def test_a_leftover_of_two_interrupts_is_cleared_by_the_next_run(llama):
    """A second Ctrl-C can stop the clearing itself; a run that starts then mends what the last one left."""
    model, tokenizer = llama
    wanted = [ask(model, tokenizer, control) for control in CONTROLS]
    for control, answer in zip(CONTROLS, wanted, strict=True):
        model.config._attn_implementation_internal = "ckcontrol_pair_sdpa"
        assert ask(model, tokenizer, control) == answer
        assert model.config._attn_implementation == "sdpa"
