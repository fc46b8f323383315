"""Charts: points stand where the figures say, labels cover nothing, colours can be read."""

from __future__ import annotations

import doctest
import importlib
import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckcontrol.eval.report.assembly import curve_panels
from ckcontrol.eval.report.charts.axes import Scale, look, nice_range
from ckcontrol.eval.report.charts.curves import memory_ratio, named
from ckcontrol.eval.report.charts.forest import forest
from ckcontrol.eval.report.charts.labels import dodge, settle
from ckcontrol.eval.report.charts.tradeoff import costs, tradeoff
from ckcontrol.eval.report.runs import Run, read_runs
from ckcontrol.views.canvas import Canvas, Line, Mark, Text, sheet, svg, text_width
from ckcontrol.views.palette import DARK_INKS, LIGHT_INKS, contrast

from .invented_run import arms, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    folder = write_run(tmp_path_factory.mktemp("charts") / "run", tasks=("nq_swap",), per_state=1)
    return read_runs([folder])[0]


def marks(canvas: Canvas) -> dict[str, Mark]:
    return {shape.tip.split(":")[0]: shape for shape in canvas.shapes if isinstance(shape, Mark)}


def boxes(canvas: Canvas) -> list[tuple[str, float, float, float, float]]:
    found = []
    for shape in canvas.shapes:
        if isinstance(shape, Text):
            wide = text_width(shape.words, shape.size) - 2
            left = shape.at[0] - {"start": 0, "middle": wide / 2, "end": wide}[shape.anchor]
            top = shape.at[1] - 0.8 * shape.size
            found.append((shape.words, left, top, left + wide, shape.at[1] + 0.15 * shape.size))
    return found


def overlaps(canvas: Canvas) -> list[tuple[str, str]]:
    return [
        (a[0], b[0])
        for a, b in itertools.combinations(boxes(canvas), 2)
        if min(a[3], b[3]) - max(a[1], b[1]) > 1 and min(a[4], b[4]) - max(a[2], b[2]) > 1
    ]


# --- control curves ---


def test_points_stand_at_their_memory_ratio(run):
    canvas = memory_ratio(run, "nq_swap", "nq_swap")
    found = marks(canvas)
    assert len(found) == 10 + 6  # two dials, and what has none; off and closed-book are lines
    for name, mark in found.items():
        value = run.get("nq_swap", "conflict", name, "mr").value
        assert mark.at[1] == pytest.approx(250 + (48 - 250) * value)
    xs = [found[f"ck-plug@{a:g}"].at[0] for a in (0, 0.25, 0.5, 0.75, 1)]
    assert all(b - a == pytest.approx(xs[1] - xs[0]) for a, b in itertools.pairwise(xs))
    assert all(mark.at[0] > xs[-1] for name, mark in found.items() if "@" not in name)


def test_every_method_is_named_and_no_text_covers_another(run):
    canvas = memory_ratio(run, "nq_swap", "nq_swap")
    words = {shape.words for shape in canvas.shapes if isinstance(shape, Text)}
    assert set(run.methods) <= words
    assert overlaps(canvas) == []
    assert all(0 <= left and right <= canvas.width + 1 for _, left, _, right, _ in boxes(canvas))


def test_a_chart_that_stands_alone_is_wide_and_its_names_are_whole(tmp_path):
    flat = ("off", "closed-book", "prompt", "a-method-with-a-very-long-name", *(f"method-{i}" for i in range(12)))
    (lone,) = read_runs([write_run(tmp_path / "r", tasks=("capitals",), listed=arms(flat=flat), per_state=1)])
    (canvas,) = curve_panels([lone])
    words = {shape.words for shape in canvas.shapes if isinstance(shape, Text)}
    assert canvas.width == 920 and set(lone.methods) <= words
    assert overlaps(canvas) == []


def test_baselines_are_dashed_lines_at_their_height(run):
    canvas = memory_ratio(run, "nq_swap", "nq_swap")
    heights = {line.points[0][1] for line in canvas.shapes if isinstance(line, Line) and line.dash}
    for name in ("off", "closed-book"):
        value = run.get("nq_swap", "conflict", name, "mr").value
        assert any(abs(height - (250 - 202 * value)) < 0.01 for height in heights)


def test_what_answers_named_has_its_ceilings(run):
    canvas = named(run, "nq_swap", "ck-plug", "t", 470)
    summary = run.summary("nq_swap", "ck-plug")
    dashed = {line.ink: line.points[0][1] for line in canvas.shapes if isinstance(line, Line) and line.dash == (5, 4)}
    assert dashed["memory"] == pytest.approx(250 - 202 * summary["ceiling_memory"])
    assert dashed["context"] == pytest.approx(250 - 202 * summary["ceiling_context"])
    assert overlaps(canvas) == []


# --- reach against cost ---


def test_costs_are_the_worst_of_three_states(run):
    ratio, lost, state = costs(run, "nq_swap")["ck-plug@0"]
    assert ratio == run.get("nq_swap", "conflict", "ck-plug@0", "mr").value
    pairs = {
        s: run.against_off("nq_swap", s, "ck-plug@0", "accuracy").value for s in ("agree", "helpful", "irrelevant")
    }
    assert lost == min(pairs.values()) and pairs[state] == lost
    assert costs(run, "nq_swap")["off"][1] == 0.0


def test_trade_off_labels_do_not_cover_each_other(run):
    canvas = tradeoff(run, "nq_swap", "nq_swap")
    assert overlaps(canvas) == []
    assert {"off", "ck-plug 1", "cad 0.9", "ck-plug-adaptive"} <= {box[0] for box in boxes(canvas)}


def test_no_trade_off_without_two_points(tmp_path):
    folder = write_run(tmp_path / "run", tasks=("nq_swap",), listed=arms({}, ("off",)), per_state=1)
    assert tradeoff(read_runs([folder])[0], "nq_swap", "t") is None


def test_the_forest_fills_what_differs(run):
    canvas = forest(run, "nq_swap", "nq_swap")
    found = {tuple(s.tip.split(":")[0].split(", ")): s for s in canvas.shapes if isinstance(s, Mark)}
    assert len(found) == 18 * 5
    for (arm, state), mark in found.items():
        pair = run.against_off("nq_swap", state, arm, "mr" if state == "conflict" else "accuracy")
        assert mark.filled == (arm == "off" or bool(pair and pair.sign))
    assert overlaps(canvas) == []


# --- parts ---


@given(st.lists(st.floats(-50, 250), max_size=14), st.floats(1, 14))
def test_dodged_labels_keep_order_distance_and_room(wanted, gap):
    found = dodge(wanted, gap, 0, 200)
    room = min(gap, 200 / max(len(wanted) - 1, 1))
    assert all(-1e-6 <= place <= 200 + 1e-6 for place in found)
    ordered = [place for _, place in sorted(zip(wanted, found, strict=True))]
    assert all(b - a >= room - 1e-6 for a, b in itertools.pairwise(sorted(ordered)))
    assert all(b >= a - 1e-6 for (w, a), (v, b) in itertools.pairwise(sorted(zip(wanted, found, strict=True))) if w < v)


def test_a_label_alone_stays_where_it_wants():
    assert dodge([30.0], 10, 0, 100) == [30.0] and dodge([], 10, 0, 100) == []
    assert dodge([120.0, -20.0], 10, 0, 100) == [100.0, 0.0]


def test_settled_labels_keep_clear_of_each_other_and_of_the_edge():
    points = [(50.0, 50.0), (52.0, 51.0), (98.0, 50.0)]
    found = settle(points, [(30, 10)] * 3, [(45, 45, 55, 55)], (0, 0, 100, 100))
    assert all(left >= 0 and right <= 100 for left, _, right, _ in found)
    for a, b in itertools.combinations([*found, (45, 45, 55, 55)], 2):
        assert min(a[2], b[2]) <= max(a[0], b[0]) or min(a[3], b[3]) <= max(a[1], b[1])


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=9))
def test_axes_hold_what_they_show(values):
    low, high, step = nice_range(values)
    assert low <= min(values) + 1e-6 and high >= max(values) - 1e-6 and low < high
    assert (high - low) / step == pytest.approx(round((high - low) / step))


def test_scales_stop_at_the_edge():
    scale = Scale(0, 1, 100, 0)
    assert (scale(0), scale(1), scale(0.25), scale(7)) == (100, 0, 75, 0)


def test_series_look_different_and_can_be_read():
    looks = [look(place) for place in range(24)]
    assert len(set(looks)) == 24
    for inks in (LIGHT_INKS, DARK_INKS):
        for name in ("text", "muted", "up", "down", "memory", "context", *(f"s{i}" for i in range(8))):
            assert contrast(inks[name], inks["surface"]) >= 4.5, name


def test_drawings_of_their_own_carry_their_colours():
    canvas = Canvas(100, 50, 'a "label" <b>')
    canvas.line([(0, 0), (9, 9)], "s0", 2, (3, 1))
    canvas.mark((5, 5), "diamond", "s1", tip="<i>", filled=False)
    canvas.area([(0, 0), (1, 1), (2, 0)], "s2", 0.1)
    canvas.text((1, 1), "x < y", halo=True)
    alone, inline = svg(canvas, alone=True), svg(canvas)
    assert 'stroke="#0067a8"' in alone and "prefers-color-scheme:dark" in alone and "xmlns" in alone
    assert "#" not in inline and 'class="ev-s-s0"' in inline and "x &lt; y" in inline
    assert "&lt;i&gt;" in inline and "a &quot;label&quot; &lt;b&gt;" in inline


def test_a_sheet_places_panels_in_rows():
    panels = [Canvas(100, 50, "a") for _ in range(3)]
    for panel in panels:
        panel.mark((0, 0), "circle", "s0")
    whole = sheet(panels, 2, "all", gap=10)
    assert (whole.width, whole.height) == (230, 130)
    assert [shape.at for shape in whole.shapes] == [(10, 10), (120, 10), (10, 70)]


def test_intervals_without_ends_are_left_out():
    canvas = Canvas(10, 10, "")
    canvas.whisker((math.nan, 1), (2, 1), "s0")
    assert canvas.shapes == [] and 'aria-hidden="true"' in svg(canvas)


@pytest.mark.parametrize("name", ["axes", "labels"])
def test_the_examples_in_the_docstrings_hold(name):
    module = importlib.import_module(f"ckcontrol.eval.report.charts.{name}")
    assert doctest.testmod(module).failed == 0
