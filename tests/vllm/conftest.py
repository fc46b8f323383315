"""What the tests of ckcontrol.vllm share. Without vLLM most of them are skipped."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

HAS_VLLM = find_spec("vllm") is not None


@pytest.fixture(scope="session")
def vllm_here():
    """Skips where vLLM is not installed."""
    if not HAS_VLLM:
        pytest.skip("vLLM is not installed")


@pytest.fixture
def off_the_cpu(monkeypatch):
    """Takes the branches that are meant for accelerators, on a CPU, so that their values can be checked."""
    from ckcontrol.vllm.engine import batch, sampling

    for module in (batch, sampling):
        monkeypatch.setattr(module, "on_cpu", lambda device: False)


@pytest.fixture(params=["on a CPU", "off the CPU"])
def anywhere(request):
    """Both branches, on a CPU."""
    if request.param == "off the CPU":
        request.getfixturevalue("off_the_cpu")


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """A small random model: (folder, model, tokenizer)."""
    from ckcontrol.models.load import load

    from .models import small_checkpoint

    folder = small_checkpoint(tmp_path_factory.mktemp("small"))
    return (folder, *load(folder, device="cpu"))
