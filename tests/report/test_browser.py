"""The report page in a browser: on small and large screens, in light and dark, without requests."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from chromium import FONTS, WIDER, contrast, luminance

ZOO = [("resnet101v2_sn_8x32", 78.81), ("resnet50v1_sn_8x32", 77.49), ("resnet50v1_gn", None)]
LONG = "an_unreasonably_long_name_" * 8
COLORS = """
  const found = new Set();
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const e = texts.currentNode.parentElement;
    const style = window.getComputedStyle(e);
    if (texts.currentNode.data.trim() && e.tagName != "title")
      found.add(e instanceof window.SVGElement ? style.fill : style.color);
  }
  return {page: window.getComputedStyle(document.body).backgroundColor, text: [...found]};
"""
IMAGES = """
  return [...document.images].map((e) => [e.naturalWidth, e.getBoundingClientRect().width,
                                          e.checkVisibility()]);
"""
DOTS = """
  const middle = (e) => { const box = e.getBoundingClientRect(); return box.x + box.width / 2; };
  return [...document.querySelectorAll(".plot")].slice(0, 2).map((plot) => ({
    rows: [...plot.querySelectorAll(".row")].map((row) => [".measured", ".published"].map(
      (mark) => row.querySelector(mark) && middle(row.querySelector(mark)))),
    ticks: [...plot.querySelectorAll(".axis text")].map((e) => parseFloat(e.textContent)),
    lines: [...plot.querySelector(".line").querySelectorAll(".grid")].map(middle),
  }));
"""


CURVES = """
  const place = (e, start) => { const box = e.getBoundingClientRect();
                                return [start ? box.left : box.right, box.top, box.bottom]; };
  return [...document.querySelectorAll(".plot")].map((plot) => ({
    curves: [...plot.querySelectorAll("path.curve")].map((e) => [place(e, true), place(e, false)]),
    widths: [...plot.querySelectorAll("path.curve")].map((e) => e.getBoundingClientRect().width),
    colors: [...plot.querySelectorAll("path.curve")].map((e) => window.getComputedStyle(e).stroke),
    grid: [...plot.querySelectorAll(".grid")].map((e) => e.getBoundingClientRect().top),
    left: plot.querySelector(".grid").getBoundingClientRect().left,
    right: plot.querySelector(".grid").getBoundingClientRect().right,
  }));
"""


@pytest.fixture
def page(report, make, tmp_path):
    """A page of several models with everything that a document can hold."""
    names = make.names(30)
    make.photos(tmp_path / "photos", names)
    models = [
        make.model(name, classes=names, published=value, top1=value or 76, seed=seed)
        for seed, (name, value) in enumerate(ZOO)
    ]
    models[0]["top5"] = make.accuracy(1300, 1500, published=93.0)
    real = {"correct": 1500, "percent": 83.33, "interval95": [81.5, 85.0], "images": 1800}
    models[1] |= {"real": real, "weights": f"/{LONG}.safetensors"}
    models[2]["per_class"][0] |= {"images": 13_000, "top1": 1_000, "top5": 12_000}
    document = make.document(models, classes=names)
    document["pixels"]["exact"] = False
    document["errors"] = ["can't read x: truncated"]
    return report(document, "--images", tmp_path / "photos")


@pytest.mark.parametrize("width", [300, 390, 1200])
def test_nothing_is_wider_than_the_screen(browser, page, width):
    found = browser.measure(page, WIDER, width=width)
    assert found["inner"] == width
    assert (found["wider"], found["scroll"]) == ([], found["width"])


def test_long_words_do_not_widen_the_page(browser, report, make):
    model = make.model(LONG, classes=[f"{LONG}{i}" for i in range(30)], published=70.0)
    document = make.document([model, model], path=f"/{LONG}")
    document["errors"], document["run"]["device"] = [LONG], LONG
    found = browser.measure(report(document), WIDER, width=390)
    assert (found["wider"], found["scroll"]) == ([], found["width"])


def test_no_text_is_small(browser, page):
    assert min(browser.measure(page, FONTS, width=390)) >= 12


@pytest.mark.parametrize("dark", [False, True])
def test_text_has_contrast_in_light_and_dark(browser, page, dark):
    colors = browser.measure(page, COLORS, dark=dark)
    assert (luminance(colors["page"]) < 0.1) == dark
    assert len(colors["text"]) >= 5  # text, muted, links, agreeing, differing
    for color in colors["text"]:
        assert contrast(color, colors["page"]) >= 4.5, color


def test_thumbnails_are_visible(browser, page):
    images = browser.measure(page, IMAGES, width=390)
    assert len(images) == 3 * 20 * 3
    assert sum(visible for *_, visible in images) == 3 * 6 * 3  # the others are in <details>
    for natural, width, visible in images:
        assert natural == 120 and (width > 80 or not visible)


def test_marks_are_at_their_values_on_the_axis(browser, page):
    top1, _ = browser.measure(page, DOTS, width=390)
    start, end = top1["lines"][0], top1["lines"][-1]
    low, high = top1["ticks"][0], top1["ticks"][-1]

    def value(x):
        return None if x is None else low + (x - start) / (end - start) * (high - low)

    expected = [(78.8, 78.81), (77.4667, 77.49), (76.0, None)]
    for row, (measured, published) in zip(top1["rows"], expected, strict=True):
        assert value(row[0]) == pytest.approx(measured, abs=0.05)
        assert value(row[1]) == (published and pytest.approx(published, abs=0.05))


def test_the_console_is_silent(browser, page):
    dom, console = browser.open(page)
    assert console == [] and "<h1>3 models" in dom
    _, console = browser.open(page.replace("</body>", "<script>1</script></body>"))
    assert console  # the check can fail


def test_no_server_is_asked(browser, report, make):
    asked = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/"
        evil = (
            f'"><img src="{url}a"><link rel=stylesheet href={url}b><style>@import "{url}c"</style>'
        )
        model = make.model(evil, classes=[evil] * 3)
        document = make.document([model | {"weights": url}], path=url)
        document["errors"] = [evil, url]
        browser.open(report(document))
        assert asked == []
        browser.open(f'<img src="{url}heard">')
        assert asked == ["/heard"]
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def runs_page(report_runs, make, tmp_path):
    """A page of seven runs; the first is from the lower left to the upper right of its charts."""
    folders = []
    for i in range(7):
        lines = [make.step(step, step / 10 - i / 100 * (step < 30)) for step in (10, 20, 30)]
        lines += [make.epoch(k, 60 * k, loss=k) for k in (1, 2, 3)]
        lines.append({"event": "skipped", "photo": LONG, "reason": LONG})
        folders.append(
            make.run(tmp_path / f"{i}{LONG}", lines, model=LONG, lr=i, note=f"{LONG}{i}")
        )
    return report_runs(*folders)


def test_runs_fit_on_small_screens(browser, runs_page):
    found = browser.measure(runs_page, WIDER, width=300)
    assert (found["wider"], found["scroll"]) == ([], found["width"])


@pytest.mark.parametrize("dark", [False, True])
def test_curves_have_contrast_and_are_at_their_values(browser, runs_page, dark):
    colors = browser.measure(runs_page, COLORS, dark=dark)
    plots = browser.measure(runs_page, CURVES, width=700, dark=dark)
    assert [len(plot["curves"]) for plot in plots] == [14, 14, 7]
    assert len(set(plots[2]["colors"])) == 6
    for color in [*colors["text"], *plots[0]["colors"]]:
        assert contrast(color, colors["page"]) >= 4.5, color
    loss = plots[0]  # from 1 to 3 in epochs 1 to 3; both axes end at 3
    (left, *_), (right, top, _) = loss["curves"][0]
    assert right == pytest.approx(loss["right"], abs=2)
    assert left == pytest.approx(loss["left"] + (loss["right"] - loss["left"]) / 3, abs=2)
    assert top == pytest.approx(min(loss["grid"]), abs=2)
