"""Scores of one word beside another: the same questions to both, and a bootstrap that can be checked."""

import numpy as np
import pytest

from tiutils import concept, models, token_embedding
from tiutils.config import SamplingConfig
from tiutils.evaluation import comparison, metrics


@pytest.fixture(scope="module")
def images(photos):
    return [photo.image for photo in concept.load(photos).photos][:2]


def test_a_word_that_equals_its_initializer_is_no_better(small_model, images):
    parts = models.load(small_model)
    word = token_embedding.add_placeholder(parts, "<toy>", initializer_token="toy")

    def measured(name):
        return comparison.evaluate_word(parts, name, images, plain_word="toy", num_images=2)

    plain = measured("toy")
    for name, score in comparison.compare(measured("<toy>"), plain).items():
        assert score.value == pytest.approx(plain[name].mean()), name
        assert score.better_by == score.low == score.high == 0, name
    token_embedding.rows_of(parts, word).data[:, ::2] += 10
    moved = comparison.compare(measured("<toy>"), plain)
    for name, score in moved.items():
        assert score.better_by != 0 and score.low <= score.high, name


def test_the_values_are_those_of_the_single_measures(small_model, images):
    parts = models.load(small_model)
    measured = comparison.evaluate_word(
        parts,
        "toy",
        images,
        plain_word="toy",
        num_images=3,
        gallery=comparison.Gallery(parts, SamplingConfig(seed=4)),
    )
    drawn = comparison.inference.generate(
        parts, "a photo of a toy", num_images_per_prompt=3, seed=4
    )
    expected = {
        "evaluation_loss": metrics.fixed_evaluation_loss(parts, images, "toy"),
        "image_similarity": metrics.image_similarity(parts, drawn, images),
        "histogram_distance": metrics.histogram_distance(drawn, images),
    }
    assert {name: values.mean() for name, values in measured.items()} == pytest.approx(
        expected, rel=1e-5
    )


def test_less_loss_is_better_and_more_similarity_is_better():
    low, high = np.array([1.0, 1.0]), np.array([3.0, 3.0])
    for name, sign in (("evaluation_loss", -1), ("image_similarity", +1)):
        score = comparison.compare({name: high}, {name: low})[name]
        assert (score.value, score.better_by, score.low, score.high) == (3, *[2 * sign] * 3)


def test_the_interval_is_that_of_the_mean():
    # of n values with deviation s, the bootstrap's mean has deviation s / sqrt(n): 95 % lie within
    # 1.96 of it
    values = np.random.default_rng(1).normal(size=400)
    score = comparison.compare({"image_similarity": values}, {"image_similarity": np.zeros(400)})[
        "image_similarity"
    ]
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert score.high - values.mean() == pytest.approx(half, rel=0.15)
    assert values.mean() - score.low == pytest.approx(half, rel=0.15)


def test_words_are_compared_seed_by_seed():
    # the same noise makes both good or both bad: only the difference counts, and that is sure
    noise = np.random.default_rng(2).normal(size=50)
    better, worse = noise + 0.1, noise
    score = comparison.compare({"image_similarity": better}, {"image_similarity": worse})
    assert score["image_similarity"].low == pytest.approx(0.1)
    assert score["image_similarity"].high == pytest.approx(0.1)
