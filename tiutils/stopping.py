"""When to stop, and which step to keep: the loss on one batch that never changes.

The loss of a training step says little: each step draws other noise and another timestep. So a
batch is fixed before training (DVAR: Voronov et al. 2023, arXiv 2302.04841); its loss falls while
the word is learned and then stays where it is. Training stops when the last losses vary little
compared with all of them, and the rows with the lowest loss are kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from tiutils.diffusion import Material, losses_at
from tiutils.errors import InputError
from tiutils.models import Models
from tiutils.progress import Progress

WINDOW, THRESHOLD = 310, 0.15  # steps, and ratio of variances: the paper's for Textual Inversion
SEED = 2302_04841  # no training run of sane seed draws this batch


def variance_ratio(losses: Sequence[float], window: int) -> float:
    """Variance of the last `window` losses over the variance of all; 0 where none varies."""
    everything = float(np.var(losses))
    return float(np.var(losses[-window:])) / everything if everything > 0 else 0.0


def should_stop(
    losses: Sequence[float], *, every: int = 1, window: int = WINDOW, threshold: float = THRESHOLD
) -> bool:
    """Whether fixed losses, one every so many steps, have come to rest (Voronov et al. 2023, section 4).

    Never before there are more losses than the window holds: until then the two variances are one.
    """
    size = -(-window // every)  # the window is in steps
    return len(losses) > size and variance_ratio(losses, size) < threshold


def fixed_batch(material: Material, draws: int = 16) -> Material:
    """The same photos and prompts, with a batch of `draws` samples that belongs to no training run."""
    plan = dataclasses.replace(material.plan, seed=SEED, batch_size=draws)
    return dataclasses.replace(material, plan=plan)


@torch.no_grad()
def fixed_loss(models: Models, batch: Material, at_once: int = 8) -> float:
    """Mean loss of all samples of a fixed batch, without a gradient."""
    draws = batch.plan.batch_size
    parts = [
        losses_at(models, batch, 0, start, min(start + at_once, draws))
        for start in range(0, draws, at_once)
    ]
    return torch.cat(parts).mean().item()


class EarlyStopping:
    """A callback for `train`: takes the fixed loss every few steps, stops the run, remembers the best rows.

    Attributes:
        losses: fixed loss by step; the first is taken after the first `every` steps.
        best_step: the step with the lowest loss so far; None before the first.
        best_rows: its rows, float32 `(num_vectors, hidden)`.
    """

    def __init__(
        self,
        every: int = 10,
        *,
        draws: int = 16,
        window: int = WINDOW,
        threshold: float = THRESHOLD,
    ):
        if min(every, draws, window) < 1 or threshold <= 0:
            raise InputError(
                f"every {every}, draws {draws}, window {window}, threshold {threshold}: "
                f"each must be above zero"
            )
        self.every, self.draws, self.window, self.threshold = every, draws, window, threshold
        self.losses: dict[int, float] = {}
        self.best_step: int | None = None
        self.best_rows: np.ndarray | None = None
        self.batch: Material | None = None

    def __call__(self, progress: Progress) -> bool:
        """Look at the run after a step; true stops it."""
        if progress.step % self.every:
            return False
        training = progress.training
        self.batch = self.batch or fixed_batch(training.material, self.draws)
        loss = fixed_loss(training.models, self.batch)
        if self.best_step is None or loss < self.losses[self.best_step]:
            self.best_step = progress.step
            self.best_rows = training.vectors()
        self.losses[progress.step] = loss
        return should_stop(
            list(self.losses.values()),
            every=self.every,
            window=self.window,
            threshold=self.threshold,
        )
