"""`generate` for an event loop: `agenerate` awaits answers, `astream` hands the text of one on while it is written.

The blocking loop runs in a thread of its own for each call. Who leaves (a cancelled task, a left ``async for``) sets a
flag that a stopping criterion reads, so decoding ends at the next token and the thread with it. Knows threads, event
loops and `generate`; knows no model.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextvars import copy_context
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from ..answer import Answer
from ..errors import ControlError
from .generate import generate
from .options import GenerateOptions
from .refusals import eos_ids
from .token_texts import TextSoFar

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["AnswerStream", "agenerate", "astream"]

P = ParamSpec("P")
R = TypeVar("R")


class _Left:
    """A stopping criterion: every row ends once nobody waits for it."""

    any_row = True

    def __init__(self) -> None:
        self.flag = threading.Event()

    def __call__(self, input_ids: Tensor, scores: Any = None, **_: Any) -> Tensor:
        return torch.full((len(input_ids),), self.flag.is_set(), dtype=torch.bool, device=input_ids.device)

    def __deepcopy__(self, memo: Any) -> _Left:
        return self  # of every draft too


async def _in_a_thread(work: Callable[..., R], keywords: dict[str, Any]) -> R:
    """Return what `work` returns; a cancellation is passed on when the thread has ended."""
    left = _Left()
    given = keywords.get("criteria", ())
    if isinstance(given, (list, tuple)):  # what is none is refused where the others are
        keywords = {**keywords, "criteria": [*given, left]}
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    made: list[R] = []
    failed: list[BaseException] = []

    def tell() -> None:
        if not done.done():
            done.set_result(None)

    def run() -> None:
        try:
            made.append(work(**keywords))
        except BaseException as error:  # whatever it is, it is raised where it is awaited
            failed.append(error)
        try:
            loop.call_soon_threadsafe(tell)
        except RuntimeError:  # the event loop was closed: nobody waits
            pass

    thread = threading.Thread(target=copy_context().run, args=(run,), name="ckcontrol")
    thread.start()
    try:
        await asyncio.shield(done)
    except asyncio.CancelledError:
        left.flag.set()
        while not done.done():  # a second cancellation changes nothing
            try:
                await asyncio.shield(done)
            except asyncio.CancelledError:
                continue
        raise
    finally:
        if done.done() and not done.cancelled():
            thread.join()
    if failed:
        raise failed[0]
    return made[0]


def _awaited(function: Callable[P, R]) -> Callable[P, Awaitable[R]]:
    @wraps(function)
    async def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return await _in_a_thread(partial(function, *args), kwargs)

    call.__module__ = __name__
    call.__doc__ = """Answer as `generate` does, with its arguments, without blocking the event loop.

    Each call decodes in a thread of its own; a list of questions in one call is faster than many calls. Cancelling the
    task ends decoding at the next token, then the thread; a `streamer` is ended as ever.

    Raises:
        CKError: As `generate`.

    Example:
        >>> answer = await agenerate(model, tokenizer, "Who?", ["He did."])  # doctest: +SKIP
    """
    return call


agenerate = _awaited(generate)


class AnswerStream:
    """The text of one answer, piece by piece: ``async for piece in stream``. Made by `astream`.

    Attributes:
        answer: The `Answer`, once the stream has come to its end; None before, and where it was left.
    """

    def __init__(self, question: Sequence[Any], keywords: dict[str, Any]) -> None:
        self.answer: Answer | None = None
        self._question, self._keywords = question, keywords

    async def __aiter__(self) -> AsyncIterator[str]:
        """Decode, and yield every piece of text as it is written; once per iteration, with the arguments given.

        Raises:
            CKError: As `generate`.
        """
        self.answer = None
        model, tokenizer, *_ = self._question
        chosen = GenerateOptions.one_of(
            self._keywords.get("options"),
            {name: value for name, value in self._keywords.items() if name in GenerateOptions.__dataclass_fields__},
        )
        ends = {*eos_ids(model, tokenizer), *chosen.stop_token_ids}
        queue: asyncio.Queue[list[int] | None] = asyncio.Queue()
        streamer = _Hand(asyncio.get_running_loop(), queue)
        work = partial(generate, *self._question)
        task = asyncio.ensure_future(_in_a_thread(work, {**self._keywords, "streamer": streamer}))
        task.add_done_callback(lambda _: queue.put_nowait(None))
        text = TextSoFar(tokenizer, chosen.stop, ends, strip=True)
        try:
            while (new := await queue.get()) is not None:
                if piece := text.feed(new):
                    yield piece
            answer = await task
            if rest := text.feed(last=True):
                yield rest
            self.answer = answer
        finally:
            task.cancel()
            await asyncio.wait([task])


def astream(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    question: str | None = None,
    passages: Sequence[Any] | None = None,
    **keywords: Any,
) -> AnswerStream:
    """Stream one answer: iterate over what is returned with ``async for`` to get its text as it is written.

    The pieces put together are what the model wrote, a thought included, without outer white space and without what a
    stop text ended; `AnswerStream.answer` is the `Answer` afterwards. Methods that choose between whole answers yield
    once they have chosen. Leaving the loop, or cancelling its task, ends decoding at the next token.

    Args:
        model: As for `generate`.
        tokenizer: Likewise.
        question: One question; or give ``messages=`` of one conversation.
        passages: Its passages.
        **keywords: The rest of `generate`'s, but no streamer.

    Raises:
        ControlError: A list of questions, or a streamer.

    Example:
        >>> async for piece in (stream := astream(model, tokenizer, "Who?", ["He did."])):  # doctest: +SKIP
        ...     print(piece, end="", flush=True)
    """
    messages = keywords.get("messages")
    if isinstance(question, (list, tuple)) or (messages and isinstance(messages[0], (list, tuple))):
        raise ControlError("a stream is of one answer, and a list was given.", "Use agenerate for a batch.")
    if keywords.get("streamer") is not None:
        raise ControlError("astream was given a streamer, which it is itself.", "Use agenerate(streamer=...).")
    return AnswerStream((model, tokenizer, question, passages), keywords)


class _Hand:
    """A transformers streamer that hands tokens to an event loop; skips the prompt, which comes first."""

    def __init__(self, loop: asyncio.AbstractEventLoop, queue: asyncio.Queue[list[int] | None]) -> None:
        self._loop, self._queue, self._prompt = loop, queue, True

    def put(self, value: Tensor) -> None:
        if self._prompt:
            self._prompt = False
        else:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, value.reshape(-1).tolist())

    def end(self) -> None:
        """The future of the call says so."""
