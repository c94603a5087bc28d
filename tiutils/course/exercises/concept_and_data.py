"""Checks for 01_concept_and_data."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np

from tiutils.course.exercises import attempt, check_cases

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


def check_deal(function: Callable[[int, int, int], int]) -> str:
    """Photos dealt like cards: which photo is the sample at a position, of so many photos, with a seed?"""
    photos, rounds = 5, 40
    random.seed(0)  # so that a global generator is seen: the second time it is elsewhere
    dealt = []
    for position in range(photos * rounds):
        answer, complaint = attempt(function, position, photos, 0)
        if complaint is not None:
            return complaint
        if not isinstance(answer, int | np.integer) or isinstance(answer, bool):
            return f"not quite: expected the index of a photo, found {answer!r}"
        if not 0 <= answer < photos:
            return f"not quite: for position {position} of {photos} photos it gave {answer}"
        dealt.append(int(answer))
    hands = [tuple(dealt[start : start + photos]) for start in range(0, len(dealt), photos)]
    for number, hand in enumerate(hands):
        if len(set(hand)) < photos:
            return f"not quite: round {number} is {list(hand)}; each round has every photo once"
    if len(set(hands)) == 1:
        return f"not quite: every round is {list(hands[0])}; shuffle again for each round"
    again = [attempt(function, position, photos, 0)[0] for position in reversed(range(len(dealt)))]
    if again[::-1] != dealt:
        return "not quite: asked again, it deals other photos; make the generator of seed and round"
    if [attempt(function, position, photos, 1)[0] for position in range(len(dealt))] == dealt:
        return "not quite: another seed must deal in another order"
    return (
        "right: any position can be asked for at any time, and no photo is seen more than another"
    )


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
