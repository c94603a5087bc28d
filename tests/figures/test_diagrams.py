"""Figures about words say in their alt text what they show."""

import numpy as np
import pytest
from PIL import Image

from tiutils.errors import InputError
from tiutils.figures import diagrams, output


def texts(figure):
    return {text.get_text() for axis in figure.axes for text in axis.texts}


def test_the_way_of_a_word_names_all_parts_and_colors_one_row():
    figure = diagrams.word_path("<my-cat>", 8192)
    parts = {"tokenizer", "text encoder", "U-Net", "VAE", "loss", "row 8192"}
    assert parts <= texts(figure)
    colors = [
        box.get_facecolor()
        for box in figure.axes[0].patches
        if box.get_facecolor()[:3] != (1, 1, 1)
    ]
    assert len(set(colors)) == 2 and sum(c != colors[0] for c in colors) == 1  # frozen, and one
    alt = output.alt_text(figure)
    assert "“a photo of a <my-cat>”" in alt and "8192, which alone is learned" in alt


def test_bars_stand_for_words_the_nearest_on_top():
    near = [("toy", 1.0), ("doll", 0.5), ("far", -0.2)]
    figure = diagrams.neighbor_bars(
        near, title="near", chance=0.25, picture=Image.new("RGB", (8, 8))
    )
    bars, picture = figure.axes
    assert [bar.get_width() for bar in bars.patches] == [1.0, 0.5, -0.2]
    assert bars.yaxis_inverted() and bars.get_xlim()[0] <= -0.2
    assert len(picture.images) == 1
    expected = "near. Nearest words: toy 1.00, doll 0.50, far -0.20. Luck alone gives 0.25."
    assert output.alt_text(figure).startswith(expected)
    assert len(diagrams.neighbor_bars(near).axes) == 1
    with pytest.raises(InputError, match="no word to show"):
        diagrams.neighbor_bars([])


def test_a_table_of_likeness_names_the_most_alike():
    likeness = np.array([[1.0, 0.7, -0.04], [0.7, 1.0, 0.2], [-0.04, 0.2, 1.0]])
    figure = diagrams.similarity_table(["red", "orange", "snow"], likeness, title="alike")
    assert {"1.0", "0.7", "0.2", "0.0"} == texts(figure)
    assert "red and orange 0.70; orange and red 0.70; snow and orange 0.20" in output.alt_text(
        figure
    )
    for shape in ((2, 2), (3, 2), (3,)):
        with pytest.raises(InputError, match="expected one row and column per word"):
            diagrams.similarity_table(["red", "orange", "snow"], np.zeros(shape))


def test_the_diagram_of_denoising_names_what_is_frozen_and_what_is_asked():
    figure = diagrams.denoising()
    assert {"VAE", "text encoder", "U-Net", "photo", "latents $z$", "conditioning $c$"} <= texts(
        figure
    )
    frozen = [b for b in figure.axes[0].patches if b.get_facecolor()[:3] != (1, 1, 1)]
    assert len([b for b in frozen if b.get_width() == 2.3]) == 3
    assert "gray: frozen" in output.alt_text(figure)
