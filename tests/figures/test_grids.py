"""Grids: every image, word and prompt is in its place."""

import io

import numpy as np
import pytest
from PIL import Image

from tiutils.errors import InputError
from tiutils.figures import grids, output


def squares(count):
    return [Image.new("RGB", (16, 16), (40 * i, 90, 30)) for i in range(count)]


def shown_in(figure):
    return [axis for axis in figure.axes if axis.images]


def test_gallery_has_a_row_a_word_and_a_column_a_prompt():
    words = {"<a>": squares(3), "<b>": squares(3)}
    figure = grids.class_gallery(words, ["a {}", "two {}", "{} on sand"], title="Class")
    assert len(shown_in(figure)) == 6
    alt = output.alt_text(figure)
    assert "<a>, <b>" in alt and "a …; two …; … on sand" in alt


def test_gallery_with_a_photo_for_one_of_two_words():
    words = {"<a>": squares(2), "<b>": squares(2)}
    figure = grids.class_gallery(words, ["a {}", "two {}"], photos={"<b>": squares(1)[0]})
    assert len(shown_in(figure)) == 5
    assert any(axis.get_title() == "a photo" for axis in figure.axes)


def test_gallery_refuses_what_makes_no_grid():
    with pytest.raises(InputError, match="'<b>' has 1 images for 2 prompts"):
        grids.class_gallery({"<a>": squares(2), "<b>": squares(1)}, ["a {}", "two {}"])
    with pytest.raises(InputError):
        grids.class_gallery({}, ["a {}"])


def pixels_of(figure):
    """The array of the figure's only image."""
    (axis,) = shown_in(figure)
    return np.asarray(axis.images[0].get_array())


@pytest.mark.parametrize("percent, seam", [(0, 0), (25, 16), (50, 32), (100, 64)])
def test_wipe_shows_after_left_of_the_seam_and_before_right_of_it(percent, seam):
    before, after = Image.new("RGB", (64, 8), "blue"), Image.new("RGB", (64, 8), "red")
    pixels = pixels_of(grids.wipe(before, after, percent))
    assert (pixels[:, :seam] == (255, 0, 0)).all() and (pixels[:, seam:] == (0, 0, 255)).all()


def test_wipe_leaves_its_pictures_alone_and_refuses_two_sizes():
    before, after = Image.new("RGB", (8, 8), "blue"), Image.new("RGB", (8, 8), "red")
    grids.wipe(before, after, 100)
    assert before.getcolors() == [(64, (0, 0, 255))]
    with pytest.raises(InputError, match="the same size"):
        grids.wipe(before, after.resize((4, 4)), 50)


RED, GREEN, BLUE = (Image.new("RGB", (16, 16), c) for c in ("#ff0000", "#00ff00", "#0000ff"))


def drawn(figure):
    """Pixels of the figure, (height, width, 3)."""
    return np.asarray(Image.open(io.BytesIO(output.to_png(figure))).convert("RGB"))


def center_of(pixels, color):
    """Mean (x, y) of the pixels of one color."""
    y, x = np.where((pixels == color).all(axis=-1))
    assert len(x), f"no pixel of color {color}"
    return x.mean(), y.mean()


def test_image_grid_puts_pictures_in_rows_and_columns():
    pixels = drawn(grids.image_grid([[RED, GREEN], [BLUE]], row_labels=["one", "two"]))
    red, green, blue = (center_of(pixels, c) for c in ((255, 0, 0), (0, 255, 0), (0, 0, 255)))
    assert red[1] == pytest.approx(green[1], abs=1) and green[0] > red[0] + 90
    assert red[0] == pytest.approx(blue[0], abs=1) and blue[1] > red[1] + 90


def test_image_grid_has_an_alt_text_with_its_labels():
    figure = grids.image_grid(
        [[RED, None], [BLUE]], row_labels=["before", "after"], column_labels=["a", "b"], title="T"
    )
    assert output.alt_text(figure) == "T. 2 pictures. rows: before, after. columns: a, b."


def test_a_long_title_is_wrapped_and_gets_the_height_it_needs():
    short, long = (grids.image_grid([[RED]], title=title) for title in ("a toy", "a toy " * 9))
    assert long.get_suptitle().replace("\n", " ") == ("a toy " * 9).strip()
    assert long.get_figwidth() == short.get_figwidth()
    long.draw_without_rendering()
    title = long._suptitle.get_window_extent()
    assert title.x0 >= 0 and title.x1 <= long.bbox.width
    assert title.y0 > long.axes[0].get_window_extent().y1


def test_image_grid_without_pictures_is_refused():
    with pytest.raises(InputError, match="no image to show"):
        grids.image_grid([[], []])


def test_before_after_keeps_the_order_of_generate():
    before, after = [RED, RED, GREEN, GREEN], [BLUE] * 4
    figure = grids.before_after([RED], before, after, ["a <toy> on sand", "a <toy> in snow"])
    pixels = drawn(figure)
    assert center_of(pixels, (0, 255, 0))[1] > center_of(pixels, (255, 0, 0))[1]  # second row
    assert center_of(pixels, (0, 0, 255))[0] > center_of(pixels, (0, 255, 0))[0]  # to the right
    assert "a <toy> on sand; a <toy> in snow" in output.alt_text(figure)


@pytest.mark.parametrize(
    ("photos", "before", "after", "prompts"),
    [([], [RED], [RED], ["p"]), ([RED], [RED], [RED, RED], ["p"]), ([RED], [RED], [RED], []),
     ([RED], [RED] * 3, [RED] * 3, ["p", "q"])],
)  # fmt: skip
def test_before_after_refuses_what_makes_no_rows(photos, before, after, prompts):
    with pytest.raises(InputError, match="do not make rows"):
        grids.before_after(photos, before, after, prompts)


def test_step_strip_orders_by_step_and_allows_missing_pictures():
    figure = grids.step_strip({100: [BLUE], 0: [RED, RED]}, prompt="a <toy>", photo=GREEN)
    pixels = drawn(figure)
    places = [center_of(pixels, c)[0] for c in ((0, 255, 0), (255, 0, 0), (0, 0, 255))]
    assert places == sorted(places)
    assert "after 0, 100 training steps" in output.alt_text(figure)
