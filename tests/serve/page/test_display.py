"""The page on all screens, in light and dark, for screen readers, and without other hosts."""

import http.client

import pytest
from chromium import FONTS, WIDER, contrast

from snzoo.gates import load_gates
from snzoo.gates.shares import STATS

DEMO = "resnet18v1_sn_clothing"
LONG = "an_unreasonably_long_name_" * 8
COLORS = """
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = new Set();
  const background = (e) => {
    const color = getComputedStyle(e).backgroundColor;
    return color == "rgba(0, 0, 0, 0)" ? background(e.parentElement) : color;
  };
  while (texts.nextNode()) {
    const e = texts.currentNode.parentElement;
    if (texts.currentNode.data.trim() && !e.closest("svg, noscript"))
      found.add([getComputedStyle(e).color, background(e)].join(";"));
  }
  return [...found].map((pair) => pair.split(";"));
"""
GATES = """
  return [...document.querySelectorAll(".gates svg")].map((svg) => {
    const all = svg.getBoundingClientRect();
    return [...svg.querySelectorAll("g")].map((bar) => Object.fromEntries(
      [...bar.querySelectorAll("rect")].map((e) => [e.className.baseVal, {
        share: e.getBoundingClientRect().height / all.height,
        start: (all.bottom - e.getBoundingClientRect().bottom) / all.height,
        color: getComputedStyle(e).fill,
      }])));
  });
"""


@pytest.fixture(scope="module")
def crowded(serve, make_engine):
    """The address of a server whose names are long."""
    return serve(make_engine(name=LONG, found=LONG))


@pytest.mark.parametrize("width", [300, 390, 1200])
def test_nothing_is_wider_than_the_screen(visit, crowded, examples, tmp_path, width, results):
    photo = tmp_path / f"{LONG}.jpg"
    photo.write_bytes(examples["hat-1.jpg"].read_bytes())
    page = visit(crowded, width=width)
    page.choose_files("#files", photo, tmp_path)  # a folder cannot be read
    results(page, 2)
    page.evaluate("document.querySelector('details').open = access.hidden = true")
    page.evaluate("access.hidden = false")
    found = page.run(WIDER)
    assert found["inner"] == width
    assert (found["wider"], found["scroll"]) == ([], found["width"])
    assert min(page.run(FONTS)) >= 12


def test_phones_can_take_photos(visit, crowded):
    page = visit(crowded, width=390)
    shown = "document.querySelector('.take').checkVisibility()"
    assert not page.evaluate(shown)
    page.resize(390, mobile=True)
    assert page.evaluate(shown) and page.evaluate("camera.getAttribute('capture')") == "environment"


@pytest.mark.parametrize("dark", [False, True])
def test_text_has_contrast_in_light_and_dark(visit, site, examples, tmp_path, dark, results):
    page = visit(site, dark=dark)
    page.choose_files("#files", examples["hat-1.jpg"], tmp_path)
    results(page, 2)
    page.evaluate("access.hidden = false")
    colors = page.run(COLORS)
    assert len({color for color, _ in colors}) >= 5  # text, muted, on accent, accent, bad
    for color, background in colors:
        assert contrast(color, background) >= 4.5, (color, background)
    assert (
        contrast(
            page.evaluate("getComputedStyle(document.body).backgroundColor"), "rgb(255, 255, 255)"
        )
        > 10
    ) == dark


def test_the_console_is_silent_and_no_other_host_is_asked(visit, site, examples, results):
    page = visit(site)
    page.drag_files(examples["hat-1.jpg"])
    results(page)
    page.evaluate("document.querySelector('.examples button').click()")
    results(page, 2)
    assert page.complaints() == []
    asked = page.requests()
    assert {f"{site}v1/predict", f"{site}v1/models", f"{site}examples"} <= set(asked)
    assert all(url.startswith((site, f"blob:{site}")) for url in asked)
    page.evaluate("fetch('http://127.0.0.2:9/').catch(() => 0)")  # the policy forbids it
    assert any("Content Security Policy" in line for line in page.complaints())


def test_screen_readers_get_a_name_for_everything(visit, site, examples, results):
    page = visit(site)
    page.choose_files("#files", examples["hat-1.jpg"])
    results(page)
    page.evaluate("access.hidden = false; document.querySelector('details').open = true")
    found = {}
    for node in page.call("Accessibility.getFullAXTree")["nodes"]:
        if not node["ignored"]:
            role, name = node["role"]["value"], node.get("name", {}).get("value", "")
            found.setdefault(role, []).append(name)
    for role in ("button", "textbox", "image", "link", "heading", "region", "article", "table"):
        assert found.get(role) and all(found[role]), (role, found.get(role))
    assert "Photo hat-1.jpg" not in found["image"]  # the file has its own name
    assert f"Photo {examples['hat-1.jpg'].name}" in found["image"]
    assert f"Shares in the mean of each layer of {DEMO}" in found["image"]
    assert "Example hat 1" in found["image"]
    assert {"log", "status", "main", "banner", "contentinfo"} <= set(found)


def test_gates_are_drawn_and_listed_as_they_are(visit, site):
    page, gates = visit(site), load_gates(DEMO)
    for which, bars in zip(("mean", "var"), page.run(GATES), strict=True):
        for bar, layer in zip(bars, gates, strict=True):
            start = 0
            for stat, share in layer.shares(which).items():
                rgb = ", ".join(str(int(STATS[stat].color[i : i + 2], 16)) for i in (1, 3, 5))
                drawn = bar[stat]
                assert drawn["color"] == f"rgb({rgb})"
                assert (drawn["share"], drawn["start"]) == pytest.approx((share, start), abs=2e-3)
                start += share
    rows = page.run(
        "return [...document.querySelectorAll('tbody tr')].map((row) => "
        "[...row.cells].map((cell) => cell.textContent))"
    )
    assert rows == [
        [layer.name, *(f"{100 * share:.1f}\u00a0%" for share in layer.mean + layer.var)]
        for layer in gates
    ]
    assert "No layer has switchable norm" in page.text()  # the other model


def get(url, path, **headers):
    """Return the answer to a path as it is, and its body."""
    connection = http.client.HTTPConnection(url.split("/")[2])
    connection.request("GET", path, headers={k.replace("_", "-"): v for k, v in headers.items()})
    answer = connection.getresponse()
    return answer, answer.read()


@pytest.mark.parametrize("path", ["/", "/page/page.js", "/page/style.css", "/examples/hat-1.jpg"])
def test_files_have_a_policy_and_are_not_sent_again(crowded, path):
    answer, body = get(crowded, path)
    assert answer.status == 200 and len(body) > 1000
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    answer, body = get(crowded, path, If_None_Match=answer.headers["ETag"])
    assert (answer.status, body) == (304, b"")


@pytest.mark.parametrize("folder", ["page", "examples"])
@pytest.mark.parametrize(
    "name", ["", "../page.py", "..%2fpage.py", "%2e%2e/page.py", "x.jpg", "%00"]
)
def test_no_path_leaves_the_page(crowded, folder, name):
    answer, body = get(crowded, f"/{folder}/{name}")
    assert answer.status in (404, 307) and len(body) < 100
