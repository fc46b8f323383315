"""Every example runs as its first lines say, on the tiny model and without a network, and stays short."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from ..warm import Warm

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))

# what must be in the output of each, as regular expressions
SAYS = {
    "01_dial.py": [
        r"(?m)^closed book  ['\"]",
        r"(?m)^alpha 0\.5 .*\(0 of \d+ tokens switched\)$",
        r"(?m)^alpha 0\.0 .*\([1-9]\d* of \d+ tokens switched\)$",
    ],
    "02_explain.py": [r"switched: the policy acted", r"rank in memory 0\n", r"read back equal: True"],
    "03_transformers.py": [r"with and without: \[\(\d+, \d+\), \(\d+, \d+\)\]", r"town\?  .*\d+ of 12 tokens switched"],
    "04_processor.py": [r"same tokens as the loop: True", r"beams: .*Beams are not supported"],
    "05_own_policy.py": [r"(?s)share=1\.0\).*share=0\.5\).*share=0\.0\).*favourites differed at [1-9]"],
    "06_rag.py": [
        r"finished\?\n  .*\n  0\.\d\d  The stone bridge",
        r"cross\?\n  .*\n  0\.\d\d  The ferry",
        r"Bees\?\n  Nothing was found: answered closed book",
    ],
    "07_batch_of_controls.py": [r"(?m)^off +switched  0", r"(?m)^arr +switched", r"alone as in the batch: True"],
    "08_index.py": [
        r"'bm25'\} \['salt'",
        r"'hybrid', .*\['(toll|fair)', '(toll|fair)'\]",
        r"replaced=1, unchanged=3, removed=0",
        r"removed=1",
        r"\['The mill grinds again\.'\]\nsound: True",
    ],
    "09_eval.py": [
        r"(?m)^Facts known closed-book: [0-5] of 5\.",
        r"cad@1 +names the truth [01]\.\d\d \[",
        r"report: report",
    ],
    "10_whole_answers.py": [r"(?m)^-> (unmodified|memory)", r"minded by the context \d+\.\d, by memory \d+\.\d"],
}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_runs(path: Path, tmp_path: Path, warm: Warm) -> None:
    offline = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "CKCONTROL_HOME": str(tmp_path / "cache"),  # an example that fetched a model would have to do it here
        "PIP_NO_INDEX": "1",
        "PYTHONIOENCODING": "utf-8",
        "COLUMNS": "120",
    }
    done = subprocess.run(
        [warm.python, str(path), "tiny"], cwd=tmp_path, env=offline, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    for pattern in SAYS[path.name]:
        assert re.search(pattern, done.stdout), f"{pattern!r} is not in:\n{done.stdout}"
    assert not (tmp_path / "cache").exists()


def test_every_example_is_expected_and_every_expectation_has_one() -> None:
    assert [path.name for path in EXAMPLES] == sorted(SAYS)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_is_short_and_says_how_to_run_it(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) < 60
    assert lines[0].startswith('"""') and f"    python examples/{path.name} [model]" in lines
    assert lines[-1] == "    main(*sys.argv[1:2])"
