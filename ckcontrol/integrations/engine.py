"""What answers for every framework: a model in this process, or a server of ckcontrol named by its address.

Knows `generate` and its async twins, OpenAI's client for a server, and how passages are found in messages; knows no
framework.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from ..control import Control, check_control
from ..decoding.options import GenerateOptions
from ..decoding.prompts import passage_text
from ..errors import ControlError, MissingExtra, ServingError
from .passages_in import CONTEXT, Parted, part

if TYPE_CHECKING:
    from ..answer import Answer

__all__ = ["Engine", "Reply"]

log = logging.getLogger("ckcontrol.integrations")


class Reply(NamedTuple):
    """An answer, as every framework needs it.

    Attributes:
        text: What was answered.
        reason: Why it ended: ``stop`` or ``length``.
        told: ``ck`` of a server's reply, or its like: method, alpha, ``cited`` (see `Answer.cited`), ``passages``.
        tokens: Of the prompt, and of the answer; None where a server does not say.
    """

    text: str
    reason: str
    told: dict[str, Any]
    tokens: tuple[int, int] | None


class Engine:
    """One model.

    Args:
        model: What `ckcontrol.load` takes (a name or a folder), the pair it returns, or the address of a server
            (``http://...``) that `ckcontrol serve` or `serve-vllm` started.
        control: Policy and position; None is the unmodified model.
        context: Where chains put passages: patterns of `re` with a group ``passages``, tried before `CONTEXT`.
        template_kwargs: Variables of the chat template.
        api_key: Of the server.
        **options: Fields of `GenerateOptions`.

    Raises:
        ControlError: A bad option.
        ModelUnavailable: A name that cannot be loaded.
        MissingExtra: A server, without the package ``openai``.
    """

    def __init__(
        self,
        model: Any,
        *,
        control: Control | None = None,
        context: Sequence[str] = (),
        template_kwargs: Mapping[str, Any] | None = None,
        api_key: str | None = None,
        **options: Any,
    ) -> None:
        self.control, self.options = check_control(control), GenerateOptions.from_kwargs(options)
        self.context = (*([context] if isinstance(context, str) else context), *CONTEXT)
        self.template_kwargs, self.name, self._warned = template_kwargs, str(model)[:80], False
        self._server: dict[str, Any] | None = None
        self._served = ""  # what the server calls its model, once it was asked
        if isinstance(model, str) and model.startswith(("http://", "https://")):
            base = model.rstrip("/")
            base = base if base.endswith("/v1") else f"{base}/v1"
            self._server = {"base_url": base, "api_key": api_key or "none"}
            with _server_errors():
                pass
        elif isinstance(model, str):
            from ..models.load import load

            self._pair = load(model)
        else:
            if not isinstance(model, (tuple, list)) or len(model) != 2:
                raise ControlError("model is no name and no pair.", "Pass what ckcontrol.load returns, or an address.")
            self._pair, self.name = (model[0], model[1]), type(model[0]).__name__

    @property
    def window(self) -> int | None:
        """Longest prompt and answer together, in tokens; None where it is not known."""
        if self._server is not None:
            return None
        from ..decoding.refusals import position_limit

        return position_limit(self._pair[0])

    def ask(self, messages: Sequence[Mapping[str, Any]], **how: Any) -> Reply:
        """Answer; `how` as for `stream`."""
        parted, control, options = self._read(messages, **how)
        if self._server is not None:
            with _server_errors() as openai, openai.OpenAI(**self._server) as client:
                self._served = self._served or client.models.list().data[0].id
                body = self._body(parted, control, options)
                return _reply(client.chat.completions.create(model=self._served, **body))
        from ..decoding.generate import generate

        return _told(generate(*self._pair, **self._asked(parted, control, options)))

    async def aask(self, messages: Sequence[Mapping[str, Any]], **how: Any) -> Reply:
        """Answer without blocking the event loop; `how` as for `stream`."""
        parted, control, options = self._read(messages, **how)
        if self._server is not None:
            with _server_errors() as openai:
                async with openai.AsyncOpenAI(**self._server) as client:
                    self._served = self._served or (await client.models.list()).data[0].id
                    body = {"model": self._served, **self._body(parted, control, options)}
                    return _reply(await client.chat.completions.create(**body))
        from ..decoding.asynchronous import agenerate

        return _told(await agenerate(*self._pair, **self._asked(parted, control, options)))

    async def astream(self, messages: Sequence[Mapping[str, Any]], **how: Any) -> AsyncIterator[str | Reply]:
        """Yield the answer piece by piece, then the `Reply`; `how` as for `stream`."""
        parted, control, options = self._read(messages, **how)
        if self._server is None:
            from ..decoding.asynchronous import astream

            stream = astream(*self._pair, **self._asked(parted, control, options))
            async with aclosing(stream.__aiter__()) as pieces:  # type: ignore[type-var]
                async for piece in pieces:
                    yield piece
            yield _told(stream.answer)
            return
        with _server_errors() as openai:
            async with openai.AsyncOpenAI(**self._server) as client:
                self._served = self._served or (await client.models.list()).data[0].id
                body = {"model": self._served, **self._body(parted, control, options)}
                text, reason, told = "", "stop", dict[str, Any]()
                async with await client.chat.completions.create(stream=True, **body) as events:
                    async for event in events:
                        told = getattr(event, "ck", None) or told
                        choice = event.choices[0] if event.choices else None
                        reason = (choice and choice.finish_reason) or reason
                        if choice and choice.delta.content:
                            text += choice.delta.content
                            yield choice.delta.content
                yield Reply(text, reason, told, None)

    def stream(self, messages: Sequence[Mapping[str, Any]], **how: Any) -> Iterator[str | Reply]:
        """Yield the answer piece by piece, then the `Reply`. Who leaves ends decoding at the next token.

        Args:
            messages: In the form of OpenAI's messages.
            **how: ``passages`` of this call, ``control``, ``stop``: in place of what was found, and of the object's.
        """
        pieces: queue.Queue[Any] = queue.Queue()
        left = threading.Event()

        async def pump() -> None:
            async with aclosing(self.astream(messages, **how)) as stream:  # type: ignore[type-var]
                async for piece in stream:
                    pieces.put(piece)
                    if left.is_set():
                        return

        def run() -> None:
            try:
                asyncio.run(pump())
                pieces.put(None)
            except BaseException as error:  # whatever it is, it is raised where the pieces are read
                pieces.put(error)

        thread = threading.Thread(target=run, name="ckcontrol")
        thread.start()
        try:
            while (piece := pieces.get()) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            left.set()
            thread.join()

    # --- what is asked ---

    def _read(
        self, messages: Sequence[Mapping[str, Any]], *, passages: Any = None, control: Any = None, stop: Any = None
    ) -> tuple[Parted, Control, GenerateOptions]:
        parted = part(messages, passages, self.context)
        control = self.control if control is None else check_control(control)
        if not parted.passages and passages is None and control.method != "off" and not self._warned:
            self._warned = True
            log.warning("No passages were found in the messages, so nothing is steered; see docs/chains.md.")
        options = GenerateOptions.from_kwargs({"stop": tuple(stop)}, self.options) if stop else self.options
        return parted, control, options

    def _asked(self, parted: Parted, control: Control, options: GenerateOptions) -> dict[str, Any]:
        template = {"template": parted.template, "template_kwargs": self.template_kwargs, "truncate": "passages"}
        return {**parted._asdict(), **template, "control": control, "options": options}

    def _body(self, parted: Parted, control: Control, options: GenerateOptions) -> dict[str, Any]:
        """Return the body of a request that a server answers as `generate` would."""
        more: dict[str, Any] = {"top_k": options.top_k, "repetition_penalty": options.repetition_penalty}
        if self.template_kwargs:
            more["chat_template_kwargs"] = dict(self.template_kwargs)
        if parted.passages:
            wording = parted.template.to_dict()
            names = ("instruction", "intro", "passage", "question", "answer")
            told = {name: value for name, value in control.to_dict().items() if value is not None}
            more["ck"] = told | {
                "passages": [passage_text(f"passage {i + 1}", one) for i, one in enumerate(parted.passages)],
                "template": {name: wording[name] for name in names},
            }
        body: dict[str, Any] = {"messages": parted.messages, "max_tokens": options.max_new_tokens, "extra_body": more}
        body |= {"temperature": options.temperature if options.do_sample else 0, "top_p": options.top_p}
        body |= {"seed": options.seed} if options.seed is not None else {}
        return body | ({"stop": list(options.stop)} if options.stop else {})


@contextmanager
def _server_errors() -> Iterator[Any]:
    """Give OpenAI's client; what a server refuses, and that there is none, is an error of this library."""
    try:
        import openai
    except ImportError:
        raise MissingExtra("openai", "frameworks") from None
    try:
        yield openai
    except openai.APIStatusError as error:
        told = error.body.get("message") if isinstance(error.body, dict) else None
        raise ServingError(f"the server answers {error.status_code}: {told or error.message}") from error
    except openai.OpenAIError as error:
        raise ServingError(f"the server cannot be reached: {error}", "Is ckcontrol serve running there?") from error


def _told(answer: Answer | None) -> Reply:
    """Return what an answer of this process says, in the words of a server's reply."""
    if answer is None:
        raise ControlError("the stream ended without an answer.")
    told = {**answer.control.to_dict(), "passages": len(answer.passages)}
    told["cited"] = [sentence.to_dict() for sentence in answer.cited]
    return Reply(answer.text, answer.finish_reason, told, (answer.context_tokens, len(answer.token_ids)))


def _reply(made: Any) -> Reply:
    choice, usage = made.choices[0], made.usage
    counts = (usage.prompt_tokens, usage.completion_tokens) if usage else None
    return Reply(choice.message.content or "", choice.finish_reason, getattr(made, "ck", None) or {}, counts)
