"""Every word and prompt is where the reader looks for it; maps are bright where the share is."""

import numpy as np
import pytest
import torch
from PIL import Image

from tiutils import figures, galleries, models, widgets
from tiutils.errors import InputError


def squares(count):
    return [Image.new("RGB", (16, 16), (40 * i, 90, 30)) for i in range(count)]


def shown_in(figure):
    return [axis for axis in figure.axes if axis.images]


def test_gallery_has_a_row_a_word_and_a_column_a_prompt():
    words = {"<a>": squares(3), "<b>": squares(3)}
    figure = galleries.class_gallery(words, ["a {}", "two {}", "{} on sand"], title="Class")
    assert len(shown_in(figure)) == 6
    alt = figures.alt_text(figure)
    assert "<a>, <b>" in alt and "a …; two …; … on sand" in alt


def test_gallery_with_a_photo_for_one_of_two_words():
    words = {"<a>": squares(2), "<b>": squares(2)}
    figure = galleries.class_gallery(words, ["a {}", "two {}"], photos={"<b>": squares(1)[0]})
    assert len(shown_in(figure)) == 5
    assert any(axis.get_title() == "a photo" for axis in figure.axes)


def test_gallery_refuses_what_makes_no_grid():
    with pytest.raises(InputError, match="'<b>' has 1 pictures for 2 prompts"):
        galleries.class_gallery({"<a>": squares(2), "<b>": squares(1)}, ["a {}", "two {}"])
    with pytest.raises(InputError):
        galleries.class_gallery({}, ["a {}"])


def test_attention_figure_names_words_and_places():
    heat = torch.zeros(8, 8)
    heat[7, 0] = 1.0
    figure = galleries.attention_figure(squares(1), [{"<a>": heat, "sand": heat.T}])
    alt = figures.alt_text(figure)
    assert "<a>: most at the bottom left." in alt and "sand: most at the top right." in alt
    assert len(shown_in(figure)) == 3


def test_attention_figure_wants_maps_for_each_picture():
    with pytest.raises(InputError, match="2 pictures and 1 maps"):
        galleries.attention_figure(squares(2), [{}])


def test_the_overlay_is_brightest_where_the_share_is():
    heat = torch.zeros(4, 4)
    heat[0, 3] = 0.2
    shown = np.asarray(galleries.heat_overlay(Image.new("RGB", (64, 32), "gray"), heat)).astype(int)
    assert shown.shape == (32, 64, 3)
    assert shown[2, -4].sum() > shown[-4, 2].sum() + 100


def test_the_overlay_of_a_flat_map_is_one_color():
    shown = galleries.heat_overlay(Image.new("RGB", (8, 8)), torch.full((2, 2), 0.1))
    assert len(shown.getcolors()) == 1


def drawn(figure):
    """The array that matplotlib was given for the figure's only picture."""
    (axis,) = shown_in(figure)
    return np.asarray(axis.images[0].get_array())


@pytest.mark.parametrize("percent, seam", [(0, 0), (25, 16), (50, 32), (100, 64)])
def test_wipe_shows_after_left_of_the_seam_and_before_right_of_it(percent, seam):
    before, after = Image.new("RGB", (64, 8), "blue"), Image.new("RGB", (64, 8), "red")
    pixels = drawn(galleries.wipe(before, after, percent))
    assert (pixels[:, :seam] == (255, 0, 0)).all() and (pixels[:, seam:] == (0, 0, 255)).all()


def test_wipe_leaves_its_pictures_alone_and_refuses_two_sizes():
    before, after = Image.new("RGB", (8, 8), "blue"), Image.new("RGB", (8, 8), "red")
    galleries.wipe(before, after, 100)
    assert before.getcolors() == [(64, (0, 0, 255))]
    with pytest.raises(InputError, match="one size"):
        galleries.wipe(before, after.resize((4, 4)), 50)


def test_the_slider_moves_the_seam():
    pytest.importorskip("ipywidgets")
    slider, page = widgets.before_after_slider(*squares(2)).children
    assert "50 %" in page.value
    slider.value = 80
    assert "80 % of the width" in page.value and "<img alt=" in page.value


def test_every_control_of_the_playground_changes_the_picture(small_model, monkeypatch):
    pytest.importorskip("ipywidgets")
    said = []
    monkeypatch.setattr(
        galleries.inference,
        "generate",
        lambda models, prompt, **rest: said.append((prompt, *rest.values())) or squares(1),
    )
    parts = models.load(small_model)
    *controls, page = widgets.playground(parts, "a toy").children
    for control, value in zip(controls, ("a <b>", "sand", 7, 3.5), strict=True):
        control.value = value
    assert said[0] == ("a toy", "", 1, parts.guidance_scale)
    assert said[-1] == ("a <b>", "sand", 7, 3.5) and len(said) == 5
    assert "a &lt;b&gt;”, away from “sand”, drawn from seed 7 with guidance 3.5." in page.value
