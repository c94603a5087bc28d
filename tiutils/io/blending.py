"""Blending: one word between several learned ones, as a weighted mean of their vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tiutils.errors import InputError
from tiutils.io.embeddings import LearnedEmbedding


def slerp(first: np.ndarray, second: np.ndarray, share: float) -> np.ndarray:
    """Spherical interpolation (Shoemake 1985) of the directions of vectors, linear interpolation of their lengths.

    Unlike a plain mean, the result is not shorter than both vectors when they point apart.

    Args:
        first: float `(..., hidden)`.
        second: of the same shape.
        share: 0 gives `first`, 1 gives `second`.

    Returns:
        float32 of the same shape; linearly interpolated where vectors are opposite or zero.
    """
    ends = [np.asarray(end, dtype=np.float64) for end in (first, second)]
    lengths = [np.linalg.norm(end, axis=-1, keepdims=True) for end in ends]
    start, end = (e / np.maximum(n, 1e-12) for e, n in zip(ends, lengths, strict=True))
    angle = np.arccos(np.clip((start * end).sum(axis=-1, keepdims=True), -1.0, 1.0))
    sine = np.sin(angle)
    has_arc = (sine > 1e-6) & (lengths[0] > 0) & (lengths[1] > 0)
    safe = np.where(has_arc, sine, 1.0)
    direction = np.sin((1 - share) * angle) / safe * start + np.sin(share * angle) / safe * end
    length = (1 - share) * lengths[0] + share * lengths[1]
    line = (1 - share) * ends[0] + share * ends[1]
    return np.where(has_arc, length * direction, line).astype(np.float32)


def blend(
    words: Sequence[LearnedEmbedding], weights: Sequence[float], token: str = "<blend>"
) -> LearnedEmbedding:
    """One word between several: `slerp` between the first two, then between that and the third, and so on.

    Args:
        words: two or more, with the same number of vectors for the same text encoders.
        weights: one per word, not negative; only their ratios count.
        token: the new word.

    Raises:
        InputError: there are fewer than two words, their shapes differ, or the weights are invalid.
    """
    _check_weights(words, weights)
    halves = [word.by_encoder for word in words]
    for word, half in zip(words[1:], halves[1:], strict=True):
        if {n: v.shape for n, v in half.items()} != {n: v.shape for n, v in halves[0].items()}:
            raise InputError(
                f"{words[0].token!r} has {_shape(words[0])}, {word.token!r} has {_shape(word)}: only words with as "
                f"many vectors of the same width can be blended"
            )
    mixed, total = dict(halves[0]), weights[0]
    for half, weight in zip(halves[1:], weights[1:], strict=True):
        total += weight
        share = weight / total if total else 0.0
        mixed = {name: slerp(mixed[name], half[name], share) for name in mixed}
    first, *others = mixed
    recipe = " + ".join(
        f"{weight / total:.3g} {word.token}" for word, weight in zip(words, weights, strict=True)
    )
    models = {word.metadata.get("base_model", "") for word in words}
    facts = {"blend": recipe} | ({"base_model": models.pop()} if len(models) == 1 else {})
    facts = {name: value for name, value in facts.items() if value}
    return LearnedEmbedding(token, mixed[first], facts, first, {n: mixed[n] for n in others})


def _check_weights(words: Sequence[LearnedEmbedding], weights: Sequence[float]) -> None:
    if len(words) < 2 or len(weights) != len(words):
        raise InputError(
            f"{len(words)} words and {len(weights)} weights were given; a blend needs two words or more, each with "
            f"a weight"
        )
    for word, weight in zip(words, weights, strict=True):
        if not (math.isfinite(weight) and 0 <= weight <= 1e6):
            raise InputError(
                f"the weight of {word.token!r} is {weight}; it must be a number from 0 to 1,000,000"
            )
    if not sum(weights):
        raise InputError("all weights are 0; at least one must be positive")


def _shape(word: LearnedEmbedding) -> str:
    return " and ".join(f"{len(v)} × {v.shape[1]}" for v in word.by_encoder.values())
