"""PyTorch's normal random numbers without PyTorch, so that a seed gives the same image in both frameworks.

PyTorch's CPU generator is MT19937 (Matsumoto & Nishimura 1998) with its authors' seeding, which NumPy has as well; the
rest is how `torch.randn` turns its words into normals. PyTorch does not promise to keep this, so a test compares them.
"""

from __future__ import annotations

import math

import numpy as np

BLOCK = 16  # numbers that torch transforms at once


def standard_normal(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """What `torch.randn(shape, generator=torch.Generator().manual_seed(seed))` samples on a CPU, up to rounding.

    Args:
        shape: of at least 16 numbers; torch samples fewer in another way.
        seed: any whole number; its lowest 32 bits count.

    Returns:
        float32 of `shape`.
    """
    count = math.prod(shape)
    if count < BLOCK:
        raise ValueError(
            f"{count} numbers were asked for; only 16 or more can be sampled as in torch"
        )
    generator = np.random.RandomState(seed % 2**32)
    values = _box_muller(generator.bytes(4 * count))
    if count % BLOCK:  # the last 16 are sampled again, as a whole block
        values[-BLOCK:] = _box_muller(generator.bytes(4 * BLOCK))
    return values.reshape(shape)


def _box_muller(words: bytes) -> np.ndarray:
    """Normals from 32-bit words, float32 (Box & Muller 1958): of 16 words, eight give radii and eight give angles."""
    uniforms = (np.frombuffer(words, "<u4") & (2**24 - 1)) * 2.0**-24  # in [0, 1)
    whole = len(uniforms) // BLOCK * BLOCK
    radii, angles = uniforms[:whole].reshape(-1, 2, BLOCK // 2).swapaxes(0, 1)
    radii, angles = np.sqrt(-2 * np.log(1 - radii)), 2 * np.pi * angles
    normals = np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)
    return np.append(normals.reshape(-1), uniforms[whole:]).astype(np.float32)
