"""The report as files: it says what results.json says, stays whole where figures are missing, and is inert."""

from __future__ import annotations

import functools
import json
import math
import random
import re
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from ckcontrol.errors import EvalError, MissingExtra
from ckcontrol.eval.report import write_report
from ckcontrol.eval.report.number_texts import percent
from ckcontrol.eval.report.runs import read_runs
from ckcontrol.views import canvas_png as png

from .invented_run import STATES, arms, write_json, write_lines, write_run

SMALL = ("capitals", "nq_swap")
HOSTILE = '</script><script>alert(1)</script><img src=x onerror=alert(2)>"\x1b[31m\x1b]0;t\x07\u202eevil\u2066|`*[a](b)'


class Reader(HTMLParser):
    """Tags, attributes and the text of table cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def names(self) -> set[str]:
        return {tag for tag, _ in self.tags}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "a", tasks=SMALL, per_state=3)


@pytest.fixture(scope="module")
def page(run, tmp_path_factory) -> str:
    return write_report([run], tmp_path_factory.mktemp("out"), 4, png=False).read_text(encoding="utf-8")


def edited(tmp_path: Path, change) -> Path:
    """A small run with its results.json changed."""
    folder = write_run(tmp_path / "run", tasks=("capitals",), per_state=2)
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    change(results)
    write_json(folder / "results.json", results)
    return folder


def reported(folder: Path, items: int = 2) -> str:
    path = write_report([folder], folder / "out", items, png=False)
    assert "nan" not in re.findall(r"[a-z]+", (path.parent / "report.md").read_text(encoding="utf-8").lower())
    return path.read_text(encoding="utf-8")


# --- the figures ---


def test_every_headline_figure_is_on_the_page_as_results_has_it(run, page):
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    rows = re.findall(r'<tr><th scope="row">.*?</tr>', page, re.S)
    assert len(results["cells"]) == 2 * len(STATES) * 18
    for cell in results["cells"]:
        metric = cell["metrics"]["mr" if cell["state"] == "conflict" else "accuracy"]
        ends = f"[{percent(metric['low'])}, {percent(metric['high'])}]"
        label = f'data-label="{cell["state"]}: '
        mine = [row for row in rows if f"<bdi>{cell['arm']}</bdi>" in row and label in row]
        assert len(mine) == 2  # one row per task
        cells = [part.split("</td>")[0] for row in mine for part in row.split(label)[1:]]
        assert any(f">{percent(metric['value'])}" in found and ends in found for found in cells), cell


def test_marks_are_the_differences_that_hold_after_holm(run, page):
    (found,) = read_runs([run])
    signs = {0: 0, 1: 0, -1: 0}
    for arm in found.arms:
        pair = found.against_off("capitals", "helpful", arm.name, "accuracy")
        if pair:
            signs[pair.sign] += 1
            assert (pair.sign != 0) == (pair.p_holm < 0.05)
            assert pair.p_holm >= pair.p
    assert signs[-1] > 0 and signs[0] > 0
    table = page.split("<h3>capitals</h3>")[1].split("</table>")[0]
    marked = [part for part in table.split('data-label="helpful: accuracy"')[1:] if "▼" in part.split("</td>")[0]]
    assert len(marked) == signs[-1]


def test_corrected_p_values_of_the_results_are_used(tmp_path):
    def raised(results):
        for pair in results["pairs"]:
            pair["p_holm"] = 0.9

    assert "ev-down" not in reported(edited(tmp_path, raised)).split("</style>")[1].split('id="ev-items"')[0]


def test_other_metrics_and_n_are_told(page):
    assert 'data-label="memory&#x27;s answer (parr)"' in page
    assert "Every other metric" in page and 'data-label="repeat4"' in page
    assert "n\u00a0=\u00a0200 in every state" in page and "n\u00a0=\u00a0177" in page


def test_a_ratio_and_the_share_it_leaves_out_have_their_own_n(tmp_path):
    def few(results):  # six items, one of which names neither answer
        results["cells"] = [
            cell for cell in results["cells"] if cell["state"] == "conflict" and not cell["arm"].startswith("cad")
        ]
        for cell in results["cells"]:
            cell["n"], cell["errors"] = 6, 0
            low = cell["arm"].endswith("@0")
            for name, (value, n) in {"mr": (0.4 if low else 1.0, 5), "neither": (1 / 6, 6)}.items():
                cell["metrics"][name] = {"value": value, "low": value / 2, "high": min(1.0, 1.2 * value), "n": n}

    said = " ".join(Reader(reported(edited(tmp_path, few))).text.split()).replace("\u00a0", " ")
    assert "neither 16.7 of n = 6" in said and "n = 5." in said and "in every state" not in said
    assert "ck-plug, the only method with a dial here, moves the memory ratio in conflict from 40.0" in said
    assert "from 40.0 [20.0, 48.0] to 100.0 [50.0, 100.0] % on capitals, 60.0 points" in said
    assert "60.0 points (n = 5 answers that name one of the two, of 6)." in said
    warning = "Fewer than 100 items stand behind 1 of 1 pair of task and state (fewest: 6 of capitals · conflict)."
    assert -1 < said.find(warning) < said.find("ck-plug, the only method"), "five answers do not lead"


def test_the_run_card_tells_model_data_and_what_was_left_out(run, page):
    text = Reader(page).text
    card = json.loads((run / "run.json").read_text(encoding="utf-8"))
    for said in (card["model"], card["model_fingerprint"], card["started"], card["tasks"]["capitals"]["sha256"]):
        assert said in text
    assert "19 rejected: 12 answers contain each other, 7 truth in the passage" in text
    assert "licence Apache-2.0" in text and "max_new_tokens 64" in text and "{context}\nQ: {question}" in text


def test_a_fingerprint_is_told_in_words(tmp_path):
    folder = edited(tmp_path, lambda results: None)
    told = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    write_json(folder / "run.json", told | {"model_fingerprint": {"family": "llama", "layers": 9}})
    reported(folder)
    said = (folder / "out" / "report.md").read_text(encoding="utf-8")
    assert "model fingerprint family llama, layers 9" in said and "{'" not in said


def test_bytes_depend_on_the_run_alone(run, tmp_path):
    one, two = (write_report([run], tmp_path / name, 3, png=False) for name in "ab")
    for name in ("report.html", "report.md", "curves.svg", "four_states.svg"):
        assert (one.parent / name).read_bytes() == (two.parent / name).read_bytes()


def test_the_default_place_is_the_run_itself(tmp_path):
    folder = write_run(tmp_path / "r", tasks=("capitals",), per_state=1)
    assert write_report([folder], items=0, png=False) == folder / "report.html"


# --- what is missing ---


def test_missing_cells_are_dashes_and_say_so(tmp_path):
    def removed(results):
        results["cells"] = [c for c in results["cells"] if (c["state"], c["arm"]) != ("agree", "cad@0.5")]

    page = reported(edited(tmp_path, removed))
    row = next(r for r in page.split("<tr>") if "<bdi>cad@0.5</bdi>" in r and 'data-label="agree' in r)
    assert "–" in row and "not run" in row


def test_undefined_metrics_are_dashes_never_zero(tmp_path):
    def undefined(results):
        for cell in results["cells"]:
            if cell["arm"] == "prompt" and "mr" in cell["metrics"]:
                cell["metrics"]["mr"] = {"value": None, "low": None, "high": None, "n": 0}
            if cell["arm"] == "acd":
                cell["metrics"]["accuracy"]["value"] = math.nan
                cell["errors"] = 7

    page = reported(edited(tmp_path, undefined))
    row = next(r for r in page.split("<tr>") if "<bdi>prompt</bdi>" in r and 'data-label="conflict: memory' in r)
    assert "undefined: no answer names one of two sides" in row.split('data-label="agree')[0]
    assert "7 failed" in page and not re.search(r"[\"> ]nan[\"< ,]", page, re.I)


def test_no_cells_no_pairs_no_curves(tmp_path):
    def emptied(results):
        results |= {"cells": [], "pairs": [], "curves": []}

    page = reported(edited(tmp_path, emptied))
    assert "there is no control curve to read" in page


@pytest.mark.parametrize(
    "listed",
    [arms({"ck-plug": (0.25,)}), arms({}), arms({}, ("off",)), arms({"ck-plug": (0.0, 1.0)}, ("closed-book",))],
    ids=["one alpha", "no dial", "off alone", "without off"],
)
def test_few_arms(tmp_path, listed):
    folder = write_run(tmp_path / "run", tasks=("capitals",), listed=listed, per_state=2)
    page = reported(folder)
    assert "Control curves" in page
    for arm in listed:
        assert f"<bdi>{arm['name']}</bdi>" in page
    ElementTree.fromstring((folder / "out" / "curves.svg").read_bytes())


def test_choices_have_accuracy_and_no_control_curve(tmp_path):
    def chosen(results):
        results["tasks"]["capitals"]["kind"] = "choices"

    page = reported(edited(tmp_path, chosen))
    assert "conflict: accuracy" in page and "conflict: memory ratio" not in page


# --- several runs ---


def test_two_runs_stand_side_by_side(run, tmp_path):
    other = write_run(tmp_path / "b", tasks=("nq_swap",), seed=9, per_state=2)
    mirrored(other)
    path = write_report([run, other], tmp_path / "out", 2, png=False)
    page = path.read_text(encoding="utf-8")
    assert "Runs side by side" in page and "The runs differ in: seed." in page
    mine, theirs = (found.get("nq_swap", "conflict", "ck-plug@1", "mr") for found in read_runs([run, other]))
    row = next(r for r in page.split("<tr>") if "<bdi>nq_swap, ck-plug@1</bdi>" in r)
    assert f">{percent(mine.value)}<" in row and f">{percent(theirs.value)}<" in row
    assert "capitals, ck-plug@1" not in page  # one of them did not run it
    assert "Differences: second run minus first" in page and page.count("correction over the arms") == 1
    assert "nq_swap, run a" in page and "nq_swap, run b" in page
    assert "## Run b" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


def mirrored(folder: Path) -> None:
    """Make arm off of a run name the passages' answer always, so that the runs differ."""
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").split("\n") if line]
    for line in lines:
        line |= {"text": "I cannot tell."} if line["arm"] == "off" else {}
    write_lines(folder / "samples.jsonl", lines)


def test_two_runs_are_tested_on_the_samples_both_have(tmp_path):
    runs = [write_run(tmp_path / name, tasks=("nq_swap",), listed=arms({}, ("off",)), per_state=8) for name in "ab"]
    mirrored(runs[1])
    page = write_report(runs, tmp_path / "out", 0, png=False).read_text(encoding="utf-8")
    agree = page.split("<summary>agree</summary>")[1].split("</table>")[0]
    assert re.search(r"ev-down\">−[\d.]+ ▼</span>", agree) and "n\u00a0=\u00a08" in agree
    assert "The run cards agree in all but date and arms" in page


def test_three_runs_and_runs_without_common_samples_are_not_tested(run, tmp_path):
    other = write_run(tmp_path / "b", tasks=("capitals",), per_state=1)
    page = write_report([run, other, other], tmp_path / "out", 0, png=False).read_text(encoding="utf-8")
    assert "tested two at a time" in page
    (other / "samples.jsonl").write_text("", encoding="utf-8")
    page = write_report([run, other], tmp_path / "out", 0, png=False).read_text(encoding="utf-8")
    assert "Differences are not tested: the two have no sample in common" in page and "not tested</span>" in page


def test_equal_folder_names_get_their_parents(tmp_path):
    folders = [write_run(tmp_path / name / "run", tasks=("capitals",), per_state=1) for name in ("x", "y")]
    assert [found.label for found in read_runs(folders)] == ["x/run", "y/run"]
    assert [found.label for found in read_runs([folders[0]] * 2)] == ["1: x/run", "2: x/run"]


# --- refusals ---


def test_refusals_name_the_file_and_the_remedy(tmp_path):
    with pytest.raises(EvalError, match="no run directory"):
        write_report([])
    with pytest.raises(EvalError, match=r"results\.json does not exist.*score an unfinished run"):
        write_report([tmp_path])
    folder = write_run(tmp_path / "r", tasks=("capitals",), per_state=1)
    write_json(folder / "results.json", {"schema": 2})
    with pytest.raises(EvalError, match="schema 2"):
        write_report([folder])
    (folder / "results.json").write_text("{", encoding="utf-8")
    with pytest.raises(EvalError, match="cannot be read"):
        write_report([folder])
    write_json(folder / "results.json", [])
    with pytest.raises(EvalError, match="holds list, not an object"):
        write_report([folder])


def test_png_files_are_asked_for_or_left_out(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    folder = write_run(tmp_path / "r", tasks=("capitals",), per_state=1)
    write_report([folder], tmp_path / "out", 0, png=True)
    for name in ("curves.png", "four_states.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr("ckcontrol.eval.report.has_matplotlib", lambda: False)
    with pytest.raises(MissingExtra, match=r"\[plots\]"):
        write_report([folder], tmp_path / "none", 0, png=True)
    assert not (tmp_path / "none").exists()
    write_report([folder], tmp_path / "none", 0)
    assert not list((tmp_path / "none").glob("*.png"))
    assert png.has_matplotlib()


# --- inertness ---


def hostile(tmp_path: Path) -> Path:
    """A run in which every text that someone else wrote is an attack, tokens of a megabyte among them."""
    listed = [{**arm, "name": f"{HOSTILE}{n}"} if n else arm for n, arm in enumerate(arms({}, ("off", "acd")))]
    folder = write_run(tmp_path / "evil", tasks=(HOSTILE,), listed=listed, per_state=1)
    card = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    card |= {"model": HOSTILE, "style": HOSTILE, "prompts": {HOSTILE: {HOSTILE: HOSTILE}}, HOSTILE: [HOSTILE]}
    card["tasks"][HOSTILE] |= {"licence": HOSTILE, "source": HOSTILE, "rejected": {HOSTILE: 3}}
    write_json(folder / "run.json", card)
    long = HOSTILE + "x" * 1_000_000
    rows = [json.loads(line) for line in (folder / "items.jsonl").read_text(encoding="utf-8").split("\n") if line]
    for row in rows:
        row |= {"question": long, "context": long, "par_answers": [HOSTILE], "id": f"{row['id']}{HOSTILE}"}
        row["meta"]["docs"] = [long] * 9
        row["context"] = "\n\n".join(row["meta"]["docs"])
    write_lines(folder / "items.jsonl", rows)
    samples = []
    for row in rows:
        place = {"task": HOSTILE, "id": row["id"]}
        tokens = {"text": [long, HOSTILE], "gain": [-9.0, None], "tau": [0.0, 1.0], "switched": [1, 0]}
        samples.append({**place, "arm": "off", "text": long, "n": 2, "finish": "stop", "tokens": tokens})
        samples.append({**place, "arm": f"{HOSTILE}1", "error": long})
    write_lines(folder / "samples.jsonl", samples)
    return folder


def test_hostile_text_is_text(tmp_path):
    path = write_report([hostile(tmp_path)], tmp_path / "out", 5, png=False)
    page = path.read_text(encoding="utf-8")
    reader = Reader(page)
    assert not reader.names() & {"script", "img", "link", "iframe", "object", "embed", "base", "form", "foreignobject"}
    for _, attributes in reader.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "xlink:href", "action")]
        assert (attributes.get("href") or "#").startswith("#")
    assert "&lt;/script&gt;" in page and "</script><script>alert(1)" in reader.text
    for other in ("report.html", "report.md", "curves.svg", "four_states.svg"):
        text = (tmp_path / "out" / other).read_text(encoding="utf-8")
        assert not [c for c in text if c in "\x1b\x07\u202e\u2066"]
    assert len(page) < 300_000  # of nine megabytes of passages and as much of tokens
    assert "characters)" in page and "4 more passages" in page
    markdown = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "<script" not in markdown and "<img" not in markdown and "[a](b)" not in markdown
    for drawing in ("curves.svg", "four_states.svg"):
        names = {node.tag.split("}")[1] for node in ElementTree.parse(tmp_path / "out" / drawing).iter()}
        assert names <= {"svg", "style", "rect", "polyline", "polygon", "circle", "text", "title"}


def test_the_page_loads_nothing(page):
    reader = Reader(page)
    assert "default-src 'none'" in page
    assert not re.search(r"https?:|url\(|@import|javascript:|src=", page.replace("http://www.w3.org", ""))
    assert not reader.names() & {"script", "img", "link", "iframe"}
    anchors = {attributes["id"] for _, attributes in reader.tags if "id" in attributes}
    assert {a["href"] for tag, a in reader.tags if tag == "a"} == {f"#{name}" for name in anchors}
    assert page.count("<details") == page.count("</details>") and page.count("<svg") == page.count("</svg>")


WRONG = (None, True, -1, 3, 2.5, "x", [], ["x"], {}, {"x": 1})


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value, of lists the first two entries."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for name, part in inner:
        yield from places(part, (*path, name))


def fits(was: Any, now: Any, path: Sequence[Any]) -> bool:
    """Whether what stands there now is as good as missing, or of the same kind."""
    if type(was) is float or was is None:
        return now is None or type(now) in (int, float)
    return type(was) is type(now) and not isinstance(was, dict) and now not in (-1, ["x"])


def test_a_wrong_type_at_any_depth_is_refused_by_its_path(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tasks=SMALL[:1], listed=arms({"cad": (0.1, 0.5)}, ("off",)), per_state=1)
    text = (run / "results.json").read_text(encoding="utf-8")
    known = [path for path in places(json.loads(text)) if path and path[0] not in ("run", "schema")]
    known = [path for path in known if path[0] != "tasks" or path[2:] in ((), ("kind",))]  # what else it says is free
    rng, refused = random.Random(0), 0
    for path in rng.sample(known, 20) + [path for path in known if len(path) == 1]:
        for wrong in WRONG:
            whole = json.loads(text)
            inner = functools.reduce(lambda part, name: part[name], path[:-1], whole)
            was, inner[path[-1]] = inner[path[-1]], wrong
            (run / "results.json").write_text(json.dumps(whole), encoding="utf-8")
            try:
                read = read_runs([run])[0]
            except EvalError as error:
                refused += 1
                assert str(run / "results.json") in str(error) and str(path[0]) in str(error)
                assert not fits(was, wrong, path), (path, wrong)
            else:
                assert fits(was, wrong, path) or wrong in (None, {}, []), (path, wrong)
                for task in read.tasks:  # what the report asks for
                    read.kind(task), read.summary(task, "cad"), read.against_off(task, "conflict", "cad@0.5", "mr")
    assert refused > 60
