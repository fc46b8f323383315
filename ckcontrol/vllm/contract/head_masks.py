"""A head mask as the engine's arguments carry it: entries of layer, query head and factor.

Whether the model has such heads is for head_hooks.py, in the worker, to say.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from functools import cache

from ...errors import ServingError
from ...heads.mask import LARGEST
from ...serving.json_values import SALT
from ...serving.read_heads import Entries

__all__ = ["SECRET", "new_secret", "pack", "salt", "unpack"]

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


def salt(entries: Entries, given: str | None = None) -> str:
    """Return the ``cache_salt`` of a mask: keys and values computed under one mask are wrong under every other.

    It is keyed with a secret of this server: whoever could guess it would fill the cache with unmasked keys.

    Args:
        entries: The mask.
        given: The client's own salt, which stays in effect as well.
    """
    return SALT + hmac.new(_secret(), f"{pack(entries)}\n{given or ''}".encode(), hashlib.sha256).hexdigest()


def new_secret() -> str:
    """Return a fresh secret for `SECRET`: 256 random bits, hexadecimal."""
    return secrets.token_hex(32)


@cache
def _secret() -> bytes:
    return (os.environ.get(SECRET) or new_secret()).encode()
