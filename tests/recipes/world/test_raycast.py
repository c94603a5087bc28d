"""The ray caster against geometry."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from data.recipes.world import raycast


def one_part(add) -> np.ndarray:
    """Alpha and colors (100, 100, 4) of a thing of one or more parts, seen from the front."""
    kit = raycast.Parts()
    add(kit)
    parts = {k: torch.from_numpy(v) for k, v in raycast.table([kit.parts]).items()}
    zero, one = torch.zeros(1), torch.ones(1)
    return raycast.draw(parts, zero, zero, one, 100)[0].numpy()


def share_covered(picture: np.ndarray) -> tuple[float, float]:
    """What part of its bounding box a thing covers, and how much wider than high that is."""
    alpha = picture[..., 3] / 255
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    high, wide = np.ptp(rows) + 1, np.ptp(columns) + 1
    return alpha.sum() / (high * wide), wide / high


def test_rays_meet_solids_where_geometry_says():
    ball = share_covered(one_part(lambda kit: kit.ball((3, 1, 2), (0.7, 0.35, 0.7), (1, 0, 0))))
    assert ball == pytest.approx((math.pi / 4, 2), rel=0.05)
    box = share_covered(one_part(lambda kit: kit.box((0, 0, 0), (2, 1, 0.01), (0, 1, 0))))
    assert box == pytest.approx((1, 2), rel=0.05)
    cone = share_covered(one_part(lambda kit: kit.turned([(0.5, 0), (0, 1)], (0, 0, 1))))
    assert cone == pytest.approx((0.5, 1), rel=0.08)
    lying = raycast.axes_from((0, 0, 1))  # the hole faces the camera
    ring = one_part(lambda kit: kit.ring(0, 1, 0.25, (1, 1, 0), axes=lying))
    expected = math.pi / 4 * (1 - (0.75 / 1.25) ** 2)
    assert share_covered(ring) == pytest.approx((expected, 1), rel=0.06)
    assert ring[50, 50, 3] == 0


def test_what_is_nearer_hides_what_is_farther():
    def two(kit: raycast.Parts) -> None:
        kit.box((0, 0, 1), (1, 1, 0.1), (1, 0, 0))
        kit.box((0, 0, -1), (1, 1, 0.1), (0, 0, 1))

    red, _, blue, alpha = one_part(two)[50, 50]
    assert red > 100 and blue < 80 and alpha == 255
