"""What a request changes in the model, as the engine's arguments carry it: a head mask, a push along the direction.

And the ``cache_salt`` that keeps what is computed so from other requests. Whether the model has such heads, or a
direction, is for hooks.py, in the worker, to say.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from ...errors import ServingError
from ...heads.fingerprint import Shape
from ...heads.mask import LARGEST
from ...serving.json_values import DIRECTION, HEADS, SALT
from ...serving.read_heads import Entries

if TYPE_CHECKING:
    from ...heads.directions.direction import Direction

__all__ = ["DIRECTION_FILE", "SECRET", "check", "installed", "new_secret", "own_salt", "pack", "salt", "unpack"]

FURTHEST = 1e6  # as `heads.directions.direction.LARGEST`, whose module loads torch
DIRECTION_FILE = "CKCONTROL_VLLM_DIRECTION"  # the file of what ck.direction leads along, in a server
SECRET = "CKCONTROL_VLLM_SECRET"  # set by serve-vllm, so that the processes of one server make the same salts


def pack(entries: Entries) -> str:
    """Return the mask as text for vLLM's ``extra_args``; equal masks give equal texts."""
    return json.dumps(entries, separators=(",", ":"))


def unpack(text: str) -> Entries:
    """Return what `pack` was given.

    Raises:
        ServingError: It is not that; nothing else is raised, whatever the input.
    """
    try:
        entries = tuple((int(layer), int(head), float(factor)) for layer, head, factor in json.loads(text))
        if not all(layer >= 0 <= head and abs(factor) <= LARGEST for layer, head, factor in entries):
            raise ValueError
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ServingError("ckheads is not a packed head mask.", "Take it from ckcontrol.vllm.masked.") from error
    return entries


def check(args: Mapping[str, Any]) -> None:
    """Refuse engine arguments that hold no mask, or no push, where they should.

    Raises:
        ServingError: `HEADS` is not what `pack` gives, or `DIRECTION` no coefficient of a direction.
    """
    if HEADS in args:
        unpack(args[HEADS])
    push = args.get(DIRECTION, 0.0)
    if type(push) not in (int, float) or not abs(push) <= FURTHEST:  # true for NaN
        raise ServingError("ckdirection is not a direction's coefficient.", "Take it from Direction.coefficient.")


def installed(direction: Direction) -> tuple[Shape, int, list[float]]:
    """Return a direction as the workers take it: what ``ck_direction_install`` is called with."""
    return direction.model.shape, direction.layer, direction.vector.tolist()


def salt(entries: Entries, given: str | None = None) -> str:
    """Return the ``cache_salt`` of a mask: keys and values computed under one mask are wrong under every other.

    It is keyed with a secret of this server: whoever could guess it would fill the cache with unmasked keys.

    Args:
        entries: The mask.
        given: The client's own salt, which stays in effect as well.
    """
    return SALT + hmac.new(_secret(), f"{pack(entries)}\n{given or ''}".encode(), hashlib.sha256).hexdigest()


def own_salt() -> str:
    """Return a ``cache_salt`` that no other row has, for one under a direction.

    Its prompt's last token and its answer leave keys and values that nobody else may find: where they stand in the
    prompt of a later turn, those of the unmodified model are due, in whatever direction that turn is led. A client's
    own salt has nothing to add.
    """
    return SALT + secrets.token_hex(32)


def new_secret() -> str:
    """Return a fresh secret for `SECRET`: 256 random bits, hexadecimal."""
    return secrets.token_hex(32)


@cache
def _secret() -> bytes:
    return (os.environ.get(SECRET) or new_secret()).encode()
