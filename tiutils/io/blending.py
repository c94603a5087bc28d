"""Words between words: the vectors of several learned words, weighed and made one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tiutils.errors import InputError
from tiutils.io.embeddings import LearnedEmbedding


def slerp(first: np.ndarray, second: np.ndarray, share: float) -> np.ndarray:
    """From one vector to another along the arc between their directions (Shoemake 1985), length along the line.

    A plain mean of two vectors that point apart is shorter than either; this one is not.

    Args:
        first: float `(..., hidden)`.
        second: of the same shape.
        share: 0 gives `first`, 1 gives `second`.

    Returns:
        float32 of the same shape. Vectors that point exactly against each other have no arc between them, and one
        of no length has no direction: these are mixed along the line.
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
    """One word between several: `slerp` between the first two, from there to the third, and so on.

    Args:
        words: two or more, of as many vectors each, learned for the same text encoders.
        weights: one a word, not negative; only their ratios count.
        token: the new word.

    Raises:
        InputError: fewer than two words, words that do not fit together, or weights that are no shares.
    """
    _check_weights(words, weights)
    halves = [{word.text_encoder: word.vectors, **word.others} for word in words]
    for word, half in zip(words[1:], halves[1:], strict=True):
        if {n: v.shape for n, v in half.items()} != {n: v.shape for n, v in halves[0].items()}:
            raise InputError(
                f"{words[0].token!r} has {_shape(words[0])}, {word.token!r} has {_shape(word)}: only words of as "
                f"many vectors, of the same width, can be blended"
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
            f"{len(words)} words and {len(weights)} weights were given; a blend takes two words or more, each with "
            f"its weight"
        )
    for word, weight in zip(words, weights, strict=True):
        if not (math.isfinite(weight) and 0 <= weight <= 1e6):
            raise InputError(
                f"the weight of {word.token!r} is {weight}; it must be a number from 0 to 1000000"
            )
    if not sum(weights):
        raise InputError("all weights are 0; one of them must be more")


def _shape(word: LearnedEmbedding) -> str:
    halves = {word.text_encoder: word.vectors, **word.others}
    return " and ".join(f"{len(v)} × {v.shape[1]}" for v in halves.values())
