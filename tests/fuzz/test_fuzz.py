"""The fuzz in small: 400 seeds, nothing differs."""

from __future__ import annotations

import pytest

from .differential import run


@pytest.mark.filterwarnings("ignore:Unfeasible length constraints")
@pytest.mark.parametrize("first", range(0, 400, 50))
def test_no_seed_differs(first):
    assert [text for seed in range(first, first + 50) for text in run(seed)] == []
