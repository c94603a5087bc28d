"""The losses of a run as curves, and the sentence that says what they show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tiutils.errors import InputError

# Okabe and Ito's colors stay apart for color-blind readers; dashes and markers say it again.
BLUE, GREEN, VERMILION, GRAY = "#0072B2", "#009E73", "#D55E00", "#7F7F7F"


def draw_losses(
    axis: Any,
    losses: Sequence[float | None],
    first: int,
    evaluation: Mapping[int, float] | None,
    kept_step: int | None,
) -> str:
    """Draw the curves, the first loss at step `first`; returns the text that says what they show.

    Raises:
        InputError: no loss.
    """
    values = np.array(losses, dtype=float)
    known = np.flatnonzero(np.isfinite(values))
    if not len(known):
        raise InputError("there is no loss to draw; give one value a step")
    steps, mean = known + first, running_mean(values[known])
    axis.plot(steps, values[known], color=GRAY, linewidth=0.6, alpha=0.6, label="training loss")
    axis.plot(steps, mean, color=BLUE, linewidth=1.8, label="its running mean")
    if evaluation:
        axis.plot(list(evaluation), list(evaluation.values()), color=VERMILION, linestyle="--",
                  marker="o", markersize=4, label="fixed evaluation loss")  # fmt: skip
    if kept_step is not None:
        axis.axvline(kept_step, color=GREEN, linestyle=":", label=f"kept: step {kept_step}")
    axis.set(xlabel="step", ylabel="loss (mean squared error)")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
    return _describe(steps, mean, evaluation, kept_step)


def _describe(
    steps: np.ndarray, mean: np.ndarray, evaluation: Mapping[int, float] | None, kept: int | None
) -> str:
    """Where the curves start and end: what a sighted reader takes from them."""
    text = (
        f"Training loss of steps {steps[0]} to {steps[-1]}: noisy; its running mean goes from "
        f"{mean[0]:.3f} to {mean[-1]:.3f}."
    )
    if evaluation:
        (first, before), *_, (last, after) = 2 * list(evaluation.items())
        text += (
            f" The fixed evaluation loss goes from {before:.4f} at step {first} "
            f"to {after:.4f} at step {last}."
        )
    return text + (f" The rows of step {kept} were kept." if kept is not None else "")


def running_mean(values: np.ndarray, window: int = 25) -> np.ndarray:
    """Mean of each value and up to `window - 1` before it, (n,) → (n,)."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return (sums[ends] - sums[starts]) / (ends - starts)
