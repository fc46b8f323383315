"""Programs in processes of their own that need not import torch again: forks of one interpreter that has it.

`Warm` starts that interpreter, which imports what it is told, nothing of ckcontrol, and waits. `python` is a command
that takes what `python` takes (`-c code`, `-m module`, a file) and runs it in a fork, with the caller's folder,
variables, streams, signals and exit status; `bin` is a folder for PATH: `python` and `ckcontrol` are such commands.

What a fork cannot be is started afresh: options of the interpreter, and variables that libraries read as they are
imported. Also without Linux's pidfds, and where a test asks for the real thing, that is what `sys.executable` is for.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import io
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
AT_IMPORT = ("HF_", "TRANSFORMERS_", "TORCH_", "VLLM_", "PYTHON", "LD_")  # variables that a fork would be too late for
ANY_TIME = ("PYTHONIOENCODING", "PYTHONPATH", "PYTHONUNBUFFERED")
MODELS = (
    "transformers.generation",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
    "sentence_transformers",
    "faiss",
)


class Warm:
    """An interpreter that has imported `modules` (what is not installed is left out), and the commands that fork it."""

    def __init__(self, modules: tuple[str, ...] = MODELS, **variables: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="warm")
        self.bin = Path(self._folder.name)
        self.python = str(self.bin / "python")
        for name, more in (("python", ""), ("ckcontrol", "-m ckcontrol ")):
            line = f'exec "{sys.executable}" -I -S "{HERE}" ask "{self.bin / "socket"}" {more}"$@"'
            (self.bin / name).write_text(f"#!/bin/sh\n{line}\n")
            (self.bin / name).chmod(0o755)
        self._server: subprocess.Popen[str] | None = None
        if hasattr(os, "pidfd_open"):
            command = [sys.executable, str(HERE), "serve", str(self.bin / "socket"), *modules]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            self._server = subprocess.Popen(command, env=environment, **pipes)
            assert self._server.stdout is not None
            assert self._server.stdout.readline() == "ready\n"
            (self.bin / "variables.json").write_text(json.dumps(fixed(environment)))

    def close(self) -> None:
        """End the interpreter; what it started goes on."""
        if self._server is not None:
            self._server.communicate()  # closes its stdin
        self._folder.cleanup()


# --- the interpreter that waits, and its forks ----------------------------------------------------------------------


def serve(path: str, modules: list[str]) -> list[str] | None:
    """Wait for programs until stdin closes; in a fork, return the program that it is."""
    sys.path.pop(0)  # this folder, which is nobody's
    for name in modules:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            continue
    threads = [Path(f"/proc/self/task/{task}/comm").read_text().strip() for task in os.listdir("/proc/self/task")]
    if {*threads[1:]} - {"jemalloc_bg_thd"}:  # pyarrow's, which forks well
        raise RuntimeError(f"a process with threads cannot be forked: {threads}")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen()
    print("ready", flush=True)
    while True:
        ready, _, _ = select.select([listening, 0], [], [])
        if 0 in ready:
            return None
        asked, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return keep(asked)
        asked.close()


def keep(asked: socket.socket) -> list[str] | None:
    """Fork the program; hand on signals and its end. Return in the program, which ends like any other."""
    data, fds, _, _ = socket.recv_fds(asked, 2**20, 3)
    while b"\n" not in data:
        data += asked.recv(2**20)
    size, _, text = data.partition(b"\n")
    while len(text) < int(size):
        text += asked.recv(2**20)
    told = json.loads(text)
    pid = os.fork()
    if pid:
        for fd in fds:
            os.close(fd)
        ended = os.pidfd_open(pid)
        while True:
            ready, _, _ = select.select([asked, ended], [], [])
            if ended in ready:
                with contextlib.suppress(OSError):  # the caller was killed meanwhile
                    asked.sendall(b"%d\n" % os.waitpid(pid, 0)[1])
                os._exit(0)
            sent = asked.recv(1)
            os.kill(pid, sent[0] if sent else signal.SIGKILL)
            if not sent:
                os._exit(0)
    asked.close()
    for number, fd in zip(told["streams"], fds, strict=True):
        os.dup2(fd, number)
        os.close(fd)
    for number in {0, 1, 2} - set(told["streams"]):
        os.close(number)
    os.chdir(told["folder"])
    os.environ.clear()
    os.environ.update(told["variables"])
    signal.signal(signal.SIGINT, signal.default_int_handler if told["interrupt"] else signal.SIG_IGN)
    sys.path[:0] = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    encoding, _, errors = os.environ.get("PYTHONIOENCODING", "utf-8").partition(":")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = None
        if number in told["streams"]:
            how = (errors or "strict") if number < 2 else "backslashreplace"
            stream = open(number, "w" if number else "r", encoding=encoding, errors=how, closefd=False)
            if isinstance(stream, io.TextIOWrapper) and number:
                at_once = bool(os.environ.get("PYTHONUNBUFFERED"))
                stream.reconfigure(line_buffering=at_once or number == 2, write_through=at_once)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    return list(told["program"])


def become(program: list[str]) -> None:
    """Run a program as the interpreter would that is told to, and end as it would.

    But for the taking apart of every module: that is seconds, and copies all memory that the forks share.
    """
    status = 0
    try:
        perform(program)
    except SystemExit as end:
        status = end.code & 255 if isinstance(end.code, int) else int(end.code is not None)
        if status and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        status = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None and not stream.closed:
                stream.flush()
    except (OSError, ValueError) as error:
        with contextlib.suppress(OSError):
            print(f"Exception ignored:\n{type(error).__name__}: {error}", file=sys.stderr)
        status = 120
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


def perform(program: list[str]) -> None:
    """Run it; what it raises is raised."""
    how, *rest = program
    if how == "-m":
        sys.argv, sys.path[:0] = rest, [os.getcwd()]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        return
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    if how == "-c":
        sys.argv, sys.path[:0] = ["-c", *rest[1:]], [""]
        code, name = rest[0].encode(), "<string>"
    else:
        sys.argv, sys.path[:0] = program, [os.path.dirname(os.path.abspath(how))]
        code, name = Path(how).read_bytes(), os.path.abspath(how)
        main.__file__ = name
    exec(compile(code, name, "exec", dont_inherit=True), vars(main))


# --- the command ------------------------------------------------------------------------------------------------------


def fixed(variables: Mapping[str, str]) -> dict[str, str]:
    """Those of the variables that a fork would be too late for."""
    return {k: v for k, v in variables.items() if k.startswith(AT_IMPORT) and k not in ANY_TIME}


def ask(path: str, program: list[str]) -> None:
    """Have a program run in a fork, or by an interpreter of its own where that makes a difference; end as it ends."""
    waiting = Path(path).with_name("variables.json")
    option = not program or (program[0].startswith("-") and program[0] not in ("-c", "-m"))
    if option or not waiting.exists() or json.loads(waiting.read_text()) != fixed(os.environ):
        os.execv(sys.executable, [sys.executable, *program])
    streams = []
    for number in range(3):
        with contextlib.suppress(OSError):
            os.fstat(number)
            streams.append(number)
    interrupt = signal.getsignal(signal.SIGINT) is not signal.SIG_IGN  # bash starts what is in the background deaf
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        for number in (signal.SIGINT, signal.SIGTERM)[not interrupt :]:
            signal.signal(number, lambda number, _: server.sendall(bytes([number])))
        told = {"program": program, "folder": os.getcwd(), "variables": dict(os.environ), "streams": streams}
        text = json.dumps({**told, "interrupt": interrupt}).encode()
        socket.send_fds(server, [b"%d\n" % len(text)], streams)
        server.sendall(text)
        status = int(server.makefile().readline() or -1)
    if status >= 0 and os.WIFSIGNALED(status):
        with contextlib.suppress(OSError):
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    sys.exit(os.WEXITSTATUS(status) if status >= 0 else "the waiting interpreter is gone")


if __name__ == "__main__":
    mode, where, *words = sys.argv[1:]
    if mode == "ask":
        ask(where, words)
    elif (found := serve(where, words)) is not None:
        become(found)
