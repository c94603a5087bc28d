"""One session of a run, in either framework: the loop with its callbacks, then the files that it leaves.

output_dir/
    learned_embeds.safetensors            the learned rows, for any program that reads them
    learned_embeds-steps-N.safetensors    the same after N steps
    checkpoint-N/                         the run state, to resume from
    validation-steps-N.png                pictures drawn during training
    run.json                              flags, versions, times, losses; see `write_record`
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import tiutils
from tiutils.concept import Concept
from tiutils.config import TrainingConfig
from tiutils.errors import OutOfMemory
from tiutils.io import hub, run_folder
from tiutils.io.checkpoints import RunState
from tiutils.io.run_folder import absolute, entry, find_again, read_record, update_record
from tiutils.protocols import Callback, LoopResult, TrainingProtocol, identity_of
from tiutils.publishing import publish
from tiutils.runs.callbacks import (
    progress_bar,
    saving,
    stop_on_signal,
    write_checkpoint,
    write_rows,
)
from tiutils.runs.early_stopping import EarlyStopping, early_stopping
from tiutils.runs.inputs import Inputs
from tiutils.tokenizer import Placeholder

logger = logging.getLogger("tiutils")

FOUND_AGAIN = ("train_data_dir", "pretrained_model_name_or_path", "tokenizer_name", "evaluator")
# Settings of what is written, drawn, or logged; and those that `warn_of_changes` reads from the checkpoint itself.
CHANGE_NO_STEP = {
    "output_dir", "save_steps", "checkpointing_steps", "checkpoints_total_limit", "resume_from_checkpoint",
    "save_as_full_pipeline", "no_safe_serialization", "validation_prompt", "num_validation_images", "evaluator",
    "validation_steps", "report_to", "logging_dir", "push_to_hub", "hub_model_id", "dataloader_num_workers",
    "seed", "pretrained_model_name_or_path",
}  # fmt: skip


@dataclass
class TrainingResult:
    """The result of a run, which is also in the files of `output_dir`.

    Attributes:
        output_dir: where the files are.
        embedding_path: the learned word, in diffusers' form.
        placeholder: the word.
        models: the frozen parts with the word added, ready for `generate`.
        losses: one for each step done in this session.
        steps: optimizer steps done in total.
        seconds: wall-clock time by stage, of this session.
        stopped: why the run ended early; None if it did not.
        diverged: whether it ended because the loss was not finite.
        is_main_process: whether this is the one process that wrote the files.
        stopping: the history of fixed losses, with --early_stopping.
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


def run_session(
    training: TrainingProtocol,
    inputs: Inputs,
    clock: Stopwatch,
    loop: Callable[[Any, int, Sequence[Callback]], LoopResult],
    callbacks: Sequence[Callback],
    *,
    save_more: Callable[[], object] | None = None,
    is_main_process: bool = True,
) -> TrainingResult:
    """Run `loop` with its callbacks, then write the files.

    Args:
        training: all that a step needs, with the checkpoint of `inputs` restored if there is one.
        inputs: what the run begins with.
        clock: has timed the stages so far.
        loop: the framework's `train_rows`: takes `training`, the first step, and callbacks.
        callbacks: called after each step, in addition to those that save and show progress.
        save_more: writes further files once the rows are written.
        is_main_process: whether this process writes files and shows progress; of several, only one does.

    Raises:
        OutOfMemory: a step did not fit into memory; the run state before it is in a checkpoint.
    """
    config, concept, checkpoint = training.config, inputs.concept, inputs.checkpoint
    start = checkpoint.step if checkpoint else 0
    stopping = early_stopping(config, checkpoint)
    earlier = entry(read_record(config.output_dir), "losses", list)[:start]
    earlier += [None] * (start - len(earlier))  # a killed run did not record its last losses
    if is_main_process:
        write_record(training, concept, clock, "running", start, earlier)
    with stop_on_signal() as stop, progress_bar(training, start, hidden=not is_main_process) as bar:
        watching: list[Callback] = [stop]
        if stopping:  # before `saving`, whose checkpoint includes its history
            watching.append(stopping)
        if is_main_process:
            watching += [bar, saving(stopping), *callbacks]
        # an earlier session may have converged in the step of its last checkpoint
        had_converged = stopping is not None and stopping.converged
        result = LoopResult(step=start) if had_converged else loop(training, start, watching)
    clock.lap("training")

    kept = result.step
    if is_main_process and not result.diverged:
        write_checkpoint(training, result.step, stopping)
    if result.out_of_memory:
        raise OutOfMemory(result.stopped)
    if stopping and stopping.best_step and stopping.best_rows is not None:
        kept = stopping.best_step
        training.set_vectors(stopping.best_rows)
        if result.diverged:
            result.diverge(result.step + 1, kept)
        elif stopping.converged:
            result.stopped = None  # the run is complete
    path = Path(config.output_dir) / f"{run_folder.EMBEDDING}.safetensors"
    if is_main_process:
        run_folder.keep_earlier(config.output_dir, kept)
        path = write_rows(training, kept, run_folder.EMBEDDING)
        if save_more is not None:
            save_more()
        clock.lap("saving")
        status, losses = result.stopped or "finished", [*earlier, *result.losses]
        write_record(training, concept, clock, status, result.step, losses)
        if stopping:
            update_record(config.output_dir, stopping.record())
        publish_if_asked(config, result.stopped)
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


def publish_if_asked(config: TrainingConfig, stopped: str | None) -> None:
    """What --push_to_hub does at the end of a run; if it was `stopped` early, say how to publish it."""
    if not config.push_to_hub:
        return
    if stopped is not None:
        logger.warning("not published (%s): `tiutils push %s` does it", stopped, config.output_dir)
        return
    publish.publish(
        config.output_dir,
        config.hub_model_id,
        token=config.hub_token,
        full_pipeline=config.save_as_full_pipeline,
    )


def warn_of_changes(training: TrainingProtocol, state: RunState) -> None:
    """Warn of changed settings that make a resumed run differ from the uninterrupted one."""
    for name, value in identity_of(training).items():
        before, folder = state.scalars.get(name), Path(training.config.output_dir)
        if name == "model" and absolute(value) == absolute(find_again(folder, str(before))):
            continue  # the same folder, named from another place
        if before != value:
            logger.warning(
                f"resuming with {name} {value}, but the run was begun with {before}: it continues on other batches"
            )
    record = read_record(training.config.output_dir)
    flags = entry(record, "flags", dict)
    changed = [
        f"--{name} {value!r} instead of {flags[name]!r}"
        for name, value in public_flags(training.config).items()
        if name in flags and value != flags[name] and _changes_steps(name, training.config)
    ]
    commit = hub.cached_commit(training.models.name, training.config.revision)
    if record.get("commit") not in (None, commit) and "--revision" not in " ".join(changed):
        changed.append(f"commit {commit} of the model instead of {record['commit']}")
    if changed:
        logger.warning(
            "resuming with %s: from here on, the steps are not those of the run as it was begun",
            ", ".join(changed),
        )


def _changes_steps(name: str, config: TrainingConfig) -> bool:
    """Whether steps depend on this setting."""
    if name in ("max_train_steps", "num_train_epochs", "repeats"):
        return not config.lr_scheduler.startswith("constant")
    return name not in CHANGE_NO_STEP


class Stopwatch:
    """Wall-clock seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Count the time since the last call as that of `stage`."""
        now = time.perf_counter()
        self.seconds[stage], self.last = round(now - self.last, 3), now


def public_flags(config: TrainingConfig) -> dict[str, Any]:
    """The settings for run.json: with absolute paths, and without the access token, which belongs in no file."""
    flags = {k: v for k, v in dataclasses.asdict(config).items() if k != "hub_token"}
    flags = {k: os.fspath(v) if isinstance(v, os.PathLike) else v for k, v in flags.items()}
    flags = {k: list(v) if isinstance(v, tuple) else v for k, v in flags.items()}  # as JSON has it
    return flags | {name: absolute(flags[name]) for name in FOUND_AGAIN}


def write_record(
    training: TrainingProtocol,
    concept: Concept,
    clock: Stopwatch,
    status: str,
    steps: int,
    losses: Sequence[float | None] = (),
) -> None:
    """Write run.json: how the files were made, and all that is needed to make them again.

    `losses` has an entry for each step from the first; it becomes null where the loss is unknown or not finite.
    """
    record = {
        "status": status,
        "steps": steps,
        "total_steps": training.total_steps,
        "model": absolute(training.models.name),
        "commit": hub.cached_commit(training.models.name, training.config.revision),
        **training.machine(),
        "photos": [photo.path.name for photo in concept.photos],
        "skipped": {path.name: reason for path, reason in concept.skipped},
        "flags": public_flags(training.config),
        "versions": {"tiutils": tiutils.__version__, "python": platform.python_version()}
        | {name: metadata.version(name) for name in training.packages},
        "seconds": clock.seconds,
        "losses": [round(x, 6) if x is not None and math.isfinite(x) else None for x in losses],
    }
    update_record(training.config.output_dir, record)
