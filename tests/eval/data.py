"""Where the tests of the data part find their files: fixtures of ours, and real files that may be absent."""

from __future__ import annotations

from pathlib import Path

import pytest

FIXTURES = Path(__file__).parent / "fixtures"
ROOT = Path(__file__).resolve().parents[2]


def fixture(name: str) -> str:
    return str(FIXTURES / name)


def shared(name: str) -> str:
    """A folder of real data beside or inside the checkout; they are never part of the repository."""
    for place in (ROOT.parent / "shared", ROOT / "shared"):
        if (place / "data" / name).is_dir():
            return str(place / "data" / name)
    pytest.skip(f"no shared data {name!r} on this machine")
