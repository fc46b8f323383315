"""What a command owes the shell that runs it: closed streams, a reader that went away, and Ctrl-C.

Knows file descriptors and signals; knows no command.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

__all__ = ["complete_streams", "finish", "is_broken_pipe", "stop_at_once"]

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
