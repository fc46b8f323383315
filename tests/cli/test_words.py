"""What commands say when they refuse, in the words of the command line; and what they take for a text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from ckcontrol.cli.main import app, main
from ckcontrol.cli.words import TextCommand, called, in_options

TINY = ["--model", "tiny", "--device", "cpu", "--max-new-tokens", "4"]
LONG = "word " * 4000
POLICY = """
from dataclasses import dataclass
import torch
from ckcontrol.policies import Decision, Policy, register

@register
@dataclass(frozen=True)
class {name}(Policy):
    name = {method!r}
    def decide(self, signals):
        return Decision(torch.zeros_like(signals.h_par), torch.ones_like(signals.h_par, dtype=torch.bool))
"""


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["run", "-q", "Who?", *TINY, "--max-new-tokens", "0"], "--max-new-tokens 0 is out of range"),
        (["run", "-q", "Who?", "--passage-text", LONG, *TINY], "or --truncate to cut them."),
        (["run", "-q", LONG, "--truncate", *TINY], "Shorten the question"),
        (["run", "-q", "Who?", *TINY, "--alpha", "2"], "alpha=2.0 is out of range"),
        (["run", "-q", " ", *TINY], "the question is empty. Ask something with -q."),
        (["run", "-q", "Who?", "--passage-text", " ", *TINY], "--passage-text ' ' is empty."),
        (["run", "-q", "Who?", "--import", "no_such_module", *TINY], "there is no module 'no_such_module'"),
        (["run", "-q", "Who?", "--import", "no/such.py", *TINY], "--import 'no/such.py': there is no such file"),
        (["run", "-q", "Who?", "--import", "no such", *TINY], "Write package.module, or path/to/file.py."),
        (["rnu"], "No such command 'rnu'. Did you mean 'run'? See: ckcontrol --help"),
        (["index", "bild"], "No such command 'bild'. Did you mean 'build'? See: ckcontrol index --help"),
        (["run", "--qestion"], ". See: ckcontrol run --help"),
    ],
)
def test_refusals_speak_of_options(args: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 2
    out, err = capsys.readouterr()
    assert out == "" and says in err and err.count("\n") == 1
    assert not re.search(r"\b(max_new_tokens|truncate|text_field|passage_text)=", err) and "?." not in err
    if "--truncate" in args:
        assert "--truncate" not in err


@pytest.mark.parametrize(
    ("command", "text", "words"),
    [
        ("run", "room beside max_new_tokens=64.", "room beside --max-new-tokens 64."),
        ("run", "or truncate='passages' to cut them.", "or --truncate to cut them."),
        ("run", "alpha=2.0 and dtype='int8'", "alpha=2.0 and dtype='int8'"),
        ("index build", "Name another with text_field=.", "Name another with --text-field."),
        ("index build", "chunk_size=900 exceeds, overwrite=True.", "--chunk-size 900 exceeds, --overwrite."),
        ("index add", "Pass chunk_size=9, x.text_field=1", "Pass chunk_size=9, x.text_field=1"),
        ("heads find", "batch_size=0 is not a batch.", "--batch-size 0 is not a batch."),
    ],
)
def test_names_become_options(command: str, text: str, words: str) -> None:
    assert in_options(text, called(typer.main.get_command(app), [*command.split(), "x"])) == words


def test_a_hint_is_typed_as_it_stands() -> None:
    build = called(typer.main.get_command(app), ["index", "build", "."])
    assert in_options("Build the index with dtype='float32'.", build, hint=True) == (
        "Build the index with --dtype float32."
    )


def test_a_question_may_begin_with_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    for given in (["-q", "-5"], ["-q-5 degrees?"], ["--question=-5 degrees?"]):
        assert main(["run", *given, "--passage-text=It was Ann.", *TINY]) == 0
    capsys.readouterr()


def test_without_passages_there_is_nothing_to_steer(capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["run", "-q", "Who?", *TINY]
    for steered in (["--alpha", "0.3"], ["--method", "cad"], ["--param", "amplify=2"], ["--sources", "each"]):
        assert main([*ask, *steered]) == 0
        out, err = capsys.readouterr()
        nothing = "no source but memory" if "--sources" in steered else "nothing to steer"
        assert out and nothing in err and err.count("\n") == 2 and "! Cut at" in err
    for plain in ([], ["--method", "off"], ["--alpha", "0.3", "--passage-text", "It was Ann."]):
        assert main([*ask, *plain]) == 0
        assert "no passages" not in capsys.readouterr().err


def test_policies_of_ones_own_are_imported_when_named(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(POLICY.format(name="Mine", method="my-words"), encoding="utf-8")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "mine_installed.py").write_text(
        POLICY.format(name="Installed", method="my-installed"), encoding="utf-8"
    )
    ask = ["run", "-q", "Who?", "--passage-text", "Ann.", *TINY]
    assert main([*ask, "--method", "my-words"]) == 2
    for _ in range(2):  # named twice, run once
        assert main([*ask, "--method", "my-words", "--import", str(tmp_path / "mine.py")]) == 0
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    capsys.readouterr()
    assert main([*ask, "--import", "mine"]) == 2, "the folder a command runs in is not searched"
    assert "there is no module 'mine'" in capsys.readouterr().err
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert main([*ask, "--import", "mine_installed", "--method", "my-installed"]) == 0
    (tmp_path / "broken.py").write_text("1 / 0", encoding="utf-8")
    assert main([*ask, "--import", "broken.py"]) == 2
    assert "--import 'broken.py' failed: ZeroDivisionError" in capsys.readouterr().err


def leaves(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command of the tree, with the words that call it."""
    for name in tree.commands:
        command = tree.commands[name]  # the overview's is a line, until it is asked for by its name
        if getattr(command, "commands", None):
            yield from leaves(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(leaves(typer.main.get_command(app)))


def test_every_command_takes_texts_that_begin_with_a_dash() -> None:
    passes_on = ("serve-vllm",)  # what it does not know is vLLM's
    assert [path for path, command in COMMANDS.items() if not isinstance(command, TextCommand)] == [passes_on]
