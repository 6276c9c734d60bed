"""The chart of ROC curves: its lines have the points of the curves, on a logarithmic axis."""

import re

import numpy as np
import pytest

from snzoo.faces import verify
from snzoo.report.roc import roc_chart

EVIL = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>&amp;\u202e\n</style>"
STEEP = [(0, 0), (0, 0.5), (0.001, 0.7), (0.01, 0.9), (0.1, 0.95), (1, 1)]
COARSE = [(0, 0), (0, 0.2), (0.05, 0.25), (0.5, 0.8), (1, 1)]


def axes(chart):
    """The numbers of the vertical and of the horizontal axis."""
    across = chart.index('<svg class="axis">')
    texts = (re.findall(r">([^<]+)</text>", part) for part in (chart[:across], chart[across:]))
    return [[float(text) for text in part] for part in texts]


def lines(chart):
    """The (FAR, TAR) of the points of each line, read off the axes."""
    up, across = axes(chart)
    width, height = map(float, re.search(r'viewBox="0 0 (\d+) (\d+)"', chart).groups())
    decades = -np.log10(across[0])
    found = []
    for path in re.findall(r'<path class="curve[^"]*" d="M([^"]+)"/>', chart):
        x, y = np.array([point.split() for point in path.split("L")], float).T
        tar = up[-1] - y / height * (up[-1] - up[0])
        found.append(list(zip(10 ** ((x / width - 1) * decades), tar / 100, strict=True)))
    return found


def near(points):
    return [(pytest.approx(x, rel=2e-3), pytest.approx(y, abs=1e-3)) for x, y in points]


def test_lines_have_the_points_with_a_far_above_zero():
    chart = roc_chart([("a", STEEP), ("b", COARSE)])
    assert lines(chart) == [near(STEEP[2:]), near(COARSE[2:])]
    up, across = axes(chart)
    assert across == [1e-3, 1e-2, 1e-1, 1]
    assert up[0] <= 25 and up[-1] == 100


@pytest.mark.parametrize(
    ("least", "first"), [(1e-6, 1e-6), (0.99e-6, 1e-7), (0.3, 0.1), (1, 0.1), (0.0125, 0.01)]
)
def test_the_axis_begins_at_a_power_of_ten(least, first):
    chart = roc_chart([("a", [(0, 0), (0, 0.4), (least, 0.6), (1, 1)])])
    _, across = axes(chart)
    assert across[0] == first and across[-1] == 1
    assert lines(chart)[0][0] == near([(least, 0.6)])[0]


def test_models_differ_by_more_than_color_and_have_a_legend():
    chart = roc_chart([(name, STEEP) for name in ("a_model", "another", "third")])
    styles = [s.split()[-2:] for s in re.findall(r'<path class="([^"]+)"', chart)]
    assert len({hue for hue, _ in styles}) == len({dash for _, dash in styles}) == 3
    legend = chart[: chart.index("<figure>")]
    assert re.findall(r"<span>(\w+)</span>", legend) == ["a_model", "another", "third"]
    assert [re.findall(r'class="curve ([^"]+)"', legend)[i].split() for i in range(3)] == styles
    assert "legend" not in roc_chart([("a", STEEP)])


def test_the_chart_is_one_image_and_names_stay_text(parse):
    page = parse(roc_chart([(EVIL, STEEP), ("b", COARSE)]))
    assert not page.all("script", "img")
    (plot,) = [a for _, a, _ in page.elements if a.get("role") == "img"]
    assert "logarithmic" in plot["aria-label"]
    assert "alert(1)" in "".join(page.text)


def test_the_curve_of_a_verification_is_drawn_as_it_is():
    chance = np.random.default_rng(0)
    rows = chance.normal(size=(2000, 8))
    rows[1::2] = 0.6 * rows[::2] + 0.8 * rows[1::2]
    embeddings = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    first = np.arange(0, 2000, 2).repeat(2)
    second = np.stack([first[::2] + 1, (first[::2] + 3) % 2000], axis=1).ravel()
    figures = verify(embeddings, first, second, np.arange(2000) % 2 == 0)
    assert len(figures.roc) > 300  # more points than other charts draw
    chart = roc_chart([("a", figures.roc)])
    assert lines(chart) == [near([(far, tar) for far, tar in figures.roc if far > 0])]
