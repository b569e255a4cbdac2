"""The report in a real browser: on a phone, on a desk, on paper, in the dark, without scripts or a network."""

import base64
import json
import os
import shutil

import pytest

from tsexport.bundles.checksums import seal
from tsexport.reports.writing import report_bundles

pytestmark = pytest.mark.slow

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTHS = (320, 390, 768, 1280)
A4_PIXELS = 702
"""186 mm of an A4 page within its margins, at 96 dots an inch."""
TOO_WIDE = """(limit) => [...document.querySelectorAll("body *")]
  .filter(one => !one.closest(".scroll") && one.getBoundingClientRect().right > limit + 1)
  .map(one => one.tagName + "." + one.className + ": " + one.textContent.slice(0, 40))"""
COLOURS = """async (encoded) => {
  const image = new Image();
  image.src = "data:image/png;base64," + encoded;
  await image.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.width, image.height];
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const pixels = new Uint32Array(context.getImageData(0, 0, image.width, image.height).data.buffer);
  const counts = new Map();
  for (const pixel of pixels) counts.set(pixel, (counts.get(pixel) ?? 0) + 1);
  return [counts.size, Math.max(...counts.values()) / pixels.length];
}"""


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: the report was not looked at")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here: the report was not looked at")
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield started
        started.close()


@pytest.fixture
def look(browser):
    """Open a file in a browser without a network; what it complains of or asks for is an error at the end."""
    complaints, contexts = [], []

    def open_page(path, width=1280, **settings):
        context = browser.new_context(viewport={"width": width, "height": 900}, **settings)
        contexts.append(context)
        context.set_offline(True)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url) if request.url != path.as_uri() else None)
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def page_path(many_folders, tmp_path):
    return report_bundles(many_folders, tmp_path / "report.html")


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_window(look, page_path, width):
    page = look(page_path, width)
    for one in page.query_selector_all("summary"):
        one.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(TOO_WIDE, width) == []


def test_what_is_too_wide_is_found(look, page_path):
    """The test above can fail."""
    page = look(page_path, 390)
    page.evaluate("{const p = document.createElement('pre'); p.style.width = '600px'; document.body.append(p)}")
    assert page.evaluate(TOO_WIDE, 390) == ["PRE.: "]


def test_what_a_page_asks_for_is_found(page_path, tmp_path, browser):
    """The page's policy keeps even a page that was tampered with from asking, and the console says so."""
    text = page_path.read_text()
    evil = text.replace(
        "</main>", '<img src="https://example.com/x.png"><script>document.title = "evil"</script></main>'
    )
    (tmp_path / "evil.html").write_text(evil)
    page = browser.new_page()
    asked, said = [], []
    page.on("requestfinished", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.goto((tmp_path / "evil.html").as_uri())
    page.wait_for_timeout(200)
    assert not any("example.com" in url for url in asked)
    assert page.title() != "evil"
    assert sum("Content Security Policy" in text for text in said) == 2
    page.close()


def test_it_is_not_blank_and_follows_the_dark(look, page_path, browser):
    blank = browser.new_page()
    grounds = set()
    for scheme in ("light", "dark"):
        page = look(page_path, color_scheme=scheme)
        shot = page.screenshot(full_page=True)
        colours, most = blank.evaluate(COLOURS, base64.b64encode(shot).decode())
        assert colours > 100
        assert most < 0.98
        grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert page.locator("svg.plot").first.bounding_box()["height"] > 50
    blank.close()
    assert grounds == {"rgb(255, 255, 255)", "rgb(18, 22, 27)"}


OUTSIDE = """() => [...document.querySelectorAll("svg.plot")].filter(one => one.checkVisibility()).flatMap(plot => {
  const frame = plot.getBoundingClientRect();
  return [...plot.querySelectorAll("text")].filter(text => {
    const box = text.getBoundingClientRect();
    return box.left < frame.left - 1 || box.right > frame.right + 1;
  }).map(text => text.textContent);
})"""
OVERLAPPING = """() => [...document.querySelectorAll("svg.plot")].filter(one => one.checkVisibility()).flatMap(plot => {
  const boxes = [...plot.querySelectorAll("text")].map(text => [text.textContent, text.getBoundingClientRect()]);
  return boxes.flatMap(([said, a], index) => boxes.slice(index + 1).filter(([, b]) =>
    Math.min(a.right, b.right) - Math.max(a.left, b.left) > 2 &&
    Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 6
  ).map(([other]) => `${said} / ${other}`));
})"""


@pytest.mark.parametrize(("width", "media", "narrow"), [(390, None, True), (1280, None, False), (600, "print", False)])
def test_every_plot_is_shown_once_at_the_width_that_fits(look, page_path, width, media, narrow):
    page = look(page_path, width)
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    if media:
        page.emulate_media(media=media)
    shown = page.evaluate("[...document.querySelectorAll('svg.plot')].map(one => [one.checkVisibility(), "
                          "one.classList.contains('narrow')])")  # fmt: skip
    assert len(shown) > 10
    assert {(visible, kind) for visible, kind in shown if visible} == {(True, narrow)}
    assert sum(visible for visible, _ in shown) == len(shown) / 2
    assert page.evaluate(OUTSIDE) == []
    assert page.evaluate(OVERLAPPING) == []


def test_a_phone_gets_rows_as_cards_with_their_labels(look, page_path):
    page = look(page_path, 390)
    cell = page.locator("#overview td[data-label=size]").first
    assert page.evaluate("cell => getComputedStyle(cell, '::before').content", cell.element_handle()) == '"size"'
    assert page.locator("#overview thead").first.bounding_box()["width"] <= 2


def test_paper_shows_everything_and_cuts_no_table(look, page_path):
    page = look(page_path, A4_PIXELS)
    document = page.pdf(prefer_css_page_size=True)
    assert document.startswith(b"%PDF-")
    assert document.count(b"/Type /Page\n") + document.count(b"/Type /Page ") >= 2
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("document.querySelectorAll('details:not([open])').length") == 0
    wide = page.evaluate(
        """limit => [...document.querySelectorAll("table, svg.plot, .card")]
          .filter(one => one.getBoundingClientRect().right > limit + 1).map(one => one.textContent.slice(0, 60))""",
        A4_PIXELS,
    )
    assert wide == []
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("document.querySelectorAll('details:not([open])').length") > 0


def test_sorting_by_what_a_column_means(look, page_path):
    page = look(page_path)
    table = page.locator("#overview table")
    header = table.locator("th", has_text="p50, batch 1")
    column = header.evaluate("one => one.cellIndex")

    def shown():
        return table.locator(f"tbody tr td:nth-child({column + 1})").evaluate_all(
            "cells => cells.map(one => one.firstChild.textContent.trim())"
        )

    before = shown()
    header.locator("button").click()
    assert header.get_attribute("aria-sort") == "ascending"
    assert shown()[-1] == "not measured", "what has no number comes last"
    header.locator("button").click()
    assert header.get_attribute("aria-sort") == "descending"
    assert shown()[-1] == "not measured"
    assert sorted(shown()) == sorted(before)
    name = table.locator("th", has_text="bundle")
    name.locator("button").press("Enter")
    names = table.locator("tbody td:first-child a").all_text_contents()
    assert names == sorted(names)
    assert header.get_attribute("aria-sort") is None


def test_without_scripts_everything_is_there(look, page_path):
    page = look(page_path, java_script_enabled=False)
    assert page.locator("th button").count() == 0
    assert page.locator("#overview tbody tr").count() == 3
    assert page.locator("#overview table").is_visible()


@pytest.fixture
def fifty(full_folder, tmp_path):
    """Fifty bundles that differ in their names."""
    folders = []
    for number in range(50):
        folder = tmp_path / "fifty" / f"b{number}"
        shutil.copytree(full_folder, folder)
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["name"] = f"tiny-{number:02}"
        (folder / "manifest.json").write_text(json.dumps(manifest))
        seal(folder)
        folders.append(folder)
    return folders


def test_fifty_bundles_are_found_and_opened(look, fifty, tmp_path):
    path = report_bundles(fifty, tmp_path / "fifty.html")
    assert path.stat().st_size < 6_000_000
    page = look(path)
    assert page.locator("article").count() == 50
    assert page.locator("article details.bundle[open]").count() == 0
    rows = page.locator("#overview tbody tr")
    page.locator("#overview .filter input").fill("tiny-07")
    assert [row.is_visible() for row in rows.all()].count(True) == 1
    page.locator("#overview a", has_text="tiny-07").first.click()
    assert page.locator("article details.bundle[open]").count() == 1
    assert page.locator("#bundle-8 h3").first.is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
