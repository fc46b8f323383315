"""The command line: what it prints, where, with which exit code; on the tiny model, without network."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from typer.testing import CliRunner

from ckcontrol import __version__
from ckcontrol.cli import bars, files, options
from ckcontrol.cli.main import LISTED, app, main
from ckcontrol.cli.stream import TextStream
from ckcontrol.errors import CKError, ControlError, ModelUnavailable, PromptError, UnsupportedMode

TINY = ["--model", "tiny", "--device", "cpu", "--max-new-tokens", "6"]
ASK = ["-q", "Who?", "--passage-text", "It was Ann.", *TINY]


def failure(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str]:
    """Run, and return the code and the one line on stderr; nothing may be on stdout."""
    code = main(args)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("ckcontrol: ") and err.count("\n") == 1
    return code, err


# --- help ---


@pytest.mark.parametrize("command", ["demo", "run", "explain", "doctor"])
def test_every_command_has_help(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert "--model" in result.output and "--json" in result.output


def test_help_breaks_no_sentence_where_the_source_does() -> None:
    made = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for command in (made["calibrate"], made["serve-vllm"], made["index"].commands["add"]):
        paragraphs = command.help.split("\n\n")
        assert len(paragraphs) > 1 and not any("\n" in paragraph for paragraph in paragraphs)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ckcontrol {__version__}\n"


def test_help_imports_no_model_library() -> None:
    code = (
        "import sys; from ckcontrol.cli.main import main; main(['--help']); "
        "sys.exit(bool({'torch', 'transformers', 'faiss'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_the_overview_says_what_the_commands_say() -> None:
    """It is written beside the commands, so that it can be shown without importing them."""
    made = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for name, listed in LISTED.items():
        overview = dict.get(made, name).help
        command = made[name]
        assert command.name == name and command is made.get(name)
        assert overview == listed.help == " ".join(command.help.split("\n\n")[0].split()), name
        assert set(place.split(":")[1].replace("_", "-") for place in listed.joins) <= set(
            getattr(command, "commands", ())
        )


def test_the_overview_imports_no_command() -> None:
    code = (
        "import sys; from ckcontrol.cli.main import LISTED, main; main(['--help']); "
        "names = ['ckcontrol.cli.' + listed.place.split(':')[0] for listed in LISTED.values()]; "
        "print([name for name in names if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert done.stderr.strip() == "[]"


# --- run ---


def test_run_prints_the_answer_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *ASK, "--alpha", "0.2", "--json"]) == 0
    text = json.loads(capsys.readouterr().out)["text"]
    assert main(["run", *ASK, "--alpha", "0.2"]) == 0
    assert capsys.readouterr().out == inputs_clean(text) + "\n"


def inputs_clean(text: str) -> str:
    from ckcontrol.views.safe_text import clean

    return clean(text, None)


def test_run_json_is_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *ASK, "--method", "ck-plug", "--alpha", "1", "--param", "gate=1e6", "--json"]) == 0
    out = capsys.readouterr().out
    data = json.loads(out)
    assert out.rstrip("\n").isprintable()
    assert data["control"] | {"alpha": 1.0, "gate": 1e6} == data["control"]
    assert data["summary"]["switched"] == len(data["tokens"]) > 0
    assert all(token["rank_par"] == 0 for token in data["tokens"])


def test_run_equals_the_library(capsys: pytest.CaptureFixture[str], llama: object) -> None:
    from ckcontrol import Control, generate

    model, tokenizer = llama  # type: ignore[misc]
    assert main(["run", *ASK, "--method", "cad", "--alpha", "0.3", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    answer = generate(model, tokenizer, "Who?", ["It was Ann."], control=Control("cad", 0.3), max_new_tokens=6)
    assert data == json.loads(answer.to_json())


def test_seeded_samples_repeat(capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for seed in ("1", "1", "2"):
        assert main(["run", *ASK, "--sample", "--temperature", "1.5", "--seed", seed]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]


def test_stream_prints_what_run_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *ASK]) == 0
    whole = capsys.readouterr().out
    assert main(["run", *ASK, "--stream"]) == 0
    assert capsys.readouterr().out == whole


def test_stream_waits_for_whole_characters_and_takes_escapes_out() -> None:
    class Bytes:
        all_special_tokens: tuple[str, ...] = ()
        all_special_ids: tuple[int, ...] = ()

        def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            return bytes(ids).decode("utf-8", errors="replace")

    out = io.StringIO()
    stream = TextStream(Bytes(), out)
    stream.put(ids(1, 2, 3))  # the prompt
    seen = []
    for byte in " é\x1b[31mx".encode():
        stream.put(ids(byte))
        seen.append(out.getvalue())
    stream.end()
    assert seen[:3] == ["", "", "é"]
    assert out.getvalue().endswith("x\n") and out.getvalue()[:-1].isprintable()


def ids(*values: int) -> object:
    import torch

    return torch.tensor([values])


# --- passages ---


def test_passages_come_from_files_stdin_and_options_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("\ufeffone", encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"two")))
    assert files.read_passages([str(tmp_path / "a.txt"), "-"], ["three"]) == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("data", "says"),
    [(b"\xff\xfe\x00", "not UTF-8"), (b" \n", "empty"), (b"x" * (files.LIMIT + 1), "larger than 10 MB")],
)
def test_bad_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes, says: str) -> None:
    (tmp_path / "bad.txt").write_bytes(data)
    code, err = failure(capsys, "run", "-q", "Who?", "-p", str(tmp_path / "bad.txt"), *TINY)
    assert code == 2 and "bad.txt" in err and says in err


def test_missing_file_and_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, err = failure(capsys, "run", "-q", "Who?", "-p", str(tmp_path / "none.txt"))
    assert code == 2 and "none.txt" in err and "No such file" in err
    assert failure(capsys, "run", "-q", "Who?", "-p", str(tmp_path))[0] == 2


def test_stdin_is_read_once() -> None:
    with pytest.raises(PromptError, match="more than once"):
        files.read_passages(["-", "-"])


# --- parameters ---


def test_params_are_typed() -> None:
    pairs = ["a=true", "b=False", "c=3", "d=-2.5", "e=1e3", "f=word", "g-h=1.", "i="]
    assert files.parse_params(pairs) == {
        "a": True,
        "b": False,
        "c": 3,
        "d": -2.5,
        "e": 1000.0,
        "f": "word",
        "g_h": 1.0,
        "i": "",
    }
    assert [type(v) for v in files.parse_params(["a=1", "b=1.0", "c=nan", "d=inf"]).values()] == [
        int,
        float,
        str,
        str,
    ]


@pytest.mark.parametrize("pairs", [["gate"], ["=1"], ["a b=1"], ["alpha=1"], ["method=cad"], ["a=1", "a=2"]])
def test_bad_params_are_refused(pairs: list[str]) -> None:
    with pytest.raises(ControlError):
        files.parse_params(pairs)


# --- exit codes ---


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--alpha", "1.5"], "alpha=1.5"),
        (["--alpha", "nan"], "alpha=nan"),
        (["--alpha", "much"], "'much' for '--alpha': it is not a number."),
        (["--sources", "any"], "'any' for '--sources': 'any' is not one of 'each'."),
        (["--max-new-tokens", "1.5"], "'1.5' for '--max-new-tokens': it is not a whole number."),
        (["--method", "ck-plgu"], "Did you mean 'ck-plug'?"),
        (["--method", "ck-plug", "--param", "gat=2"], "Did you mean 'gate'?"),
        (["--method", "ck-plug", "--param", "gate=wide"], "gate='wide'"),
        (["--param", "gate=2"], "Method 'ck-plug' has it"),
        (["--system", "caf\udce9"], r"'caf\udce9' is not UTF-8. Type it anew"),
        (["--passage", "caf\udce9.txt"], r"'caf\udce9.txt' is not UTF-8. Type it anew; a file"),
        (["--max-new-tokens", "0"], "--max-new-tokens 0 "),
        (["--sample", "--temperature", "0"], "temperature"),
        (["--temperature", "1"], "--temperature 1.0 without --sample"),
        (["--seed", "0"], "--seed 0 without --sample"),
        (["--weights", "dial/"], "--weights without --method weights: dial"),
        (["--method", "off", "--alpha", "0.5"], "has no alpha: it leaves the model as it is."),
        (["--method", "grd", "--alpha", "0.5"], "has no alpha: it chooses by itself."),
        (["--dtype", "int8"], "dtype='int8'"),
        (["--stream", "--json"], "exclude each other"),
        (["--no-such-option"], "--no-such-option"),
    ],
)
def test_bad_input_is_one_line_and_code_2(capsys: pytest.CaptureFixture[str], args: list[str], says: str) -> None:
    code, err = failure(capsys, "run", *ASK, *args)
    assert code == 2 and says in err


def test_more_bad_input(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert failure(capsys, "run", "-q", " ", *TINY)[0] == 2
    assert failure(capsys, "run")[0] == 2
    assert failure(capsys, "no-such-command")[0] == 2
    assert failure(capsys, "explain", *ASK, "--html", str(tmp_path))[0] == 2
    assert failure(capsys, "explain", *ASK, "--html", str(tmp_path / "no" / "x.html"))[0] == 2
    long = ["-q", "Who?", "--passage-text", "word " * 2000, *TINY]
    code, err = failure(capsys, "run", *long)
    assert code == 2 and "10" in err
    assert main(["run", *long, "--truncate"]) == 0


def test_a_failure_is_code_1(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, err = failure(capsys, "run", "-q", "Who?", "--model", "no/such model")
    assert code == 1 and "'no/such model'" in err
    code, err = failure(capsys, "run", "-q", "Who?", "--model", str(tmp_path / "none"))
    assert code == 2 and "none" in err  # a path that is no model's is bad input


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ControlError("a\nb\x1b[31m", "c"), 2),
        (UnsupportedMode("no"), 2),
        (ModelUnavailable("no"), 1),
        (CKError("no"), 1),
        (RuntimeError("no"), 1),
        (PermissionError(13, "Permission denied", "x.html"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_codes_by_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    def fail(*args: object) -> None:
        raise error

    monkeypatch.delenv("CKCONTROL_DEBUG", raising=False)
    monkeypatch.setattr(options, "load", fail)
    got, err = failure(capsys, "run", *ASK)
    assert got == code
    assert err[:-1].isprintable() and "Traceback" not in err


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKCONTROL_DEBUG", "1")
    with pytest.raises(ControlError):
        main(["run", *ASK, "--alpha", "7"])


# --- explain ---


def test_explain_shows_tokens_and_writes_the_page(tmp_path: Path) -> None:
    page = tmp_path / "why.html"
    result = CliRunner().invoke(
        app, ["explain", *ASK, "--method", "ck-plug", "--alpha", "1", "--param", "gate=1e6", "--html", str(page)]
    )
    assert result.exit_code == 0, result.output
    assert "▸" in result.output and "6 switched" in result.output and "rank" in result.output
    assert "It was Ann." in page.read_text(encoding="utf-8")


def test_explain_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", *ASK, "--alpha", "0.2", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["tokens"]) == 6


def test_explain_is_run_with_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    printed = []
    for command in (["explain"], ["run", "--explain"]):
        assert main([*command, *ASK, "--alpha", "0.2"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] and "rank" in printed[0]
    assert "--stream" in failure(capsys, "explain", *ASK, "--stream")[1]
    assert "exclude each other" in failure(capsys, "run", *ASK, "--explain", "--stream")[1]


def test_html_alone_leaves_stdout_to_the_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "why.html"
    assert main(["run", *ASK]) == 0
    answer = capsys.readouterr().out
    assert main(["run", *ASK, "--html", str(page)]) == 0
    assert capsys.readouterr() == (answer, f"! Cut at --max-new-tokens 6: a higher one lets it go on.\nWrote {page}\n")
    assert "It was Ann." in page.read_text(encoding="utf-8")


# --- doctor ---


def test_doctor_passes_on_the_tiny_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "FAILED" not in out and out.count("ok ") >= 6 and "torch" in out


def test_doctor_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--device", "cpu", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["ok"] and all(check["ok"] for check in data["checks"])
    assert data["environment"]["ckcontrol"] == __version__


def test_doctor_notices_a_dead_blend(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy that decides nothing must fail the checks that need it, and the command."""
    import torch

    from ckcontrol.policies import CKPlug, Decision

    def nothing(self: CKPlug, signals: object) -> Decision:
        rows = signals.h_par  # type: ignore[attr-defined]
        return Decision(torch.ones_like(rows), torch.zeros_like(rows, dtype=torch.bool))

    monkeypatch.setattr(CKPlug, "decide", nothing)
    assert main(["doctor", "--device", "cpu", "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    failed = {check["name"] for check in data["checks"] if not check["ok"]}
    assert {"alpha 0 changes the answer", "alpha 1 changes the answer"} <= failed


def test_a_check_that_raises_counts_as_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    from ckcontrol import doctor

    def fail(bench: object) -> tuple[bool, str]:
        raise RuntimeError("boom")

    monkeypatch.setattr(doctor, "CHECKS", {"always fails": fail})
    assert doctor.check() == [doctor.Check("always fails", False, "RuntimeError: boom")]


def test_module_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ckcontrol", "run", *ASK, "--alpha", "2"],
        capture_output=True,
        text=True,
        check=False,
        env=None,
    )
    assert done.returncode == 2 and done.stderr.startswith("ckcontrol: alpha=2.0")


def test_typer_errors_do_not_leak_boxes(capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(app, typer.Typer)
    assert "╭" not in failure(capsys, "run", "--alpha")[1]


def test_sources_say_who_says_what(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["run", "-q", "Who?", "--passage-text", "It was A.", "--passage-text", "It was B.", *TINY, "--alpha", "0.3"]
    assert main([*asked, "--sources", "each"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("memory", "passage 1", "passage 2", "all", "its answer", "in its words"))
    assert "contradicts" not in out and "silent" not in out, "what is told is of the answers, not of the passages"
    assert main([*asked, "--sources", "each", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [source["passages"] for source in told["sources"]] == [[], [0], [1], [0, 1]]
    assert isinstance(told["disputed"], bool)
    assert main([*asked, "--sources", "all"]) == 2
    assert "each" in capsys.readouterr().err


def test_an_answer_that_did_not_end_is_said_to_be_cut(capsys: pytest.CaptureFixture[str]) -> None:
    """On stderr, so that what is piped on is the answer alone."""
    call = ["run", "--model", "tiny", "-q", "Who?", "--max-new-tokens"]
    assert main([*call, "2"]) == 0
    out, err = capsys.readouterr()
    assert "! Cut at --max-new-tokens 2" in err and "Cut" not in out
    assert main([*call, "2", "--json"]) == 0
    assert "Cut" not in "".join(capsys.readouterr())


def test_progress_into_a_file_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with bars.Bars() as told:
        for done in (0, 8, 96, 96):  # all within ten seconds: the start and the end
            told("Answering", done, 96)
        told("Loading", 0, 0)
        told.note("a [note]")
    assert capsys.readouterr().err.splitlines() == [
        "Answering: 0 of 96",
        "Answering: 96 of 96 · 0:00:00",
        "Loading",
        "a [note]",
    ]
    monkeypatch.setattr(bars, "EVERY", 0.0)
    with bars.Bars() as told:
        told("Answering", 1_000, 2_000)  # goes on there
        told("Answering", 1_500, 2_000)
    assert capsys.readouterr().err.splitlines() == [
        "Answering: 1,000 of 2,000",
        "Answering: 1,500 of 2,000 · 0:00:00 · 0:00:00 left",
    ]
    with monkeypatch.context() as gone:
        read, write = os.pipe()
        os.close(read)  # whoever read it has left; the work goes on
        gone.setattr(sys, "stderr", os.fdopen(write, "w"))
        with bars.Bars() as told:
            for done in range(3):
                told("Answering", done, 96)
            told.note("a note")
        with suppress(BrokenPipeError):
            sys.stderr.close()
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with bars.Bars() as told:
        told("Answering", 8, 96)
    assert "━" in capsys.readouterr().err, "a bar on a terminal"
