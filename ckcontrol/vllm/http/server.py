"""What the middleware asks of the vLLM server it runs in: its tokenizer, and calls into its workers.

Both are found through the state of the app (``app.state.args`` and ``app.state.engine_client``); names and paths come
from the operator's command line alone. Knows that much of vLLM's API server; knows nothing of requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...serving.json_values import shown
from ...serving.read_heads import Entries
from ...serving.replies import Refusal
from ..contract.changes import installed
from ..contract.pair_params import blocks_of_pair
from .ended_pairs import EndedPairs
from .inner_bodies import Bodies

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ...heads.directions.direction import Direction

__all__ = ["Server"]

_MODES = (None, "auto", "hf", "fast")
_RPC_SECONDS = 120.0  # a call waits for the step under way
_SHORT = 256  # characters a single token may have


class Server:
    """The server around the middleware; what is learnt is kept. One per middleware.

    Args:
        state: What vLLM keeps at ``app.state``; None, or without some attribute, where vLLM is not around.
        tokenizer: Of the served model; None loads the one that the server's arguments name.
        direction: What ``ck.direction`` leads along; None refuses it.
    """

    def __init__(
        self, state: Any, tokenizer: PreTrainedTokenizerBase | None = None, direction: Direction | None = None
    ) -> None:
        self._args = getattr(state, "args", None)
        self._client = getattr(state, "engine_client", None)
        self._tokenizer = tokenizer
        self._direction, self._leads = direction, False
        self._heads: tuple[int, int] | None = None
        self._lock = asyncio.Lock()
        self._ended = EndedPairs(partial(self.call, "ck_take_traces"))

    @property
    def parses_thoughts(self) -> bool:
        """Whether vLLM itself takes thoughts out of chats: the server was started with a reasoning parser."""
        return bool(getattr(self._args, "reasoning_parser", None))

    @property
    def window(self) -> int | None:
        """Longest prompt and answer together, in tokens; None where it is not known."""
        found = getattr(
            getattr(getattr(self._client, "vllm_config", None), "model_config", None), "max_model_len", None
        )
        return found if isinstance(found, int) else None

    @property
    def names(self) -> list[str]:
        """What the served model is called, the first one in replies; empty where that is not known."""
        given = getattr(self._args, "served_model_name", None) or getattr(self._args, "model", None) or []
        return [given] if isinstance(given, str) else list(given)

    async def tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the served model's tokenizer, with the server's chat template; loaded at the first call.

        Raises:
            Refusal: There is none that prompts can be built with (400).
        """
        if self._tokenizer is None:
            async with self._lock:
                if self._tokenizer is None:
                    self._tokenizer = await asyncio.to_thread(_load, self._args)
        return self._tokenizer

    async def check_lengths(self, body: Mapping[str, Any]) -> None:
        """Refuse a prompt of one token, for which the engine has no error of its own; only short texts are looked at.

        Raises:
            Refusal: It has fewer than two tokens (400).
        """
        prompt = body.get("prompt")
        if not isinstance(prompt, str) or len(prompt) > _SHORT:
            return
        try:
            tokenizer = await self.tokenizer()
        except Refusal:
            return
        special = body.get("add_special_tokens") is not False
        if len(tokenizer(prompt, add_special_tokens=special)["input_ids"]) < 2:
            raise Refusal(400, f"the prompt {shown(prompt)} is one token.", "A row of a pair needs at least two.")

    def unfit(self, bodies: Bodies) -> str:
        """Return why a pair can never fit the engine's KV cache, as far as that is known here; empty if it may.

        Known are token prompts, the cache's size and its blocks; the scheduler has the last word.
        """
        config = getattr(self._client, "vllm_config", None)
        cache, model = getattr(config, "cache_config", None), getattr(config, "model_config", None)
        blocks, block = getattr(cache, "num_gpu_blocks", None), getattr(cache, "block_size", None)
        most = getattr(model, "max_model_len", None)
        lengths = [_tokens(body.get("prompt")) for body in (bodies.contextual, bodies.parametric)]
        if not (blocks and block and most and all(lengths)):
            return ""
        longest = bodies.contextual.get("max_tokens")
        need = blocks_of_pair(lengths, longest if isinstance(longest, int) else 1, most, block)
        if max(lengths) >= most or need < blocks:  # too long for the model is the engine's to say; a block is its own
            return ""
        return f"the pair needs {need} KV blocks of {block} tokens, and the engine has {blocks - 1}."

    async def check_heads(self, entries: Entries) -> None:
        """Make sure that the workers apply head masks and that the model has these heads.

        Raises:
            Refusal: Masks cannot act here, or a head does not exist (400).
        """
        if self._heads is None:
            async with self._lock:
                if self._heads is None:
                    self._heads = await self._install()
        layers, heads = self._heads
        for layer, head, _ in entries:
            if layer >= layers or head >= heads:
                hint = f"Layers are 0 to {layers - 1}, query heads 0 to {heads - 1}."
                raise Refusal(400, f"ck.heads: head {layer}.{head} does not exist.", hint)

    async def push(self, alpha: float | None) -> float:
        """Return what the direction is multiplied by at an alpha; 0 adds nothing. Make sure that the workers add it.

        Raises:
            Refusal: No direction is served, or it cannot act here (400).
            HeadsError: It does not lead to that side.
        """
        if alpha is None:
            return 0.0
        if self._direction is None:
            raise Refusal(400, "ck.direction was given, and this server has none.", "Start it with --direction FILE.")
        push = self._direction.coefficient(alpha)
        if push and not self._leads:
            async with self._lock:
                if not self._leads:
                    await self._lead(self._direction)
        return push

    async def trace(self, pair: str, *, needed: bool) -> Sequence[Sequence[float]]:
        """Return the trace rows of a pair that has ended, and make sure that its logits were finite.

        Raises:
            Refusal: They were not (503); or a trace is needed and the workers cannot be asked (400).
        """
        return await self._ended.fetch(pair, needed=needed)

    async def call(self, method: str, *args: Any) -> list[Any]:
        """Call a method of our worker extension on every worker; return what each said.

        Raises:
            Refusal: The workers do not have it, or do not answer (400).
        """
        if self._client is None:
            raise Refusal(400, "this server has no engine to ask.", "Start it with: ckcontrol serve-vllm")
        try:
            return list(await asyncio.wait_for(self._client.collective_rpc(method, args=args), _RPC_SECONDS))
        except Exception as error:  # whatever the engine raises: the workers lack the method, or are busy or gone
            hint = "Start the server with ckcontrol serve-vllm, which sets the worker extension."
            raise Refusal(400, f"the workers did not answer {method}: {type(error).__name__}.", hint) from error

    async def _install(self) -> tuple[int, int]:
        from ..engine.hooks import HINT

        found = await self.call("ck_heads_install")
        for said in found:
            if "refused" in said:
                raise Refusal(400, f"ck.heads: {said['refused']}", HINT)
        return min(said["layers"] for said in found), min(said["heads"] for said in found)

    async def _lead(self, direction: Direction) -> None:
        from ..engine.hooks import LED_HINT

        for refused in await self.call("ck_direction_install", *installed(direction)):
            if refused:
                raise Refusal(400, f"ck.direction: {refused}", LED_HINT)
        self._leads = True


def _tokens(prompt: Any) -> int:
    """Return the length of a prompt of token ids; 0 for any other."""
    return len(prompt) if isinstance(prompt, list) and all(isinstance(token, int) for token in prompt) else 0


def _load(args: Any) -> Any:
    """Load the tokenizer that the server's arguments name."""
    from transformers import AutoTokenizer

    name = getattr(args, "tokenizer", None) or getattr(args, "model", None)
    if not name or getattr(args, "tokenizer_mode", None) not in _MODES:
        raise Refusal(400, "ck.passages: this server's tokenizer is not one of transformers'.", "Give both prompts.")
    revision = getattr(args, "tokenizer_revision", None) or getattr(args, "revision", None)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    except Exception as error:
        hint = "Give both prompts: ck.messages or ck.prompt."
        raise Refusal(400, f"ck.passages: the tokenizer cannot be loaded: {type(error).__name__}.", hint) from error
    template = getattr(args, "chat_template", None)
    if template is not None:
        path = Path(str(template))
        text = str(template)
        tokenizer.chat_template = path.read_text(encoding="utf-8") if "\n" not in text and path.is_file() else text
    return tokenizer
