"""One sitting of a run, in either framework: the loop with what watches it, then files out.

output_dir/
    learned_embeds.safetensors            the learned rows, for any program that reads them
    learned_embeds-steps-N.safetensors    the same after N steps
    checkpoint-N/                         the run state, to resume from
    validation-steps-N.png                pictures drawn on the way
    run.json                              flags, versions, times, losses
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiutils import callbacks as watchers
from tiutils import hub
from tiutils.checkpoints import RunState
from tiutils.concept import Concept
from tiutils.errors import InputError
from tiutils.progress import Callback, LoopResult, Watched
from tiutils.record import Stopwatch, read_record, write_record
from tiutils.stopping import EarlyStopping, early_stopping
from tiutils.words import Placeholder

logger = logging.getLogger("tiutils")


@dataclass
class TrainingResult:
    """What a run leaves in memory; the same lies in `output_dir` as files.

    Attributes:
        output_dir: where the files are.
        embedding_path: the learned word, in diffusers' form.
        placeholder: the word, known to `models` now.
        models: the frozen parts with the word added, ready for `generate`.
        losses: one for each step done in this sitting.
        steps: optimizer steps done in all.
        seconds: wall-clock time by stage, of this sitting.
        stopped: why the run ended early; None if it did not.
        diverged: whether that was a loss that is not a number.
        is_main_process: whether this process wrote the files; of several only one does.
        stopping: the fixed losses, with --early_stopping.
    """

    output_dir: Path
    embedding_path: Path
    placeholder: Placeholder
    models: Any
    losses: list[float]
    steps: int
    seconds: dict[str, float]
    stopped: str | None = None
    diverged: bool = False
    is_main_process: bool = True
    stopping: EarlyStopping | None = None

    @property
    def best_step(self) -> int | None:
        """The step whose rows were kept, with --early_stopping; else None."""
        return self.stopping.best_step if self.stopping else None


def sit(
    training: Watched,
    photos: Concept,
    clock: Stopwatch,
    state: RunState | None,
    loop: Callable[[Any, int, Sequence[Callback]], LoopResult],
    callbacks: Sequence[Callback],
    *,
    save_more: Callable[[], object] | None = None,
    is_main_process: bool = True,
) -> TrainingResult:
    """Run `loop` to the end with its watchers, and write what it leaves.

    Args:
        training: all that the steps need.
        photos: what it learns from, for the record.
        clock: has timed the stages before.
        state: that of an earlier sitting, already restored in `training`; None in the first.
        loop: the framework's own: takes `training`, `start` and callbacks.
        callbacks: called after each step, beside those that save and show progress.
        save_more: writes further files once the rows are written.
        is_main_process: of several processes only one writes and shows anything.
    """
    config, start = training.config, state.step if state else 0
    stopping = early_stopping(config, state)
    earlier = read_record(config.output_dir).get("losses", [])[:start]
    earlier += [None] * (start - len(earlier))  # a killed run took its last losses with it
    if is_main_process:
        write_record(training, photos, clock, "running", start, earlier)
    with (
        watchers.stop_on_signal() as stop,
        watchers.progress_bar(training, start, hidden=not is_main_process) as bar,
    ):
        watching: list[Callback] = [stop]
        if stopping:  # before the checkpoint, which is to hold what it says of the same step
            watching.append(stopping)
        if is_main_process:
            watching += [bar, watchers.saving(config, stopping), *callbacks]
        # an earlier sitting may have come to rest in the step of its last checkpoint
        came_to_rest = stopping is not None and stopping.at_rest
        result = LoopResult(step=start) if came_to_rest else loop(training, start, watching)
    clock.lap("training")

    kept = result.step
    if is_main_process and not result.diverged:
        watchers.write_checkpoint(training, result.step, stopping)
    if result.out_of_memory:
        raise InputError(result.stopped)
    if stopping and stopping.best_step and stopping.best_rows is not None:
        kept = stopping.best_step
        training.set_vectors(stopping.best_rows)
        if result.diverged:
            result.diverge(result.step + 1, kept)
        elif stopping.at_rest:
            result.stopped = None  # it is finished
    path = Path(config.output_dir) / "learned_embeds.safetensors"
    if is_main_process:
        path = watchers.write_rows(training, kept, "learned_embeds")
        if save_more is not None:
            save_more()
        clock.lap("saving")
        status, losses = result.stopped or "finished", [*earlier, *result.losses]
        write_record(training, photos, clock, status, result.step, losses)
        hub.publish(config, result.stopped)
    return TrainingResult(
        Path(config.output_dir),
        path,
        training.placeholder,
        training.models,
        result.losses,
        result.step,
        clock.seconds,
        result.stopped,
        result.diverged,
        is_main_process,
        stopping,
    )


def warn_of_changes(training: Watched, state: RunState) -> None:
    """Say which changed settings keep a resumed run from being the uninterrupted one."""
    now = {
        "seed": training.config.seed,
        "batch_size": training.material.plan.batch_size,
        "model": training.models.name,
    }
    for name, value in now.items():
        if state.scalars.get(name) != value:
            logger.warning(
                "resuming with %s %s, but the run was begun with %s: it goes on, on other batches",
                name,
                value,
                state.scalars.get(name),
            )
