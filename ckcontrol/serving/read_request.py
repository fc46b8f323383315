"""Reads a steered request: an OpenAI body and its ``ck`` object become one frozen `Steered`, or an error says why not.

Everything is bounded and checked here, before a tokenizer or the engine sees it. A request brings scalars and texts:
never a file name, a template's name, a dotted path or code. Knows controls, options and limits; texts and wordings
are for read_texts.py. Knows nothing of HTTP, tokenizers or vLLM.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

from ..arguments import check_number
from ..control import DEFAULT_METHOD, Control
from ..control import drafts as drafts_of
from ..decoding.options import OPTION_BOUNDS, GenerateOptions, new_seed
from ..decoding.prompts import PromptTemplate
from ..errors import ControlError, PromptError, ServingError, did_you_mean
from ..policies import names as method_names
from .json_values import flag, half, in_ck, integer, kind, shown, without_ours
from .limits import Limits
from .read_heads import Entries, read_heads
from .read_texts import BUILT, PLAIN, Texts, read_template, read_texts

__all__ = ["CHAT", "COMPLETIONS", "PATHS", "Steered", "belongs_in_ck", "constrained", "read_request"]

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
PATHS = (CHAT, COMPLETIONS)
SOURCES = ("passages", "retrieve", "messages", "prompt")
_OWN = (*SOURCES, "template", "trace", "heads", "direction", "method", "alpha", "candidates", "candidate_ratio")
# How a token is drawn is decided once for both rows, by our processor; these fields never reach vLLM.
_DRAWN_HERE = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)
# Fields of the body that a pair cannot honour, with the values that ask for nothing.
_NOT_WITH_CK: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "use_beam_search": (False,),
    "echo": (False,),
    "suffix": ("",),
    "priority": (0,),
    "prompt_logprobs": (),
    "prompt_embeds": (),
    "truncate_prompt_tokens": (),
    "thinking_token_budget": (-1,),
    "kv_transfer_params": (),
    "ec_transfer_params": (),
    "min_p": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "documents": ([],),
    "chat_template": (),
}
_SEVERAL = "Send it once per answer, each with a seed of its own; they are answered side by side."
_WHY = {  # more than that a field cannot be honoured, where clients send it often
    "n": ("one request gets one answer here.", _SEVERAL),
    "best_of": ("one request gets one answer here, and answers are not ranked.", _SEVERAL),
    "use_beam_search": ("a beam ranks continuations of one distribution, and a policy mixes two.", _SEVERAL),
}
# What only a whole batch, decoded at once, can honour.
_OFFLINE = {
    "segments": "drafts start anew from the one that was chosen, which rows of a server cannot.",
    "sources": "every source is a stream of its own, and vLLM runs the two of a pair.",
}
_INSTEAD = {"sources": "Leave sources out, or use `ckcontrol serve` or ckcontrol.generate."}
# Chat fields that change the prompt; where we build the prompt from passages they would be lost.
_NOT_WITH_PASSAGES: dict[str, tuple[Any, ...]] = {
    "functions": ([],),
    "reasoning_effort": (),
    "continue_final_message": (False,),
    "add_generation_prompt": (True,),
    "mm_processor_kwargs": (),
    "media_io_kwargs": (),
}
_OF_CHATS: dict[str, tuple[Any, ...]] = {"tools": ([],), "tool_choice": ("none", "auto")}


@dataclass(frozen=True)
class Steered:
    """A checked request for a steered answer.

    Attributes:
        path: `CHAT` or `COMPLETIONS`, as the client asked.
        control: Policy and position; ``off`` where there are no passages.
        drafts: From `params.drafts`: each of them is a pair.
        options: How tokens are drawn, with a seed where it samples.
        texts: What the prompts are made of.
        template: With passages: their wording.
        heads: The head mask; empty is none.
        direction: The alpha of the server's direction; None, or 0.5, adds nothing.
        sources: Which sources are weighed, see `read_sources`; None: no sources.
        trace: Send the trace back.
        stream: The client wants server-sent events.
        body: The rest of the body, to be sent to vLLM.
    """

    path: str
    control: Control
    drafts: tuple[str, ...]
    options: GenerateOptions
    texts: Texts
    template: PromptTemplate
    heads: Entries
    direction: float | None
    sources: Any
    trace: bool
    stream: bool
    body: Mapping[str, Any]

    def drawn(self, most: int, stop: tuple[str, ...]) -> GenerateOptions:
        """Return how tokens are drawn by `ckcontrol.generate`, with the longest answer and the stop texts."""
        return replace(self.options, max_new_tokens=most, stop=stop, trace=self.trace)

    def echo(self) -> dict[str, Any]:
        """Return what is in effect, for the reply."""
        told: dict[str, Any] = dict(self.control.to_dict())
        told["source"] = self.texts.source
        if self.texts.source in BUILT:
            told["passages"] = len(self.texts.passages)
        if self.texts.wanted is not None:
            told["hits"] = list(self.texts.hits)
            told |= {"override": self.texts.override} if self.texts.override else {}
        if self.options.do_sample:
            told["seed"] = self.options.seed
        if self.heads:
            told["heads"] = len(self.heads)
        if self.direction is not None:
            told["direction"] = self.direction
        return told


def read_request(
    path: str, body: Mapping[str, Any], limits: Limits, *, dial: bool = False, sources: bool = False, most: int = 2**31
) -> Steered:
    """Check a body.

    Args:
        path: `CHAT` or `COMPLETIONS`.
        body: The decoded JSON object; without ``ck`` it asks the unmodified model.
        limits: Bounds.
        dial: The server has a dial of adapters, for the methods that act in the weights.
        sources: The server weighs answers across sources; else ``ck.sources`` is refused.
        most: Most tokens that a request may ask for.

    Raises:
        CKError: One of its ValueError kinds, whatever the body holds; the message is for the client.
    """
    plain = body.get("ck") is None
    ck = {"method": "off"} if plain else body["ck"]
    if not isinstance(ck, dict):
        raise ServingError(f"ck is {kind(ck)}, not an object.", 'Like {"passages": ["..."], "alpha": 0.3}.')
    _check_text(body)
    control = _control(ck, weighs=sources)
    if control.policy().in_weights and not dial:
        what = f"method {control.method!r} needs a dial of adapters, and this server has none."
        raise ServingError(what, "Start it with --weights FOLDER.")
    source = PLAIN if plain else _source(ck, path)
    _refuse(body, _NOT_WITH_CK, "this server cannot honour it" if plain else "a steered request cannot honour it")
    if source in BUILT:
        _refuse(body, _NOT_WITH_PASSAGES, "it would be lost, as ckcontrol builds both prompts from the passages")
        if path != CHAT:
            _refuse(body, _OF_CHATS, f"only {CHAT} takes it")
    texts = read_texts(source, path == CHAT, body, limits)
    if source == "passages" and not texts.passages:
        control = control.without_passages()
    for name, low, high in (("max_tokens", 1, most), ("max_completion_tokens", 1, most), ("min_tokens", 0, most)):
        if body.get(name) is not None:
            integer(name, body[name], low, high)
    _check_stop(body.get("stop"))
    trace = flag("ck.trace", ck.get("trace"))
    drafts = drafts_of(control)
    if body.get("include_reasoning") is False and (trace or len(drafts) > 1):
        raise ServingError("include_reasoning=false hides tokens that a trace or a draft needs.", "Leave it out.")
    return Steered(
        path=path,
        control=control,
        drafts=drafts,
        options=_options(body),
        texts=texts,
        template=read_template(ck.get("template"), texts, limits, body.get("chat_template_kwargs")),
        heads=read_heads(ck.get("heads"), limits.heads),
        direction=None if ck.get("direction") is None else check_number("ck.direction", ck["direction"], 0, 1),
        sources=_sources(ck.get("sources"), source, limits),
        trace=trace,
        stream=flag("stream", body.get("stream")),
        body={key: value for key, value in without_ours(dict(body)).items() if key != "ck" and key not in _DRAWN_HERE},
    )


def _source(ck: Mapping[str, Any], path: str) -> str:
    """Return which of `SOURCES` both prompts are made from."""
    given = [name for name in SOURCES if ck.get(name) is not None]
    own = "messages" if path == CHAT else "prompt"
    if len(given) != 1 or given[0] not in (*BUILT, own):
        raise ServingError(
            f"ck holds {' and '.join(given) or 'no passages'}.",
            f"At {path} give exactly one: passages (a list of texts), retrieve (a search), or {own} (what memory alone "
            f"is asked, where the body's {own} hold{'s' * (own == 'prompt')} the passages already).",
        )
    return given[0]


def constrained(body: Mapping[str, Any]) -> bool:
    """Whether a body lets a grammar of any kind decide which tokens may follow."""
    form, tool = body.get("response_format"), body.get("tool_choice")
    plain = form is None or (isinstance(form, dict) and form.get("type") == "text")
    return not plain or bool(body.get("structured_outputs")) or tool not in (None, "none", "auto")


def _check_text(body: Mapping[str, Any]) -> None:
    """Refuse NaN, infinities and texts that hold half a character: none can be written as JSON again."""
    try:
        json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        what = f"{half(body)} holds half a character."
        raise PromptError(what, "Send both halves, or what stands for a broken one: \\ufffd.") from error
    except ValueError as error:
        raise ServingError("the body holds NaN or an infinite number.", "JSON has none; give a number.") from error


def _sources(given: Any, source: str, limits: Limits) -> Any:
    """Return which sources are weighed; whether there are such passages is seen when their prompts are built."""
    if given is None or given is False:
        return None
    lists = isinstance(given, list) and all(isinstance(one, list) and len(one) <= limits.passages for one in given)
    if given != "each" and not (lists and len(given) <= limits.passages):
        value = f"{json.dumps(given):.60}" if isinstance(given, list) else shown(given)
        raise ServingError(
            f"ck.sources={value} is not valid.", 'Send "each", or the places of each group: [[0], [1, 2]].'
        )
    if source not in BUILT:
        raise ServingError(f"ck.sources stands beside ck.{source}.", f"Send {' or '.join(BUILT)}: each is a source.")
    return given


def _control(ck: Mapping[str, Any], *, weighs: bool) -> Control:
    method = ck.get("method", DEFAULT_METHOD)
    known = _methods()
    if not isinstance(method, str) or method not in known:
        proposal = did_you_mean(method[:64] if isinstance(method, str) else "", known)
        raise ServingError(f"ck.method={shown(method)} is unknown.", proposal)
    allowed = {*_OWN, *_parameters(method)} - {*_OFFLINE}
    for name in ck:
        if name in _OFFLINE:
            if ck[name] in (None, False) or (name == "sources" and weighs):
                continue
            hint = _INSTEAD.get(name, f"Leave {name} out, or use ckcontrol.generate.")
            raise ServingError(f"ck.{name}={shown(ck[name])}: {_OFFLINE[name]}", hint)
        if name not in allowed:
            listed = {*allowed, *(("sources",) if weighs else ())}
            raise ServingError(f"ck.{name[:64]} is unknown for method {method!r}.", did_you_mean(name[:64], listed))
    others = (*SOURCES, *_OFFLINE, "template", "trace", "heads", "direction")
    values = {name: value for name, value in ck.items() if name not in others}
    for name, value in values.items():
        plain = value is None or isinstance(value, (bool, int, float)) or (isinstance(value, str) and len(value) <= 64)
        if not plain or (isinstance(value, int) and abs(value) >= 2**63):
            raise ServingError(f"ck.{name}={shown(value)} is not valid.", "Give a plain, short value.")
    try:
        return Control(**values)
    except ControlError as error:
        raise in_ck(error, values) from None


def belongs_in_ck(name: str) -> bool:
    """Whether a field is one of the object ``ck``, with some method."""
    return name in (*_OWN, *_OFFLINE) or any(name in _parameters(method) for method in _methods())


@cache
def _methods() -> tuple[str, ...]:
    return tuple(method_names())


@cache
def _parameters(method: str) -> tuple[str, ...]:
    return tuple(field.name for field in fields(Control(method).policy()))


def _options(body: Mapping[str, Any]) -> GenerateOptions:
    """Read how tokens are drawn; OpenAI's defaults, so a request without a temperature samples at 1."""

    def number(name: str, low: float | None = None) -> float:
        value = body.get(name)
        if value is None:
            return 1.0
        least, high = OPTION_BOUNDS[name]
        low = least if low is None else low
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise ServingError(f"{name}={shown(value)} is not valid.", f"Give a number from {low:g} to {high:g}.")
        return float(value)

    temperature = number("temperature", 0.0)
    top_k, seed = body.get("top_k"), body.get("seed")
    if top_k is not None and integer("top_k", top_k, -1, OPTION_BOUNDS["top_k"][1]) < 0:
        top_k = 0
    if seed is not None:
        integer("seed", seed, *OPTION_BOUNDS["seed"])
    greedy = temperature < OPTION_BOUNDS["temperature"][0]
    return GenerateOptions(
        do_sample=not greedy,
        temperature=1.0 if greedy else temperature,
        top_k=top_k or 0,
        top_p=number("top_p"),
        seed=new_seed() if seed is None and not greedy else seed,
        repetition_penalty=number("repetition_penalty"),
    )


def _refuse(body: Mapping[str, Any], table: Mapping[str, tuple[Any, ...]], why: str) -> None:
    for name, neutral in table.items():
        value = body.get(name)
        if value is None or any(type(value) is type(one) and value == one for one in neutral):
            continue
        if isinstance(value, float) and not math.isnan(value) and any(value == one for one in neutral):
            continue  # 0.0 for 0
        reason, instead = _WHY.get(name, (f"{why}.", f"Leave {name} out."))
        raise ServingError(f"{name}={shown(value)}: {reason}", instead)


def _check_stop(stop: Any) -> None:
    texts = [stop] if isinstance(stop, str) else stop
    if texts is None:
        return
    if not isinstance(texts, list) or len(texts) > 16 or not all(isinstance(t, str) and len(t) <= 1000 for t in texts):
        raise ServingError(f"stop is {kind(stop)}.", "Give at most 16 texts of at most 1,000 characters.")
