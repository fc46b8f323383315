"""``python -m ckcontrol`` is the command line, and so is the script ``ckcontrol``."""

from __future__ import annotations

import os
import sys

try:
    from .child_python import without_working_folder

    sys.path[:] = without_working_folder()  # before anything else is imported

    from .cli.process import stop_at_once
except KeyboardInterrupt:  # `stop_at_once` is not there yet to say so
    os.write(2, b"ckcontrol: interrupted.\n")
    os._exit(130)

__all__ = ["run"]


def run() -> None:
    """Run the command line; Ctrl-C ends it quietly from here on, also while its modules are loaded."""
    stop_at_once()
    from .cli.main import run as command

    command()


if __name__ == "__main__":
    run()
