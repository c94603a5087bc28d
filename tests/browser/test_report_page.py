"""`report.html` and `comparison.html` in Chromium: light, dark, and narrow; sliders; nothing that axe objects to."""

from __future__ import annotations

import pytest
from lab import ARTIFACTS

from tiutils import concept
from tiutils.evaluation import overfitting, web_page
from tiutils.evaluation.comparison import METRICS, Score
from tiutils.figures import curves, output
from tiutils.io.pretrained import BUNDLED_MODEL

pytestmark = pytest.mark.slow
WCAG = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
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
    scores = {"similarity": [0.5, 0.6], "following": [0.5, 0.4]}
    page = web_page.Page(
        "<wood-toy>",
        "toy",
        seen,
        [web_page.Pair("a <wood-toy> on sand", seen[0], held_out[0])] * 2,
        300,
        {step: (output.contact_sheet(seen[:4]), f"after {step} steps") for step in (100, 200)},
        [
            web_page.Chart("Loss", "Noisy.", curves.loss_curve([0.1, 0.08, 0.07, 0.06])),
            web_page.Chart("Overfitting", "Two.", overfitting.curves({100: scores, 200: scores})),
        ],
        ({name: Score(0.5, 0.1, 0.05, 0.15) for name in METRICS}, dict.fromkeys(METRICS, 0.4)),
        str(folder / "held_out"),
        flags={"seed": 3, "validation_prompt": "a <wood-toy> " + "that is long " * 20},
    )
    path = tmp_path_factory.mktemp("run") / "report.html"
    path.write_text(web_page.render(page), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    photo = concept.load(BUNDLED_MODEL.parent / "concepts" / "wood-toy").photos[0].image
    scores = {name: Score(0.5, 0.1, 0.05, 0.15) for name in METRICS}
    runs = [
        web_page.Run(
            f"run-{number}", word, "toy", photo, (scores, dict.fromkeys(METRICS, 0.4)), "/x/held_out", {"seed": number}
        )
        for number, word in enumerate(("<wood-toy>", "<a-toy-with-a-long-name>", "<wood-toy-2>"))
    ]  # fmt: skip
    pictures = {word: [photo] * 8 for word in ("toy", *(run.word for run in runs))}
    prompts = ["a {} on the beach", "a {} in the snow", "a {} in the forest", "two {} on grass"]
    path = tmp_path_factory.mktemp("comparison") / "comparison.html"
    page = web_page.ComparisonPage(runs, prompts, pictures)
    path.write_text(web_page.render_comparison(page), encoding="utf-8")
    return path.as_uri()


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("name", ["report", "comparison"])
def test_the_page_can_be_read_by_everybody(browser, address, comparison, look, name):
    from axe_playwright_python.sync_playwright import Axe

    address = {"report": address, "comparison": comparison}[name]
    page = browser.new_page(**LOOKS[look])
    complaints, asked = [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    if name == "report":
        page.locator("summary").click()
    found = Axe().run(page, options=WCAG)
    page.screenshot(path=ARTIFACTS / f"{name}-{look}.png", full_page=True)
    assert not found.response["violations"], found.generate_report()
    assert found.response["passes"] and not complaints
    assert [url for url in asked if not url.startswith("data:")] == [address]
    widths = page.evaluate("[document.scrollingElement.scrollWidth, innerWidth]")
    assert widths[0] <= widths[1], "the page scrolls sideways"
    page.close()


def test_a_slider_moves_by_keyboard_and_mouse(browser, address):
    page = browser.new_page()
    page.goto(address)
    pair, slider = page.locator(".pair").first, page.get_by_role("slider").first
    assert "a <wood-toy> on sand" in slider.get_attribute("aria-label")
    slider.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert slider.input_value() == "52"
    assert pair.evaluate("pair => pair.style.getPropertyValue('--at')") == "52%"
    shown = pair.screenshot()
    page.keyboard.press("End")
    assert slider.input_value() == "100" and pair.screenshot() != shown
    box = pair.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 4, box["y"] + box["height"] / 3)
    assert 24 <= int(slider.input_value()) <= 26, "the seam is where the pointer is"
    page.close()


def test_without_scripts_the_pictures_stand_side_by_side(browser, address):
    page = browser.new_page(java_script_enabled=False)
    page.goto(address)
    before, after = (
        page.locator(f".pair .{name} img").first.bounding_box() for name in ("before", "after")
    )
    assert before["y"] == after["y"] and before["x"] + before["width"] <= after["x"]
    assert page.get_by_text("Drag across a picture").is_hidden()
    page.close()
