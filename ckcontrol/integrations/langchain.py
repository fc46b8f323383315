"""The model of a LangChain or LangGraph program, steered between the chain's passages and memory.

    from ckcontrol.integrations.langchain import ChatCK

    model = ChatCK("demo", control=ck.Control(alpha=0.3))  # or the address of ckcontrol serve

Knows LangChain's chat models; how passages are found is in passages_in.py, who answers in engine.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from ..errors import MissingExtra
from .engine import Engine, Reply

try:
    from langchain_core.language_models.chat_models import BaseChatModel
    from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, convert_to_openai_messages
    from langchain_core.messages.ai import UsageMetadata
    from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
    from pydantic import PrivateAttr
except ImportError as error:
    raise MissingExtra("langchain-core", "frameworks") from error

__all__ = ["ChatCK"]


class ChatCK(BaseChatModel):  # type: ignore[misc]
    """A chat model of LangChain that steers.

    Invoke, stream, batch and their async twins; a batch answers side by side. No tools. Passages are those that the
    chain writes into its prompt (docs/chains.md says where they are looked for), or those of ``passages=docs`` in
    ``invoke`` and ``bind``; ``control=`` and ``stop=`` likewise hold for one call. The answer's
    ``response_metadata["ck"]`` holds method, alpha, the number of passages and, per sentence, those that it cites.

    Args:
        model: A name or folder for `ckcontrol.load`, the pair it returns, or the address of a server (``http://...``).
        control: Policy and position; None is the unmodified model.
        context: Where this chain puts passages: patterns with a group ``passages``, tried before the known ones.
        template_kwargs: Variables of the chat template.
        api_key: Of the server.
        **options: Fields of `GenerateOptions`, and those of LangChain's `BaseChatModel`.

    Raises:
        ControlError: A bad option.
        ModelUnavailable: A name that cannot be loaded.
        MissingExtra: langchain-core is not installed; or a server without the package ``openai``.
    """

    _engine: Engine = PrivateAttr()

    def __init__(self, model: Any, **options: Any) -> None:
        theirs = {name: options.pop(name) for name in [*options] if name in type(self).model_fields}
        super().__init__(**theirs)
        self._engine = Engine(model, **options)

    @property
    def _llm_type(self) -> str:
        return "ckcontrol"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        engine = self._engine
        return {"model": engine.name, "control": engine.control.to_dict(), "options": engine.options.to_dict()}

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **how: Any
    ) -> ChatResult:
        return _result(self._engine.ask(_openai(messages), stop=stop, **how))

    async def _agenerate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **how: Any
    ) -> ChatResult:
        return _result(await self._engine.aask(_openai(messages), stop=stop, **how))

    def _stream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **how: Any
    ) -> Iterator[ChatGenerationChunk]:
        for piece in self._engine.stream(_openai(messages), stop=stop, **how):
            chunk = _chunk(piece)
            if run_manager and chunk.text:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    async def _astream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **how: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        async for piece in self._engine.astream(_openai(messages), stop=stop, **how):
            chunk = _chunk(piece)
            if run_manager and chunk.text:
                await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk


def _openai(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    made = convert_to_openai_messages(messages)
    return [{name: value for name, value in message.items() if name != "name"} for message in made]


def _told(reply: Reply) -> dict[str, Any]:
    told: dict[str, Any] = {"response_metadata": {"ck": reply.told, "finish_reason": reply.reason}}
    if reply.tokens is not None:
        asked, answered = reply.tokens
        told["usage_metadata"] = UsageMetadata(
            input_tokens=asked, output_tokens=answered, total_tokens=asked + answered
        )
    return told


def _result(reply: Reply) -> ChatResult:
    return ChatResult(generations=[ChatGeneration(message=AIMessage(content=reply.text, **_told(reply)))])


def _chunk(piece: str | Reply) -> ChatGenerationChunk:
    if isinstance(piece, str):
        return ChatGenerationChunk(message=AIMessageChunk(content=piece))
    return ChatGenerationChunk(message=AIMessageChunk(content="", chunk_position="last", **_told(piece)))
