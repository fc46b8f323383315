"""Makes the two OpenAI bodies of a steered request: equal but for prompt and role, and greedy as far as vLLM knows.

With passages both prompts are built here, by `prompts.build_pair`, as token ids: they differ by the passage block and
nothing else, and no passage can yield a special token. Token ids go to the completions endpoint, whichever the client
asked; replies.py gives the answer the form that the client expects. Knows OpenAI's fields; knows nothing of HTTP or
engines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ...decoding.prompts import build_pair, opens_with_thought
from ...errors import ServingError
from ...serving.json_values import DIRECTION, HEADS, integer
from ...serving.read_request import CHAT, COMPLETIONS, Steered
from ...serving.read_texts import BUILT, tools_of
from ..contract.changes import own_salt, pack, salt
from ..contract.pair_params import CONTEXTUAL, PARAMETRIC, extra_args

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ...decoding.prompts import PromptPair

__all__ = ["Bodies", "make_bodies", "redrafted"]

# Penalties and cuts act on both rows in our processor; vLLM must not take others from generation_config.json.
_GREEDY = {
    "temperature": 0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
# What only the row that is read by someone needs. Its stop texts end the other row too.
_READ = (
    "stream_options",
    "stream_interval",
    "stop",
    "include_stop_str_in_output",
    "logprobs",
    "top_logprobs",
    "logprob_token_ids",
    "return_token_ids",
    "return_tokens_as_token_ids",
    "return_prompt_text",
    "request_id",
)
# Fields of a chat request that mean the same at the completions endpoint.
_SHARED = (
    "model",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "min_tokens",
    "logit_bias",
    "bad_words",
    "allowed_token_ids",
    "response_format",
    "structured_outputs",
    "stream",
    "stream_options",
    "stream_interval",
    "user",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "include_stop_str_in_output",
    "cache_salt",
    "request_id",
    "session_id",
    "logprob_token_ids",
    "return_token_ids",
    "return_tokens_as_token_ids",
    "repetition_detection",
    "vllm_xargs",
)


@dataclass(frozen=True)
class Bodies:
    """Two requests for vLLM.

    Attributes:
        path: The endpoint both go to.
        contextual: Its answer is the reply.
        parametric: Its answer is thrown away.
        thinking: The prompts end in an open thought, as far as that can be known.
        passages: Those that stand in the prompt; None where it was not made here.
        push: What the server's direction is multiplied by, in both; 0 adds nothing.
    """

    path: str
    contextual: dict[str, Any]
    parametric: dict[str, Any]
    thinking: bool = False
    passages: tuple[str, ...] | None = None
    push: float = 0.0


def make_bodies(
    request: Steered,
    pair: str,
    tokenizer: PreTrainedTokenizerBase | None = None,
    draft: str = "",
    window: int | None = None,
    push: float = 0.0,
) -> Bodies:
    """Build both bodies.

    Args:
        request: The checked request.
        pair: The pair's name, from `params.new_pair`; empty: the rows are none of a pair.
        tokenizer: The served model's; needed with passages, and to know of a chat whether its prompt opens a thought.
        draft: One of `params.drafts`.
        window: Longest prompt and answer together: passages that were found are cut to it. None cuts nothing.
        push: As in `Bodies`.

    Raises:
        ServingError: No tokenizer, or a field of the wrong type.
        PromptError: Question, passages or wording cannot become prompts.
    """
    body = dict(request.body)
    path = request.path
    passages = None
    if request.texts.source in BUILT:
        if path == CHAT:
            body = _as_completion(body)
        path = COMPLETIONS
        body.pop("chat_template_kwargs", None)  # they are in the prompts
        prompts = _prompts(request, tokenizer, body.get("max_tokens"), window)
        passages = prompts.passages
        body["prompt"], other, thinking = list(prompts.contextual), list(prompts.parametric), prompts.thinking
    else:
        variables = body.get("chat_template_kwargs")
        continued = bool(body.get("continue_final_message")) or tokenizer is None or path != CHAT
        thinking = not continued and opens_with_thought(tokenizer, variables if isinstance(variables, dict) else {})
        other = request.texts.parametric
    body |= _GREEDY
    if request.heads:
        given = body.get("cache_salt")
        body["cache_salt"] = salt(request.heads, given if isinstance(given, str) else None)
    field = "messages" if path == CHAT else "prompt"
    read = {"return_token_ids": True} if request.trace or draft else {}
    parametric = {key: value for key, value in body.items() if key not in _READ} | {field: other, "stream": False}
    contextual = body | read
    for row in (contextual, parametric) if push else ():
        row["cache_salt"] = own_salt()
    return _named(Bodies(path, contextual, parametric, thinking, passages, push), request, pair, draft)


def redrafted(bodies: Bodies, request: Steered, pair: str, draft: str) -> Bodies:
    """Return the bodies of another draft of the same request, whose prompts are the same; without its request id."""
    contextual = {key: value for key, value in bodies.contextual.items() if key != "request_id"}
    return _named(replace(bodies, contextual=contextual), request, pair, draft)


def _named(bodies: Bodies, request: Steered, pair: str, draft: str) -> Bodies:
    """Return the bodies with the arguments that make them the rows of a pair; those differ in the role alone."""
    given = request.body.get("vllm_xargs")
    if given is not None and not isinstance(given, Mapping):
        raise ServingError("vllm_xargs is not an object.", "Leave it out.")
    arguments: dict[str, Any] = dict(given or {})
    if request.heads:
        arguments[HEADS] = pack(request.heads)
    if bodies.push:
        arguments[DIRECTION] = bodies.push
    if not pair:
        return replace(bodies, contextual=bodies.contextual | ({"vllm_xargs": arguments} if arguments else {}))
    arguments |= extra_args(pair, CONTEXTUAL, request.control, request.options, trace=request.trace, draft=draft)
    return replace(
        bodies,
        contextual=bodies.contextual | {"vllm_xargs": arguments},
        parametric=bodies.parametric | {"vllm_xargs": arguments | {"ck_role": PARAMETRIC}},
    )


def _prompts(
    request: Steered, tokenizer: PreTrainedTokenizerBase | None, most: int | None, window: int | None
) -> PromptPair:
    if tokenizer is None:
        raise ServingError("this server cannot build prompts from passages.", "Give both: ck.prompt or ck.messages.")
    texts, tokens, found = request.texts, most or 1, request.texts.source == "retrieve"
    return build_pair(
        tokenizer,
        texts.question,
        texts.passages,
        messages=texts.messages,
        tools=tools_of(request.body),
        template=request.template,
        limit=None if window is None or not found else max(0, window - tokens),
        max_new_tokens=tokens,
        truncate="passages" if found else None,
    )


def _as_completion(chat: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a chat body that act at the completions endpoint too, logprobs in that one's form."""
    body = {key: chat[key] for key in _SHARED if chat.get(key) is not None}
    most = chat.get("max_completion_tokens")
    body["max_tokens"] = chat.get("max_tokens") if most is None else most
    if chat.get("logprobs"):
        top = chat.get("top_logprobs")
        body["logprobs"] = 0 if top is None else integer("top_logprobs", top, 0, 10_000)
    return body
