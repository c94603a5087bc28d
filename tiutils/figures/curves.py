"""Loss curves, and the alt text that says what they show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from tiutils.errors import InputError
from tiutils.figures.output import BLUE, DPI, GRAY, GREEN, VERMILION, Images, plot_image


def loss_curve(
    losses: Sequence[float | None],
    *,
    evaluation: Mapping[int, float] | None = None,
    kept_step: int | None = None,
) -> Figure:
    """Plot the training loss with its running mean, and the fixed evaluation loss if given.

    Args:
        losses: of steps 1, 2, …; None or NaN if unknown.
        evaluation: step → loss on the fixed evaluation batch.
        kept_step: the step whose rows were kept, to mark with a line.

    Raises:
        InputError: there is no known loss.
    """
    figure = Figure(figsize=(6.4, 2.8), dpi=DPI, layout="constrained")
    figure.set_label(_plot_losses(figure.subplots(), losses, 1, evaluation, kept_step))
    return figure


def sensitivity_curve(sensitivities: Mapping[int, float]) -> Figure:
    """Plot the prompt sensitivity by step, and the plain word's, 1.

    Raises:
        InputError: there is none.
    """
    if not sensitivities:
        raise InputError("there is no prompt sensitivity to plot; give at least one value")
    figure = Figure(figsize=(6.4, 2.4), dpi=DPI, layout="constrained")
    axis = figure.subplots()
    axis.axhline(1, color=GRAY, linewidth=0.8, linestyle=":", label="the plain word")
    text = _plot_sensitivity(axis, sensitivities, BLUE)
    axis.set_xlabel("step")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
    figure.set_label(text)
    return figure


def _plot_sensitivity(axis: Any, sensitivities: Mapping[int, float], color: str) -> str:
    """Plot the prompt sensitivity by step; return the alt text."""
    steps, values = list(sensitivities), list(sensitivities.values())
    axis.plot(steps, values, color=color, marker="o", markersize=4, label="the learned word")
    axis.set(ylabel="prompt sensitivity", ylim=(0, None))
    return (
        f"Prompt sensitivity goes from {values[0]:.2f} at step {steps[0]} to {values[-1]:.2f} at step {steps[-1]}; "
        f"the plain word's is 1."
    )


def loss_and_pictures(
    losses: Sequence[float | None],
    pictures: Images,
    last_step: int,
    evaluation: Mapping[int, float] | None = None,
    sensitivities: Mapping[int, float] | None = None,
) -> Figure:
    """Plot the losses of the steps up to `last_step` beside images.

    The prompt sensitivity, if given by step, has an axis of its own on the right of the losses.

    Raises:
        InputError: there is no known loss.
    """
    width = 3.6 + 1.3 * len(pictures)
    figure = Figure(figsize=(width, 2.0), dpi=DPI, layout="constrained")
    curve, *places = figure.subplots(
        1, 1 + len(pictures), squeeze=False, width_ratios=[3.6, *[1.3] * len(pictures)]
    )[0]
    text = _plot_losses(curve, losses, last_step - len(losses) + 1, evaluation, None)
    curve.set_ylabel("loss")  # the full label does not fit
    if sensitivities:
        right = curve.twinx()
        text = f"{text} {_plot_sensitivity(right, sensitivities, GREEN)}"
        right.yaxis.label.set_color(GREEN)
        right.spines["top"].set_visible(False)
    for place, picture in zip(places, pictures, strict=True):
        place.set_axis_off()
        plot_image(place, picture, int(1.3 * DPI))
    figure.set_label(f"{text} Beside it: pictures, {len(pictures)}." if pictures else text)
    return figure


def _plot_losses(
    axis: Any,
    losses: Sequence[float | None],
    first: int,
    evaluation: Mapping[int, float] | None,
    kept_step: int | None,
) -> str:
    """Plot the curves, beginning at step `first`; return the alt text."""
    values = np.array(losses, dtype=float)
    known = np.flatnonzero(np.isfinite(values))
    if not len(known):
        raise InputError("there is no loss to plot; give one value per step")
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
    """Where the curves start and end, which is what a sighted reader notices."""
    text = (
        f"Training loss of steps {steps[0]} to {steps[-1]}: noisy; its running mean goes from "
        f"{mean[0]:.3f} to {mean[-1]:.3f}."
    )
    if evaluation:
        (first, before), *_, (last, after) = 2 * list(evaluation.items())
        text += f" The fixed evaluation loss goes from {before:.4f} at step {first} "
        text += f"to {after:.4f} at step {last}."
    return text + (f" The rows of step {kept} were kept." if kept is not None else "")


def running_mean(values: np.ndarray, window: int = 25) -> np.ndarray:
    """The mean of each value and up to `window - 1` before it, (n,) → (n,)."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return (sums[ends] - sums[starts]) / (ends - starts)
