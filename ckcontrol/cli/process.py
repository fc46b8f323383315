"""What a command owes the shell that runs it: closed streams, a reader that went away, Ctrl-C, and a port in use.

Knows file descriptors, sockets and signals; knows no command.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any

from ..errors import ServingError

__all__ = ["check_port", "complete_streams", "finish", "is_broken_pipe", "stop_at_once"]

WRITE_NOTHING = ("demo", "run", "explain", "ask", "search", "doctor")  # or only when all is done


def complete_streams() -> None:
    """Give a process whose output was closed (``>&-``) somewhere to write, and let undecodable text be shown as "?"."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 shows "?", it does not crash


def is_broken_pipe(error: BaseException | None) -> bool:
    """Whether an error, or what it was made from, says that the reader of our output has gone (``| head``)."""
    while error is not None:
        if isinstance(error, BrokenPipeError):
            return True
        error = error.__cause__ or error.__context__
    return False


def finish(code: int) -> int:
    """Write what is buffered and return the exit code: that of the command, unless its output could not be written.

    Raises:
        OSError: The output could not be written, and not because its reader has gone.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            _drop(stream)
        except OSError:
            _drop(stream)
            raise
    return code


def _drop(stream: Any) -> None:
    """Send what is left in a stream nowhere, or the interpreter complains about it as it ends."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except (OSError, ValueError):  # a stream that is no file
        pass


def stop_at_once(args: Sequence[str] | None = None) -> None:
    """Make Ctrl-C end the process there and then, for commands that have no work to save.

    Others get their KeyboardInterrupt and save it. A process that was told to ignore Ctrl-C goes on ignoring it.

    Args:
        args: The command and its arguments; None before it runs, when there is nothing to save yet.
    """
    at_once = args is None or next((arg for arg in args if not arg.startswith("-")), "") in WRITE_NOTHING
    if signal.getsignal(signal.SIGINT) in (signal.default_int_handler, _stop):
        signal.signal(signal.SIGINT, _stop if at_once else signal.default_int_handler)


def _stop(*_: object) -> None:
    try:
        sys.stdout.flush()
    except (OSError, RuntimeError, ValueError, AttributeError):  # gone, or interrupted as it was writing
        pass
    cursor = "\x1b[?25h\r\x1b[K" if os.isatty(2) else ""  # a spinner hides it
    try:
        os.write(2, f"{cursor}ckcontrol: interrupted.\n".encode())
    finally:
        os._exit(130)


def check_port(host: str, port: int) -> None:
    """Refuse a place where no server can listen, before it has loaded anything; 0 is any free port.

    Raises:
        ServingError: Another program listens there, the system forbids it, or the host is unknown.
    """
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind, protocol) as probe:
                if os.name == "posix":  # a port that was left a moment ago is free
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(address)
    except socket.gaierror as error:
        raise ServingError(f"host {host!r} is unknown here: {error.strerror}.", "Name an address of ours.") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            hint = "Give another one by --port, or stop the program that listens there."
            raise ServingError(f"port {port} of {host} is taken.", hint) from error
        if error.errno == errno.EACCES:
            raise ServingError(f"port {port} of {host} is not allowed.", "Give one above 1023 by --port.") from error
