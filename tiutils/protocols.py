"""What models and runs in PyTorch and JAX have in common; needs neither framework."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from transformers import CLIPTokenizer

from tiutils.config import TrainingConfig
from tiutils.io.checkpoints import RunState
from tiutils.tokenizer import Placeholder


class ModelsProtocol(Protocol):
    """A frozen model, as far as preparing a run needs it: `models.Models` or `flax.models.FlaxModels`."""

    @property
    def name(self) -> str:
        """The folder, file or Hub id that it was loaded from."""

    @property
    def tokenizer(self) -> CLIPTokenizer:
        """The one that knows the learned words."""

    @property
    def tokenizers(self) -> tuple[CLIPTokenizer, ...]:
        """One for each text encoder."""

    @property
    def hidden_sizes(self) -> tuple[int, ...]:
        """Width of one token's vector in each text encoder."""

    @property
    def hidden_size(self) -> int:
        """Width of one token's vectors side by side."""

    @property
    def resolution(self) -> int:
        """Side in pixels of the pictures the model was made for."""

    def latent_shape(self, resolution: int | None = None) -> tuple[int, int, int]:
        """Shape of one picture's latents, `(channels, height, width)`."""

    def signal_levels(self) -> np.ndarray:
        """ᾱ, the share of the picture's variance left at each timestep: float32 `(timesteps,)`."""


class TrainingProtocol(Protocol):
    """A run, as callbacks and sessions see it: `training.Training` or `flax.training.Training`.

    Attributes:
        models: the frozen parts.
        placeholder: the word that is learned.
        dataset: what it is learned from; `dataset.plan` says how batches are sampled.
        config: all settings.
        total_steps: length of the run.
        packages: the libraries whose versions run.json records.
    """

    models: Any  # a ModelsProtocol, and more that depends on the framework
    placeholder: Placeholder
    dataset: Any
    config: TrainingConfig
    total_steps: int
    packages: tuple[str, ...]

    def vectors(self) -> np.ndarray:
        """A copy of what is learned on the host, float32 `(num_vectors, hidden)`; with --average_rows the mean."""

    def set_vectors(self, vectors: np.ndarray) -> None:
        """Replace what is learned, float32 `(num_vectors, hidden)`, and continue from there."""

    def fixed_loss(self, num_samples: int) -> float:
        """Mean loss of a batch of `num_samples` samples that is the same at every step, without a gradient."""

    def predictions(self, prompts: Sequence[str], noise: np.ndarray, timestep: int) -> np.ndarray:
        """What the U-Net predicts for each prompt, all from noise `(channels, height, width)`, without a gradient.

        Returns:
            float32 `(prompts, channels, height, width)`, on the host.
        """

    def capture(self, step: int) -> RunState:
        """The run state after `step` steps: all that the next step depends on besides seed and step."""

    def machine(self) -> dict[str, Any]:
        """Where it runs: framework, device, number of processes."""


def identity_of(training: TrainingProtocol) -> dict[str, Any]:
    """What a checkpoint says of the run it belongs to: word, model, seed and batch size."""
    return {
        "placeholder_token": training.placeholder.token,
        "model": training.models.name,
        "seed": training.config.seed,
        "batch_size": training.dataset.plan.batch_size,
    }


@dataclass
class Progress:
    """What a callback sees after each step.

    Attributes:
        step: steps done, from 1.
        loss: mean loss of the step, a scalar array on the device; reading it waits for the device.
        learning_rate: the one used in this step.
        training: the run; see `TrainingProtocol`.
    """

    step: int
    loss: Any
    learning_rate: float
    training: Any


Callback = Callable[[Progress], bool | None]  # true: stop after this step, keeping what was learned


@dataclass
class LoopResult:
    """How a training loop ended.

    Attributes:
        losses: one for each step done.
        step: steps done in total, including those before a resume.
        stopped: why it ended early; None if it did not.
        out_of_memory: whether a step did not fit into memory; the run state is that before the step.
        diverged: whether the loss was not finite; the rows are the last good ones, but the optimizer's state is not.
    """

    losses: list[float] = field(default_factory=list)
    step: int = 0
    stopped: str | None = None
    diverged: bool = False
    out_of_memory: bool = False

    def diverge(self, step: int, good_step: int) -> None:
        """Note that the loss of `step`, from 1, was not finite and that the rows of `good_step` are kept."""
        self.diverged = True
        self.stopped = (
            f"the loss was not finite at step {step}; the rows of step {good_step} are "
            f"kept; a lower --learning_rate helps"
        )
