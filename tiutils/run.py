"""A whole run: photos and a word in; the loop with what watches it; files out.

output_dir/
    learned_embeds.safetensors            the learned rows, for any program that reads them
    learned_embeds-steps-N.safetensors    the same after N steps
    checkpoint-N/                         the run state, to resume from
    validation-steps-N.png                pictures drawn on the way
    run.json                              flags, versions, times, losses
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import LoggerType, ProjectConfiguration

from tiutils import callbacks as watchers
from tiutils import hub, inference, models, tokens
from tiutils.checkpoints import RunState
from tiutils.checks import check_inputs
from tiutils.config import TrainingConfig
from tiutils.errors import InputError
from tiutils.models import Models
from tiutils.progress import Callback
from tiutils.record import Stopwatch, public_flags, read_record, write_record
from tiutils.tokens import Placeholder
from tiutils.training import Training, prepare, restore, train_rows

logger = logging.getLogger("tiutils")


@dataclass
class TrainingResult:
    """What a run leaves in memory; the same lies in `output_dir` as files.

    Attributes:
        output_dir: where the files are.
        embedding_path: the learned word, in diffusers' form.
        placeholder: the word, known to `models` now.
        models: the frozen parts with the word added, ready for `inference.generate`.
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
    models: Models
    losses: list[float]
    steps: int
    seconds: dict[str, float]
    stopped: str | None = None
    diverged: bool = False
    is_main_process: bool = True


def train(config: TrainingConfig, callbacks: Sequence[Callback] = ()) -> TrainingResult:
    """Teach a model one new word.

    Args:
        config: all settings.
        callbacks: called after each step with a `progress.Progress`; one that returns true ends
            the run, keeping what was learned.

    Raises:
        InputError: something that was given cannot be used; nothing has been overwritten.
    """
    clock = Stopwatch()
    state, photos, name = check_inputs(config, accelerated=torch.cuda.is_available())
    accelerator = make_accelerator(config)
    clock.lap("checks")
    parts = load_models(config, name, accelerator.device)
    clock.lap("loading")
    placeholder = tokens.add_placeholder(
        parts,
        config.placeholder_token,
        initializer_token=config.initializer_token,
        num_vectors=config.num_vectors,
    )
    training = prepare(parts, placeholder, photos, config, accelerator)
    if state is not None:
        restore(training, state)
        warn_of_changes(training, state)
    parts.vae.to("cpu")  # its work is done; drawing brings it back for a moment
    clock.lap("encoding")

    start = state.step if state else 0
    earlier = read_record(config.output_dir).get("losses", [])[:start]
    earlier += [None] * (start - len(earlier))  # a killed run took its last losses with it
    if accelerator.is_main_process:
        write_record(training, photos, clock, "running", start, earlier)
    with watchers.stop_on_signal() as stop, watchers.progress_bar(training, start) as bar:
        on_main = [bar, *watchers.tracking(accelerator)]
        on_main += watchers.validation(training, inference.generate, accelerator.trackers)
        on_main += [watchers.saving(config), *callbacks]
        every_step = [stop, *(on_main if accelerator.is_main_process else [])]
        result = train_rows(training, start, every_step)
    clock.lap("training")

    path = Path(config.output_dir) / "learned_embeds.safetensors"
    if accelerator.is_main_process:
        if not result.diverged:
            watchers.write_checkpoint(training, result.step)
        path = watchers.write_rows(training, result.step, "learned_embeds")
        if config.save_as_full_pipeline:
            models.save(tokens.merged(parts), config.output_dir)
        clock.lap("saving")
        write_record(
            training,
            photos,
            clock,
            result.stopped or "finished",
            result.step,
            [*earlier, *result.losses],
        )
        if config.push_to_hub:
            hub.push(config.output_dir, config.hub_model_id, token=config.hub_token)
    parts.text_encoder.eval()  # gradient checkpointing needs training mode
    accelerator.end_training()
    return TrainingResult(
        Path(config.output_dir),
        path,
        placeholder,
        parts,
        result.losses,
        result.step,
        clock.seconds,
        result.stopped,
        result.diverged,
        accelerator.is_main_process,
    )


def warn_of_changes(training: Training, state: RunState) -> None:
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


def make_accelerator(config: TrainingConfig) -> Accelerator:
    """The device, the processes, mixed precision and trackers, all through accelerate.

    Raises:
        InputError: the tracker of --report_to is unknown or not installed.
    """
    report_to = None if config.report_to in (None, "none") else config.report_to
    named = report_to if report_to != "all" else None
    if named and named not in LoggerType.list():
        raise InputError(
            f"--report_to is {named!r}; it must be one of {', '.join(LoggerType.list())} or none"
        )
    if named and importlib.util.find_spec(named) is None:
        raise InputError(
            f"--report_to {named}: that package is not installed; pip install {named}, or leave "
            f"the flag out"
        )
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS's condition for it
        torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(config.deterministic)
    torch.backends.cuda.matmul.allow_tf32 = config.allow_tf32
    AcceleratorState._reset_state()  # a notebook may train twice, in another precision
    output_dir = Path(config.output_dir)
    accelerator = Accelerator(
        # said outright, because several processes on CPUs are joined only then
        cpu=not torch.accelerator.is_available(),
        mixed_precision=config.mixed_precision,
        log_with=report_to,
        project_config=ProjectConfiguration(
            project_dir=str(output_dir), logging_dir=str(output_dir / config.logging_dir)
        ),
    )
    flags = {name: value for name, value in public_flags(config).items() if value is not None}
    accelerator.init_trackers("textual_inversion", config=flags)
    return accelerator


def load_models(config: TrainingConfig, name: str, device: torch.device) -> Models:
    """All parts, the frozen ones in the precision asked for, with their switches set."""
    dtypes = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    return models.load(
        name,
        revision=config.revision,
        variant=config.variant,
        tokenizer_name=config.tokenizer_name,
        device=device,
        dtype=dtypes[config.mixed_precision],
    )
