"""The book that `make book` has made, in Chromium: light, dark and narrow; search, hints, formulas, captions."""

from __future__ import annotations

import functools
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pages
import pytest
from lab import ARTIFACTS

pytestmark = pytest.mark.slow
BOOK = pages.ROOT / "build" / "book"
LOOKS = {
    "light": {"color_scheme": "light", "viewport": {"width": 1200, "height": 900}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1200, "height": 900}},
    "narrow": {"color_scheme": "light", "viewport": {"width": 360, "height": 800}},
}
CHAPTERS = [f"notebooks/{path.stem}.html" for path in pages.NOTEBOOKS]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture(scope="module")
def address():
    """Of the book, served on loopback."""
    assert (BOOK / "book" / "index.html").is_file(), "make book"
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=BOOK))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(params=LOOKS)
def page(browser, request):
    """A page that must ask nothing of other servers, and log no error."""
    opened = browser.new_page(**LOOKS[request.param])
    opened.look, complaints, asked = request.param, [], []
    opened.on("console", lambda m: complaints.append(m.text) if m.type != "log" else None)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("request", lambda request: asked.append(request.url))
    yield opened
    assert not complaints
    assert all(url.startswith(("http://127.0.0.1:", "data:")) for url in asked)
    opened.close()


def test_the_root_leads_to_the_first_page(page, address):
    page.goto(address)
    page.wait_for_url("**/book/index.html")
    assert "Textual Inversion" in page.locator("h1").inner_text()


@pytest.mark.parametrize("chapter", ["book/index.html", "docs/glossary.html", *CHAPTERS])
def test_each_page_fits_and_its_pictures_are_described(page, address, chapter):
    page.goto(f"{address}/{chapter}")
    name = chapter.split("/")[-1].removesuffix(".html")
    page.screenshot(path=ARTIFACTS / f"book-{name}-{page.look}.png")
    widths = page.evaluate("[document.scrollingElement.scrollWidth, innerWidth]")
    assert widths[0] <= widths[1], "the page scrolls sideways"
    assert not page.evaluate(
        "[...document.images].filter(image => !image.alt).map(image => image.src)"
    )
    if chapter in CHAPTERS:
        captions = page.locator("figure figcaption")
        assert captions.count() and captions.first.inner_text().strip()
        assert page.locator("article").inner_text().count("VBox(") == 0


def test_hints_open_and_formulas_are_set(page, address):
    page.goto(f"{address}/notebooks/04_inference.html")
    hint = page.locator("details", has=page.locator("summary:has-text('Hint')")).first
    text = hint.locator("p").last
    assert not text.is_visible()
    hint.locator("summary").click()
    assert text.is_visible()
    formula = page.locator("math[display=block]").first
    assert formula.bounding_box()["height"] > 10


def test_the_set_up_is_folded(page, address):
    page.goto(f"{address}/notebooks/00_start_here.html")
    code = page.get_by_text("TIUTILS_REPOSITORY").first
    assert not code.is_visible()
    page.locator("details.hide summary").first.click()
    assert code.is_visible()


def test_the_search_finds_and_leads_there(page, address):
    page.goto(f"{address}/search.html?q=overfitting")
    page.locator("#search-results li a").first.wait_for()
    found = page.locator("#search-results li a").all_inner_texts()
    assert any("Using your word" in text for text in found)


def test_a_term_leads_to_the_glossary(page, address):
    page.goto(f"{address}/notebooks/04_inference.html")
    page.locator("article a[href*='glossary.html#guidance-scale']").first.click()
    assert page.locator(":target").first.inner_text().startswith("Guidance scale")
