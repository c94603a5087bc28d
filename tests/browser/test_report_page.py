"""`report.html` in Chromium: light, dark and narrow; its sliders by keyboard; nothing that axe-core objects to."""

from __future__ import annotations

import pytest
from lab import ARTIFACTS

from tiutils import concept
from tiutils.evaluation import web_page
from tiutils.evaluation.comparison import METRICS, Score
from tiutils.figures import curves, output
from tiutils.io.pretrained import BUNDLED_MODEL

pytestmark = pytest.mark.slow
WCAG = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}
LOOKS = {
    "light": {"color_scheme": "light", "viewport": {"width": 1100, "height": 900}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1100, "height": 900}},
    "narrow": {"color_scheme": "light", "viewport": {"width": 360, "height": 800}},
}


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = BUNDLED_MODEL.parent / "concepts" / "wood-toy"
    seen, held_out = (
        [photo.image for photo in concept.load(place).photos]
        for place in (folder, folder / "held_out")
    )
    figure = curves.loss_curve([0.1, 0.08, 0.07, 0.06])
    page = web_page.Page(
        "<wood-toy>",
        "toy",
        "Learned from 5 photos in 300 steps; it began as “toy”.",
        seen,
        [web_page.Pair("a <wood-toy> on sand", seen[0], held_out[0])] * 2,
        {100: seen[1], 200: seen[2]},
        {"The loss": (output.to_png(figure), output.alt_text(figure))},
        ({name: Score(0.5, 0.1, 0.05, 0.15) for name in METRICS}, dict.fromkeys(METRICS, 0.4)),
        str(folder / "held_out"),
        flags={"seed": 3, "validation_prompt": "a <wood-toy> " + "that is long " * 20},
    )
    path = tmp_path_factory.mktemp("run") / "report.html"
    path.write_text(web_page.render(page), encoding="utf-8")
    return path.as_uri()


@pytest.mark.parametrize("look", LOOKS)
def test_the_page_can_be_read_by_everybody(browser, address, look):
    from axe_playwright_python.sync_playwright import Axe

    page = browser.new_page(**LOOKS[look])
    complaints = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(address)
    page.locator("summary").click()
    found = Axe().run(page, options=WCAG)
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=ARTIFACTS / f"report-{look}.png", full_page=True)
    assert not found.response["violations"], found.generate_report()
    assert found.response["passes"] and not complaints
    widths = page.evaluate("[document.scrollingElement.scrollWidth, innerWidth]")
    assert widths[0] <= widths[1], "the page scrolls sideways"
    page.close()


def test_a_slider_moves_by_keyboard(browser, address):
    page = browser.new_page()
    page.goto(address)
    slider = page.get_by_role("slider").first
    assert "a <wood-toy> on sand" in slider.get_attribute("aria-label")
    slider.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert slider.input_value() == "52"
    pair = page.locator(".pair").first
    assert pair.evaluate("pair => pair.style.getPropertyValue('--at')") == "52%"
    page.close()


def test_without_scripts_the_pictures_stand_side_by_side(browser, address):
    page = browser.new_page(java_script_enabled=False)
    page.goto(address)
    before, after = (
        page.locator(f".pair .{name}").first.bounding_box() for name in ("before", "after")
    )
    assert before["y"] == after["y"] and before["x"] + before["width"] <= after["x"]
    page.close()
