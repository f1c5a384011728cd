"""Charts of the report: ticks that people read, lines inside the axes, nothing that breaks the page."""

import itertools
import math
import re
import statistics
from xml.etree import ElementTree

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fedpara import chart
from fedpara.chart import Chart, line_chart
from fedpara.chart.canvas import COLOURS, HEIGHT, WIDTH, log_ticks, shortened, ticks, width

values = st.floats(-1e6, 1e6)
positive = st.floats(1e-3, 1e12)
names = st.text(st.characters(categories=["L", "P", "S", "C"]), min_size=1, max_size=8)


def texts(svg):
    return [text.text for text in ElementTree.fromstring(svg).iter("text")]


def boxes(html):
    """Bars by their title: left, top, width, height."""
    found = {}
    for rect in ElementTree.fromstring(html).iter("rect"):
        title = rect.find("title")
        if title is not None:
            found[title.text] = tuple(float(rect.get(key)) for key in ("x", "y", "width", "height"))
    return found


@given(values, values, st.booleans())
def test_ticks_go_around_the_range_in_even_round_steps(a, b, whole):
    low, high = sorted((a, b))
    assume(high == low or high - low > 1e-6 * max(1, abs(high)))
    found = ticks(low, high, whole=whole)
    assert 2 <= len(found) <= 9
    assert found[0] <= low + 1e-6 * (found[1] - found[0])
    assert found[-1] >= high - 1e-6 * (found[1] - found[0])
    step = found[1] - found[0]
    assert f"{step:.3e}"[0] in "1259"  # 9.99… is ten, rounded
    assert all(b - a == pytest.approx(step, rel=1e-3) for a, b in itertools.pairwise(found))
    if whole:
        assert all(tick == pytest.approx(round(tick), abs=1e-6) for tick in found)


@given(positive, positive)
def test_log_ticks_go_around_the_range(a, b):
    low, high = sorted((a, b))
    found = log_ticks(low, high)
    assert found == sorted(found)
    assert 2 <= len(found) <= 18
    assert 0 < found[0] <= low * (1 + 1e-9)
    assert found[-1] >= high * (1 - 1e-9)


@given(
    st.dictionaries(
        names, st.lists(st.tuples(positive, values | st.sampled_from([math.nan, math.inf])), max_size=5), max_size=3
    ),
    st.booleans(),
)
def test_every_line_lies_inside_and_the_page_stays_whole(series, log_x):
    shown = {name: [y for _, y in points if math.isfinite(y)] for name, points in series.items()}
    svg = line_chart(Chart(series, "x < y & z", "accuracy", "<title>", log_x))
    if not any(shown.values()):
        assert svg == ""
        assert chart.figure([Chart(series, "x", "y", log_x=log_x)]) == ""
        return
    assert "x < y & z" in texts(svg)
    for found in re.findall(r"<polyline points='([^']*)'", svg):
        places = [tuple(map(float, place.split(","))) for place in found.split()]
        assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in places)
    assert sum(len(found.split()) for found in re.findall(r"points='([^']*)'", svg)) == sum(map(len, shown.values()))
    page = chart.figure([Chart(series, "x", "y", log_x=log_x)], "a & b")
    tree = ElementTree.fromstring(page)
    assert [caption.text for caption in tree.iter("figcaption")] == ["a & b"]
    assert len(list(tree.iter("li"))) == (len(series) if len(series) > 1 else 0)


def test_a_value_that_is_not_finite_breaks_its_line():
    svg = line_chart(Chart({"a": [(1, 1), (2, 2), (3, math.nan), (4, 4)]}, "x", "y"))
    assert [len(line.split()) for line in re.findall(r"<polyline points='([^']*)'", svg)] == [2, 1]


def test_a_higher_value_stands_higher_and_a_later_one_further_right():
    svg = line_chart(Chart({"a": [(1, 0.2), (2, 0.8)]}, "round", "accuracy"))
    (x1, y1), (x2, y2) = (map(float, place.split(",")) for place in re.search(r"points='([^']*)'", svg)[1].split())
    assert x1 < x2
    assert y1 > y2
    assert {"0.2", "0.8", "1", "2", "round", "accuracy"} <= set(texts(svg))
    assert "<title>a, 2: 0.8</title>" in svg
    assert "<desc>a: 0.2 at 1, 0.8 at 2</desc>" in svg


def test_one_round_is_a_dot_between_whole_numbers():
    svg = line_chart(Chart({"a": [(1, 0.5)]}, "round", "accuracy"))
    assert "<circle" in svg
    assert {"0", "1", "2"} <= set(texts(svg))
    assert "0.5" in texts(svg)


def test_what_is_not_above_zero_has_no_place_on_a_log_axis():
    assert line_chart(Chart({"a": [(0, 1), (-1, 2)]}, "MB", "accuracy", log_x=True)) == ""
    assert "<circle" in line_chart(Chart({"a": [(0, 1), (3, 2)]}, "MB", "accuracy", log_x=True))


def test_a_log_axis_puts_equal_factors_equally_apart():
    svg = line_chart(Chart({"a": [(1, 1), (10, 2), (100, 3)]}, "MB", "accuracy", log_x=True))
    x = [float(place.split(",")[0]) for place in re.search(r"points='([^']*)'", svg)[1].split()]
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.2)


def test_a_level_goes_from_side_to_side():
    svg = line_chart(Chart({}, "MB", "accuracy", log_x=True, levels={"nothing sent": 3.0}))
    assert re.search(r"<path d='M[\d.]+ ([\d.]+)H[\d.]+' stroke='var\(--c0.*?<title>nothing sent: 3</title>", svg)


def test_charts_beside_each_other_share_colours_and_a_legend():
    page = chart.figure([Chart({"a": [(1, 1)], "b": [(1, 2)]}, "x", "y"), Chart({"b": [(1, 2)]}, "x", "y")])
    first, second = re.findall(r"<svg viewBox='0 0 440.*?</svg>", page)
    assert "var(--c0" in first
    assert "var(--c0" not in second
    assert "var(--c1" in second
    assert page.count("<li>") == 2


def test_many_lines_differ_in_colour_or_dashes():
    page = chart.figure([Chart({str(n): [(1, n)] for n in range(3 * len(COLOURS))}, "x", "y")])
    keys = re.findall(r"<li><svg.*?(stroke=.*?)/>", page)
    assert len(set(keys)) == len(keys) == 3 * len(COLOURS)


def test_long_lines_are_thinned_and_keep_their_ends():
    svg = line_chart(Chart({"a": [(n, n) for n in range(100_000)]}, "round", "y"))
    assert len(svg) < 40_000
    assert "<desc>a: 0 at 0, 99,999 at 99,999</desc>" in svg


@given(st.lists(st.tuples(names, st.lists(st.floats(0, 1e9), min_size=2, max_size=2)), min_size=1, max_size=5))
def test_bars_are_as_long_as_their_values(rows):
    labels = [name for name, _ in rows]
    parts = {part: [own[place] for _, own in rows] for place, part in enumerate(("up", "down"))}
    page = chart.bars(labels, parts, "bytes", "a title")
    if not any(map(sum, parts.values())):
        assert page == ""
        return
    found = boxes(page).values()
    assert all(x >= 0 and x + wide <= WIDTH for x, _, wide, _ in found)
    assert len(list(ElementTree.fromstring(page).iter("li"))) == 2


def test_parts_of_a_bar_follow_each_other():
    found = boxes(chart.bars(["a", "b"], {"x": [2, 1], "y": [4, 0]}, "bytes", "title"))
    assert set(found) == {"a: x, 2", "a: y, 4", "b: x, 1"}
    (left, top, wide, _), (after, same, twice, _), (_, below, half, _) = found.values()
    assert (after, top) == (pytest.approx(left + wide, abs=0.2), same)
    assert below > top
    assert (twice, half) == (pytest.approx(2 * wide, abs=0.3), pytest.approx(wide / 2, abs=0.3))


@given(st.lists(values, min_size=1, max_size=80) | st.lists(st.integers(-50, 50).map(float), min_size=1, max_size=80))
def test_a_histogram_counts_every_value_once(found):
    svg = chart.histogram(found, "x", "clients")
    counts = re.findall(r"<title>[^<]*: ([\d,]+)</title></rect>", svg)
    assert sum(int(count.replace(",", "")) for count in counts) == len(found)
    assert all(x >= 0 and x + wide <= WIDTH and y + tall <= HEIGHT for x, y, wide, tall in boxes(svg).values())
    marked = float(re.search(r"<title>median ([^<]*)</title>", svg)[1].replace(",", ""))
    assert marked == pytest.approx(statistics.median(found), rel=1e-3, abs=1e-4)


def test_rows_of_dots_leave_out_what_has_no_logarithm():
    page = chart.dots(["a", "b"], {"up": [1, 0], "down": [10, math.nan]}, "MB", "title")
    assert re.findall(r"<title>([^<]*)</title></(?:circle|path)>", page) == ["a: up, 1", "a: down, 10"]
    assert chart.dots(["a"], {"up": [0]}, "MB", "title") == ""


def test_a_scatter_numbers_its_points_and_joins_the_front():
    points = {"cheap <1>": (1.0, 50.0), "good": (10.0, 90.0), "worse": (10.0, 80.0), "silent": (0.0, 40.0)}
    page = chart.scatter(points, ["cheap <1>", "good"], Chart({}, "MB", "%", "title", True, {"silent": 40.0}))
    assert [item.find("svg").tail for item in ElementTree.fromstring(page).iter("li")] == [
        "1 cheap <1>",
        "2 good",
        "3 worse",
        "silent",
    ]
    assert len(re.search(r"<polyline points='([^']*)'", page)[1].split()) == 2
    assert chart.scatter({"silent": (0.0, 1.0)}, [], Chart({}, "MB", "%")) == ""


@given(names, st.floats(10, 200))
def test_a_name_is_cut_to_its_room(name, room):
    cut = shortened(name * 9, room)
    assert width(cut) <= max(room, width("…"))
    assert cut == name * 9 or cut.endswith("…")
