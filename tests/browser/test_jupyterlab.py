"""Every notebook in a real JupyterLab: run all, move every widget, look at the page.

The notebooks are shortened, and the model is a random one in the shape of Stable Diffusion 1.5, so that this takes
minutes; TIUTILS_BROWSER_MODEL=bundled takes the bundled model, for pictures worth looking at. The screenshots lie in
build/browser/.
"""

from __future__ import annotations

import os
import time

import nbformat
import pages
import pytest
from lab import ARTIFACTS, server
from small_model import save_sd15_shaped

pytestmark = pytest.mark.slow
PATIENCE = 600_000  # milliseconds for a whole notebook
BOX = ".jp-OutputArea-output .jupyter-widgets.widget-vbox"
CONTROLS = "input:not([type=file]), select, .noUi-target, .widget-toggle-buttons"
CELLS = """() => window.jupyterapp.shell.currentWidget.content.widgets
    .filter(cell => cell.model.type === 'code')
    .map(cell => [cell.model.executionCount, cell.model.outputs.toJSON()])"""


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """The course with shortened notebooks."""
    folder = tmp_path_factory.mktemp("course")
    for name in ("tiutils", "data", "docs"):
        (folder / name).symlink_to(pages.ROOT / name)
    (folder / "notebooks").mkdir()
    for path in pages.NOTEBOOKS:
        notebook = pages.shortened(pages.read(path.stem))
        nbformat.write(notebook, folder / "notebooks" / path.name)
    return folder


@pytest.fixture(scope="module")
def jupyter(course, tmp_path_factory):
    """The server's address and token."""
    home = tmp_path_factory.mktemp("home")
    variables = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TIUTILS_STEPS": "8"}
    if os.environ.get("TIUTILS_BROWSER_MODEL") != "bundled":
        variables["TIUTILS_MODEL"] = str(save_sd15_shaped(home / "sd15-shaped", resolution=128))
    with server(course, home, variables) as address_and_token:
        yield address_and_token


@pytest.fixture
def page(browser, request):
    opened = browser.new_page(viewport={"width": 1200, "height": 1000})
    opened.set_default_timeout(120_000)
    yield opened
    opened.screenshot(
        path=ARTIFACTS / f"last-{request.node.name}.png"
    )  # what a failure looked like
    opened.close()


def open_notebook(page, jupyter, name):
    """Show a notebook without sidebar, its kernel ready."""
    address, token = jupyter
    page.goto(f"{address}/lab/workspaces/{name}/tree/notebooks/{name}.ipynb?token={token}&reset")
    page.wait_for_selector(".jp-NotebookPanel .jp-CodeCell")
    page.evaluate(
        """async () => {
            const app = window.jupyterapp;
            await app.restored;
            app.shell.collapseLeft();
            await app.shell.currentWidget.sessionContext.ready;
            await app.shell.currentWidget.sessionContext.session.kernel.info;
        }"""
    )


def start_run_all(page):
    """Run all cells, stored outputs gone; `window.ran` tells how it went when it is over."""
    page.evaluate(
        """async () => {
            window.ran = null;
            await window.jupyterapp.commands.execute('notebook:clear-all-cell-outputs');
            window.jupyterapp.commands.execute('notebook:run-all-cells').then(
                () => { window.ran = 'over'; }, error => { window.ran = String(error); });
        }"""
    )


def finish(page):
    """Wait for the end; every cell ran and none raised."""
    page.wait_for_function("window.ran !== null", timeout=PATIENCE)
    cells = page.evaluate(CELLS)
    errors = [out for _, outputs in cells for out in outputs if out["output_type"] == "error"]
    assert not errors, "\n".join(errors[0]["traceback"])
    assert page.evaluate("window.ran") == "over"
    assert [count for count, _ in cells] == list(range(1, len(cells) + 1))


def shoot(page, name, width=1200, height=2400):
    """The page from top to end, as pictures of at most this height in build/browser/; how many."""
    page.set_viewport_size({"width": width, "height": height})
    panel = page.locator(".jp-WindowedPanel-outer").first
    last = page.locator(".jp-Notebook .jp-Cell").last
    for number in range(1, 20):
        panel.evaluate("(panel, top) => { panel.scrollTop = top; }", (number - 1) * (height - 200))
        page.wait_for_timeout(500)  # until the pictures in sight are drawn
        page.screenshot(path=ARTIFACTS / f"{name}-{number}.png")
        box = last.bounding_box()
        if box and box["y"] + box["height"] < height:
            break
    page.set_viewport_size({"width": width, "height": 1000})
    return number


def move(control, index):
    """Give a control another value, as a reader would; a text gets a word that no other text of its box has."""
    kind = control.evaluate("e => e.className.includes('noUi') ? 'slider' : e.type || e.className")
    if kind == "slider":
        control.locator(".noUi-handle").focus()
        control.page.keyboard.press("PageUp")
    elif kind == "text":
        # not the same word twice: guidance between equal prompts changes nothing
        control.fill(("horse", "grass", "toy")[index % 3])
        control.press("Enter")
    elif kind == "checkbox":
        control.click()
    elif kind in ("select-one", "select-multiple"):
        control.select_option(index=1)
    elif "toggle-buttons" in kind:
        control.locator("button:not(.mod-active)").first.click()
    else:
        raise AssertionError(f"a control of a kind that this test does not know: {kind}")


def move_all(page, name):
    """Move each control of each box; its picture must change. Returns how many were moved."""
    moved = 0
    boxes = page.locator(BOX)
    for number in range(boxes.count()):
        box = boxes.nth(number)
        controls = box.locator(CONTROLS)
        for index in range(controls.count()):
            before = box.locator("img").get_attribute("src")
            controls.nth(index).scroll_into_view_if_needed()
            move(controls.nth(index), index)
            page.wait_for_function(
                "([box, before]) => box.querySelector('img')?.src !== before",
                arg=[box.element_handle(), before],
                timeout=120_000,
            )
            assert box.locator("img").get_attribute("alt")
            moved += 1
        box.screenshot(path=ARTIFACTS / f"{name}-box-{number}.png")
    return moved


MOVED = {"01_concept_and_data": 7, "02_tokenizer_surgery": 3, "04_inference": 5}


# 00 is run below; 06 has no control to move, takes minutes to compile, and is run by nbmake
@pytest.mark.parametrize(
    "name", [path.stem for path in pages.NOTEBOOKS if path.stem[1] not in "06"]
)
def test_run_all_and_move_every_widget(page, jupyter, name):
    open_notebook(page, jupyter, name)
    start_run_all(page)
    finish(page)
    shoot(page, name)
    assert move_all(page, name) == MOVED.get(name, 0)


def test_the_run_is_paused_stopped_and_kept(page, jupyter, course):
    """00: the run is watched, paused, stopped; the rest works with what was learned; chosen photos arrive."""
    name = "00_start_here"
    open_notebook(page, jupyter, name)
    start_run_all(page)
    box = page.locator(BOX, has=page.locator("button:has-text('stop and keep')"))
    box.locator("text=/step [0-9]+ of/").wait_for(timeout=PATIENCE)
    box.locator("button:has-text('pause')").click()
    box.locator("text=/paused after step/").wait_for()
    box.screenshot(path=ARTIFACTS / f"{name}-paused.png")
    box.locator("button:has-text('stop and keep')").click()
    box.locator("text=/ended after step/").wait_for()
    finish(page)
    assert box.locator("img").get_attribute("alt")
    box.screenshot(path=ARTIFACTS / f"{name}-live.png")
    shoot(page, name)

    photos = sorted((course / "data" / "concepts" / "wood-toy").glob("*.jpg"))
    with page.expect_file_chooser() as chooser:
        page.locator(".jp-OutputArea-output .widget-upload").click()
    chooser.value.set_files(photos[:3])
    stored = course / "notebooks" / "my-photos"
    for photo in photos[:3]:
        until(lambda photo=photo: (stored / photo.name).is_file())
        assert (stored / photo.name).read_bytes() == photo.read_bytes()


def until(holds, seconds=60):
    """Wait for something outside the page."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.2)


@pytest.mark.parametrize("theme, width", [("JupyterLab Dark", 1200), ("JupyterLab Light", 480)])
def test_in_the_dark_and_in_a_narrow_window(page, jupyter, theme, width):
    """As stored, not executed: what a reader sees who has just opened it."""
    open_notebook(page, jupyter, "04_inference")
    page.evaluate(
        "theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})", theme
    )
    light = "true" if "Light" in theme else "false"
    page.wait_for_selector(f"body[data-jp-theme-light={light}]", state="attached")
    assert shoot(page, f"{theme.split()[1].lower()}-{width}", width) > 1
    page.set_viewport_size({"width": width, "height": 1000})
    too_wide = page.evaluate(
        """() => [...document.querySelectorAll('.jp-Notebook .jp-OutputArea-output img')]
            .filter(image => image.offsetWidth > image.closest('.jp-OutputArea').clientWidth)
            .map(image => image.alt)"""
    )
    assert too_wide == []
