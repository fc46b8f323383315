"""A fork of the interpreter that waits ends, prints and hears as an interpreter of its own does."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ..warm import Warm

PROGRAMS = {
    "arguments": ["-c", "import os, sys; print(sys.argv, sys.path[0], os.getcwd(), os.environ['X'], __name__)", "a b"],
    "a module": ["-m", "json.tool", "--indent", "1"],
    "a file": ["program.py", "--x"],
    "stdin": ["-c", "print(input().upper())"],
    "status": ["-c", "raise SystemExit(7)"],
    "reason": ["-c", "raise SystemExit('no')"],
    "error": ["-c", "import atexit; atexit.register(print, 'left'); print('é', flush=True); raise KeyError(1)"],
    "interrupt": ["-c", "raise KeyboardInterrupt"],
    "killed": ["-c", "import os; os.kill(os.getpid(), 9)"],
    "thread": ["-c", "import threading, time; threading.Thread(target=lambda: time.sleep(0.2) or print(1)).start()"],
    "option": ["-O", "-c", "print(__debug__)"],
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_fork_is_like_a_start(name: str, warm: Warm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "program.py").write_text("import sys\nprint(sys.argv, __file__, __name__, sys.modules['__main__'].sys)")
    monkeypatch.setenv("X", "ü")
    seen = []
    for python in (sys.executable, warm.python):
        done = subprocess.run([python, *PROGRAMS[name]], cwd=tmp_path, input='{"é": 1}', capture_output=True, text=True)
        seen.append((done.returncode, done.stdout, done.stderr.splitlines()[-1:]))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("streams", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full"])
def test_it_has_the_streams_of_the_caller(
    streams: str, warm: Warm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    streams_there = "[s is None or s.fileno() for s in (sys.stdin, sys.stdout, sys.stderr)]"
    code = f"import sys; print(1); open('told', 'w').write(repr({streams_there}))"
    seen = []
    for python in (sys.executable, warm.python):
        line = f'{python} -c "{code}" {streams}; echo $?'
        done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True)
        seen.append((done.stdout, (tmp_path / "told").read_text(), done.stderr.splitlines()[-1:]))
    assert seen[0] == seen[1]


def test_it_hears_signals_and_has_what_was_imported(warm: Warm) -> None:
    code = (
        "import sys, time\ntry:\n    print('torch' in sys.modules, 'ckcontrol' in sys.modules, flush=True)\n"
        "    time.sleep(60)\nexcept KeyboardInterrupt:\n    print('heard', flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen([warm.python, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "True False\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "heard\n"
        process.terminate()
    assert process.returncode == -signal.SIGTERM
