"""Structured answers: a JSON schema, a grammar or a regular expression decides which tokens may follow.

xgrammar, which vLLM uses too, reads them and says what may follow. As in vLLM the rest is masked in both streams before
they are fused, so that a shortlist is drawn among what may be said and the signals do not measure what may not. Knows
tokenizers and rows of logits; knows no model.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..errors import ControlError, MissingExtra
from .plain_text import LOCK

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Structure", "structure_of"]

_COMPILERS: WeakKeyDictionary[Any, dict[Any, Any]] = WeakKeyDictionary()
_MAKING = threading.Lock()


class Structure:
    """The state of every row of one run.

    Args:
        compiled: xgrammar's compiled grammar; every row begins at its beginning.
        never: [V] bool, special tokens that no text is made of.
    """

    def __init__(self, compiled: Any, never: Tensor) -> None:
        self._compiled, self._never = compiled, never
        self._matchers: list[Any] = []

    def anew(self) -> Structure:
        """Return one of the same grammar for another run."""
        return Structure(self._compiled, self._never)

    def mask(self, ids: Tensor, running: Tensor, *logits: Tensor | None) -> None:
        """Mask, in place, what may not follow.

        Args:
            ids: [R, L] prompts and answers; called once per token.
            running: [R] bool, the rows that have not ended.
            *logits: Of each stream that runs, [R, V].

        Raises:
            ControlError: No token may follow, or the last one was not allowed.
        """
        import xgrammar

        rows = [row for row, runs in enumerate(running.tolist()) if runs]
        if self._matchers:
            for row, token in enumerate(ids[:, -1].tolist()):
                if row in rows and not self._matchers[row].accept_token(token):
                    raise ControlError(
                        f"row {row}: a processor let through token {token}, which the grammar forbids.",
                        "Processors may only take tokens away here.",
                    )
        else:
            self._matchers = [xgrammar.GrammarMatcher(self._compiled) for _ in range(len(ids))]
        bits = xgrammar.allocate_token_bitmask(len(ids), len(self._never))
        for row in rows:
            self._matchers[row].fill_next_token_bitmask(bits, row)
            if not bool(bits[row].any()):
                raise ControlError(
                    f"row {row}: the grammar or schema came to a point where it allows no token at all.",
                    "A rule that only leads back to itself has no way out; give it one.",
                )
        spread = bits.to(ids.device)[:, :, None] >> torch.arange(32, dtype=torch.int32, device=ids.device)
        forbidden = (spread & 1 == 0).flatten(1)[:, : len(self._never)] | self._never
        forbidden &= running[:, None]
        for stream in logits:
            if stream is not None:
                stream.masked_fill_(forbidden, -torch.inf)


def structure_of(
    tokenizer: PreTrainedTokenizerBase,
    width: int,
    ends: Sequence[int],
    device: Any,
    *,
    json_schema: Any = None,
    grammar: str | None = None,
    regex: str | None = None,
) -> Structure | None:
    """Return what holds answers to a schema, grammar or regular expression; None where none is given.

    Args:
        tokenizer: Of the model.
        width: V, of the model's logits.
        ends: End tokens: one of them may follow where an answer is complete.
        device: Of the logits.
        json_schema: A mapping, a text or a pydantic class. The JSON has one layout, without free white space.
        grammar: EBNF whose first rule is ``root``.
        regex: A regular expression.

    Raises:
        ControlError: Two of them, one that cannot be read, or a model without an end token.
        MissingExtra: xgrammar is not installed.
    """
    given = {"json_schema": json_schema, "grammar": grammar, "regex": regex}
    named = [name for name, value in given.items() if value is not None]
    if not named:
        return None
    if len(named) > 1:
        raise ControlError(f"{' and '.join(named)} were given.", "Give one of them.")
    name = named[0]
    value = _read(name, given[name])
    if not ends:
        raise ControlError(f"{name} needs an end token, and the model has none.", "Pass stop_token_ids=.")
    try:
        import xgrammar
    except ImportError as error:
        raise MissingExtra("xgrammar", "grammar") from error
    key = (width, len(tokenizer), tuple(ends))
    with _MAKING:
        made = _COMPILERS.setdefault(tokenizer, {})
        if key not in made:
            with LOCK:
                info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=width, stop_token_ids=list(ends))
            # JSON holds no raw control character, which xgrammar lets into texts of a bounded length.
            controls = [token for token, text in enumerate(info.decoded_vocab) if any(byte < 32 for byte in text)]
            made[key] = xgrammar.GrammarCompiler(info, cache_limit_bytes=64 * 2**20), controls
        compiler, controls = made[key]
    try:
        if name == "json_schema":
            compiled = compiler.compile_json_schema(value, any_whitespace=False)
        else:
            compiled = (compiler.compile_grammar if name == "grammar" else compiler.compile_regex)(value)
    except (RuntimeError, ValueError) as error:
        why = re.sub(r"\[[\d:]+\] \S+:\d+: ", "", str(error)).strip().rstrip(".")
        raise ControlError(f"{name} cannot be read: {why:.300}.", "Correct it.") from error
    never = {*tokenizer.all_special_ids, *(controls if name == "json_schema" else ())}.difference(ends)
    forbidden = torch.zeros(width, dtype=torch.bool, device=device)
    forbidden[[token for token in never if token < width]] = True
    return Structure(compiled, forbidden)


def _read(name: str, value: Any) -> str:
    if name == "json_schema":
        value = value.model_json_schema() if hasattr(value, "model_json_schema") else value
        if isinstance(value, Mapping):
            try:
                return json.dumps(value, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise ControlError(f"json_schema is no JSON: {error}.", "Give what json.dumps can write.") from error
    if not isinstance(value, str) or not value.strip():
        what = "a mapping, a text or a pydantic class" if name == "json_schema" else "a text"
        raise ControlError(f"{name} is {value!r:.60}.", f"Give {what}.")
    return value
