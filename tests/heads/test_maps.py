"""Maps: every head is on them with its figures, hostile names are text, and a page loads nothing."""

from __future__ import annotations

import re
import sys
import warnings
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from ckcontrol.errors import HeadsError, MissingExtra
from ckcontrol.heads.finding import maps
from ckcontrol.heads.finding.find import find
from ckcontrol.heads.finding.maps import figure, html_map, relations_table, save_png, top_table
from ckcontrol.heads.finding.scores import HeadScores
from ckcontrol.views.canvas import LIGHT, Tile

from .known import AGAINST, CONTEXT, MEMORY, known_model


@pytest.fixture(scope="module")
def scores(tmp_path_factory) -> HeadScores:
    known = known_model()
    return find(known.model, known.tokenizer, known.facts, tmp_path_factory.mktemp("scores") / "heads.json")


def renamed(scores: HeadScores, name: str, every: int = 1) -> HeadScores:
    records = [replace(r, relation=name) if i % every == 0 else r for i, r in enumerate(scores.records)]
    return HeadScores(scores.model, scores.settings, records, scores.examples)


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def tags(page: str) -> list[tuple[str, dict]]:
    reader = Reader()
    reader.feed(page)
    return reader.tags


# --- tables ---


def test_the_best_heads_come_with_their_statistics(scores):
    (first, *_) = top_table(scores, "memory", 3)
    assert (first["layer"], first["head"]) == MEMORY
    assert first["mean"] == first["formats"]["substitution"] == scores.importance("memory")[MEMORY]
    assert first["agreement"] == 1.0 and first["error"] >= 0
    assert AGAINST not in [(row["layer"], row["head"]) for row in top_table(scores, "context", 9)]


def test_relations_are_compared_when_they_have_enough_facts(scores):
    assert relations_table(scores, "memory") == []
    records = [replace(r, relation="ab"[i % 2]) for i, r in enumerate(scores.records * 2)]
    doubled = HeadScores(scores.model, scores.settings, records, [*scores.examples, *scores.examples])
    (row,) = relations_table(doubled, "context", k=1)
    assert row["relations"] == ("a", "b") and row["shared"] == 1 and row["jaccard"] == 1.0
    assert row["p"] == pytest.approx(1 / 6)


# --- HTML ---


def test_a_cell_for_every_head_and_a_number_on_the_best(scores):
    page = html_map(scores, k=2)
    assert len([t for t, _ in tags(page) if t == "rect"]) == 2 * 6
    mean = scores.importance("context")[CONTEXT]
    assert re.search(rf"<title>layer 1, head 1: \+{mean:.3f} ± [\d.]+, 100% of examples agree</title>", page)
    cell = page[page.index(f"<title>layer {CONTEXT[0]}, head {CONTEXT[1]}: +{mean:.3f}") :].split("</g>")[0]
    assert 'class="ev-f-g8 ' in cell and ">1</text>" in cell  # the bluest step, the first place
    assert "−" in page and "Positive heads promote the source" in page


def test_signs_have_their_colours(scores):
    page = html_map(scores)
    against = page[page.rindex(f"<title>layer {AGAINST[0]}, head {AGAINST[1]}: −") :].split("</g>")[0]
    shade = int(re.search(r"ev-f-g(\d)", against).group(1))
    assert shade < 4


def test_the_page_loads_nothing(scores):
    page = html_map(scores)
    found = tags(page)
    assert not {"script", "link", "img", "iframe", "object", "base"} & {tag for tag, _ in found}
    assert "default-src 'none'" in page and not re.search(r"https?:|url\(|@import|src=", page)
    for _, attributes in found:
        assert not [name for name in attributes if name.startswith("on") or name in ("href", "xlink:href", "src")]


def test_hostile_names_are_text(scores):
    name = '<img src=x onerror=alert(1)>"\x1b[31m\u202e'
    page = html_map(renamed(scores, name))
    assert "<img" not in page and "\x1b" not in page and "\u202e" not in page and "&lt;img src=x" in page


def test_scores_that_are_not_finite_are_refused(scores):
    values = {"memory_logit": [float("inf")] * 6, "context_logit": [0.0] * 6}
    broken = [{source: {"substitution": values} for source in ("memory", "context")}]
    with pytest.raises(HeadsError, match="not finite"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        html_map(HeadScores(scores.model, scores.settings, scores.records[:1], broken))


def test_a_model_without_any_effect_is_drawn(scores):
    flat = [{s: {f: {c: [0.0] * 6 for c in cs} for f, cs in fs.items()} for s, fs in scores.examples[0].items()}]
    page = html_map(HeadScores(scores.model, scores.settings, scores.records[:1], flat))
    assert "None." in page and "--ck-s4" in page


# --- PNG ---


def test_the_png_shows_the_heads_where_they_are(scores, tmp_path):
    pytest.importorskip("matplotlib")
    drawn = figure(scores, k=1)
    tiles = [shape for shape in drawn.shapes if isinstance(shape, Tile) and shape.tip]
    for cells, (layer, head) in zip((tiles[:6], tiles[6:]), (MEMORY, CONTEXT), strict=True):
        (number,) = [tile for tile in cells if tile.words]
        left, top = cells[0].at
        size = cells[1].at[1] - top
        places = [(round((tile.at[0] - left) / size), round((tile.at[1] - top) / size)) for tile in cells]
        assert number.words == "1" and places[cells.index(number)] == (layer, head)
        assert number.tip.startswith(f"layer {layer}, head {head}: ")
        assert sorted(places) == [(x, y) for x in range(2) for y in range(3)]  # heads down, layers across
        assert int(LIGHT[number.ink][5:], 16) > int(LIGHT[number.ink][1:3], 16)  # more blue than red
    save_png(scores, tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_error_names_the_extra(scores, monkeypatch, tmp_path):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtra, match=r"\[plots\]"):
        save_png(scores, tmp_path / "map.png")


@pytest.mark.parametrize("count", [1, 9, 16, 32, 80])
def test_ticks_are_few(count):
    assert 1 <= len(maps._ticks(count)) <= 20
