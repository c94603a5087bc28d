"""Prompt sensitivity by hand, and of words that listen and words that do not."""

import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator

import tiutils
from tiutils import batches, concept, models, token_embedding, training
from tiutils.evaluation import sensitivity
from tiutils.evaluation.sensitivity import prompt_sensitivity, prompt_spread

PLAN = batches.BatchPlan(5, 4, (2, 2), 27, (4, 3, 3))


def test_the_spread_by_hand():
    """Six predictions at the corners of a hexagon of radius 2: each is 2 from their mean."""
    asked = []

    def predict(sentences, noise, timestep):
        asked.append((tuple(sentences), noise, timestep))
        around = np.arange(6) * np.pi / 3
        places = np.zeros((6, *noise.shape), np.float32)
        places[:, 0, 0, 0], places[:, 1, 1, 1] = 2 * np.cos(around) + 7, 2 * np.sin(around) - 3
        return places

    assert prompt_spread(predict, PLAN, "<t>") == pytest.approx(2, rel=1e-6)
    assert len(asked) == 3 and {timestep for *_, timestep in asked} == {800}
    assert all("<t>" in sentence for sentences, *_ in asked for sentence in sentences)
    assert len({noise.tobytes() for _, noise, _ in asked}) == 3
    expected = batches.batch_at(batches.fixed_plan(PLAN, 3), 0).noise
    np.testing.assert_array_equal([noise for _, noise, _ in asked], expected)


def test_the_noise_is_the_same_in_every_run():
    seen = []

    def predict(sentences, noise, timestep):
        seen.append(noise)
        return np.zeros((len(sentences), *noise.shape), np.float32)

    other = batches.BatchPlan(9, 1, (1,), 3, PLAN.latent_shape)
    for plan in (PLAN, other):
        assert prompt_spread(predict, plan, "<t>") == 0
    np.testing.assert_array_equal(seen[:3], seen[3:])


def test_the_ratio():
    assert prompt_sensitivity(0.5, 2.0) == 0.25
    assert math.isnan(prompt_sensitivity(0.5, 0.0))


def begin(small_model, photos, batch_size):
    config = tiutils.TrainingConfig(str(photos), "<t>", "toy", train_batch_size=batch_size)
    parts = models.load(small_model)
    word = token_embedding.add_placeholder(parts, "<t>", initializer_token="toy")
    return training.prepare(parts, word, concept.load(photos), config, Accelerator(cpu=True))


def test_a_word_that_is_still_its_noun_spreads_as_it_does(small_model, photos):
    begun = begin(small_model, photos, 4)
    plan = begun.dataset.plan
    spreads = [prompt_spread(begun.predictions, plan, word) for word in ("<t>", "toy")]
    assert spreads[0] == pytest.approx(spreads[1], rel=1e-4) and spreads[0] > 0


def test_predictions_by_hand_and_in_any_parts(small_model, photos):
    """Against the U-Net called directly, one sentence at a time."""
    begun = begin(small_model, photos, 4)
    parts, noise = begun.models, batches.batch_at(begun.dataset.plan, 0).noise[0]
    sentences = [sentence.format("<t>") for sentence in sensitivity.SENTENCES]
    found = begun.predictions(sentences, noise, 800)
    with torch.no_grad():
        for sentence, prediction in zip(sentences, found, strict=True):
            ids = token_embedding.tokenize(parts.tokenizer, [sentence])
            states = parts.text_encoder(ids)[0]
            expected = parts.unet(torch.from_numpy(noise)[None], 800, states).sample[0]
            np.testing.assert_allclose(prediction, expected, rtol=1e-3, atol=1e-5)
