"""Figures as files and in notebooks: alt text everywhere, small files, no global state."""

import base64
import io
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from tiutils.errors import InputError
from tiutils.figures import grids, output

RED, GREEN, BLUE = (Image.new("RGB", (16, 16), c) for c in ("#ff0000", "#00ff00", "#0000ff"))


def test_contact_sheet_keeps_pixels_and_order():
    sheet = output.contact_sheet([RED, GREEN, BLUE], columns=2, gap=2)
    assert sheet.size == (34, 34)
    assert sheet.getpixel((0, 0)) == (255, 0, 0)
    assert sheet.getpixel((18, 0)) == (0, 255, 0)
    assert sheet.getpixel((0, 18)) == (0, 0, 255)
    assert sheet.getpixel((33, 33)) == sheet.getpixel((17, 0)) == (255, 255, 255)
    with pytest.raises(InputError):
        output.contact_sheet([])


@pytest.mark.parametrize("kind", ["figure", "image"])
def test_save_writes_the_alt_text_into_the_png(tmp_path, kind):
    alt = "A red square – “rouge”"
    picture = grids.image_grid([[RED]], alt=alt) if kind == "figure" else RED
    path = output.save(picture, tmp_path / "new" / "a.png", alt=None if kind == "figure" else alt)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.info["Description"] == alt
    assert os.listdir(path.parent) == ["a.png"]


def test_an_image_without_alt_text_is_refused(tmp_path):
    with pytest.raises(InputError, match="alt text"):
        output.save(RED, tmp_path / "a.png")
    assert not any(tmp_path.iterdir())


def test_a_picture_is_written_in_full_color(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    with Image.open(output.save(Image.fromarray(noise), tmp_path / "a.png", alt="noise")) as image:
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), noise)


def test_few_colors_make_a_small_file_and_keep_the_rare_ones():
    noise = np.random.default_rng(0).integers(90, 160, (48, 64, 3), dtype=np.uint8)
    noise[:4, :4] = (40, 30, 240)
    image = Image.fromarray(noise)
    few = output.to_png(image, alt="gray noise, and a blue corner", colors=output.FEW_COLORS)
    assert len(few) < 0.5 * len(output.to_png(image, alt="the same"))
    with Image.open(io.BytesIO(few)) as small:
        assert small.convert("RGB").getpixel((1, 1)) == pytest.approx((40, 30, 240), abs=8)


def test_figures_are_sharp_and_small_for_programs_without_html():
    figure = Figure(figsize=(4, 2), dpi=72)
    shown = output.show(figure, alt="an empty page")
    assert Image.open(io.BytesIO(shown.png)).size == (2 * output.DPI, output.DPI)
    webp = base64.b64decode(re.search(r"base64,([^\"]+)", shown.html)[1])
    assert Image.open(io.BytesIO(webp)).size == (4 * output.DPI, 2 * output.DPI)


def test_show_gives_notebooks_png_alt_text_and_plain_text():
    data, metadata = output.show(RED, alt='A "red" square <1>')._repr_mimebundle_()
    assert Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).size == (16, 16)
    assert data["text/plain"] == 'A "red" square <1>'
    assert metadata == {"image/png": {"alt": 'A "red" square <1>'}}


def test_html_has_the_picture_its_alt_text_and_the_same_as_a_caption():
    page = output.as_html(RED, alt='A "red" square <1>')
    said = "A &quot;red&quot; square &lt;1&gt;"
    assert page.count(said) == 2 and f'<img alt="{said}"' in page
    assert re.search(rf"<figcaption[^>]*><em>{said}</em></figcaption>", page)
    (data,) = re.findall(r'src="data:image/webp;base64,([^"]+)"', page)
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.format == "WEBP" and image.size == (16, 16)
    with pytest.raises(InputError, match="alt text"):
        output.as_html(RED)


@pytest.mark.parametrize("template", ["lab", "classic", "basic"])
def test_nbconvert_shows_the_caption_and_lacks_no_description(template):
    nbconvert = pytest.importorskip("nbconvert")
    import nbformat

    data, metadata = output.show(RED, alt="A red square")._repr_mimebundle_()
    shown = nbformat.v4.new_output("display_data", data=data, metadata=metadata)
    cell = nbformat.v4.new_code_cell("show", outputs=[shown])
    page, _ = nbconvert.HTMLExporter(template_name=template).from_notebook_node(
        nbformat.v4.new_notebook(cells=[cell])
    )
    assert 'alt="A red square"' in page and "<em>A red square</em>" in page
    assert page.count("<img ") == 1 and "No description" not in page


def test_a_saved_figure_is_shown_again_with_its_alt_text(tmp_path):
    figure = grids.image_grid([[RED, GREEN]], alt="a red and a green square")
    path = output.save(figure, tmp_path / "figure.png")
    shown = output.show_saved(path)
    assert shown.alt == "a red and a green square"
    first = Image.open(path).convert("RGB")
    assert Image.open(io.BytesIO(shown.png)).size == first.reduce(3).size
    webp = base64.b64decode(re.search(r"base64,([^\"]+)", shown.html)[1])
    assert Image.open(io.BytesIO(webp)).size == first.size
    RED.save(tmp_path / "plain.png")
    with pytest.raises(InputError, match="alt text"):
        output.show_saved(tmp_path / "plain.png")


def test_show_as_a_notebook_sees_it():
    formatters = pytest.importorskip("IPython.core.formatters")
    data, metadata = formatters.DisplayFormatter().format(output.show(RED, alt="A red square"))
    assert set(data) == {"text/html", "image/png", "text/plain"}
    assert metadata["image/png"]["alt"] == "A red square"


def test_drawing_touches_neither_pyplot_nor_the_backend():
    program = (
        "import sys; from PIL import Image; from tiutils.figures import grids, output\n"
        "output.to_png(grids.image_grid([[Image.new('RGB', (4, 4))]]))\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "MPLBACKEND")}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


def test_figures_are_plain_figures():
    assert type(grids.image_grid([[RED]])) is Figure


def luminance(color):
    """Relative luminance of WCAG 2."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return np.dot([0.2126, 0.7152, 0.0722], linear)


@pytest.mark.parametrize("color", [output.BLUE, output.GREEN, output.VERMILION, output.GRAY])
def test_lines_stand_out_from_white(color):
    assert 1.05 / (luminance(color) + 0.05) >= 3  # WCAG 1.4.11, graphics
