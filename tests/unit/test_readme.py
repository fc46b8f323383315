"""The README's tables are what the committed results say; its answers are what the demo model says today."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_tables_match_the_results():
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "readme.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.real
def test_the_three_answers_are_real(real):
    import ckcontrol as ck

    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from readme import PASSAGE, QUESTION
    finally:
        sys.path.pop(0)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for alpha in (0.0, 0.5, 1.0):
        answer = ck.generate(
            *real, QUESTION, [PASSAGE], control=ck.Control(alpha=alpha), max_new_tokens=24, trace=False
        )
        assert f"alpha {alpha:<4} {answer.text}" in text
