"""When to stop, and which step to keep: the loss on one batch that never changes. Beside it, whether sentences count.

The loss of a training step says little, as each step samples other noise and timesteps. So one
batch is fixed before training (DVAR: Voronov et al. 2023, arXiv 2302.04841); its loss falls while
the word is learned and then levels off. Training stops when the last losses vary little
compared with all of them, and the rows with the lowest loss are kept. Beside every fifth of these losses the prompt
sensitivity (`evaluation.sensitivity`) is recorded; it decides nothing.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tiutils.config import TrainingConfig
from tiutils.errors import InputError
from tiutils.evaluation.sensitivity import prompt_sensitivity, prompt_spread
from tiutils.io.checkpoints import RunState
from tiutils.protocols import Progress, TrainingProtocol

logger = logging.getLogger("tiutils")

WINDOW, THRESHOLD = 310, 0.15  # steps, and ratio of variances: the paper's for Textual Inversion
LOSSES_PER_SENSITIVITY = 5  # it costs as much as a loss, and is read as a curve
SENSITIVE = 0.8  # of the plain word's; chosen by `benchmarks.stopping_rule`


def variance_ratio(losses: Sequence[float], window: int) -> float:
    """Variance of the last `window` losses over the variance of all; 0 where none varies."""
    everything = float(np.var(losses))
    return float(np.var(losses[-window:])) / everything if everything > 0 else 0.0


def should_stop(
    losses: Sequence[float], *, every: int = 1, window: int = WINDOW, threshold: float = THRESHOLD
) -> bool:
    """Whether fixed losses, one every so many steps, have converged (Voronov et al. 2023, section 4).

    Never before there are more losses than the window holds: until then the two variances are one.
    """
    size = -(-window // every)  # the window is in steps
    return len(losses) > size and variance_ratio(losses, size) < threshold


class EarlyStopping:
    """A callback for `train`: computes the fixed loss every few steps, stops the run, keeps the best rows.

    `--early_stopping` makes it part of the run: its history is in the checkpoints, the best rows are
    what the run leaves.

    With `sensitivity` it also measures the prompt sensitivity, beside the first loss and every fifth from there on: 18
    passes through the U-Net each time. A step with the lowest loss is then the best only while the word listens:
    while the newest sensitivity is at least `SENSITIVE`.

    Attributes:
        losses: fixed loss by step; the first is taken after the first `every` steps.
        sensitivities: prompt sensitivity by step, if it is measured.
        best_step: the step with the lowest loss so far among those at which the word listens, or among all if it never
            did; None before the first.
        best_rows: its rows, float32 `(num_vectors, hidden)`.
    """

    def __init__(
        self,
        every: int = 10,
        *,
        num_samples: int = 16,
        window: int = WINDOW,
        threshold: float = THRESHOLD,
        patience: int | None = None,
        sensitivity: bool = False,
    ):
        if min(every, num_samples, window, patience or 1) < 1 or threshold <= 0:
            raise InputError(
                f"every {every}, num_samples {num_samples}, window {window}, threshold {threshold}, patience "
                f"{patience}: each must be above zero"
            )
        self.every, self.num_samples, self.window, self.threshold = (
            every,
            num_samples,
            window,
            threshold,
        )
        self.patience = patience
        self.losses: dict[int, float] = {}
        self.measures_sensitivity, self.plain_spread = sensitivity, math.nan
        self.sensitivities: dict[int, float] = {}
        self.best_step: int | None = None
        self.best_rows: np.ndarray | None = None

    def __call__(self, progress: Progress) -> bool:
        """Update the history after a step; true stops the run."""
        if progress.step % self.every:
            return False
        self.losses[progress.step] = progress.training.fixed_loss(self.num_samples)
        if self.measures_sensitivity and (len(self.losses) - 1) % LOSSES_PER_SENSITIVITY == 0:
            self.sensitivities[progress.step] = self._sensitivity(progress.training)
        if self._is_better(progress.step):
            self.best_step, self.best_rows = progress.step, progress.training.vectors()
        return self.converged

    def _is_better(self, step: int) -> bool:
        """Whether a step is to be kept rather than the best so far."""
        if not math.isfinite(self.losses[step]) or self.best_step is None:
            return math.isfinite(self.losses[step])
        listens, listened = (self.listens_at(each) for each in (step, self.best_step))
        return listens > listened or (
            listens == listened and self.losses[step] < self.losses[self.best_step]
        )

    def listens_at(self, step: int) -> bool:
        """Whether the sentence still counted when the sensitivity was last measured; yes if it never was."""
        known = [value for at, value in self.sensitivities.items() if at <= step]
        return not known or not known[-1] < SENSITIVE

    def _sensitivity(self, training: TrainingProtocol) -> float:
        """The prompt sensitivity of the word as it is now; the plain word is asked only once."""
        ask, plan = training.predictions, training.dataset.plan
        if math.isnan(self.plain_spread):
            self.plain_spread = prompt_spread(ask, plan, training.config.plain_word)
            if not self.plain_spread > 0:
                logger.warning(
                    "no prompt sensitivity: this model predicts the same for every sentence"
                )
        spread = prompt_spread(ask, plan, training.placeholder.token)
        return prompt_sensitivity(spread, self.plain_spread)

    @property
    def converged(self) -> bool:
        """Whether to stop: the losses have leveled off, or none was the lowest for `patience` steps."""
        losses = list(self.losses.values())
        if self.patience and max(self.losses, default=0) - (self.best_step or 0) >= self.patience:
            return True
        return should_stop(losses, every=self.every, window=self.window, threshold=self.threshold)

    def add_to(self, state: RunState) -> RunState:
        """A run state with this history in it."""
        tensors = {**state.tensors, "stopping.losses": _as_array(self.losses)}
        if self.measures_sensitivity:
            tensors["stopping.sensitivities"] = _as_array(self.sensitivities)
        if self.best_rows is not None:
            tensors["best_rows"] = self.best_rows
        return RunState(state.step, tensors, {**state.scalars, "best_step": self.best_step})

    def restore(self, state: RunState) -> None:
        """Take over the history in a run state; empty if that run had none."""
        self.losses = _by_step(state.tensors.get("stopping.losses"))
        self.sensitivities = _by_step(state.tensors.get("stopping.sensitivities"))
        self.best_step = state.scalars.get("best_step")
        self.best_rows = state.tensors.get("best_rows")

    def record(self) -> dict[str, Any]:
        """Both histories for run.json, by step; without what is not finite."""
        histories = {"fixed_losses": self.losses, "prompt_sensitivity": self.sensitivities}
        return {
            name: {step: round(value, 6) for step, value in history.items() if math.isfinite(value)}
            for name, history in histories.items()
        }


def _as_array(history: Mapping[int, float]) -> np.ndarray:
    """Steps and values, float64 `(steps, 2)`."""
    return np.array(list(history.items()), np.float64).reshape(-1, 2)


def _by_step(array: np.ndarray | None) -> dict[int, float]:
    """What `_as_array` made of a history; empty without an array."""
    return {} if array is None else {int(step): float(value) for step, value in array}


def early_stopping(config: TrainingConfig, state: RunState | None) -> EarlyStopping | None:
    """The callback of --early_stopping, with the history of the run that is resumed; None without the flag."""
    if not config.early_stopping:
        return None
    stopping = EarlyStopping(
        config.early_stopping_steps,
        window=config.early_stopping_window,
        patience=config.early_stopping_patience,
        sensitivity=True,
    )
    if state is not None:
        stopping.restore(state)
    return stopping


def check_window(config: TrainingConfig, total_steps: int) -> None:
    """Refuse a run that is not longer than the window of --early_stopping: it could never end early.

    Raises:
        InputError: names both numbers of steps.
    """
    window, patience = config.early_stopping_window, config.early_stopping_patience
    if config.early_stopping and total_steps <= min(window, patience or window):
        raise InputError(
            f"--early_stopping looks back over {window} steps, but the run has only {total_steps}; give more "
            f"--max_train_steps, a smaller --early_stopping_window, or --early_stopping_patience"
        )
