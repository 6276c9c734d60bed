"""The chart of gates: the heights of its bars, its names, and what it leaves unchanged."""

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from itertools import pairwise

import matplotlib
import pytest
from PIL import Image

from snzoo.errors import SnzooError
from snzoo.gates import STATS, LayerGates, average
from snzoo.gates.chart import save_chart

SVG = "{http://www.w3.org/2000/svg}"
ALL = ("IN", "LN", "BN")
LAYERS = [
    LayerGates("sn1", ALL, (0.5, 0.3, 0.2), (0.1, 0.2, 0.7)),
    LayerGates("layer1.0.sn1", ALL, (0.25, 0.5, 0.25), (0.0, 1.0, 0.0)),
    LayerGates("layer1.0.sn2", ALL, (0.05, 0.9, 0.05), (0.4, 0.3, 0.3)),
]
TWO = [LayerGates("a<b>&\"'", ("IN", "LN"), (0.6, 0.4), (0.2, 0.8))]


def bars(svg):
    """id → (color, left, top, width, height), in points."""
    found = {}
    for group in ElementTree.fromstring(svg).iter(f"{SVG}g"):
        if re.fullmatch(r"\d+-(mean|var)-\d+-(IN|LN|BN)", group.get("id", "")):
            path = group.find(f"{SVG}path")
            numbers = [float(text) for text in re.findall(r"-?[\d.]+", path.get("d"))]
            xs, ys = numbers[::2], numbers[1::2]
            color = re.search(r"fill: (#\w+)", path.get("style"))[1]
            size = max(xs) - min(xs), max(ys) - min(ys)
            found[group.get("id")] = (color, min(xs), min(ys), *size)
    return found


def texts(svg):
    return ["".join(text.itertext()) for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


@pytest.fixture(scope="module")
def svg(tmp_path_factory):
    path = tmp_path_factory.mktemp("chart") / "chart.svg"
    save_chart(path, [("first", LAYERS), ("second", TWO)])
    return path.read_text()


@pytest.mark.parametrize("row, layers", [(0, LAYERS), (1, TWO)])
@pytest.mark.parametrize("which", ["mean", "var"])
def test_bars_have_the_heights_of_the_shares(svg, row, layers, which):
    drawn, right = bars(svg), 0.0
    for i, layer in enumerate([*layers, average(layers)]):
        stack = [drawn[f"{row}-{which}-{i}-{stat}"] for stat in ALL]
        for stat, (color, left, _, width, height) in zip(ALL, stack, strict=True):
            assert color == STATS[stat].color.lower() and left >= right and width > 1
            assert height == pytest.approx(layer.shares(which).get(stat, 0) * 1.3 * 72, abs=1e-3)
        for below, above in pairwise(stack):
            assert above[2] + above[4] == pytest.approx(below[2], abs=1e-3)
        right = stack[0][1] + stack[0][3]


def test_names_are_text_and_stages_are_written_once(svg):
    found = texts(svg)
    assert {"first", "second", "sn1", "0.sn1", "0.sn2", "average", TWO[0].name} <= set(found)
    assert found.count("layer1") == 1 and found.count("share of the variance") == 2
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img" and "first, second" in root.get("aria-label")


@pytest.mark.slow
def test_all_names_of_a_resnet101_have_room(tmp_path):
    for count, named in ((104, 104), (500, 125)):
        layers = [LayerGates(f"l.{i}.sn", ("LN",), (1.0,), (1.0,)) for i in range(count)]
        save_chart(tmp_path / "x.svg", [("x", layers)])
        found = [text for text in texts((tmp_path / "x.svg").read_text()) if text.endswith(".sn")]
        assert named - 5 <= len(found) <= named and "average" in texts(
            (tmp_path / "x.svg").read_text()
        )


def test_user_settings_change_neither_the_chart_nor_are_changed(tmp_path, svg):
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"savefig.bbox": "tight", "font.size": 30, "svg.fonttype": "path"}):
        save_chart(tmp_path / "x.svg", [("first", LAYERS), ("second", TWO)])
        assert matplotlib.rcParams["font.size"] == 30
    assert (tmp_path / "x.svg").read_text() == svg
    assert dict(matplotlib.rcParams) == before


def test_png_has_the_colors(tmp_path):
    save_chart(tmp_path / "x.PNG", [("first", LAYERS)])
    with Image.open(tmp_path / "x.PNG") as image:
        width, height = image.size
        seen = {rgb for _, rgb in image.convert("RGB").getcolors(1 << 24)}
    assert width > height > 400
    assert {tuple(bytes.fromhex(stat.color[1:])) for stat in STATS.values()} <= seen


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.cells, self.attributes = [], [], {}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes.setdefault(tag, dict(attributes))
        if tag in ("td", "th", "caption"):
            self.cells.append("")

    def handle_data(self, data):
        if self.tags and self.tags[-1] in ("td", "th", "caption"):
            self.cells[-1] += data.strip()


def test_the_page_loads_nothing_and_has_the_figures(tmp_path):
    save_chart(tmp_path / "x.html", [("<script>", LAYERS), ("two", TWO)])
    text = (tmp_path / "x.html").read_text()
    page = Page(text)
    assert "<script>" in page.attributes["svg"]["aria-label"]
    assert not {"script", "img", "iframe"} & set(page.tags)
    assert not re.search(r"(src|href)=\"(?!#|data:)|url\((?!#)|@import", text)
    assert "default-src 'none'" in text and "color-scheme" in text
    cells = page.cells
    assert [cells[cells.index("sn1") :][i] for i in range(7)] == [
        *("sn1", "50.0", "30.0", "20.0", "10.0", "20.0", "70.0"),
    ]
    assert cells[cells.index(TWO[0].name) :][:5] == [TWO[0].name, "60.0", "40.0", "20.0", "80.0"]
    assert "<script>" in cells and cells.count("average") == 2


def test_any_name_can_be_drawn(tmp_path, recwarn):
    names = [
        "$a_b$",
        r"$\frac{1$",
        "_x",
        "层.1.规范",
        "\x00\x1b",
        "x" * 5000,
        "a.b.c" * 99 + ".0.sn",
    ]
    layers = [LayerGates(name, ("LN",), (1.0,), (1.0,)) for name in names]
    for name in names:
        save_chart(tmp_path / "x.svg", [(name, layers)])
        found = texts((tmp_path / "x.svg").read_text())
        assert {"$a_b$", r"$\frac{1$", "_x"} <= set(found) and max(map(len, found)) <= 72
    save_chart(tmp_path / "x.png", [("层", layers)])
    assert not recwarn


@pytest.mark.parametrize("name", ["x.pdf", "x", "folder.svg", "none/x.svg"])
def test_paths_that_cannot_be_written_are_refused(tmp_path, name):
    (tmp_path / "folder.svg").mkdir()
    with pytest.raises(SnzooError, match=r"\.svg, \.png, \.html|can't write"):
        save_chart(tmp_path / name, [("first", LAYERS)])
    assert [path.name for path in tmp_path.iterdir()] == ["folder.svg"]


def test_a_failed_chart_keeps_the_old_file(tmp_path):
    path = tmp_path / "x.svg"
    path.write_text("old")
    with pytest.raises(ValueError):  # a share is missing
        save_chart(path, [("first", [LayerGates("a", ALL, (1.0,), (1.0,))])])
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_pyplot_is_not_imported(tmp_path):
    code = (
        "import sys; from pathlib import Path; from snzoo.gates import LayerGates\n"
        "assert not {'torch', 'matplotlib'} & set(sys.modules)\n"
        "from snzoo.gates.chart import save_chart\n"
        "layers = [LayerGates('a', ('LN',), (1.0,), (1.0,))]\n"
        "for suffix in ('svg', 'png'): save_chart(Path(f'x.{suffix}'), [('x', layers)])\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
