"""Every mistake that can be found before weights are loaded and before a file is written."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from tiutils import (
    captions,
    checkpoints,
    concept,
    embedding_files,
    flag_checks,
    folders,
    hub,
    words,
)
from tiutils.checkpoints import RunState, check_state
from tiutils.concept import Concept
from tiutils.config import TrainingConfig
from tiutils.errors import InputError
from tiutils.record import read_record

logger = logging.getLogger("tiutils")


def check_inputs(
    config: TrainingConfig,
    *,
    accelerated: bool,
    is_main_process: bool = True,
    num_processes: int = 1,
) -> tuple[RunState | None, Concept, str]:
    """Find every mistake that can be found before weights are loaded.

    Args:
        config: all settings.
        accelerated: whether there is more than a CPU.
        is_main_process: whether this one of several processes reads and writes the output folder
            and talks to the Hub.
        num_processes: how many share the work.

    Returns:
        the checkpoint to go on from (or None), the photos, the model's name.

    Raises:
        InputError: names the flag, what was found and what to do.
    """
    flag_checks.check(config)
    if is_main_process:
        check_output_dir(config)
    if config.mixed_precision == "fp16" and not accelerated:
        raise InputError(
            "--mixed_precision fp16 needs a GPU; on a CPU leave it out, or use bf16, which saves "
            "memory there but seldom time"
        )
    state = find_checkpoint(config) if is_main_process else None
    photos = concept.load(concept.find_photos(config.train_data_dir, token=config.hub_token))
    if config.captions and not any(captions.captions(photos, config.placeholder_token)):
        logger.warning("--captions has nothing to do: no .txt file lies beside a photo")
    check_window(config, config.total_steps(len(photos.photos), num_processes))
    name = str(
        config.pretrained_model_name_or_path or folders.default_model(accelerated=accelerated)
    )
    folder = folders.locate(name, revision=config.revision, weights=False)
    tokenizer = folders.load_tokenizer(folder, tokenizer_name=config.tokenizer_name)
    words.check_placeholder(tokenizer, config.placeholder_token, config.num_vectors)
    num_vectors = config.num_vectors
    if not config.pick_initializer:
        num_vectors = len(words.initializer_ids(tokenizer, config))
    words.check_placeholder(tokenizer, config.placeholder_token, num_vectors)
    check_resolution(config.resolution, folder)
    check_prediction_type(folder)
    if state is not None:
        hidden_size = folders.read_config(folder, "text_encoder")["hidden_size"]
        optimizer = "AdamW8bit" if config.use_8bit_adam else "AdamW"
        shape = (num_vectors, hidden_size)
        check_state(state, config.placeholder_token, shape, optimizer)
    if config.push_to_hub and is_main_process:
        hub.check_access(
            config.hub_token, config.hub_model_id or Path(config.output_dir).resolve().name
        )
    embedding_files.warn_of_case(config.placeholder_token)
    if config.dataloader_num_workers:
        logger.warning("--dataloader_num_workers has nothing to do: photos are encoded once")
    return state, photos, name


def check_window(config: TrainingConfig, total_steps: int) -> None:
    """A run must be longer than what --early_stopping looks back over, or it can never end early.

    Raises:
        InputError: names both numbers of steps.
    """
    window, patience = config.early_stopping_window, config.early_stopping_patience
    if config.early_stopping and total_steps <= min(window, patience or window):
        raise InputError(
            f"--early_stopping looks back over {window} steps, but the run has only {total_steps}; give more "
            f"--max_train_steps, a smaller --early_stopping_window, or --early_stopping_patience"
        )


def check_resolution(resolution: int | None, model_folder: Path) -> None:
    """A picture must come out of the VAE and the U-Net with whole pixels.

    Raises:
        InputError: names the next sizes that fit.
    """
    if resolution is None:
        return
    factor = folders.vae_factor(folders.read_config(model_folder, "vae"))
    factor *= 2 ** (len(folders.read_config(model_folder, "unet")["block_out_channels"]) - 1)
    if resolution % factor:
        below = resolution // factor * factor
        near = " or ".join(str(size) for size in (below, below + factor) if size)
        raise InputError(
            f"--resolution is {resolution}, but this model takes multiples of {factor}: {near}"
        )


def check_prediction_type(model_folder: Path) -> None:
    """The loss is known for models that predict the noise or the velocity.

    Raises:
        InputError: the model predicts something else.
    """
    predicts = folders.read_config(model_folder, "scheduler").get("prediction_type", "epsilon")
    if predicts not in folders.PREDICTION_TYPES:
        raise InputError(
            f"{model_folder} predicts {predicts!r}; only models that predict "
            f"{' or '.join(folders.PREDICTION_TYPES)} can be taught"
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
    for path in written_in_place(folder, config.logging_dir):
        if not Path(os.path.realpath(path)).is_relative_to(folder.resolve()):
            raise InputError(
                f"--output_dir {folder}: {path} is a link that leads out of it; remove the link, or give another folder"
            )
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


def written_in_place(folder: Path, logging_dir: str) -> Iterator[Path]:
    """What other libraries write into a run's folder: through links, unlike `embedding_files.replace_file`."""
    yield from (folder / logging_dir, folder / "model_index.json")
    for part in (*folders.PARTS, "scheduler"):
        yield from (folder / part, *(folder / part).glob("*"))


def find_checkpoint(config: TrainingConfig) -> RunState | None:
    """The state to go on from. `latest` with no whole checkpoint starts anew; a named one must exist.

    Raises:
        InputError: the named checkpoint is missing or damaged.
    """
    if config.resume_from_checkpoint is None:
        return None
    if config.resume_from_checkpoint == "latest":
        state = checkpoints.load_latest(config.output_dir)
        if state is None and Path(config.output_dir).exists():  # a new folder surprises nobody
            logger.warning("no whole checkpoint in %s: starting anew", config.output_dir)
        return state
    path = Path(config.resume_from_checkpoint)
    is_bare_name = path.name == str(path)  # as the diffusers script takes it
    if is_bare_name and not path.exists():
        path = Path(config.output_dir) / path.name
    return checkpoints.load(path)
