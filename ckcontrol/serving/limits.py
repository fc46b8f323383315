"""How much one request may ask of the server: every bound has a default that is on, and the operator can change it.

vLLM gives a middleware no arguments, so bounds travel as JSON in one environment variable; ``ckcontrol serve-vllm``
writes it. Knows numbers; knows nothing of HTTP or vLLM.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields

from ..arguments import check_integer, check_number
from ..errors import ServingError, did_you_mean

__all__ = ["VARIABLE", "Limits", "check_names"]

VARIABLE = "CKCONTROL_VLLM_LIMITS"


@dataclass(frozen=True)
class Limits:
    """Bounds of one request, and of all at once. What exceeds a bound is refused, never cut.

    Attributes:
        body_bytes: Largest JSON body, of any endpoint that reads JSON; more is 413.
        passages: Passages in one request.
        messages: Messages of the conversation beside passages.
        characters: Characters of passages, question and hand-made parametric prompt together.
        template_characters: Characters of each wording of ``ck.template``.
        heads: Entries of ``ck.heads``.
        pairs: Pairs at once, a steered request being one, or one per draft; the next one gets 429.
        seconds: Longest life of a steered request, its reply included; then 503.
        read_seconds: Longest time a client may take to send a body; then 408.

    Raises:
        ControlError: A value out of range.
    """

    body_bytes: int = 8 * 2**20
    passages: int = 64
    messages: int = 1_000
    characters: int = 400_000
    template_characters: int = 4_000
    heads: int = 4_096
    pairs: int = 256
    seconds: float = 600.0
    read_seconds: float = 30.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("seconds"):
                check_number(field.name, value, 0.01, 86_400.0)
            else:
                check_integer(field.name, value, 1, 2**40)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Limits:
        """Read the bounds from `VARIABLE`; what it does not name keeps its default.

        Raises:
            ServingError: It is not a JSON object, or names an unknown bound.
            ControlError: A bound is out of range.
        """
        text = (os.environ if environ is None else environ).get(VARIABLE, "").strip()
        if not text:
            return cls()
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ServingError(f"{VARIABLE} is not JSON: {error}.", 'Like {"passages": 128}.') from error
        if not isinstance(data, dict):
            raise ServingError(f"{VARIABLE} is not a JSON object.", 'Like {"passages": 128}.')
        check_names(data)
        return cls(**data)

    def to_env(self) -> str:
        """Return the value for `VARIABLE`: the bounds that differ from their defaults."""
        changed = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if getattr(self, field.name) != field.default
        }
        return json.dumps(changed) if changed else ""


def check_names(data: Mapping[str, object]) -> None:
    """Refuse a bound that does not exist.

    Raises:
        ServingError: Naming it, and the nearest known one.
    """
    known = [field.name for field in fields(Limits)]
    for name in data:
        if name not in known:
            raise ServingError(f"there is no bound {name!r} in {VARIABLE}.", did_you_mean(name, known))
