"""Solutions to the exercises of 03_training_loop.ipynb."""

import numpy as np


def adam_bytes(shape):
    """Exercise 1: two moments for each number, four bytes each."""
    num_vectors, hidden = shape
    return 2 * 4 * num_vectors * hidden


def variance_ratio(losses, window):
    """Exercise 2: the variance of the last ones over that of all; 0 where nothing varies."""
    everything = np.var(losses)
    return np.var(losses[-window:]) / everything if everything else 0.0
