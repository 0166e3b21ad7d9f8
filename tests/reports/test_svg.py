"""Charts as strings: escaped, exact, thinned without losing peaks."""

import math
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.reports.charts.bars import Bar, bar_chart
from pipeline.reports.charts.lines import Line, Mark, line_chart, thin
from pipeline.reports.charts.matrix import matrix_chart
from pipeline.reports.charts.parallel import Axis, Thread, parallel_chart
from pipeline.reports.charts.scatter import Cloud, scatter_chart
from pipeline.reports.charts.svg import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    Level,
    Markup,
    Scale,
    columns,
    element,
    number,
    printable,
    short,
)
from pipeline.reports.charts.svg import ticks as make_ticks

LIMITED = st.floats(-1e6, 1e6)


def parts(chart: Markup, tag: str, style: str = "") -> list[ET.Element]:
    """The elements of a chart by tag and class; parsing shows that it is well formed."""
    return [e for e in ET.fromstring(chart).iter(tag) if style in (e.get("class") or "").split()
            or not style]  # fmt: skip


def numbers(text: str) -> list[float]:
    return [float(n) for n in re.findall(r"-?\d+(?:\.\d+)?", text)]


@given(st.text(), st.text())
def test_whatever_text_comes_back_as_it_was(inside, attribute):
    found = ET.fromstring(element("a", inside, title=attribute))
    assert (found.text or "") == printable(inside)
    assert found.get("title") == printable(attribute)
    assert not list(found) and list(found.keys()) == ["title"]


def test_characters_that_do_not_print_are_replaced():
    assert printable("a\x00b\u202ec\ud800d\n") == "a\ufffdb\ufffdc\ufffdd\ufffd"
    assert printable("漢字 é 🐶 <&>") == "漢字 é 🐶 <&>"


def test_markup_stays_and_none_is_left_out():
    made = element("g", element("b", "<"), class_=None, stroke_width=1.5, x=2)
    assert made == '<g stroke-width="1.5" x="2"><b>&lt;</b></g>'


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_inf_are_never_drawn(value):
    with pytest.raises(ValueError, match="cannot be drawn"):
        element("rect", x=value)
    with pytest.raises(ValueError, match="cannot be drawn"):
        number(value)


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.integers(2, 10))
def test_ticks_are_round_evenly_apart_and_inside(low, length, about):
    high = low + length
    if high - low < 1e-9 * max(abs(low), abs(high)):
        return  # closer than floats can be told apart in ticks
    found = make_ticks(low, high, about)
    assert all(low - 1e-6 * length <= t <= high + 1e-6 * length for t in found)
    steps = [b - a for a, b in zip(found, found[1:], strict=False)]
    if steps:
        lead = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-9)
        assert min(abs(lead - k) for k in (1, 2, 5, 10)) < 1e-3
        assert max(steps) - min(steps) <= 1e-6 * length
    assert len(found) <= about + 1


@given(st.lists(st.one_of(st.none(), LIMITED), max_size=400), st.integers(8, 60))
def test_thinning_keeps_ends_and_peaks(values, most):
    kept = thin(values, most)
    assert kept == sorted(set(kept)) and len(kept) <= max(most, 0)
    known = [v for v in values if v is not None]
    shown = [values[at] for at in kept if values[at] is not None]
    if values:
        assert kept[0] == 0 and kept[-1] == len(values) - 1
    if known:
        assert (min(shown), max(shown)) == (min(known), max(known))


def test_a_line_goes_through_its_points_and_breaks_at_gaps():
    line = Line("a", "c0", [0, 1, 2, 3, 4], [0.0, 1.0, None, 0.5, None])
    chart = line_chart("t", "d", [line], limits=(0.0, 1.0), last_round=4)
    (path,) = parts(chart, "path", "line")
    d = path.get("d")
    left, right, low, high = LEFT + 4, RIGHT - 4, HEIGHT - BOTTOM, TOP
    step = (right - left) / 4
    wanted = [left, low, left + step, high, left + 3 * step, (low + high) / 2]
    assert numbers(d.replace("h0.01", " ")) == pytest.approx(wanted, abs=0.006)
    assert d.count("M") == 2 and d.count("L") == 1


def test_levels_and_marks_lie_where_their_values_are():
    chart = line_chart("t", "d", [], [Level("zero", "c1", 0.25)], [Mark("best", "c0", 5, 0.75)],
                       limits=(0.0, 1.0), last_round=10)  # fmt: skip
    (level,) = parts(chart, "path", "level")
    low, high = HEIGHT - BOTTOM, TOP
    assert numbers(level.get("d"))[1] == pytest.approx(low + (high - low) * 0.25, abs=0.006)
    (ring,) = parts(chart, "circle")
    assert float(ring.get("cx")) == pytest.approx((LEFT + RIGHT) / 2, abs=0.006)
    assert float(ring.get("cy")) == pytest.approx(low + (high - low) * 0.75, abs=0.006)


def test_bars_are_as_long_as_their_values():
    bars = [Bar("a", "c0", 1.0, "1"), Bar("b", "c0", 3.0, "3", mark=2.0), Bar("c", "c1", 0.0, "0")]
    widths = [float(e.get("width")) for e in parts(bar_chart("t", "d", bars), "rect", "bar")]
    assert widths[1] == pytest.approx(3 * widths[0], abs=0.02) and widths[2] == 0.5
    (mark,) = parts(bar_chart("t", "d", bars), "path", "mark")
    assert numbers(mark.get("d"))[0] == pytest.approx(2 * widths[0], abs=0.02)
    assert not parts(bar_chart("t", "d", bars), "rect", "groove")
    assert len(parts(bar_chart("t", "d", bars, high=4.0), "rect", "groove")) == 3


def test_a_matrix_shows_each_count_and_its_share_of_the_row():
    chart = matrix_chart("t", "d", ["x", "y"], [[3, 1], [0, 0]])
    right, wrong = parts(chart, "rect", "right"), parts(chart, "rect", "wrong")
    assert len(right) == len(wrong) == 1
    assert float(right[0].get("fill-opacity")) == pytest.approx(0.08 + 0.92 * 0.75)
    assert wrong[0][0].text == "x answered y: 1 of 4"
    assert [e.text for e in parts(chart, "text", "count")] == ["3", "1"]


def test_a_scatter_has_one_unit_for_both_directions():
    cloud = Cloud("a", "c0", False, [(0, 0), (10, 0), (0, 1)])
    (path,) = parts(scatter_chart("t", "d", [cloud], (0, 10, 0, 1)), "path", "dot")
    x0, y0, x1, _, _, y2 = numbers(path.get("d").replace("h0.01", " "))
    assert (x1 - x0) / 10 == pytest.approx(y0 - y2, abs=0.1)


def test_parallel_lines_meet_every_axis():
    axes = [Axis("lr", [(0.0, "1"), (1.0, "2")]), Axis("val", [])]
    chart = parallel_chart("t", "d", axes, [Thread("one", "q0", [0.0, 1.0])])
    (thread,) = parts(chart, "path", "thread")
    uprights = [numbers(e.get("d")) for e in parts(chart, "path", "axis")]
    x0, y0, x1, y1 = numbers(thread.get("d"))
    assert [x0, x1] == [uprights[0][0], uprights[1][0]]
    assert [y0, y1] == [uprights[0][2], uprights[1][1]]


def test_every_chart_is_named_for_screen_readers():
    charts = [
        line_chart("t <1>", "d", [], limits=(0.0, 1.0), last_round=0),
        bar_chart("t <1>", "d", []),
        matrix_chart("t <1>", "d", [], []),
        scatter_chart("t <1>", "d", [], (0, 0, 0, 0)),
        parallel_chart("t <1>", "d", [], []),
    ]
    for chart in charts:
        root = ET.fromstring(chart)
        assert root.get("role") == "img"
        assert [root[0].tag, root[0].text, root[1].tag, root[1].text] == [
            "title",
            "t <1>",
            "desc",
            "d",
        ]


@given(st.text(max_size=40), st.sampled_from(["", "/0", "/17", "/x"]), st.integers(1, 20))
def test_short_names_fit(start, end, most):
    name = start + end
    cut = short(name, most)
    assert columns(cut) <= most
    head, _, tail = cut.partition("\u2026")
    assert cut == name or (name.startswith(head) and name.endswith(tail) and tail in ("", end))


def test_wide_letters_take_two_columns():
    assert columns("ab漢字") == 6
    assert (
        short("art painting/12", 12) == "art pain\u2026/12"
        and short("photo/1234", 6) == "photo\u2026"
    )
    assert short("漢字漢字", 6) == "漢字\u2026" and short("漢字漢字", 8) == "漢字漢字"


def test_a_scale_without_length_puts_all_in_its_middle():
    assert Scale(2.0, 2.0, 0.0, 10.0)(2.0) == 5.0
