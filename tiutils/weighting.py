"""What counts how much: losses by noise level and by place, and the length of the rows; without PyTorch or JAX."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from tiutils.concept import Concept, View


def snr_weights(alphas_cumprod: np.ndarray, gamma: float, prediction_type: str) -> np.ndarray:
    """Min-SNR: a weight for each timestep's loss, float32 `(timesteps,)`.

    Nearly clean pictures have a signal-to-noise ratio of thousands, and their easy losses would
    count as much as any; min(SNR, γ) / SNR counts them less (Hang et al. 2023, arXiv 2303.09556,
    section 3.4; for the velocity the divisor is SNR + 1).
    """
    snr = alphas_cumprod.astype(np.float64) / (1 - alphas_cumprod.astype(np.float64))
    divisor = snr + 1 if prediction_type == "v_prediction" else snr
    return (np.minimum(snr, gamma) / divisor).astype(np.float32)


def usual_length(table: np.ndarray) -> float:
    """The median length of a table's rows, `(tokens, hidden)`: what the model takes for a word.

    Learned rows grow far beyond it if nothing holds them (the aim is OneTrainer's).
    """
    return float(np.median(np.linalg.norm(table.astype(np.float32), axis=1)))


def render_mask(concept: Concept, view: View, size: Sequence[int]) -> np.ndarray:
    """How much each place of the view counts, by the photo's alpha: float32 (height, width), mean 1.

    Without alpha, and where a view is transparent all over, every place counts the same.
    """
    alpha, (height, width) = concept.photos[view.photo].alpha, size
    if alpha is None:
        return np.ones(size, np.float32)
    small = alpha.crop(view.box).resize((width, height), Image.Resampling.BOX)
    mask = np.asarray(small, np.float32)[:, :: -1 if view.flip else 1]
    return mask / mask.mean() if mask.any() else np.ones(size, np.float32)


def view_masks(concept: Concept, views: Sequence[View], size: Sequence[int]) -> np.ndarray | None:
    """The masks of all views, `(views, 1, height, width)`; None where no photo has an alpha channel."""
    if all(photo.alpha is None for photo in concept.photos):
        return None
    return np.stack([render_mask(concept, view, size)[None] for view in views])
