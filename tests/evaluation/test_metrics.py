"""The three measures: hand-calculated where mathematics is exact, and the same draws for every word."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import tiutils
from tiutils import concept, diffusion, models, token_embedding
from tiutils.errors import InputError
from tiutils.evaluation import metrics
from tiutils.io import pretrained

BLACK, WHITE, GRAY, RED = (
    Image.new("RGB", (64, 64), color) for color in ("black", "white", (85, 85, 85), "red")
)


@pytest.fixture(scope="module")
def parts(small_model):
    return models.load(small_model)


@pytest.fixture(scope="module")
def images(photos):
    return [photo.image for photo in concept.load(photos).photos]


def half(left, right):
    """A picture of two colors, exactly half each."""
    image = Image.new("RGB", (64, 64), left)
    image.paste(right, (32, 0, 64, 64))
    return image


# --- histogram_distance ---


def test_equal_pictures_have_distance_zero(images):
    for image in images:
        assert metrics.histogram_distance([image], [image]) == pytest.approx(0, abs=1e-6)
        assert metrics.histogram_distance([image] * 2, [image] * 3) == pytest.approx(0, abs=1e-6)


def test_pictures_without_a_common_color_have_distance_one():
    assert metrics.histogram_distance([BLACK], [WHITE]) == 1.0
    assert metrics.histogram_distance([RED], [WHITE, BLACK]) == 1.0


def test_half_of_the_colors_in_common():
    # p = (1, 0), q = (½, ½): Σ sqrt(p q) = sqrt(½)
    expected = math.sqrt(1 - math.sqrt(0.5))
    found = metrics.histogram_distance([BLACK], [half("black", "white")])
    assert found == pytest.approx(expected)


def test_a_color_between_bins_is_shared():
    # four bins lie at 0, 85, 170, 255; a gray of 34 is 0.4 of the way: in each channel 0.6 and 0.4.
    # Against black: Σ sqrt(p q) = sqrt(0.6³)
    dark = Image.new("RGB", (8, 8), (34, 34, 34))
    expected = math.sqrt(1 - math.sqrt(0.6**3))
    assert metrics.histogram_distance([dark], [BLACK], bins=4) == pytest.approx(expected)
    assert metrics.histogram_distance([GRAY], [BLACK], bins=4) == 1.0


def test_colors_in_common_count_more_than_those_of_one_picture():
    # half black in both, the other half white in one, red in the other: the power mean gives black
    # ((½^¼ + ½^¼)/2)⁴ = ½, and the others (½^¼ / 2)⁴ = 1/32 each: black's share is 16/18
    pictures = [half("black", "white"), half("black", "red")]
    expected = math.sqrt(1 - math.sqrt(16 / 18))
    assert metrics.histogram_distance([BLACK], pictures) == pytest.approx(expected)


def test_each_picture_counts_by_itself():
    apart = metrics.histogram_distance([half("black", "white")], [BLACK])
    found = metrics.histogram_distances([BLACK, half("black", "white"), RED], [BLACK])
    assert found == pytest.approx([0, apart, 1], abs=1e-6)
    mean = metrics.histogram_distance([BLACK, half("black", "white"), RED], [BLACK])
    assert mean == pytest.approx((apart + 1) / 3)


def test_the_center_counts_most():
    def framed(box):
        image = Image.new("RGB", (64, 64), "black")
        image.paste("white", box)
        return [image]

    center = metrics.histogram_distance(framed((24, 24, 40, 40)), [BLACK])
    corner = metrics.histogram_distance(framed((0, 0, 16, 16)), [BLACK])
    assert center > 4 * corner > 0


def test_size_and_shape_of_a_picture_do_not_matter():
    wide = Image.new("RGB", (300, 100), "green")
    assert metrics.histogram_distance([wide], [Image.new("RGB", (7, 9), "green")]) < 1e-6


def pictures():
    """Lists of one to three small random pictures."""
    seeds = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=3)
    return seeds.map(
        lambda values: [
            Image.fromarray(np.random.default_rng(v).integers(0, 256, (4, 4, 3), dtype=np.uint8))
            for v in values
        ]
    )


@settings(max_examples=30, deadline=None)
@given(pictures(), pictures())
def test_it_lies_within_zero_and_one_and_is_symmetric_between_two_pictures(a, b):
    assert 0 <= metrics.histogram_distance(a, b) <= 1
    there = metrics.histogram_distance(a[:1], b[:1])
    assert there == pytest.approx(metrics.histogram_distance(b[:1], a[:1]))


@pytest.mark.parametrize("measured", [([], [BLACK]), ([BLACK], [])])
def test_nothing_to_compare_is_refused(parts, measured):
    with pytest.raises(InputError, match="no picture"):
        metrics.histogram_distance(*measured)
    with pytest.raises(InputError, match="no picture"):
        metrics.image_similarity(parts, *measured)


def test_one_bin_is_refused():
    with pytest.raises(InputError, match="bins is 1"):
        metrics.histogram_distance([BLACK], [WHITE], bins=1)


# --- fixed_evaluation_loss ---


def test_the_loss_is_the_training_loss_of_one_large_batch(parts, images, photos):
    config = tiutils.TrainingConfig(
        center_crop=True, seed=11, train_batch_size=20, timestep_sampling="uniform"
    )
    dataset = diffusion.encode_dataset(parts, concept.load(photos), "toy", config)
    with torch.no_grad():
        expected = diffusion.losses_at(parts, dataset, 0, 0, 20).mean().item()
    found = metrics.fixed_evaluation_loss(parts, images, "toy", num_samples=20, seed=11)
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_loss_is_fixed_and_follows_word_and_seed(parts, images):
    loss = metrics.fixed_evaluation_loss(parts, images, "toy", num_samples=8)
    assert loss == metrics.fixed_evaluation_loss(parts, images, "toy", num_samples=8)
    assert loss != metrics.fixed_evaluation_loss(parts, images, "cat", num_samples=8)
    assert loss != metrics.fixed_evaluation_loss(parts, images, "toy", num_samples=8, seed=1)


def test_a_new_word_that_equals_its_initializer_has_its_loss(small_model, images):
    parts = models.load(small_model)
    word = token_embedding.add_placeholder(parts, "<toy>", initializer_token="toy")
    loss = metrics.fixed_evaluation_loss(parts, images, "<toy>", num_samples=8)
    assert loss == metrics.fixed_evaluation_loss(parts, images, "toy", num_samples=8)
    # every other number, as one number for all would be taken out by the layer norm
    token_embedding.rows_of(parts, word).data[:, ::2] += 1
    assert loss != metrics.fixed_evaluation_loss(parts, images, "<toy>", num_samples=8)


def test_evaluation_leaves_no_gradient(small_model, images):
    parts = models.load(small_model)
    word = token_embedding.add_placeholder(parts, "<toy>", initializer_token="toy")
    metrics.fixed_evaluation_loss(parts, images, "<toy>", num_samples=2)
    metrics.image_similarity(parts, images, images)
    assert token_embedding.rows_of(parts, word).grad is None


def test_no_draws_are_refused(parts, images):
    with pytest.raises(InputError, match="num_samples is 0"):
        metrics.fixed_evaluation_loss(parts, images, "toy", num_samples=0)


# --- image_similarity ---


def test_a_picture_is_most_like_itself(parts, images):
    assert metrics.image_similarity(parts, images[:1], images[:1]) == pytest.approx(1, abs=1e-5)
    assert metrics.image_similarity(parts, images[:1], images[1:2]) < 1 - 1e-4


def test_similarity_is_the_mean_over_pairs(parts, images):
    pairs = [metrics.image_similarity(parts, [a], [b]) for a in images[:2] for b in images[2:5]]
    found = metrics.image_similarity(parts, images[:2], images[2:5])
    assert found == pytest.approx(np.mean(pairs), abs=1e-5)


def test_similarity_leaves_no_hook(parts, images):
    metrics.image_similarity(parts, images[:1], images[:1])
    assert not any(module._forward_hooks for module in parts.unet.modules())


# --- on the course's own photos and model ---


@pytest.fixture(scope="module")
def sides():
    """Photos and held-out photos of each concept."""
    root = pretrained.BUNDLED_MODEL.parent / "concepts"
    return {
        folder.name: [
            [p.image for p in concept.load(f).photos] for f in (folder, folder / "held_out")
        ]
        for folder in sorted(root.iterdir())
        if folder.is_dir()
    }


def test_photos_have_the_colors_of_their_own_concept(sides):
    for name, (photos, _) in sides.items():
        distances = {n: metrics.histogram_distance(photos, held) for n, (_, held) in sides.items()}
        nearest, second = sorted(distances, key=distances.get)[:2]
        assert nearest == name
        assert distances[second] > distances[nearest] + 0.1


@pytest.mark.slow
def test_photos_look_like_their_own_concept(sides):
    parts = models.load(pretrained.BUNDLED_MODEL)
    for name, (photos, _) in sides.items():
        likeness = {
            n: metrics.image_similarity(parts, photos, held) for n, (_, held) in sides.items()
        }
        nearest, second = sorted(likeness, key=likeness.get)[:-3:-1]
        assert nearest == name
        assert likeness[nearest] > likeness[second] + 0.02
