"""What every kind of index checks of a search before anything is embedded. Knows values; knows no index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ckcontrol.errors import RetrievalError

__all__ = ["check_count", "check_queries"]


def check_count(name: str, value: Any) -> None:
    """Refuse what is not a positive whole number.

    Raises:
        RetrievalError: Naming `name` and the value.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise RetrievalError(f"{name}={value!r} is not a positive whole number.", "Give 1 or more.")


def check_queries(queries: str | Sequence[str]) -> list[str]:
    """Return one question or several as a list.

    Raises:
        RetrievalError: A question is blank or no text; its place is named.
    """
    several = [queries] if isinstance(queries, str) else list(queries)
    for number, query in enumerate(several):
        if not isinstance(query, str) or not query.strip():
            raise RetrievalError(f"query {number} is {query!r}, which asks nothing.", "Give it some text.")
    return several
