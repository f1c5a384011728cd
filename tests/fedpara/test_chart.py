"""Charts of the report: ticks that people read, lines inside the axes, nothing that breaks the page."""

import itertools
import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fedpara.chart import HEIGHT, WIDTH, line_chart, log_ticks, ticks

values = st.floats(-1e6, 1e6)
positive = st.floats(1e-3, 1e12)


def texts(svg):
    return [text.text for text in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


@given(values, values)
def test_ticks_go_around_the_range_in_even_round_steps(a, b):
    low, high = sorted((a, b))
    assume(high == low or high - low > 1e-6 * max(1, abs(high)))
    found = ticks(low, high)
    assert 2 <= len(found) <= 9
    assert found[0] <= low + 1e-6 * (found[1] - found[0])
    assert found[-1] >= high - 1e-6 * (found[1] - found[0])
    step = found[1] - found[0]
    assert f"{step:.3e}"[0] in "1259"  # 9.99… is ten, rounded
    assert all(b - a == pytest.approx(step, rel=1e-3) for a, b in itertools.pairwise(found))


@given(positive, positive)
def test_log_ticks_go_around_the_range(a, b):
    low, high = sorted((a, b))
    found = log_ticks(low, high)
    assert found == sorted(found)
    assert len(found) <= 18
    assert found[0] <= low * (1 + 1e-9)
    assert found[-1] >= high * (1 - 1e-9)


@given(
    st.dictionaries(
        st.text(st.characters(categories=["L", "P", "S"]), min_size=1, max_size=8),
        st.lists(st.tuples(positive, values | st.just(math.nan)), max_size=5),
        max_size=3,
    ),
    st.booleans(),
)
def test_every_line_lies_inside_and_the_page_stays_whole(series, log_x):
    svg = line_chart(series, "x < y & z", "accuracy", log_x=log_x)
    shown = {name: [y for _, y in points if math.isfinite(y)] for name, points in series.items()}
    if not any(shown.values()):
        assert svg == ""
        return
    assert "x < y & z" in texts(svg)
    assert [name for name in shown if shown[name]] == [text for text in texts(svg) if shown.get(text)]
    for line, found in zip(filter(None, shown.values()), re.findall(r"<polyline points='([^']*)'", svg), strict=True):
        places = [tuple(map(float, place.split(","))) for place in found.split()]
        assert len(places) == len(line)
        assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in places)


def test_a_higher_value_stands_higher_and_a_later_one_further_right():
    svg = line_chart({"a": [(1, 0.2), (2, 0.8)]}, "round", "accuracy")
    (x1, y1), (x2, y2) = (map(float, place.split(",")) for place in re.search(r"points='([^']*)'", svg)[1].split())
    assert x1 < x2
    assert y1 > y2
    assert {"0.2", "0.8", "1", "2", "round", "accuracy", "a"} <= set(texts(svg))


def test_what_is_not_above_zero_has_no_place_on_a_log_axis():
    assert line_chart({"a": [(0, 1), (-1, 2)]}, "MB", "accuracy", log_x=True) == ""
    assert "<circle" in line_chart({"a": [(0, 1), (3, 2)]}, "MB", "accuracy", log_x=True)
