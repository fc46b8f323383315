"""The chat generator of a Haystack pipeline, steered between the pipeline's documents and memory.

    from ckcontrol.integrations.haystack import CKChatGenerator

    pipeline.add_component("llm", CKChatGenerator("demo", control=ck.Control(alpha=0.3)))  # or a server's address

Knows Haystack's components; how passages are found is in passages_in.py, who answers in engine.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..control import Control
from ..errors import MissingExtra
from .engine import Engine, Reply

try:
    from haystack import Document, component, default_from_dict, default_to_dict
    from haystack.dataclasses import ChatMessage, StreamingChunk
except ImportError as error:
    raise MissingExtra("haystack-ai", "frameworks") from error

__all__ = ["CKChatGenerator"]


@component
class CKChatGenerator:
    """A chat generator of Haystack that steers.

    Whole or streamed, also in an `AsyncPipeline`. No tools. Passages are the documents that reach its input
    ``documents``, or those that the prompt builder wrote into the message (docs/chains.md says where they are looked
    for). Each reply's ``meta["ck"]`` holds method, alpha, the number of passages and, per sentence, those it cites.

    Args:
        model: A name or folder for `ckcontrol.load`, the pair it returns, or the address of a server (``http://...``).
        control: Policy and position; None is the unmodified model.
        streaming_callback: Called with a `StreamingChunk` for every piece of text.
        **options: Fields of `GenerateOptions`; ``context``, ``template_kwargs``, ``api_key`` as for
            `ckcontrol.integrations.langchain.ChatCK`.

    Raises:
        ControlError: A bad option.
        ModelUnavailable: A name that cannot be loaded.
        MissingExtra: haystack-ai is not installed; or a server without the package ``openai``.
    """

    def __init__(
        self, model: Any, control: Control | None = None, streaming_callback: Any = None, **options: Any
    ) -> None:
        self.model, self.control, self.streaming_callback, self.options = model, control, streaming_callback, options
        self._engine = Engine(model, control=control, **options)

    def to_dict(self) -> dict[str, Any]:
        """Return what a pipeline writes down: a model by name or address, and no key."""
        control = None if self.control is None else self.control.to_dict()
        options = {name: value for name, value in self.options.items() if name != "api_key"}
        model = self.model if isinstance(self.model, str) else self._engine.name
        told: dict[str, Any] = default_to_dict(self, model=model, control=control, **options)
        return told

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> CKChatGenerator:
        """Make one from what `to_dict` returned."""
        given = data["init_parameters"]
        if given.get("control") is not None:
            given["control"] = Control.from_dict(given["control"])
        made: CKChatGenerator = default_from_dict(cls, data)
        return made

    @component.output_types(replies=list[ChatMessage])  # type: ignore[untyped-decorator]
    def run(
        self,
        messages: list[ChatMessage],
        documents: list[Document] | None = None,
        streaming_callback: Any = None,
        generation_kwargs: dict[str, Any] | None = None,
    ) -> dict[str, list[ChatMessage]]:
        """Answer a conversation.

        Args:
            messages: The conversation.
            documents: Passages; None looks for them in the messages.
            streaming_callback: In place of the object's.
            generation_kwargs: ``control`` and ``stop`` of this call.
        """
        tell = streaming_callback or self.streaming_callback
        asked, how = _openai(messages), _how(documents, generation_kwargs)
        if tell is None:
            return _replies(self._engine.ask(asked, **how))
        last: Any = None
        for last in self._engine.stream(asked, **how):
            if isinstance(last, str):
                tell(StreamingChunk(content=last))
        return _replies(last)

    @component.output_types(replies=list[ChatMessage])  # type: ignore[untyped-decorator]
    async def run_async(
        self,
        messages: list[ChatMessage],
        documents: list[Document] | None = None,
        streaming_callback: Any = None,
        generation_kwargs: dict[str, Any] | None = None,
    ) -> dict[str, list[ChatMessage]]:
        """Answer a conversation without blocking the event loop; a callback is one that is awaited."""
        tell = streaming_callback or self.streaming_callback
        asked, how = _openai(messages), _how(documents, generation_kwargs)
        if tell is None:
            return _replies(await self._engine.aask(asked, **how))
        last: Any = None
        async for last in self._engine.astream(asked, **how):
            if isinstance(last, str):
                await tell(StreamingChunk(content=last))
        return _replies(last)


def _openai(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    return [message.to_openai_dict_format() for message in messages]


def _how(documents: Any, more: Mapping[str, Any] | None) -> dict[str, Any]:
    return {"passages": documents, **(more or {})}


def _replies(reply: Reply) -> dict[str, list[ChatMessage]]:
    meta: dict[str, Any] = {"ck": reply.told, "finish_reason": reply.reason}
    if reply.tokens is not None:
        meta["usage"] = dict(zip(("prompt_tokens", "completion_tokens"), reply.tokens, strict=True))
    return {"replies": [ChatMessage.from_assistant(reply.text, meta=meta)]}
