"""The plain functions behind the widgets, and the widgets that call them."""

import io
import itertools
import re

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from small_model import draw_photo

from tiutils import concept, models
from tiutils.course import explore, widgets
from tiutils.errors import InputError
from tiutils.figures import diagrams, output


@pytest.fixture(scope="module")
def parts(small_model):
    return models.load(small_model)


@pytest.fixture(scope="module")
def thing(tmp_path_factory):
    folder = tmp_path_factory.mktemp("thing")
    for index, size in enumerate([(48, 48), (60, 40), (40, 60)]):
        draw_photo(index, size).save(folder / f"{index}.png")
    return concept.load(folder)


def pixels(figure):
    """The visible part, without the alt text."""
    return Image.open(io.BytesIO(output.to_png(figure))).convert("RGB").tobytes()


def test_crops_differ_where_a_photo_is_not_square(thing):
    def seen(photo, crop, mirrored=False):
        return pixels(explore.crop_preview(thing, [photo], crop, mirrored, 32))

    assert seen(0, "start") == seen(0, "end")
    assert len({seen(1, crop) for crop in explore.CROPS}) == 3
    assert seen(1, "center") != seen(1, "center", True)


def test_a_crop_preview_names_the_chosen_photos(thing):
    text = output.alt_text(explore.crop_preview(thing, [0, 2], "end", True, 32))
    assert "0.png, 2.png" in text and "1.png" not in text and "end, mirrored" in text
    with pytest.raises(InputError, match="no photo is chosen"):
        explore.crop_preview(thing, [], "end", True, 32)


def test_with_hardly_any_noise_the_guess_is_the_photo(parts, thing, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        explore.diffusion, "decode", lambda models, latents: seen.update(z=latents) or [
            draw_photo(0)] * 3,
    )  # fmt: skip
    share = parts.noise_scheduler.alphas_cumprod
    explore.noise_preview(parts, thing, 0, "a toy", 500)
    clean, noisy, _guess = seen["z"]
    noise = (noisy - share[500] ** 0.5 * clean) / (1 - share[500]) ** 0.5
    assert 0.8 < noise.std() < 1.2
    explore.noise_preview(parts, thing, 0, "a toy", 0)
    clean, noisy, guess = seen["z"]
    np.testing.assert_allclose(noisy, share[0] ** 0.5 * clean + (1 - share[0]) ** 0.5 * noise,
                               atol=1e-4)  # fmt: skip
    np.testing.assert_allclose(guess, clean, atol=0.3)  # a random U-Net cannot do more damage


def test_the_guess_is_right_where_the_noise_is_named(parts, thing, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        explore.diffusion, "decode", lambda models, latents: seen.update(z=latents) or [
            draw_photo(0)] * 3,
    )  # fmt: skip

    class Knowing:
        def __init__(self, sample, time, states):
            clean = seen.get("z", [sample])[0]
            share = parts.noise_scheduler.alphas_cumprod[time]
            self.sample = (sample - share**0.5 * clean) / (1 - share) ** 0.5

    explore.noise_preview(parts, thing, 1, "a toy", 700)
    monkeypatch.setattr(type(parts.unet), "forward", lambda unet, *given: Knowing(*given))
    explore.noise_preview(parts, thing, 1, "a toy", 700)
    np.testing.assert_allclose(seen["z"][2], seen["z"][0], atol=1e-3)


def test_each_timestep_is_a_column_with_the_guess_below(parts, thing):
    figure = explore.noise_levels(parts, thing, 0, "a toy", [100, 900])
    assert len(figure.axes) == 4
    shown = [np.asarray(axis.images[0].get_array()) for axis in figure.axes]
    assert not any(np.array_equal(a, b) for a, b in itertools.combinations(shown, 2))
    assert "timesteps 100, 900" in output.alt_text(figure) and "a toy" in output.alt_text(figure)


def test_words_are_ranked_and_pieces_refused(parts, thing):
    images = [photo.image for photo in thing.photos]
    losses = explore.word_losses(parts, images, ["toy", "cat", "dog"], num_samples=4)
    assert set(losses) == {"toy", "cat", "dog"}
    assert list(losses.values()) == sorted(losses.values())
    assert losses == explore.word_losses(parts, images, ["dog", "toy", "cat"], num_samples=4)
    with pytest.raises(InputError, match="must be one"):
        explore.word_losses(parts, images, ["toy", "toycat"], num_samples=4)


def test_the_best_word_is_on_top():
    figure = diagrams.word_bars({"bad": 0.3, "good": 0.1, "fair": 0.2})
    bars = figure.axes[0].patches
    assert [round(bar.get_width()) for bar in bars] == [50, 0, -50]
    assert "good +50.00, fair +0.00, bad -50.00" in output.alt_text(figure)
    with pytest.raises(InputError, match="no word"):
        diagrams.word_bars({})


# Near-duplicates


def altered(image, how):
    width, height = image.size
    return {
        "copied": lambda: image,
        "resized": lambda: image.resize((width // 2, height // 2)),
        "mirrored": lambda: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "brightened": lambda: ImageEnhance.Brightness(image).enhance(1.2),
        "trimmed": lambda: image.crop((width // 50, height // 50, width, height)),
    }[how]()


@pytest.mark.parametrize("how", ["copied", "resized", "mirrored", "brightened", "trimmed"])
def test_near_duplicates_are_named(tmp_path, caplog, how):
    for index in range(3):
        draw_photo(index, (96, 96)).save(tmp_path / f"{index}.png")
    concept.load(tmp_path)
    assert caplog.messages == []
    altered(draw_photo(1, (96, 96)), how).save(tmp_path / "again.png")
    loaded = concept.load(tmp_path)
    (message,) = caplog.messages
    assert "'1.png' and 'again.png' are nearly the same picture" in message
    assert len(loaded.photos) == 4  # named, and kept: the reader chooses which one to delete


# Widgets


def picture(widget):
    return widget.children[-1].value


@pytest.fixture
def ipywidgets():
    return pytest.importorskip("ipywidgets")


def test_the_photo_picker_redraws_at_each_choice(ipywidgets, thing):
    picker = widgets.photo_picker(thing, 32)
    photos, crop, mirrored, _ = picker.children
    assert photos.value == (0, 1, 2)
    before = picture(picker)
    assert re.search(r'<img alt="0\.png, 1\.png, 2\.png: ', before)
    crop.value = "start"
    after = picture(picker)
    mirrored.value = True
    assert len({before, after, picture(picker)}) == 3
    photos.value = ()
    assert picture(picker).startswith("no photo is chosen")
    photos.value = (1,)
    assert '<img alt="1.png' in picture(picker)


def test_the_noise_slider_redraws_at_each_timestep(ipywidgets, parts, thing):
    slider = widgets.noise_slider(parts, thing, "a photo of a toy")
    photo, prompt, timestep, _ = slider.children
    assert (timestep.min, timestep.max) == (0, 999)
    seen = {picture(slider)}
    for control, value in ((timestep, 0), (timestep, 999), (photo, 2), (prompt, "a cat")):
        control.value = value
        seen.add(picture(slider))
    assert len(seen) == 5


def test_the_suggester_computes_new_words_only(ipywidgets, parts, thing, monkeypatch):
    asked = []
    monkeypatch.setattr(
        explore, "word_losses", lambda parts, images, words: asked.append(words) or dict.fromkeys(words, 0.2)
    )  # fmt: skip
    box = widgets.initializer_suggester(parts, thing, {"toy": 0.1})
    assert "toy" in picture(box) and asked == [[]]
    box.children[0].value = "toy, cat  dog,cat"
    assert asked[1:] == [["cat", "dog"]]
    assert "toy" in picture(box) and "dog" in picture(box)
    box.children[0].value = " "
    assert picture(box).startswith("there is no word")


def test_the_suggester_says_what_is_wrong_with_a_word(ipywidgets, parts, thing):
    box = widgets.initializer_suggester(parts, thing, {"toy": 0.1})
    box.children[0].value = "toy <i>"
    assert "but must be one" in picture(box) and "<i>" not in picture(box)
    box.children[0].value = "toy"
    assert picture(box).startswith("<figure")
