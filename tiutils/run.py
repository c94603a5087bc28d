"""A whole run: photos and a word in; the loop with what watches it; files out.

output_dir/
    learned_embeds.safetensors            the learned rows, for any program that reads them
    learned_embeds-steps-N.safetensors    the same after N steps
    checkpoint-N/                         the run state, to resume from
    validation-steps-N.png                pictures drawn on the way
    run.json                              flags, versions, times, losses
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import math
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import LoggerType, ProjectConfiguration

import tiutils
from tiutils import callbacks as watchers
from tiutils import checkpoints, concept, embedding_files, hub, models, tokens
from tiutils import config as settings
from tiutils.checkpoints import RunState
from tiutils.concept import Concept
from tiutils.config import TrainingConfig
from tiutils.errors import InputError
from tiutils.models import Models
from tiutils.tokens import Placeholder
from tiutils.training import Callback, Training, check_state, prepare, restore, train_rows

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
        callbacks: called after each step with a `training.Progress`; one that returns true ends
            the run, keeping what was learned.

    Raises:
        InputError: something that was given cannot be used; nothing has been overwritten.
    """
    clock = Stopwatch()
    state, photos, name = check_inputs(config)
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
        on_main = [bar, *watchers.tracking(training), *watchers.validation(training)]
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


def check_inputs(config: TrainingConfig) -> tuple[RunState | None, Concept, str]:
    """Find every mistake that can be found before weights are loaded.

    Returns:
        the checkpoint to go on from (or None), the photos, the model's name.
    """
    settings.check(config)
    if int(os.environ.get("RANK", 0)) == 0:  # the others would see what the first one has written
        check_output_dir(config)
    if config.mixed_precision == "fp16" and not torch.cuda.is_available():
        raise InputError(
            "--mixed_precision fp16 needs a GPU; on a CPU leave it out, or use bf16, which saves "
            "memory there but seldom time"
        )
    state = find_checkpoint(config)
    photos = concept.load(concept.find_photos(config.train_data_dir, token=config.hub_token))
    name = str(config.pretrained_model_name_or_path or models.default_model())
    folder = models.locate(name, revision=config.revision, weights=False)
    tokenizer = models.load_tokenizer(folder, tokenizer_name=config.tokenizer_name)
    tokens.check_placeholder(tokenizer, config.placeholder_token, config.num_vectors)
    tokens.check_initializer(tokenizer, config.initializer_token)
    check_resolution(config.resolution, folder)
    if state is not None:
        hidden_size = models.read_config(folder, "text_encoder")["hidden_size"]
        check_state(state, config.placeholder_token, (config.num_vectors, hidden_size), config)
    if config.push_to_hub:
        hub.check_access(
            config.hub_token, config.hub_model_id or Path(config.output_dir).resolve().name
        )
    embedding_files.warn_of_case(config.placeholder_token)
    if config.dataloader_num_workers:
        logger.warning("--dataloader_num_workers has nothing to do: photos are encoded once")
    return state, photos, name


def check_resolution(resolution: int | None, model_folder: Path) -> None:
    """A picture must come out of the VAE and the U-Net with whole pixels.

    Raises:
        InputError: names the next sizes that fit.
    """
    if resolution is None:
        return
    factor = models.vae_factor(models.read_config(model_folder, "vae"))
    factor *= 2 ** (len(models.read_config(model_folder, "unet")["block_out_channels"]) - 1)
    if resolution % factor:
        below = resolution // factor * factor
        near = " or ".join(str(size) for size in (below, below + factor) if size)
        raise InputError(
            f"--resolution is {resolution}, but this model takes multiples of {factor}: {near}"
        )


def check_output_dir(config: TrainingConfig) -> None:
    """Nothing the user made is overwritten: a folder with a run in it is left alone.

    Raises:
        InputError: the folder holds a run, and this one is not its continuation; or it holds the
            photos, among which the run's pictures would be; or it cannot be written to.
    """
    folder = Path(config.output_dir)
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise InputError(f"--output_dir {folder}: {there} is a file; give a folder")
    if not os.access(there, os.W_OK):
        raise InputError(f"--output_dir {folder}: {there} is not writable; give another folder")
    if folder.resolve() == Path(config.train_data_dir).resolve():
        raise InputError(f"--output_dir {folder} is the folder of the photos; give another one")
    held = [folder / "run.json", folder / "model_index.json", *folder.glob("learned_embeds*")]
    held = [path for path in [*held, *checkpoints.list_checkpoints(folder)] if path.exists()]
    if not held:
        return
    if config.resume_from_checkpoint is None:
        raise InputError(
            f"--output_dir {folder} already holds a run ({held[0].name}); give another folder, or "
            f"--resume_from_checkpoint latest to go on with that run"
        )
    word = read_record(folder).get("flags", {}).get("placeholder_token", config.placeholder_token)
    if word != config.placeholder_token:
        raise InputError(
            f"--output_dir {folder} holds a run of {word!r}, this one is of "
            f"{config.placeholder_token!r}; give another folder"
        )


def find_checkpoint(config: TrainingConfig) -> RunState | None:
    """The state to go on from. `latest` with no whole checkpoint starts anew; a named one must exist.

    Raises:
        InputError: the named checkpoint is missing or damaged.
    """
    if config.resume_from_checkpoint is None:
        return None
    if config.resume_from_checkpoint == "latest":
        state = checkpoints.load_latest(config.output_dir)
        if state is None:
            logger.warning("no whole checkpoint in %s: starting anew", config.output_dir)
        return state
    path = Path(config.resume_from_checkpoint)
    if (
        path.name == str(path) and not path.exists()
    ):  # a bare name, as the diffusers script takes it
        path = Path(config.output_dir) / path.name
    return checkpoints.load(path)


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
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
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


class Stopwatch:
    """Wall-clock seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """The time since the last call belongs to `stage`."""
        now = time.perf_counter()
        self.seconds[stage], self.last = round(now - self.last, 3), now


def public_flags(config: TrainingConfig) -> dict[str, Any]:
    """The settings as JSON has them, without the access token, which belongs in no file."""
    flags = {k: v for k, v in dataclasses.asdict(config).items() if k != "hub_token"}
    return {k: os.fspath(v) if isinstance(v, os.PathLike) else v for k, v in flags.items()}


def write_record(
    training: Training,
    photos: Concept,
    clock: Stopwatch,
    status: str,
    steps: int,
    losses: Sequence[float | None] = (),
) -> None:
    """Write run.json: all that is needed to know what made these files, and to make them again.

    `losses` has an entry for each step from the first; null where it is not known or not finite.
    """
    packages = ("torch", "diffusers", "transformers", "accelerate")
    record = {
        "status": status,
        "steps": steps,
        "total_steps": training.total_steps,
        "model": training.models.name,
        "device": str(training.accelerator.device),
        "processes": training.accelerator.num_processes,
        "photos": [photo.path.name for photo in photos.photos],
        "skipped": {path.name: reason for path, reason in photos.skipped},
        "flags": public_flags(training.config),
        "versions": {"tiutils": tiutils.__version__, "python": platform.python_version()}
        | {name: metadata.version(name) for name in packages},
        "seconds": clock.seconds,
        "losses": [
            None if loss is None or not math.isfinite(loss) else round(loss, 6) for loss in losses
        ],
    }
    update_record(training.config.output_dir, record)


def read_record(output_dir: str | Path) -> dict[str, Any]:
    """run.json of a folder; empty if there is none or it is damaged."""
    try:
        record = json.loads((Path(output_dir) / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def update_record(output_dir: str | Path, entries: dict[str, Any]) -> None:
    """Set entries of run.json, keeping the others.

    Raises:
        InputError: it cannot be written.
    """
    path = Path(output_dir) / "run.json"
    record = read_record(output_dir) | entries
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        embedding_files.replace_file(path, text.encode())
    except OSError as error:
        raise InputError(
            f"could not write {path} ({error.strerror or error}); free some space, or give another "
            f"--output_dir"
        ) from error
