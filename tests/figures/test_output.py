"""Figures: what stands where, alt text in every place that carries it, no global state."""

import base64
import io
import os
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from tiutils import curves, figures
from tiutils.errors import InputError

RED, GREEN, BLUE = (Image.new("RGB", (16, 16), c) for c in ("#ff0000", "#00ff00", "#0000ff"))


def drawn(figure):
    """Pixels of the figure, (height, width, 3)."""
    return np.asarray(Image.open(io.BytesIO(figures.to_png(figure))).convert("RGB"))


def center_of(pixels, color):
    """Mean (x, y) of the pixels of one color."""
    y, x = np.where((pixels == color).all(axis=-1))
    assert len(x), f"no pixel of color {color}"
    return x.mean(), y.mean()


def test_image_grid_puts_pictures_in_rows_and_columns():
    pixels = drawn(figures.image_grid([[RED, GREEN], [BLUE]], row_labels=["one", "two"]))
    red, green, blue = (center_of(pixels, c) for c in ((255, 0, 0), (0, 255, 0), (0, 0, 255)))
    assert red[1] == pytest.approx(green[1], abs=1) and green[0] > red[0] + 90
    assert red[0] == pytest.approx(blue[0], abs=1) and blue[1] > red[1] + 90


def test_image_grid_has_an_alt_text_with_its_labels():
    figure = figures.image_grid(
        [[RED, None], [BLUE]], row_labels=["before", "after"], column_labels=["a", "b"], title="T"
    )
    assert figures.alt_text(figure) == "T. 2 pictures. rows: before, after. columns: a, b."


def test_a_long_title_is_wrapped_and_gets_the_height_it_needs():
    short, long = (figures.image_grid([[RED]], title=title) for title in ("a toy", "a toy " * 9))
    assert long.get_suptitle().replace("\n", " ") == ("a toy " * 9).strip()
    assert long.get_figwidth() == short.get_figwidth()
    long.draw_without_rendering()
    title = long._suptitle.get_window_extent()
    assert title.x0 >= 0 and title.x1 <= long.bbox.width
    assert title.y0 > long.axes[0].get_window_extent().y1


def test_image_grid_without_pictures_is_refused():
    with pytest.raises(InputError, match="no picture"):
        figures.image_grid([[], []])


def test_before_after_keeps_the_order_of_generate():
    before, after = [RED, RED, GREEN, GREEN], [BLUE] * 4
    figure = figures.before_after([RED], before, after, ["a <toy> on sand", "a <toy> in snow"])
    pixels = drawn(figure)
    assert center_of(pixels, (0, 255, 0))[1] > center_of(pixels, (255, 0, 0))[1]  # second row
    assert center_of(pixels, (0, 0, 255))[0] > center_of(pixels, (0, 255, 0))[0]  # to the right
    assert "a <toy> on sand; a <toy> in snow" in figures.alt_text(figure)


@pytest.mark.parametrize(
    ("photos", "before", "after", "prompts"),
    [([], [RED], [RED], ["p"]), ([RED], [RED], [RED, RED], ["p"]), ([RED], [RED], [RED], []),
     ([RED], [RED] * 3, [RED] * 3, ["p", "q"])],
)  # fmt: skip
def test_before_after_refuses_what_makes_no_rows(photos, before, after, prompts):
    with pytest.raises(InputError, match="do not make rows"):
        figures.before_after(photos, before, after, prompts)


def test_step_strip_orders_by_step_and_allows_missing_pictures():
    figure = figures.step_strip({100: [BLUE], 0: [RED, RED]}, prompt="a <toy>", photo=GREEN)
    pixels = drawn(figure)
    places = [center_of(pixels, c)[0] for c in ((0, 255, 0), (255, 0, 0), (0, 0, 255))]
    assert places == sorted(places)
    assert "after 0, 100 training steps" in figures.alt_text(figure)


def test_loss_curve_says_in_words_what_it_shows():
    figure = figures.loss_curve(
        [0.5] * 30 + [0.25] * 30, evaluation={0: 0.4, 60: 0.2}, kept_step=50
    )
    text = figures.alt_text(figure)
    assert "from 0.500 to 0.250" in text
    assert "from 0.4000 at step 0 to 0.2000 at step 60" in text
    assert "step 50 were kept" in text
    drawn(figure)


def test_loss_curve_leaves_gaps_for_losses_that_are_not_known():
    text = figures.alt_text(figures.loss_curve([None, 0.5, float("nan"), 0.25]))
    assert "from 0.500 to 0.375" in text


def test_loss_curve_with_one_evaluation():
    assert "0.4000 at step 0" in figures.alt_text(figures.loss_curve([1.0], evaluation={0: 0.4}))


@pytest.mark.parametrize("losses", [[], [None, None]])
def test_loss_curve_without_losses_is_refused(losses):
    with pytest.raises(InputError, match="no loss"):
        figures.loss_curve(losses)


def test_running_mean_by_hand():
    np.testing.assert_allclose(curves.running_mean(np.array([1.0, 2, 3, 4]), 2), [1, 1.5, 2.5, 3.5])


def test_contact_sheet_keeps_pixels_and_order():
    sheet = figures.contact_sheet([RED, GREEN, BLUE], columns=2, gap=2)
    assert sheet.size == (34, 34)
    assert sheet.getpixel((0, 0)) == (255, 0, 0)
    assert sheet.getpixel((18, 0)) == (0, 255, 0)
    assert sheet.getpixel((0, 18)) == (0, 0, 255)
    assert sheet.getpixel((33, 33)) == sheet.getpixel((17, 0)) == (255, 255, 255)
    with pytest.raises(InputError):
        figures.contact_sheet([])


@pytest.mark.parametrize("kind", ["figure", "image"])
def test_save_writes_the_alt_text_into_the_png(tmp_path, kind):
    alt = "A red square – “rouge”"
    picture = figures.image_grid([[RED]], alt=alt) if kind == "figure" else RED
    path = figures.save(picture, tmp_path / "new" / "a.png", alt=None if kind == "figure" else alt)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.info["Description"] == alt
    assert os.listdir(path.parent) == ["a.png"]


def test_an_image_without_alt_text_is_refused(tmp_path):
    with pytest.raises(InputError, match="alt text"):
        figures.save(RED, tmp_path / "a.png")
    assert not any(tmp_path.iterdir())


def test_saved_figures_are_small(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (15, 8, 8, 3), dtype=np.uint8)
    pictures = [Image.fromarray(n).resize((64, 64), Image.Resampling.BICUBIC) for n in noise]
    path = figures.save(
        figures.image_grid([pictures[:5], pictures[5:10], pictures[10:]]), tmp_path / "a.png"
    )
    assert path.stat().st_size < 120_000


def test_show_gives_notebooks_png_alt_text_and_plain_text():
    data, metadata = figures.show(RED, alt="A red square")._repr_mimebundle_()
    assert Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).size == (16, 16)
    assert data["text/plain"] == "A red square"
    assert metadata == {"image/png": {"alt": "A red square"}}


def test_show_as_a_notebook_sees_it():
    formatters = pytest.importorskip("IPython.core.formatters")
    data, metadata = formatters.DisplayFormatter().format(figures.show(RED, alt="A red square"))
    assert set(data) == {"image/png", "text/plain"}
    assert metadata["image/png"]["alt"] == "A red square"


def test_drawing_touches_neither_pyplot_nor_the_backend():
    program = (
        "import sys; from PIL import Image; from tiutils import figures\n"
        "figures.to_png(figures.image_grid([[Image.new('RGB', (4, 4))]]))\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "MPLBACKEND")}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


def test_figures_are_plain_figures():
    assert type(figures.image_grid([[RED]])) is Figure


def luminance(color):
    """Relative luminance of WCAG 2."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return np.dot([0.2126, 0.7152, 0.0722], linear)


@pytest.mark.parametrize("color", [figures.BLUE, figures.GREEN, figures.VERMILION, figures.GRAY])
def test_lines_stand_out_from_white(color):
    assert 1.05 / (luminance(color) + 0.05) >= 3  # WCAG 1.4.11, graphics
