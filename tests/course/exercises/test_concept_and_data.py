"""The first notebook: its own definitions agree with tiutils, its checks tell right from wrong."""

import random
import runpy
from pathlib import Path

import numpy as np
import pages
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from small_model import draw_photo

from tiutils import concept, diffusion, models
from tiutils.concept import Concept, Photo
from tiutils.course.exercises import concept_and_data as exercises

SOLUTIONS = runpy.run_path(str(pages.ROOT / "notebooks" / "solutions" / "concept_and_data.py"))


def defined_in(cell, name, **known):
    return pages.definitions("01_concept_and_data", cell, **known)[name]


@pytest.mark.parametrize("size", [(48, 48), (60, 40), (31, 50), (32, 32)])
def test_pixels_by_hand_are_those_of_the_module(size):
    to_numbers = defined_in("pixels-by-hand", "to_numbers", np=np, Image=Image)
    photo = Photo(Path("photo.png"), draw_photo(1, size))
    thing = Concept((photo,), (), "thing")
    for view in concept.views(thing):
        expected = concept.render_view(thing, view, 32)
        np.testing.assert_array_equal(to_numbers(photo.image, view.box, view.flip, 32), expected)


def test_decoding_by_hand_gives_the_pictures_of_the_module(small_model):
    parts = models.load(small_model)
    to_pictures = defined_in("decode-by-hand", "to_pictures", torch=torch, Image=Image)
    latents = torch.randn(2, *parts.latent_shape(), generator=torch.Generator().manual_seed(0))
    pictures = to_pictures(parts.vae, latents)
    expected = diffusion.decode(parts, latents)
    assert [picture.size for picture in expected] == [(32, 32)] * 2
    np.testing.assert_array_equal(np.stack(pictures), np.stack(expected))


def test_decoding_is_that_of_the_pipelines(small_model):
    from diffusers.image_processor import VaeImageProcessor

    parts = models.load(small_model)
    latents = 3 * torch.randn(2, *parts.latent_shape(), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        pixels = parts.vae.decode(latents / parts.vae.config.scaling_factor).sample
    expected = VaeImageProcessor().postprocess(pixels)
    difference = np.stack(diffusion.decode(parts, latents)).astype(int) - np.stack(expected)
    assert np.abs(difference).max() <= 1  # two ways of rounding


@pytest.mark.parametrize("timestep", [0, 400, 999])
def test_noise_by_hand_is_the_schedulers(small_model, timestep):
    add_noise = defined_in("noise-by-hand", "add_noise")
    scheduler = models.load(small_model).noise_scheduler
    latents, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = scheduler.add_noise(latents, noise, torch.tensor([timestep]))
    by_hand = add_noise(latents, noise, scheduler.alphas_cumprod[timestep])
    torch.testing.assert_close(by_hand, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA"])
def test_mending_by_hand_gives_the_photo_of_the_module(tmp_path, mode, orientation):
    mend = defined_in("mend-by-hand", "mend", Image=Image, ImageOps=ImageOps)
    image = draw_photo(2, (20, 30)).convert(mode)
    if mode.endswith("A"):
        image.putalpha(draw_photo(3, (20, 30)).convert("L"))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "photo.png", exif=exif)
    (photo,) = concept.load(tmp_path).photos
    with Image.open(tmp_path / "photo.png") as stored:
        by_hand = np.asarray(mend(stored))
    np.testing.assert_array_equal(by_hand, np.asarray(photo.image))


@settings(max_examples=200, deadline=None)
@given(width=st.integers(1, 99), height=st.integers(1, 99))
def test_the_solution_has_the_boxes_of_the_module(width, height):
    image = Image.new("RGB", (width, height))
    views = concept.views(Concept((Photo(Path("photo.png"), image),), (), "thing"))
    boxes = [view.box for view in views if not view.flip]
    assert SOLUTIONS["square_boxes"]((width, height)) == boxes


def test_solutions_are_right(small_model):
    assert exercises.check_boxes(SOLUTIONS["square_boxes"]).startswith("right")
    assert exercises.check_half(SOLUTIONS["half_noise"]).startswith("right")
    assert exercises.check_deal(SOLUTIONS["photo_at"]).startswith("right")
    shares = models.load(small_model).noise_scheduler.alphas_cumprod.tolist()
    half = SOLUTIONS["half_noise"](shares)
    assert shares[half] < 0.5 <= shares[half - 1]


def test_stubs_are_not_yet():
    assert exercises.check_boxes(lambda size: ...).startswith("not yet")
    assert exercises.check_half(lambda shares: None).startswith("not yet")
    assert exercises.check_deal(lambda position, photos, seed: ...).startswith("not yet")


@pytest.mark.parametrize(
    "function",
    [
        lambda size: [(0, 0, *size)],  # squashed
        lambda size: [(0, 0, min(size), min(size))] * 3,  # never moves
        lambda size: SOLUTIONS["square_boxes"](size[::-1]),  # width and height exchanged
        lambda size: SOLUTIONS["square_boxes"](size)[::-1],
        lambda size: SOLUTIONS["square_boxes"](size)[:1],
        lambda size: [0, 1, 2],  # no boxes
        lambda size: 3,
        None,
    ],
)
def test_wrong_boxes_are_refused(function):
    assert exercises.check_boxes(function).startswith("not quite")


@pytest.mark.parametrize(
    "function",
    [
        lambda shares: min(range(len(shares)), key=lambda t: abs(shares[t] - 0.5)),  # the nearest
        lambda shares: next(t for t, share in enumerate(shares) if share <= 0.5),
        lambda shares: sum(share >= 0.5 for share in shares) - 1,
        lambda shares: next(share for share in shares if share < 0.5),  # a share, not a timestep
        lambda shares: len(shares) // 2,
        lambda shares: 1 / 0,
        7,
    ],
)
def test_wrong_timesteps_are_refused(function):
    assert exercises.check_half(function).startswith("not quite")


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda position, photos, seed: position % photos, "shuffle again"),
        (lambda position, photos, seed: position, "for position 5 of 5"),
        (lambda position, photos, seed: random.Random(f"{position} {seed}").randrange(photos), "every photo once"),
        (lambda position, photos, seed: SOLUTIONS["photo_at"](position, photos, 7), "another seed"),
        (lambda position, photos, seed: float(SOLUTIONS["photo_at"](position, photos, seed)), "the index"),
        (lambda position, photos, seed: True, "the index"),
        (lambda position, photos, seed: 1 / 0, "ZeroDivisionError"),
        (lambda position: 0, "TypeError"),
    ],
)  # fmt: skip
def test_wrong_dealings_are_refused(function, said):
    answer = exercises.check_deal(function)
    assert answer.startswith("not quite") and said in answer


@pytest.mark.parametrize("source", [random, np.random, random.Random(0)])
def test_a_generator_that_goes_on_is_seen(source):
    hands = []

    def photo_at(position, photos, seed):
        if position % photos == 0 or not hands:
            deck = list(range(photos))
            source.shuffle(deck)
            hands[:] = deck
        return hands[position % photos]

    assert "asked again" in exercises.check_deal(photo_at)
