"""Does the sentence around the word still count? A measure that needs no picture and no CLIP model.

The loss cannot say: it is asked only with sentences that fit the photos, and may go on falling while a word drowns out
whatever else the sentence says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from tiutils.batches import BatchPlan, batch_at, fixed_plan

SENTENCES = (
    "a photo of a {}",
    "a {} on the beach",
    "a {} in the snow",
    "a {} in the forest",
    "two {} on the grass",
    "a {} in front of a red background",
)
TIMESTEP = 800  # of 1000: nearly pure noise, where the sentence decides what is drawn, and where
DRAWS = 3

Predict = Callable[[Sequence[str], np.ndarray, int], np.ndarray]


def prompt_spread(predict: Predict, plan: BatchPlan, word: str) -> float:
    """How far the predictions for `SENTENCES` lie apart: their mean distance from their mean.

    With predictions e₁ … e₆, one a sentence, all from the same noise at timestep 800: the mean of ‖eᵢ − ē‖ over i and
    over 3 draws of noise, which are the same in every run. 18 passes through the U-Net.

    Args:
        predict: takes sentences, noise `(channels, height, width)` and a timestep; returns the U-Net's predictions,
            float32 `(sentences, channels, height, width)`. `predictions` of either framework's `Training`.
        plan: of the run; only its shape of latents counts.
        word: put into the sentences, learned or plain.
    """
    sentences = [sentence.format(word) for sentence in SENTENCES]
    distances = []
    for noise in batch_at(fixed_plan(plan, DRAWS), 0).noise:
        found = predict(sentences, noise, TIMESTEP).reshape(len(sentences), -1).astype(np.float64)
        distances.append(np.linalg.norm(found - found.mean(axis=0), axis=1).mean())
    return float(np.mean(distances))


def prompt_sensitivity(spread: float, plain_spread: float) -> float:
    """The spread of a learned word over that of the plain word; NaN where the plain word's sentences all say the same.

    Near 1 the sentence counts as much as with a plain word.
    """
    return spread / plain_spread if plain_spread > 0 else math.nan
