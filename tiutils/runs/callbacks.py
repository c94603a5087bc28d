"""Callbacks of a run: the progress bar, saving, validation images, trackers, Ctrl-C.

Each is called after every step with a `Progress` and returns true to end the run.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tiutils.errors import InputError, first_line, out_of_memory
from tiutils.figures import output
from tiutils.io import checkpoints, embeddings, progress, run_folder, signals
from tiutils.io.checkpoints import CheckpointError
from tiutils.protocols import Callback, Progress, TrainingProtocol
from tiutils.publishing import model_card
from tiutils.runs.early_stopping import EarlyStopping

logger = logging.getLogger("tiutils")


@contextlib.contextmanager
def progress_bar(
    training: TrainingProtocol, start: int, *, hidden: bool = False
) -> Iterator[Callback]:
    """A bar with the mean of the last losses and the time left; it reads the loss every tenth step."""
    total = training.total_steps
    with progress.bar(total, "learning", "step", initial=start, hidden=hidden) as bar:
        recent: list[Any] = []

        def update(seen: Progress) -> None:
            recent.append(seen.loss)
            if seen.step % 10 == 0 or seen.step == total:
                bar.set_postfix(loss=f"{float(sum(recent) / len(recent)):.4f}", refresh=False)
                recent.clear()
            bar.update()

        yield update
        bar.total = bar.n  # otherwise a notebook shows a bar that ended early in red, as failed


@contextlib.contextmanager
def stop_on_signal() -> Iterator[Callback]:
    """End the run after the current step on Ctrl-C, SIGTERM or a closed terminal; the second time, at once."""
    asked = threading.Event()

    def ask(number: int, frame: object) -> None:
        asked.set()
        logger.warning(
            "stopping after this step and keeping what was learned; again to stop at once"
        )
        signal.signal(number, before[number])

    with signals.handled(ask) as before:
        yield lambda progress: asked.is_set()


def saving(stopping: EarlyStopping | None = None) -> Callback:
    """Write the rows every --save_steps and a checkpoint every --checkpointing_steps.

    If a file cannot be written, a warning says so and the run continues.
    """

    def save(progress: Progress) -> None:
        training, step, config = progress.training, progress.step, progress.training.config
        rows_are_due = step % config.save_steps == 0
        checkpoint_is_due = step % config.checkpointing_steps == 0
        if not (rows_are_due or checkpoint_is_due) or not np.isfinite(training.vectors()).all():
            return  # on a GPU the loop checks the loss only every tenth step
        try:
            if rows_are_due:
                write_rows(training, step, f"{run_folder.EMBEDDING}-steps-{step}")
        except InputError as error:
            logger.warning("%s", error)
        if checkpoint_is_due:
            write_checkpoint(training, step, stopping)

    return save


def write_rows(training: TrainingProtocol, step: int, stem: str) -> Path:
    """Write the learned rows into the output folder, with metadata; return the file."""
    config, placeholder = training.config, training.placeholder
    suffix = ".bin" if config.no_safe_serialization else ".safetensors"
    base = model_card.base_model(training.models.name)[0]  # no folder of this machine
    facts = {
        "base_model": base,
        "initializer_token": placeholder.initializer_token or "",
        "learnable_property": config.learnable_property,
        "steps": str(step),
        "seed": str(config.seed),
    }
    if base in model_card.LICENSES:
        facts["license"] = model_card.LICENSES[base]
    return embeddings.write(
        Path(config.output_dir) / (stem + suffix),
        embeddings.from_rows(
            placeholder.token, training.vectors(), training.models.hidden_sizes, facts
        ),
        safe_serialization=not config.no_safe_serialization,
    )


def write_checkpoint(
    training: TrainingProtocol, step: int, stopping: EarlyStopping | None = None
) -> None:
    """Write a checkpoint; if that fails, warn and continue."""
    config, state = training.config, training.capture(step)
    state = stopping.add_to(state) if stopping else state
    try:
        checkpoints.save(config.output_dir, state, limit=config.checkpoints_total_limit)
    except CheckpointError as error:
        logger.warning("%s", error)


def validation(
    training: TrainingProtocol,
    generate: Callable[..., list[Image.Image]],
    trackers: Sequence[Any] = (),
    monitor: Callable[[int, list[Image.Image]], dict[str, float]] | None = None,
) -> list[Callback]:
    """Generate images of --validation_prompt every --validation_steps, with the models in memory.

    `generate` is that of `tiutils.inference` or `tiutils.flax.inference`; `monitor` scores the
    images, see `evaluation.overfitting`.
    """
    config = training.config
    if config.validation_prompt is None:
        return []
    prompt = config.validation_prompt

    def draw(progress: Progress) -> None:
        if progress.step % config.validation_steps:
            return
        try:
            images = generate(
                training.models,
                prompt,
                num_images_per_prompt=config.num_validation_images,
                seed=config.seed,
            )
        except (RuntimeError, MemoryError) as error:
            if out_of_memory(error) is None:
                raise
            logger.warning(
                f"could not draw after {progress.step} steps ({first_line(error)[:120]}); the run continues: give "
                f"fewer --num_validation_images"
            )
            return
        alt = f"“{prompt}” drawn {len(images)} times after {progress.step} steps"
        path = Path(config.output_dir) / f"{run_folder.SHEETS}{progress.step}.png"
        try:
            output.save(output.contact_sheet(images), path, alt=alt)
        except InputError as error:
            logger.warning("%s; the run continues", error)
        log_images(trackers, images, progress.step)
        if monitor is not None:
            scores = monitor(progress.step, images)
            for tracker in trackers:
                tracker.log(scores, step=progress.step)

    return [draw]


def log_images(trackers: Sequence[Any], images: list[Image.Image], step: int) -> None:
    """Log validation images with the trackers that can show images."""
    for tracker in trackers:
        if tracker.name in ("tensorboard", "wandb"):
            tracker.log_images({"validation": np.stack([np.asarray(i) for i in images])}, step)


def tracking(accelerator: Any) -> list[Callback]:
    """Send loss and learning rate of each step to accelerate's trackers, those of --report_to."""
    if not accelerator.trackers:
        return []

    def log(progress: Progress) -> None:
        values = {"loss": float(progress.loss), "lr": progress.learning_rate}
        accelerator.log(values, step=progress.step)

    return [log]
