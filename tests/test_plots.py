from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ultramem.plots import HEIGHT, WIDTH, Series, line_plot, nice_ticks, short_number, spread_apart


def draw(*series):
    return ElementTree.fromstring(line_plot(series, x_label="tokens", y_label="loss"))


def test_a_plot_is_well_formed_and_names_every_line():
    svg = draw(Series("dense", [(0, 3.0), (10, 2.0)]), Series("<odd> & name", [(0, 3.0), (10, 2.1)]))
    texts = [element.text for element in svg.iter("text")]
    assert {"dense 2.000", "<odd> & name 2.100", "tokens", "loss"} <= set(texts)


def test_lines_lie_inside_the_picture():
    svg = draw(Series("a", [(x, 5 / (x + 1)) for x in range(50)]))
    clip = svg.find("clipPath/rect")
    for line in svg.iter("polyline"):
        corners = [tuple(map(float, corner.split(","))) for corner in line.get("points").split()]
        assert all(0 <= x <= WIDTH for x, _ in corners)
        assert line.get("clip-path") == f"url(#{svg.find('clipPath').get('id')})"
    assert float(clip.get("y")) >= 0
    assert float(clip.get("height")) <= HEIGHT


def test_the_first_fall_of_the_loss_does_not_flatten_the_rest():
    svg = draw(Series("a", [(0, 900.0), *((x, 2 + 1 / x) for x in range(10, 101))]))
    ticks = [float(text.text) for text in svg.iter("text") if text.get("text-anchor") == "end"]
    assert max(ticks) < 3


def test_runs_are_drawn_beside_their_mean():
    svg = draw(Series("a", [(0, 2.0), (1, 1.0)], runs=[[(0, 1.9), (1, 0.9)], [(0, 2.1), (1, 1.1)]]))
    assert len(list(svg.iter("polyline"))) == 3


def test_the_axis_has_room_for_single_runs():
    svg = draw(Series("a", [(1, 2.0), (2, 1.0)], runs=[[(1, 0.0), (2, 0.5)], [(1, 4.0), (2, 1.5)]]))
    corners = [corner.split(",") for line in svg.iter("polyline") for corner in line.get("points").split()]
    assert all(0 <= float(y) <= HEIGHT for _, y in corners)


def test_more_lines_than_colours_differ_by_dashes():
    styles = [
        line.get("style") for line in draw(*(Series(str(n), [(0, 2.0), (1, n)]) for n in range(10))).iter("polyline")
    ]
    assert len(set(styles)) == 10


def test_nothing_measured_is_said():
    assert "Nothing" in line_plot([Series("a", [])], x_label="x", y_label="y")


def test_a_single_point_is_a_plot():
    assert len(list(draw(Series("a", [(5, 2.0)])).iter("circle"))) == 1


@given(st.lists(st.floats(-1000, 1000), min_size=1, max_size=8))
def test_labels_are_spread_and_keep_their_order(heights):
    placed = spread_apart(heights, gap=10)
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    for above, below in pairwise(order):
        assert placed[below] - placed[above] >= 10 - 1e-6


def test_labels_with_room_stay():
    assert spread_apart([30.0, 0.0, 70.0], gap=10) == [30.0, 0.0, 70.0]


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_cover_the_values_in_even_steps(low, span):
    ticks = nice_ticks(low, low + span)
    step = ticks[1] - ticks[0]
    assert ticks[0] <= low + step * 1e-6
    assert ticks[-1] >= low + span - step * 1e-6
    assert 2 <= len(ticks) <= 8


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (999, "999"), (1000, "1k"), (999_999, "1M"), (1_234_567, "1.23M"), (21.4e9, "21.4G"), (1e12, "1T")],
)
def test_short_numbers(value, text):
    assert short_number(value) == text
