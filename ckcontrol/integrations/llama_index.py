"""The model of a LlamaIndex program, steered between the passages of its query engine and memory.

    from ckcontrol.integrations.llama_index import CKLLM

    engine = index.as_query_engine(llm=CKLLM("demo", control=ck.Control(alpha=0.3)))  # or a server's address

Knows LlamaIndex's language models; how passages are found is in passages_in.py, who answers in engine.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import MissingExtra
from .engine import Engine, Reply

try:
    from llama_index.core.base.llms import types
    from llama_index.core.bridge.pydantic import PrivateAttr
    from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
    from llama_index.core.llms.llm import LLM
except ImportError as error:
    raise MissingExtra("llama-index-core", "frameworks") from error

__all__ = ["CKLLM"]


class CKLLM(LLM):  # type: ignore[misc]
    """A language model of LlamaIndex that steers.

    Chat and completion, whole or streamed, and their async twins. No tools. Passages are those that the query engine
    writes into its prompt (docs/chains.md says where they are looked for), or those of ``passages=`` in a call;
    ``control=`` and ``stop=`` likewise. ``response.raw`` holds method, alpha, the number of passages and, per sentence,
    those that it cites.

    Args:
        model: A name or folder for `ckcontrol.load`, the pair it returns, or the address of a server (``http://...``).
        control: Policy and position; None is the unmodified model.
        context: Where this chain puts passages: patterns with a group ``passages``, tried before the known ones.
        template_kwargs: Variables of the chat template.
        api_key: Of the server.
        context_window: Tokens that a query engine may fill; None asks the model, or is 4096 for a server.
        **options: Fields of `GenerateOptions`, and those of LlamaIndex's `LLM`.

    Raises:
        ControlError: A bad option.
        ModelUnavailable: A name that cannot be loaded.
        MissingExtra: llama-index-core is not installed; or a server without the package ``openai``.
    """

    _engine: Engine = PrivateAttr()
    _window: int = PrivateAttr()

    def __init__(self, model: Any, *, context_window: int | None = None, **options: Any) -> None:
        theirs = {name: options.pop(name) for name in [*options] if name in type(self).model_fields}
        super().__init__(**theirs)
        self._engine = Engine(model, **options)
        self._window = context_window or self._engine.window or 4096

    @classmethod
    def class_name(cls) -> str:
        """Return the name that LlamaIndex writes down."""
        return "CKLLM"

    @property
    def metadata(self) -> types.LLMMetadata:
        """What query engines plan their prompts by."""
        engine = self._engine
        return types.LLMMetadata(
            context_window=self._window,
            num_output=engine.options.max_new_tokens,
            is_chat_model=True,
            model_name=engine.name,
        )

    @llm_chat_callback()  # type: ignore[untyped-decorator]
    def chat(self, messages: Sequence[types.ChatMessage], **how: Any) -> types.ChatResponse:
        """Answer a conversation."""
        return _chat(self._engine.ask(_openai(messages), **_how(how)))

    @llm_chat_callback()  # type: ignore[untyped-decorator]
    async def achat(self, messages: Sequence[types.ChatMessage], **how: Any) -> types.ChatResponse:
        """Answer a conversation without blocking the event loop."""
        return _chat(await self._engine.aask(_openai(messages), **_how(how)))

    @llm_chat_callback()  # type: ignore[untyped-decorator]
    def stream_chat(self, messages: Sequence[types.ChatMessage], **how: Any) -> types.ChatResponseGen:
        """Answer a conversation piece by piece."""
        text = ""
        for piece in self._engine.stream(_openai(messages), **_how(how)):
            text += piece if isinstance(piece, str) else ""
            yield _chat(piece, text)

    @llm_chat_callback()  # type: ignore[untyped-decorator]
    async def astream_chat(self, messages: Sequence[types.ChatMessage], **how: Any) -> types.ChatResponseAsyncGen:
        """Answer a conversation piece by piece, without blocking the event loop."""

        async def pieces() -> types.ChatResponseAsyncGen:
            text = ""
            async for piece in self._engine.astream(_openai(messages), **_how(how)):
                text += piece if isinstance(piece, str) else ""
                yield _chat(piece, text)

        return pieces()

    @llm_completion_callback()  # type: ignore[untyped-decorator]
    def complete(self, prompt: str, formatted: bool = False, **how: Any) -> types.CompletionResponse:
        """Answer a prompt, as the only turn of a conversation."""
        return _completed(self.chat([types.ChatMessage(content=prompt)], **how))

    @llm_completion_callback()  # type: ignore[untyped-decorator]
    async def acomplete(self, prompt: str, formatted: bool = False, **how: Any) -> types.CompletionResponse:
        """Answer a prompt without blocking the event loop."""
        return _completed(await self.achat([types.ChatMessage(content=prompt)], **how))

    @llm_completion_callback()  # type: ignore[untyped-decorator]
    def stream_complete(self, prompt: str, formatted: bool = False, **how: Any) -> types.CompletionResponseGen:
        """Answer a prompt piece by piece."""
        yield from map(_completed, self.stream_chat([types.ChatMessage(content=prompt)], **how))

    @llm_completion_callback()  # type: ignore[untyped-decorator]
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **how: Any
    ) -> types.CompletionResponseAsyncGen:
        """Answer a prompt piece by piece, without blocking the event loop."""
        stream = await self.astream_chat([types.ChatMessage(content=prompt)], **how)

        async def pieces() -> types.CompletionResponseAsyncGen:
            async for piece in stream:
                yield _completed(piece)

        return pieces()


def _how(how: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in how.items() if name != "formatted"}


def _openai(messages: Sequence[types.ChatMessage]) -> list[dict[str, Any]]:
    return [{"role": message.role.value, "content": message.content} for message in messages]


def _chat(piece: str | Reply, text: str | None = None) -> types.ChatResponse:
    """Return an answer, or one of a stream whose text so far is `text`."""
    reply = piece if isinstance(piece, Reply) else None
    said = reply.text if reply is not None and text is None else text
    message = types.ChatMessage(role=types.MessageRole.ASSISTANT, content=said)
    raw = None if reply is None else {"ck": reply.told, "finish_reason": reply.reason}
    return types.ChatResponse(message=message, delta=piece if isinstance(piece, str) else "", raw=raw)


def _completed(made: types.ChatResponse) -> types.CompletionResponse:
    return types.CompletionResponse(text=made.message.content or "", delta=made.delta, raw=made.raw)
