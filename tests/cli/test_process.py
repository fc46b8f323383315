"""What a shell sees of a real process: pipes that break, streams that are closed, Ctrl-C."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from ckcontrol.cli.main import main
from ckcontrol.cli.process import stop_at_once

from ..warm import Warm

pytestmark = pytest.mark.skipif(os.name == "nt", reason="pipes and signals of POSIX")
ASK = "-q Who? --passage-text Ann. --model tiny --device cpu --max-new-tokens 4"


def shell(line: str) -> tuple[str, str]:
    """What bash prints of a line, and what it says on stderr."""
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    return done.stdout, done.stderr


@pytest.mark.parametrize(
    "command",
    [f"explain {ASK} --html page.html", f"run --json {ASK}", f"run --stream {ASK}", "run --help", "--version"],
)
def test_a_reader_that_goes_away_is_no_failure(
    command: str, warm: Warm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    python = warm.python if ASK in command else sys.executable
    out, err = shell(f"{python} -m ckcontrol {command} | true; echo ${{PIPESTATUS[0]}}")
    assert (out, err) == ("0\n", "")
    assert "page.html" not in command or "Ann." in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        (f"run {ASK} -p - <&-", "2", "stdin is closed, so -p - has no passage"),
        (f"run {ASK} --stream >&-", "0", "! Cut at --max-new-tokens"),
        (f"run {ASK} --alpha 2 2>&-", "2", ""),
        (f"run {ASK} >/dev/full", "1", "No space left on device"),
        ("--version >/dev/full", "1", "No space left on device"),
    ],
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_closed_and_full_streams(
    line: str, code: str, says: str, unbuffered: str, warm: Warm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    if "/dev/full" in line and not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    out, err = shell(f"{warm.python} -m ckcontrol {line}; echo $?")
    assert out == f"{code}\n" and says in err and err.count("\n") == bool(says)


def test_ctrl_c_ends_a_command_that_saves_nothing_at_once() -> None:
    """The question is read from stdin, so the process is known to be inside the command."""
    program = (  # a model that takes forever, in steps as long as a forward
        "import signal, sys, time\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from ckcontrol.cli import options\nfrom ckcontrol.cli.main import run\n"
        "def load(*_):\n"
        "    print('loading', flush=True)\n"
        "    while True:\n"
        "        try:\n"
        "            time.sleep(60)\n"
        "        except KeyboardInterrupt:\n"
        "            pass\n"  # as C code that swallows it does
        "options.load = load\nsys.argv = ['ckcontrol', *sys.argv[1:]]\nrun()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, "run", "-q", "Who?"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "loading\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (130, "", "ckcontrol: interrupted.\n")


@pytest.mark.parametrize("module", ["ckcontrol.child_python", "ckcontrol.cli.process", "signal", "typer"])
def test_ctrl_c_while_the_command_line_is_loaded_ends_quietly(module: str) -> None:
    """The interrupt comes with an import: the first of ours, one that takes its time, or that of typer, the longest."""
    program = (
        "import os, signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {module!r}:\n            os.kill(os.getpid(), signal.SIGINT)\n"
        "del sys.modules['signal']\n"  # imported anew
        "sys.meta_path.insert(0, Interrupt())\n"
        "from ckcontrol.__main__ import run\nrun()\n"
    )
    done = subprocess.run([sys.executable, "-c", program, "demo"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "ckcontrol: interrupted.\n")


def test_ctrl_c_at_any_time_shows_nothing_of_ours() -> None:
    """A fresh process, interrupted sooner or later: the interpreter's own traceback as it starts, or one sentence."""
    seen = []
    for wait in (0.02, 0.08, 0.2, 0.4, 0.7, 1.1, 1.5, 4.0):
        command = [sys.executable, "-m", "ckcontrol", *ASK.replace("tokens 4", "tokens 4000").split()]
        command.insert(3, "run")
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            time.sleep(wait)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=120)
        seen.append((wait, process.returncode, err))
        if process.returncode == 130:
            assert err == "ckcontrol: interrupted.\n", seen
        else:  # the interpreter was on its way to our first line
            assert process.returncode in (-signal.SIGINT, 1) and f"{os.sep}ckcontrol{os.sep}" not in err, seen
            assert "Traceback" not in err or "KeyboardInterrupt" in err, seen
    assert 130 in [code for _, code, _ in seen], seen


def test_commands_that_save_their_work_get_the_interrupt() -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop_at_once()
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        stop_at_once(["eval", "run"])
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        stop_at_once()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_taken_port_is_bad_input_before_the_model_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        assert main(["serve", "--model", "no/such-model", "--port", port]) == 2
    err = capsys.readouterr().err
    assert f"port {port} of 127.0.0.1 is taken" in err and "--port" in err and "no/such-model" not in err


def test_a_server_says_where_it_is(warm: Warm) -> None:
    command = [warm.python, "-m", "ckcontrol", "serve", "--model", "tiny", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        told = next(line for line in server.stderr if "http://127.0.0.1:" in line)
        with urllib.request.urlopen(told.split()[1]) as page:
            assert page.status == 200
        server.send_signal(signal.SIGINT)
        rest = server.stderr.read()
    assert "tiny" in told and "Traceback" not in rest
