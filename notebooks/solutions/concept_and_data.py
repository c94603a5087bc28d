"""Solutions to the exercises of 01_concept_and_data.ipynb."""

import random


def square_boxes(size):
    """Exercise 1: the square crops of a photo of (width, height)."""
    width, height = size
    side, spare = min(size), abs(width - height)
    offsets = (0, spare // 2, spare) if spare else (0,)
    if width > height:
        return [(offset, 0, offset + side, side) for offset in offsets]
    return [(0, offset, side, offset + side) for offset in offsets]


def half_noise(photo_share):
    """Exercise 2: the first timestep at which less than half of the variance is the photo's."""
    return next(t for t, share in enumerate(photo_share) if share < 0.5)


def photo_at(position, photos, seed):
    """Exercise 3: the photo at a position of the dealing; each round is shuffled by a generator of its own."""
    number, place = divmod(position, photos)
    deck = list(range(photos))
    random.Random(f"{seed} {number}").shuffle(deck)
    return deck[place]
