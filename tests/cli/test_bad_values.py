"""Every argument and option of `ckcontrol eval`, `heads` and `steer` with bad values of every kind: one sentence.

What is swept is read from the commands themselves, so an option that is added is swept too. `TAKEN` names the values
that are good ones after all; every other one must be refused before anything of a model is loaded, or a server asked.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NoReturn

import pytest

import ckcontrol.eval.running.runner as runner
from ckcontrol.cli import options
from ckcontrol.cli.main import main
from ckcontrol.heads.choosing.select import mask_for
from ckcontrol.heads.finding.scores import HeadScores
from ckcontrol.models import load as models
from ckcontrol.models import tiny

from ..eval.invented_run import arms, write_run
from ..heads.test_scores import MODEL, example, record
from .test_words import COMMANDS

HUGE = "9" * 400
LONG = "x" * 300  # no name of a file is as long
NUMBERS = ("", "-1", "0", HUGE, "nan", "1.5", "x")
TEXTS = ("", " ", "-1", "nan", "no such", LONG)
READ = ("", "none", "folder", "binary", "broken.json", "list.json", "empty")
WRITTEN = ("", "binary", "binary/x", LONG)
FILE = ("folder", "none/deep/x")  # where a file is to be written

Command = tuple[str, str]
GOOD: dict[Command, tuple[dict[str, str], dict[str, str]]] = {
    ("eval", "run"): ({}, {"--tasks": "facts=facts.jsonl", "--out": "new"}),
    ("eval", "merge"): ({"folders": "run"}, {"--out": "new"}),
    ("eval", "report"): ({"folders": "run"}, {"--out": "report"}),
    ("eval", "compare"): ({"first": "run", "second": "run"}, {}),
    ("eval", "export-pairs"): ({"folder": "run"}, {"--out": "new.jsonl"}),
    ("eval", "build-conflicts"): ({"facts": "facts.jsonl"}, {"--out": "new.jsonl"}),
    ("heads", "find"): ({}, {"--facts": "facts.jsonl", "--out": "new.json"}),
    ("heads", "show"): ({"scores": "scores.json"}, {}),
    ("heads", "tune"): ({"scores": "scores.json"}, {"--direction": "memory"}),
    ("steer", "find"): ({}, {"--facts": "facts.jsonl", "--out": "new.safetensors"}),
    ("heads", "export"): ({"heads": "scores.json"}, {"--prune": "memory:1", "--out": "new"}),
}
READING = {
    "facts",
    "folders",
    "export-pairs folder",
    "first",
    "second",
    "scores",
    "heads",
    "model",
    "imported",
    "build-conflicts known",
}
FOLDERS = {"eval run out", "eval merge out", "eval report out", "heads export out", "heads export lora"}
TAKEN: dict[str, set[str]] = {
    "limit": {HUGE},
    "batch_size": {HUGE},
    "budget": {HUGE},
    "draws": {"0", HUGE},
    "steps": {HUGE},
    "top": {HUGE},
    "items": {"0", HUGE},
    "n": {HUGE},
    "speed": {"0", HUGE},
    "seed": {"0"},
    "new_tokens": {"0"},
    "heads find seed": {"-1", "0", HUGE},
    "steer find seed": {"-1", "0", HUGE},
    "eval build-conflicts seed": {"-1", "0", HUGE},
    "eval export-pairs seed": {"-1", "0", HUGE},
    "heads tune seed": {"-1", "0"},
    "temperature": {"1.5"},
}
SWEPT: list[tuple[Command, Any]] = [
    ((path[0], path[1]), parameter)
    for path, command in COMMANDS.items()
    if path[0] in ("eval", "heads", "steer")
    for parameter in command.params
    if not getattr(parameter, "is_flag", False)
]


class Reached(BaseException):
    """Nothing was refused: the command went on to a model or a server."""


def never(*given: Any, **named: Any) -> NoReturn:
    raise Reached


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of good and bad inputs."""
    folder = tmp_path_factory.mktemp("inputs")
    facts = [
        {"relation": "r", "subject": s, "answer": a, "cloze": f"of {s} is"} for s, a in zip("STUV", "WXYZ", strict=True)
    ]
    (folder / "facts.jsonl").write_text("".join(json.dumps(fact) + "\n" for fact in facts))
    records = [record(i, "capital", split) for i, split in enumerate(("find", "dev", "test"))]
    scores = HeadScores(MODEL, {"formats": ["substitution"]}, records, [example([-2, 0, 0, 1], [1, 0, 0, -3])] * 3)
    (folder / "scores.json").write_text(scores.to_json())
    mask_for(scores, "memory:1").save(folder / "mask.json")
    write_run(folder / "run", tasks=("capitals",), listed=arms(flat=("off", "closed-book"), dials={}), per_state=2)
    (folder / "folder").mkdir()
    (folder / "binary").write_bytes(bytes(range(256)) * 4)
    (folder / "broken.json").write_text('{"kind": "ckcontrol')
    (folder / "list.json").write_text("[1, 2]")
    (folder / "empty").write_bytes(b"")
    return folder


def values(path: Command, parameter: Any) -> tuple[str, ...]:
    """The bad values of a parameter, by what it takes."""
    kind = repr(getattr(parameter, "type", None) or parameter.type_descriptor.annotation).lower()  # older, newer typer
    if "int" in kind or "float" in kind:
        return NUMBERS
    if parameter.name in READING or f"{path[1]} {parameter.name}" in READING:
        return READ
    if "path" not in kind:
        return TEXTS
    return WRITTEN if f"{' '.join(path)} {parameter.name}" in FOLDERS else (*WRITTEN[:1], *WRITTEN[2:], *FILE)


def call(path: Command, parameter: Any, value: str) -> list[str]:
    """The words of a good call, but for one value."""
    arguments, given = GOOD[path]
    if parameter.param_type_name == "argument":
        arguments = arguments | {parameter.name: value}
    else:
        given = given | {max(parameter.opts, key=len): value}
    return [*path, *(word for pair in given.items() for word in pair), "--", *arguments.values()]


@pytest.mark.parametrize(("path", "parameter"), SWEPT, ids=[f"{' '.join(path)} {each.name}" for path, each in SWEPT])
def test_a_bad_value_is_one_sentence(
    path: Command,
    parameter: Any,
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = f"{' '.join(path)} {parameter.name}"
    shutil.copytree(inputs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    if parameter.name not in ("model", "screen", "device", "dtype"):
        monkeypatch.setattr(options, "load", never)
    monkeypatch.setattr(models, "demo_path", never)
    monkeypatch.setattr(tiny, "tiny_model", never)
    monkeypatch.setattr(runner, "run", never)
    before = {place.name for place in tmp_path.iterdir()}
    for value in values(path, parameter):
        if value in TAKEN.get(name, TAKEN.get(parameter.name, ())):
            continue
        try:
            code = main(call(path, parameter, value))
        except Reached:
            pytest.fail(f"{name} {value!r} was not refused")
        out, err = capsys.readouterr()
        *notes, said = err.splitlines()
        shown = value.strip()[:60] or "''"
        by_hub = parameter.name in ("model", "screen") and value.strip()  # ModelUnavailable: not the caller's
        assert code == 2 or (by_hub and code == 1), (name, value, err)
        assert out == "" and said.startswith("ckcontrol: ") and "Traceback" not in err, (name, value, err)
        assert not any(line.startswith("ckcontrol: ") for line in notes), (name, value, err)
        assert shown in said or (value == HUGE and "inf" in said) or value == " ", (name, value, err)
        assert ". " in said, (name, value, err)  # and then what to do
        assert "Errno" not in said and "codec" not in said, (name, value, err)
    assert {place.name for place in tmp_path.iterdir()} == before, "a refusal writes nothing"


@pytest.mark.parametrize(
    "args", [["eval", "compare", "", "run"], ["index", "info", ""], ["heads", "show", "--png=", "x"]]
)
def test_an_empty_path_is_not_the_folder_one_is_in(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 2
    assert "'' is an empty path. Name a file or a folder; . is this one." in capsys.readouterr().err
