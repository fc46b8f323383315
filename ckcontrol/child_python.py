"""How a Python module is started as a program of its own: with the installed code, whatever the working folder holds.

``python -m`` puts the working folder first on the path, so a ``pip.py`` among somebody's documents would be run.
"""

from __future__ import annotations

import os
import sys

__all__ = ["module_command", "without_working_folder"]

_RUN = "import sys, runpy; sys.path[:] = {path!r}; runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"


def module_command(module: str, *, isolated: bool = sys.version_info < (3, 11)) -> tuple[list[str], dict[str, str]]:
    """Return how the command line begins that runs a module, and the environment variables it needs.

    Args:
        module: What ``-m`` would be given.
        isolated: Hand this process's path over to an isolated interpreter; needed before Python 3.11, which knows
            PYTHONSAFEPATH. In either way the interpreters that it starts in turn look nowhere else.

    Example:
        >>> module_command("pip", isolated=False)[1]
        {'PYTHONSAFEPATH': '1'}
    """
    if not isolated:
        return [sys.executable, "-m", module], {"PYTHONSAFEPATH": "1"}
    return [sys.executable, "-I", "-c", _RUN.format(path=without_working_folder(), module=module)], {}


def without_working_folder() -> list[str]:
    """Return ``sys.path`` without the entry that ``python -m`` and ``python -c`` put first."""
    if sys.flags.isolated or getattr(sys.flags, "safe_path", False) or not sys.path:
        return list(sys.path)
    first = sys.path[0] or "."
    return sys.path[1:] if os.path.exists(first) and os.path.samefile(first, ".") else list(sys.path)
