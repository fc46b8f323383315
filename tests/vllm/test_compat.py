"""What is refused at start, in sentences; and that this package needs no vLLM to be imported."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

from ckcontrol.errors import MissingExtra, ServingError
from ckcontrol.vllm.engine import compat

from .conftest import HAS_VLLM


def config(**changes: object) -> SimpleNamespace:
    """A `VllmConfig` as far as we look at it; dotted names go one level down."""
    made = SimpleNamespace(
        speculative_config=None,
        kv_transfer_config=None,
        ec_transfer_config=None,
        additional_config={},
        scheduler_config=SimpleNamespace(policy="fcfs", max_num_seqs=8),
        parallel_config=SimpleNamespace(data_parallel_size=1, enable_batch_sharded_sampling=None),
        model_config=SimpleNamespace(is_encoder_decoder=False, runner_type="generate"),
    )
    for name, value in changes.items():
        owner, _, field = name.partition("__")
        setattr(getattr(made, owner) if field else made, field or owner, value)
    return made


def test_an_ordinary_engine_is_fine() -> None:
    compat.check_engine(config())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"speculative_config": object()}, "speculative decoding"),
        ({"scheduler_config__policy": "priority"}, "priority scheduling"),
        ({"kv_transfer_config": object()}, "a KV connector"),
        ({"ec_transfer_config": object()}, "encoder-cache connector"),
        ({"parallel_config__enable_batch_sharded_sampling": True}, "batch-sharded sampling"),
        ({"parallel_config__data_parallel_size": 2}, "data parallelism without rank pinning"),
        ({"scheduler_config__max_num_seqs": 1}, "max_num_seqs=1"),
        ({"model_config__is_encoder_decoder": True}, "encoder-decoder"),
        ({"model_config__runner_type": "pooling"}, "pooling model"),
    ],
)
def test_engines_that_would_break_pairs_are_refused(change: dict, words: str) -> None:
    with pytest.raises(ServingError) as error:
        compat.check_engine(config(**change))
    assert words in str(error.value) and str(error.value).count(".") >= 2


def test_every_refusal_has_its_test_and_all_are_named_at_once() -> None:
    with pytest.raises(ServingError) as error:
        compat.check_engine(config(speculative_config=1, kv_transfer_config=1))
    assert "speculative" in str(error.value) and "KV connector" in str(error.value)
    assert len(compat.REFUSED) == 9


def test_pinned_ranks_are_taken_at_their_word() -> None:
    compat.check_engine(config(parallel_config__data_parallel_size=2, additional_config={"ck_rank_pinned": True}))


@pytest.mark.parametrize("version", ["0.30.2", "0.34.0", "1.0", "dev", ""])
def test_versions_outside_the_window_are_refused_unless_forced(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(compat.VARIABLE, raising=False)
    with pytest.raises(ServingError, match=r"0\.31 to 0\.33"):
        compat._check_version(version)
    monkeypatch.setenv(compat.VARIABLE, "1")
    compat._check_version(version)


@pytest.mark.skipif(HAS_VLLM, reason="vLLM is installed")
def test_without_vllm_the_remedy_is_named() -> None:
    with pytest.raises(MissingExtra, match="vllm"):
        compat.probe()


@pytest.mark.filterwarnings("ignore")
def test_the_installed_version_has_every_part_we_rest_on(vllm_here: None) -> None:
    assert compat.probe().v2


def test_importing_the_package_imports_nothing_of_vllm() -> None:
    code = (
        "import sys, ckcontrol.vllm, ckcontrol.vllm.contract.pair_params\n"
        "print([m for m in ('vllm', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8")
    assert done.stdout.strip() == "[]", done.stderr
