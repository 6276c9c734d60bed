"""Photos come into the page in several ways; the page shows the classes of ``predict``."""

import base64
import io

import pytest
from PIL import Image

DEMO = "resnet18v1_sn_clothing"
LOCKED = "document.querySelector('.card .note')?.textContent.includes('access token')"
EVIL = "<img src='/heard' onerror='document.title = 1'><b>"


def test_a_dropped_photo_gets_the_classes_of_predict(visit, site, examples, expect, results):
    page, photo = visit(site), examples["hat-1.jpg"]
    page.drag_files(photo, kinds=["dragEnter", "dragOver"], at=(600, 880))
    assert page.evaluate("document.body.className") == "over"
    page.run("addEventListener('drop', (event) => { window.taken = event.defaultPrevented; })")
    page.drag_files(photo, kinds=["drop"], at=(600, 880))
    assert page.evaluate("taken")  # else the browser opens the file in place of the page
    [card] = results(page)
    assert card == {"name": photo.name, "error": None, "models": expect(photo)}
    assert page.evaluate("document.body.className") == ""
    widths = page.run("""
      return [...document.querySelectorAll(".bar")].map((bar) =>
        bar.getBoundingClientRect().width / bar.closest("ol").getBoundingClientRect().width);
    """)
    shares = [share for model in card["models"].values() for _, share in model]
    assert widths == pytest.approx([float(share[:-2]) / 100 for share in shares], abs=0.01)
    spoken = page.evaluate("document.querySelector('[role=log]').textContent")
    best, other = (" ".join([f"{name},", share]) for [[name, share], *_] in card["models"].values())
    assert spoken == f"{photo.name}: {best}, by {DEMO}; {other}, by other"


@pytest.mark.parametrize("selector", ["#files", "#camera"])
def test_a_chosen_photo_is_classified(visit, site, examples, expect, selector, results):
    page = visit(site)
    for name in ("pants-1.jpg", "pants-1.jpg"):  # the same one again
        page.choose_files(selector, examples[name])
    assert [card["models"] for card in results(page, 2)] == [expect(examples["pants-1.jpg"])] * 2


def test_a_pasted_photo_is_classified(visit, site, examples, expect, results):
    page, photo = visit(site), io.BytesIO()
    Image.open(examples["shoes-2.jpg"]).save(photo, "PNG")
    page.allow_clipboard(site)
    page.run(f"""
      const bytes = Uint8Array.from(atob("{base64.b64encode(photo.getvalue()).decode()}"),
                                    (letter) => letter.charCodeAt(0));
      const photo = new Blob([bytes], {{type: "image/png"}});
      return navigator.clipboard.write([new ClipboardItem({{"image/png": photo}})]);
    """)
    page.press("Control+V")
    assert results(page)[0]["models"] == expect(photo.getvalue())


def test_several_photos_at_once_and_a_broken_one(visit, site, examples, expect, tmp_path, results):
    broken = tmp_path / "cut short.jpg"
    broken.write_bytes(examples["hat-1.jpg"].read_bytes()[:3000])
    photos = [*list(examples.values())[:5], broken, *list(examples.values())[5:9]]
    page = visit(site)
    page.drag_files(*photos)
    cards = results(page, 10)
    assert [card["name"] for card in cards] == [photo.name for photo in photos]  # in their order
    assert cards[5]["models"] == {}
    assert cards[5]["error"].startswith("can't read cut short.jpg: ")
    for card, photo in zip(cards, photos, strict=True):
        assert photo == broken or card["models"] == expect(photo)


@pytest.mark.slow
def test_too_many_photos_are_cut_off_and_said(visit, serve, examples, results, make_engine):
    page = visit(serve(make_engine()))
    page.drag_files(*[examples["hat-1.jpg"]] * 101)
    assert len(results(page, 100)) == 100
    assert "The first 100 of 101 photos" in page.evaluate("message.textContent")


def test_the_keyboard_alone_is_enough(visit, site, examples, expect, results):
    page = visit(site)
    page.wait("document.querySelector(\"button[title='hat-1.jpg']\")")  # the examples come later

    def press(key, then):
        page.press(key)
        assert page.evaluate(f"document.activeElement.matches({then!r})"), (key, then)
        outline = page.run("""
          const focused = document.activeElement;
          return getComputedStyle(focused.closest("label") ?? focused).outlineWidth;
        """)
        assert outline == "3px", then

    press("Tab", "#files")
    press("Tab", "li:first-child > button[title='dress-1.jpg']")  # no camera with a mouse
    press("Tab", "li:nth-child(2) > button[title='hat-1.jpg']")
    page.press("Enter")
    [card] = results(page)
    assert (card["name"], card["models"]) == ("hat-1.jpg", expect(examples["hat-1.jpg"]))
    for _ in range(18):
        page.press("Tab")
    press("Tab", "#clear")
    press("Tab", "summary")
    page.press("Enter")
    press("Tab", ".scroll[role=region]")
    for _ in range(2):
        page.press("Shift+Tab")
    page.press("Space")
    assert results(page, 0) == []
    assert page.evaluate("document.activeElement.id") == "files"


def test_the_token_is_asked_for_and_kept_in_the_tab_alone(
    visit, serve, examples, results, make_engine
):
    page = visit(serve(make_engine(), token="open sesame"), ready="!access.hidden")
    page.choose_files("#files", examples["hat-1.jpg"])
    page.wait(LOCKED)
    for token in ("wrong", "open sesame"):
        page.evaluate("token.value = ''; token.focus()")
        page.type(token)
        page.press("Enter")
        page.wait("access.hidden || refused.textContent.includes('did not accept')")
        assert page.evaluate("access.hidden") == (token != "wrong")
        if token == "wrong":
            page.choose_files("#files", examples["hat-1.jpg"])
            page.wait(f"document.querySelectorAll('.card .note').length == 2 && {LOCKED}")
            assert "did not accept" in page.evaluate("refused.textContent")
    for card in results(page, 2):
        assert card["models"] == {"model": [["class", "50.0\u00a0%"]]}
    assert page.evaluate("[localStorage.length, document.cookie, location.search]") == [0, "", ""]


@pytest.mark.parametrize("busy", [1, 2])
def test_a_busy_server_is_asked_once_more(visit, serve, examples, busy, results, make_engine):
    page = visit(serve(make_engine(busy=busy)))
    page.choose_files("#files", examples["hat-1.jpg"])
    page.wait("document.querySelector('.card')?.textContent.includes('is busy. Another try')")
    [card] = results(page)
    assert (card["error"] is None) == (busy == 1)
    if card["error"]:
        assert card["error"].startswith("The server is busy")
        page.evaluate("document.querySelector('.card button').click()")
        page.wait("document.querySelector('.card .classes')")


def test_names_are_not_markup(visit, serve, examples, tmp_path, results, make_engine):
    photo = tmp_path / "<b>bold&amp;.jpg"
    photo.write_bytes(examples["hat-1.jpg"].read_bytes())
    page = visit(serve(make_engine(name=EVIL, found=EVIL)))
    page.choose_files("#files", photo)
    [card] = results(page)
    assert card == {"name": photo.name, "error": None, "models": {EVIL: [[EVIL, "50.0\u00a0%"]]}}
    assert page.evaluate("document.querySelectorAll('b:not(figcaption b)').length") == 0
    assert not any("heard" in url for url in page.requests())
    markup = "try { document.body.innerHTML = '<p>'; } catch (error) { return error.name; }"
    assert page.run(markup) == "TypeError"  # the policy of the page
