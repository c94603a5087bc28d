"""What a run begins with, checked as far as possible before weights are loaded or files written."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import logging
import os
import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import CLIPTokenizer

from tiutils import concept as concepts
from tiutils import dataset
from tiutils.concept import Concept
from tiutils.config import MAX_IMAGES, MAX_SEED, NUM_TIMESTEPS, TrainingConfig
from tiutils.errors import InputError, check_text
from tiutils.io import embeddings, files, pretrained, run_folder
from tiutils.io.checkpoints import RunState, check_state
from tiutils.io.hub import check_token
from tiutils.publishing import publish
from tiutils.runs.early_stopping import check_window
from tiutils.tokenizer import (
    absent_words,
    check_placeholder,
    initializer_ids,
    warn_of_torn_words,
    with_tokens,
)

logger = logging.getLogger("tiutils")

MAY_BE_ZERO = {
    "lr_warmup_steps", "adam_beta1", "adam_beta2", "adam_weight_decay", "seed", "dataloader_num_workers",
    "norm_control", "average_rows", "direction_prior",
}  # fmt: skip
UPPER_BOUNDS = {
    "adam_beta1": 1, "adam_beta2": 1, "norm_control": 2, "seed": MAX_SEED, "resolution": 2**14,
    "num_validation_images": MAX_IMAGES,
}  # fmt: skip
MAX_SAMPLES = 2**20  # of one step: all its random numbers are in memory at once
MAX_COUNT, MAX_FLOAT = 10**9, 1e30  # finite in float32, even multiplied by a batch size

NOT_CAPTURED = {
    "gradient_checkpointing": "which reads the random state in each step, as no graph may",
    "fit": "which may change how the batch is cut when memory runs out, as no graph can",
    "quantize": "whose kernels have not been recorded yet",
}


@dataclass(frozen=True)
class Inputs:
    """What a run begins with.

    Attributes:
        model_name: a folder, a file or a Hub id.
        concept: the photos.
        tokens: the new word's, one for each of its vectors.
        checkpoint: the run state to continue from; None for a new run, and in all processes but the first.
    """

    model_name: str
    concept: Concept
    tokens: tuple[str, ...]
    checkpoint: RunState | None


def read_inputs(
    config: TrainingConfig, *, device: str, is_main_process: bool = True, num_processes: int = 1
) -> Inputs:
    """Open photos and checkpoint, and check all that can be checked before weights are loaded.

    Args:
        config: all settings.
        device: the kind of device that trains: "cpu", "cuda", "mps", "tpu" …
        is_main_process: whether this process reads and writes the output folder and talks to the Hub.
        num_processes: how many processes share the work.

    Raises:
        InputError: names the flag, what was found and what to do.
    """
    check_config(config)
    if is_main_process:
        run_folder.check_output_dir(
            config.output_dir,
            config.train_data_dir,
            config.logging_dir,
            config.placeholder_token,
            resumed=config.resume_from_checkpoint is not None,
        )
    check_device(config, device, num_processes)
    checkpoint = None
    if is_main_process:
        checkpoint = run_folder.find_checkpoint(config.resume_from_checkpoint, config.output_dir)
    concept = concepts.load(concepts.find_photos(config.train_data_dir, token=config.hub_token))
    check_length(config, config.total_steps(len(concept.photos), num_processes))
    accelerated = device != "cpu"
    name = str(
        config.pretrained_model_name_or_path or pretrained.default_model(accelerated=accelerated)
    )
    folder = pretrained.locate(name, revision=config.revision, weights=False)
    tokenizer, *_ = pretrained.load_tokenizers(folder, tokenizer_name=config.tokenizer_name)
    if config.initializer_from_photos:
        pretrained.check_word_encoder(folder, name)
    tokens = check_words(config, concept, tokenizer)
    pretrained.check_resolution(config.resolution, folder)
    concepts.warn_of_small_photos(concept, config.resolution or pretrained.resolution(folder))
    pretrained.check_prediction_type(folder)
    if checkpoint is not None:
        shape = (len(tokens), sum(pretrained.hidden_sizes(folder)))
        check_state(checkpoint, config.placeholder_token, shape, config.optimizer_name)
    if config.push_to_hub and is_main_process:
        publish.check_access(
            config.hub_token, config.hub_model_id or Path(config.output_dir).resolve().name
        )
    embeddings.warn_of_case(config.placeholder_token)
    warn_of_torn_words(tokenizer, config.placeholder_token)
    if config.dataloader_num_workers:
        logger.warning("--dataloader_num_workers has no effect: photos are encoded once")
    return Inputs(name, concept, tokens, checkpoint)


def check_device(config: TrainingConfig, device: str, num_processes: int) -> None:
    """Refuse switches that cannot act on this kind of device, or with so many processes.

    Raises:
        InputError: names the switch and what to do.
    """
    if config.mixed_precision == "fp16" and device == "cpu":
        raise InputError(
            "--mixed_precision fp16 needs a GPU; on a CPU leave it out, or use bf16, which there saves "
            "memory but seldom time"
        )
    if config.capture and device != "cuda":
        raise InputError(
            "--capture needs a GPU with CUDA, which PyTorch does not see here; leave it out"
        )
    if config.capture and num_processes > 1:
        raise InputError(
            f"--capture records the steps of one process, and there are {num_processes}; leave it out, or start "
            f"without torchrun and accelerate launch"
        )


def check_length(config: TrainingConfig, total_steps: int) -> None:
    """Refuse an early stop or a mean for which the run is too short; warn of a warm-up that fills the whole run.

    Raises:
        InputError: names both numbers of steps.
    """
    check_window(config, total_steps)
    if config.average_rows > total_steps:
        raise InputError(
            f"--average_rows is {config.average_rows}, but the run has only {total_steps} steps; give a third of "
            f"them or fewer"
        )
    warmup = config.warmup_steps(total_steps)
    if warmup >= total_steps:
        logger.warning(
            f"--lr_warmup_steps {warmup} is no shorter than the run of {total_steps} steps: the learning rate only "
            f"rises and never reaches --lr_scheduler {config.lr_scheduler}; a tenth of the run is usual"
        )


@contextlib.contextmanager
def reserved(config: TrainingConfig, *, is_main_process: bool = True) -> Iterator[None]:
    """Lock the output folder during a run, see `run_folder.reserved`; only the main process does.

    Raises:
        InputError: a setting cannot work, or another run uses the folder.
    """
    check_config(config)
    with run_folder.reserved(config.output_dir) if is_main_process else contextlib.nullcontext():
        yield


def check_words(
    config: TrainingConfig, concept: Concept, tokenizer: CLIPTokenizer
) -> tuple[str, ...]:
    """Refuse a word that cannot be learned from the sentences of the run; returns its tokens.

    Raises:
        InputError: see `check_placeholder`, `initializer_ids`, `dataset.check_templates` and `check_sentences`.
    """
    word, prompt = config.placeholder_token, config.validation_prompt
    templates = concepts.templates(config.learnable_property)
    dataset.check_templates(word, templates)  # before checks that only warn
    num_vectors = config.num_vectors
    dataset.check_num_vectors(tokenizer, word, num_vectors, templates)
    if not config.initializer_from_photos:
        ids = initializer_ids(
            tokenizer, config.initializer_token, num_vectors, config.initializer_phrase
        )
        num_vectors = len(ids)
        dataset.check_num_vectors(tokenizer, word, num_vectors, templates)
    tokens = check_placeholder(tokenizer, word, num_vectors, warn=False)
    captions = dataset.captions(concept, word) if config.captions else ()
    if config.captions and not any(captions):
        logger.warning("--captions has no effect: there is no .txt file next to any photo")
    caption_of = {
        photo.path.with_suffix(".txt").name: caption
        for photo, caption in zip(concept.photos, captions, strict=False)
        if caption
    }
    longer, _ = with_tokens(tokenizer, tokens)
    dataset.check_sentences(longer, word, templates, caption_of)
    if prompt is not None and absent_words(longer, [prompt], [word]):
        logger.warning(
            f"--validation_prompt is {prompt!r}: {word} is not in it (it is case-sensitive), so its pictures will not "
            f"show what is learned"
        )
    return tokens


def check_config(config: TrainingConfig) -> None:
    """Refuse settings that cannot work, before anything is loaded.

    Raises:
        InputError: names the flag, what was given and what is allowed.
    """
    check_token(config.hub_token)  # first: only its message does not show the value
    kinds = typing.get_type_hints(TrainingConfig)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name == "timestep_range":
            _check_range(value)
            continue
        _check_type(field.name, value, kinds[field.name])
        choices = field.metadata["choices"]
        if choices and value is not None and value not in choices:
            raise InputError(f"--{field.name} is {value!r}; it must be one of {', '.join(choices)}")
        if isinstance(value, int | float) and not isinstance(value, bool):
            _check_number(field.name, value)
        if isinstance(value, str) and field.metadata["path"] and value != field.default:
            files.given(value, f"--{field.name}")
        elif isinstance(value, str) and not field.metadata["path"]:
            check_text(f"--{field.name}", value)
    if config.samples_per_process > MAX_SAMPLES:
        raise InputError(
            f"--train_batch_size {config.train_batch_size} × --gradient_accumulation_steps "
            f"{config.gradient_accumulation_steps} is more than {MAX_SAMPLES} samples of one step; give fewer"
        )
    if os.path.isabs(config.logging_dir) or ".." in re.split(r"[/\\]", str(config.logging_dir)):
        raise InputError(
            f"--logging_dir is {config.logging_dir}; it must be a folder inside --output_dir, such as logs"
        )
    for name in ("train_data_dir", "placeholder_token", "initializer_token"):
        instead = config.initializer_phrase or config.initializer_from_photos
        given = getattr(config, name) or (name == "initializer_token" and instead)
        if not given:
            example = TrainingConfig.__dataclass_fields__[name].metadata["help"]
            raise InputError(f"--{name} is missing: {example}")
    if config.initializer_from_photos and config.initializer_phrase is not None:
        raise InputError(
            "--initializer_from_photos and --initializer_phrase both say where the rows start; leave one of them out"
        )
    if config.use_8bit_adam and config.optimizer != "adamw":
        raise InputError(
            f"--use_8bit_adam stores AdamW's moments in 8 bits, but --optimizer {config.optimizer} has none; leave one "
            f"of them out"
        )
    for name in ("use_8bit_adam", "quantize"):
        if getattr(config, name) and importlib.util.find_spec("bitsandbytes") is None:
            raise InputError(
                f"--{name} needs bitsandbytes: pip install bitsandbytes, or leave the flag out"
            )
    if config.quantize and config.save_as_full_pipeline:
        raise InputError(
            f"--save_as_full_pipeline cannot write a U-Net of --quantize {config.quantize}; leave one of them out: "
            f"learned_embeds.safetensors can be used with every copy of the model"
        )
    for name, reason in NOT_CAPTURED.items():
        if config.capture and getattr(config, name):
            raise InputError(
                f"--capture cannot be used with --{name}, {reason}; leave one of them out"
            )
    if (
        config.enable_xformers_memory_efficient_attention
        and importlib.util.find_spec("xformers") is None
    ):
        raise InputError(
            "--enable_xformers_memory_efficient_attention needs xformers: pip install xformers, or leave the flag out: "
            "PyTorch's own attention needs no more memory"
        )


def _check_range(value: Any) -> None:
    """Refuse what is not a range of timesteps, is empty, or exceeds the noise schedule."""
    if value is None:
        return
    whole = isinstance(value, tuple) and all(type(end) is int for end in value)
    if not (whole and len(value) == 2 and 0 <= value[0] < value[1] <= NUM_TIMESTEPS):
        shown = " ".join(map(str, value)) if whole else repr(value)
        raise InputError(
            f"--timestep_range is {shown}; it must be two whole numbers, LOW below HIGH, from 0 to {NUM_TIMESTEPS}, "
            f"such as 500 900"
        )


def _check_type(name: str, value: Any, kind: Any) -> None:
    """Refuse a value of the wrong type, as files and notebooks may give."""
    kinds = typing.get_args(kind) or (kind,)
    allowed = {float: (float, int), str: (str, os.PathLike)}
    fits = isinstance(value, tuple(t for k in kinds for t in allowed.get(k, (k,))))
    if not fits or (isinstance(value, bool) and bool not in kinds):
        names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
        wanted = " or ".join(names.get(k, "left out") for k in kinds)
        raise InputError(f"--{name} is {value!r}; it must be {wanted}")


def _check_number(name: str, value: float) -> None:
    in_range = value >= 0 if name in MAY_BE_ZERO else value > 0
    is_whole = isinstance(value, int)
    bound = UPPER_BOUNDS.get(name, MAX_COUNT if is_whole else MAX_FLOAT)
    if not (in_range and value < bound):  # false for NaN too
        allowed = "at least 0" if name in MAY_BE_ZERO else "above 0"
        if name in UPPER_BOUNDS or is_whole:
            allowed += f" and below {bound}"
        else:
            allowed += f" and finite, below {bound:g}"
        is_long = is_whole and abs(value) >= 10**40
        shown = f"a number of {len(str(value))} digits" if is_long else value
        raise InputError(f"--{name} is {shown}; it must be {allowed}")
