"""Checks for 01_concept_and_data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tiutils.course.exercises import check_cases, check_integer

Box = tuple[int, int, int, int]


def check_boxes(function: Callable[[tuple[int, int]], Sequence[Box]]) -> str:
    """The square crops of a photo: all of it, or the start, center and end of the long side."""
    cases = [
        (((6, 6),), [(0, 0, 6, 6)], "a square photo has one box, all of it"),
        (((6, 4),), [(0, 0, 4, 4), (1, 0, 5, 4), (2, 0, 6, 4)], "a wide photo: the box moves right"),
        (((4, 8),), [(0, 0, 4, 4), (0, 2, 4, 6), (0, 4, 4, 8)], "a tall photo: the box moves down"),
        (((7, 4),), [(0, 0, 4, 4), (1, 0, 5, 4), (3, 0, 7, 4)], "half of an odd rest: round down"),
    ]  # fmt: skip
    praise = "right: nothing is squashed, and the model sees start, center and end of the photo"
    return check_cases(
        function, cases, praise, lambda answer, boxes: [tuple(box) for box in answer] == boxes
    )


def check_pairs(answer: Any, views: int, sentences: int) -> str:
    """How many different pairs of a view and a sentence are there? Every view with every sentence."""
    if complaint := check_integer(answer):
        return complaint
    if answer == views + sentences:
        return "not quite: each view can occur with each sentence; multiply instead of adding"
    if answer * 2 == views * sentences:
        return "not quite: mirrored views count as well"
    if answer != views * sentences:
        return "not quite: views × sentences; how many views does one photo have?"
    return f"right: {answer} pairs, each with its own noise: no two batches are the same"


def check_half(function: Callable[[Sequence[float]], int]) -> str:
    """The first timestep at which noise has more than half of the variance."""
    cases = [
        (([0.9, 0.6, 0.4, 0.1],), 2, "there, the photo's share first falls below one half"),
        (([0.99, 0.5, 0.3, 0.2],), 2, "at one half each, the noise does not have more"),
        (([0.4, 0.3],), 0, "it may be the first one"),
        (([0.999, 0.998, 0.6, 0.01],), 3, "it may be the last one"),
    ]
    praise = (
        "right: before this timestep the photo outweighs the noise, from then on the noise does"
    )
    return check_cases(function, cases, praise)
