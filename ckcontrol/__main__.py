"""``python -m ckcontrol`` is the command line."""

from __future__ import annotations

import sys

from .child_python import without_working_folder

sys.path[:] = without_working_folder()  # before anything else is imported

from .cli.main import run  # noqa: E402

if __name__ == "__main__":
    run()
