"""`agenerate` and `astream`: the answers of `generate`; who leaves ends decoding, its streamer and its thread."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

import ckcontrol as ck
from ckcontrol.errors import CKError, ControlError, PromptError

from .test_streamer_ends import Ends

ASK = ("Who did it?", ["It was the postman."])
LONG = 4000 - 200  # tokens that nobody here waits for
CONTROLS = [ck.Control("off"), ck.Control("cad", alpha=0.2), ck.Control("dial", alpha=0.8)]


def ours() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "ckcontrol"]


class Counts(Ends):
    """Tells when the first token of the answer has come."""

    def __init__(self):
        super().__init__()
        self.first = threading.Event()

    def put(self, value):
        super().put(value)
        if self.puts > 1:
            self.first.set()


async def until(flag: threading.Event) -> None:
    while not flag.is_set():
        await asyncio.sleep(0.01)


def test_the_answers_are_generates_and_run_beside_each_other(llama):
    async def all_at_once():
        return await asyncio.gather(
            *(ck.agenerate(*llama, *ASK, control=control, max_new_tokens=6) for control in CONTROLS),
            ck.agenerate(*llama, ["Who?", "When?"], [["He."], []], control=CONTROLS[1], max_new_tokens=6),
        )

    *single, batch = asyncio.run(all_at_once())
    for control, answer in zip(CONTROLS, single, strict=True):
        assert answer.to_dict() == ck.generate(*llama, *ASK, control=control, max_new_tokens=6).to_dict()
    alone = ck.generate(*llama, ["Who?", "When?"], [["He."], []], control=CONTROLS[1], max_new_tokens=6)
    assert [a.token_ids for a in batch] == [a.token_ids for a in alone] and not ours()


@pytest.mark.parametrize("control", CONTROLS, ids=repr)
def test_the_pieces_of_a_stream_are_its_text(llama, control):
    plain = ck.generate(*llama, *ASK, control=control, max_new_tokens=24)
    stop = plain.text[len(plain.text) // 2 :][:2]

    async def stream(**more):
        made = ck.astream(*llama, *ASK, control=control, max_new_tokens=24, **more)
        return [piece async for piece in made], made.answer

    for more in ({}, {"stop": (stop,)}, {"template": ck.PromptTemplate(instruction="")}):
        pieces, answer = asyncio.run(stream(**more))
        expected = ck.generate(*llama, *ASK, control=control, max_new_tokens=24, **more)
        assert answer.to_dict() == expected.to_dict()
        assert "".join(pieces) == expected.text
    assert not ours()


def test_a_stream_of_a_conversation_comes_as_it_is_written(llama):
    """A piece is there while the thread still decodes."""

    async def stream():
        made = ck.astream(*llama, passages=ASK[1], messages=[{"role": "user", "content": ASK[0]}], max_new_tokens=LONG)
        async for piece in made:
            return piece, made.answer, len(ours())

    piece, answer, running = asyncio.run(stream())
    assert piece and answer is None and running == 1 and not ours()


@pytest.mark.parametrize("control", CONTROLS[:2], ids=repr)
def test_a_cancelled_task_ends_decoding_its_streamer_and_its_thread(llama, control):
    streamer = Counts()

    async def leave():
        task = asyncio.ensure_future(
            ck.agenerate(*llama, *ASK, control=control, max_new_tokens=LONG, streamer=streamer, trace=False)
        )
        await until(streamer.first)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not ours() and streamer.ended == 1 and streamer.puts < LONG

    asyncio.run(leave())


def test_drafts_end_too_when_nobody_waits(llama):
    entered = threading.Event()

    def tells(ids, scores):
        entered.set()
        return scores

    async def leave():
        asked = ck.agenerate(*llama, *ASK, control=CONTROLS[2], max_new_tokens=LONG, processors=[Tells(tells)])
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asked, 0.5)
        assert not ours()

    asyncio.run(leave())
    assert entered.is_set()


class Tells:
    def __init__(self, tells):
        self.tells = tells

    def __call__(self, ids, scores):
        return self.tells(ids, scores)

    def __deepcopy__(self, memo):
        return self


def test_leaving_the_loop_or_cancelling_its_task_ends_the_thread(llama):
    async def left():
        async for _ in ck.astream(*llama, *ASK, max_new_tokens=LONG):
            break
        for _ in range(3000):
            if not ours():
                return True
            await asyncio.sleep(0.01)
        return False

    async def cancelled():
        async def reads():
            async for _ in ck.astream(*llama, *ASK, max_new_tokens=LONG):
                arrived.set()

        arrived = threading.Event()
        task = asyncio.ensure_future(reads())
        await until(arrived)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return not ours()

    assert asyncio.run(left()) and asyncio.run(cancelled())


def test_an_event_loop_that_is_closed_leaves_no_thread(llama):
    """`asyncio.run` cancels what is left when its main function returns."""
    streamer = Counts()

    async def main():
        task = asyncio.ensure_future(ck.agenerate(*llama, *ASK, max_new_tokens=LONG, streamer=streamer))
        await until(streamer.first)
        return task

    assert asyncio.run(main()).cancelled() and not ours() and streamer.ended == 1


def test_errors_are_raised_where_they_are_awaited(llama):
    async def asked(**given):
        streamer = Ends()
        with pytest.raises(CKError) as told:
            await ck.agenerate(*llama, **{"question": "Who?", "streamer": streamer} | given)
        assert streamer.ended == 1
        with pytest.raises(type(told.value)):
            async for _ in ck.astream(*llama, **{"question": "Who?"} | given):
                pass
        return told.value

    assert isinstance(asyncio.run(asked(question="")), PromptError)
    assert isinstance(asyncio.run(asked(temperature=-1)), ControlError)
    assert isinstance(asyncio.run(asked(criteria=5)), ControlError)
    assert not ours()
    for given in ({"question": ["a", "b"]}, {"messages": [[]]}, {"question": "a", "streamer": Ends()}):
        with pytest.raises(ControlError, match="agenerate"):
            ck.astream(*llama, **given)


def test_the_import_stays_light():
    code = "import ckcontrol, sys; print('asyncio' in sys.modules, 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False False\n"
