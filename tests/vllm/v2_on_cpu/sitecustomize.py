"""Lets vLLM's V2 runner start without a GPU: triton's interpreter stands in for a driver of the CPU.

Imported by Python at start where this folder is on PYTHONPATH, and only in the processes of `make test-vllm-v2`. vLLM
switches triton off on a CPU unless triton has a backend of that name; the interpreter needs none, so one that is never
asked for anything is put there. Knows triton's table of backends; touches nothing without TRITON_INTERPRET=1.
"""

import os
from types import SimpleNamespace

if os.environ.get("TRITON_INTERPRET") == "1":
    try:
        from triton.backends import backends
    except ImportError:  # a process of another environment
        pass
    else:
        backends.clear()
        backends["cpu"] = SimpleNamespace(driver=SimpleNamespace(is_active=lambda: True), compiler=None)
