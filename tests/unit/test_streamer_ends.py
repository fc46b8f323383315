"""A streamer is ended exactly once on every exit: whoever reads it never waits for ever."""

from __future__ import annotations

import gc
import threading

import pytest
import torch
from transformers import TextIteratorStreamer

import ckcontrol as ck
from ckcontrol.errors import CKError

ASK = ("Who did it?", ["It was the postman."])
REFUSED = {
    "an empty question": (("", ["p"]), {}),
    "no questions": (([], []), {}),
    "lists of two lengths": ((["a", "b"], [["p"]]), {}),
    "passages as a string": (("a", "p"), {}),
    "too long": (("a " * 5000, ["p"]), {}),
    "a control that is none": (ASK, {"control": "dial"}),
    "controls of two numbers": ((["a"], [["p"]]), {"control": [ck.Control(), ck.Control()]}),
    "an option out of range": (ASK, {"temperature": -1.0}),
    "an option that is none": (ASK, {"temprature": 1.0}),
}


class Ends:
    """Counts how often it is ended."""

    def __init__(self):
        self.puts = self.ended = 0

    def put(self, value):
        self.puts += 1

    def end(self):
        self.ended += 1


@pytest.mark.parametrize("what", REFUSED)
def test_a_refused_question_ends_its_streamer(llama, what):
    asked, keywords = REFUSED[what]
    streamer = Ends()
    with pytest.raises(CKError):
        ck.generate(*llama, *asked, streamer=streamer, **keywords)
    assert (streamer.puts, streamer.ended) == (0, 1)


def test_a_missing_argument_ends_it_too(llama):
    streamer = Ends()
    with pytest.raises(CKError, match="question is missing"):
        ck.generate(*llama, streamer=streamer)
    assert streamer.ended == 1


def test_a_reader_in_another_thread_goes_on_after_a_refusal(llama):
    streamer = TextIteratorStreamer(llama[1], skip_prompt=True, timeout=20)

    def ask():
        with pytest.raises(CKError):
            ck.generate(*llama, "", streamer=streamer)

    asking = threading.Thread(target=ask)
    asking.start()
    assert "".join(streamer) == ""
    asking.join()


@pytest.mark.parametrize(
    "control", [ck.Control("off"), ck.Control("ck-plug", alpha=0.2), ck.Control("dial", alpha=0.7)], ids=repr
)
def test_an_answer_ends_it_once_and_it_may_be_used_again(llama, control):
    streamer = Ends()
    for times in (1, 2):
        ck.generate(*llama, *ASK, control=control, max_new_tokens=3, streamer=streamer)
        assert streamer.ended == times


def loop_asked(llama, streamer, par_rows=1, control=None, **keywords):
    model, tokenizer = llama
    ids = torch.tensor([ck.build_pair(tokenizer, *ASK).contextual])
    loop = ck.decoding_loop(control, parametric_ids=ids.repeat(par_rows, 1), streamer=streamer)
    more = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 256} | keywords
    return model.generate(ids, attention_mask=torch.ones_like(ids), custom_generate=loop, **more)


@pytest.mark.parametrize(
    "keywords",
    [{"par_rows": 2}, {"num_beams": 2}, {"max_new_tokens": 9999}, {"control": [ck.Control(), ck.Control()]}],
    ids=str,
)
def test_a_loop_that_refuses_ends_its_streamer(llama, keywords):
    streamer = Ends()
    with pytest.raises(CKError):
        loop_asked(llama, streamer, **keywords)
    gc.collect()
    assert (streamer.puts, streamer.ended) == (0, 1)


def test_a_loop_that_is_never_reached_ends_its_streamer_when_it_is_forgotten(llama):
    """transformers refuses some calls by itself; the reader is told when nobody can call the loop any more."""
    streamer = Ends()
    try:
        loop_asked(llama, streamer, max_new_tokens=-1)
    except ValueError:
        pass
    gc.collect()
    assert (streamer.puts, streamer.ended) == (0, 1)
    with pytest.raises(CKError):
        ck.decoding_loop(parametric_ids=torch.zeros(1, 3), penalty_scope="prompt", streamer=streamer)
    assert streamer.ended == 2


def test_a_loop_ends_it_once_for_each_call(llama):
    streamer = Ends()
    loop_asked(llama, streamer)
    gc.collect()
    assert streamer.ended == 1
