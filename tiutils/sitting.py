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
from tiutils.progress import Callback, LoopResult, Watched
from tiutils.record import Stopwatch, read_record, write_record
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


def sit(
    training: Watched,
    photos: Concept,
    clock: Stopwatch,
    start: int,
    loop: Callable[[Any, int, Sequence[Callback]], LoopResult],
    callbacks: Sequence[Callback],
    *,
    save_more: Callable[[], object] | None = None,
    is_main_process: bool = True,
) -> TrainingResult:
    """Run `loop` from step `start` with its watchers, and write what it leaves.

    Args:
        training: all that the steps need.
        photos: what it learns from, for the record.
        clock: has timed the stages before.
        start: steps done in earlier sittings.
        loop: the framework's own: takes `training`, `start` and callbacks.
        callbacks: called after each step, beside those that save and show progress.
        save_more: writes further files once the rows are written.
        is_main_process: of several processes only one writes and shows anything.
    """
    config = training.config
    earlier = read_record(config.output_dir).get("losses", [])[:start]
    earlier += [None] * (start - len(earlier))  # a killed run took its last losses with it
    if is_main_process:
        write_record(training, photos, clock, "running", start, earlier)
    with watchers.stop_on_signal() as stop, watchers.progress_bar(training, start) as bar:
        on_main = [bar, watchers.saving(config), *callbacks]
        result = loop(training, start, [stop, *(on_main if is_main_process else [])])
    clock.lap("training")

    path = Path(config.output_dir) / "learned_embeds.safetensors"
    if is_main_process:
        if not result.diverged:
            watchers.write_checkpoint(training, result.step)
        path = watchers.write_rows(training, result.step, "learned_embeds")
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
