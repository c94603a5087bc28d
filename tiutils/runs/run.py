"""A whole run in PyTorch: from photos and a word, through the loop, to the files that `session` lists."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import (
    LoggerType,
    ProjectConfiguration,
    broadcast,
    broadcast_object_list,
    gather_object,
)
from torch import Tensor

from tiutils import inference, token_embedding, word_encoder
from tiutils.concept import Concept
from tiutils.config import TrainingConfig
from tiutils.errors import InputError
from tiutils.evaluation import clip as clip_model
from tiutils.evaluation.clip import ClipScorer
from tiutils.evaluation.overfitting import OverfittingMonitor
from tiutils.io import pretrained
from tiutils.models import Models, best_device, load, save
from tiutils.protocols import Callback
from tiutils.runs import cuda_graph, memory
from tiutils.runs.callbacks import tracking, validation
from tiutils.runs.inputs import read_inputs, reserved
from tiutils.runs.session import (
    Stopwatch,
    TrainingResult,
    public_flags,
    run_session,
    warn_of_changes,
)
from tiutils.tokenizer import initializer_ids
from tiutils.training import prepare, restore, train_rows

logger = logging.getLogger("tiutils")


def train(config: TrainingConfig, callbacks: Sequence[Callback] = ()) -> TrainingResult:
    """Teach a model one new word.

    Args:
        config: all settings.
        callbacks: called after each step with a `protocols.Progress`; one that returns true ends the run, keeping what
            was learned.

    Raises:
        InputError: a setting or a file cannot be used; nothing has been overwritten.
    """
    processes = find_processes()
    with reserved(config, is_main_process=processes.is_main_process):
        return _train(config, callbacks, processes)


def _train(
    config: TrainingConfig, callbacks: Sequence[Callback], processes: PartialState
) -> TrainingResult:
    """`train`, once the output folder is locked."""
    clock = Stopwatch()
    inputs = read_inputs(
        config,
        device=best_device().type,
        is_main_process=processes.is_main_process,
        num_processes=processes.num_processes,
    )
    # other processes may be on a machine without the run's folder
    [checkpoint] = broadcast_object_list([inputs.checkpoint])
    inputs = dataclasses.replace(inputs, checkpoint=checkpoint)
    concept, name = inputs.concept, inputs.model_name
    fallbacks: list[memory.Plan] = []
    if config.fit:
        config, fallbacks = fitted(config, name, processes)
    accelerator = make_accelerator(config)
    clock.lap("checks")
    with memory.explain_out_of_memory(config):
        models = load_models(config, name, accelerator.device)
        clock.lap("loading")
        placeholder = token_embedding.insert_placeholder(
            models,
            inputs.tokens,
            first_rows(config, concept, models),
            config.initializer_phrase or config.initializer_token,
        )
        training = prepare(models, placeholder, concept, config, accelerator)
        if checkpoint is not None:
            restore(training, checkpoint)
            warn_of_changes(training, checkpoint)
        models.vae.to("cpu")  # `generate` brings it back while it decodes
        models.unet.to(models.device)
        if config.capture:  # before recording: a graph refers to weights by address
            models.unet.to(memory_format=torch.channels_last)
    clock.lap("encoding")

    def save_pipeline() -> None:
        save(token_embedding.merged(models), config.output_dir)

    # only the main process generates pictures
    monitor = monitor_for(config, concept, models) if accelerator.is_main_process else None
    take_step = functools.partial(
        memory.with_memory_retry,
        fallbacks=fallbacks,
        take_step=cuda_graph.CapturedStep() if config.capture else None,
    )
    drawing = validation(training, inference.generate, accelerator.trackers, monitor)
    result = run_session(
        training,
        inputs,
        clock,
        functools.partial(train_rows, take_step=take_step),
        [*tracking(accelerator), *drawing, *callbacks],
        save_more=save_pipeline if config.save_as_full_pipeline else None,
        is_main_process=accelerator.is_main_process,
    )
    for encoder in models.text_encoders:
        encoder.eval()  # gradient checkpointing needs training mode
    accelerator.end_training()
    return result


def find_processes() -> PartialState:
    """This process among those that were launched, connected to the others.

    accelerate's state is reset first, since a notebook may train twice in one process, the second time in another
    precision.
    """
    AcceleratorState._reset_state(reset_partial_state=True)
    # `cpu` must be given: otherwise accelerate does not connect processes on CPUs
    processes = PartialState(cpu=best_device().type == "cpu")
    if (
        processes.num_processes > 1
        and processes.device.type == "cpu"
        and "OMP_NUM_THREADS" not in os.environ
    ):
        # as torchrun does: threads of several processes would compete for the same cores, and processes forked from
        # a notebook would wait for threads that exist only in the notebook
        torch.set_num_threads(1)
    return processes


def fitted(
    config: TrainingConfig, name: str, processes: PartialState
) -> tuple[TrainingConfig, list[memory.Plan]]:
    """The config with the first plan that fits on every process's device, and its fallbacks.

    Raises:
        InputError: nothing fits.
    """
    folder = pretrained.locate(name, revision=config.revision, weights=False)
    device = processes.device
    free = min(gather_object([memory.free_bytes(device)]))
    shape = memory.size_of(folder, config.resolution)
    plan, fallbacks = memory.choose_plan(config, shape, device.type, free)
    if processes.is_main_process:
        logger.warning(
            "--fit: %s of %.1f GiB that are free, the fastest that fits", plan, free / memory.GIB
        )
    return plan.applied(config), fallbacks


def find_evaluator(name: str | None, models: Models) -> ClipScorer | None:
    """The CLIP model of --evaluator, otherwise the one that came with the model; None without either.

    Raises:
        InputError: there is no CLIP model of that name.
    """
    return clip_model.bundled_with(models) if name is None else clip_model.load(name)


def first_rows(config: TrainingConfig, concept: Concept, models: Models) -> Tensor:
    """The initial rows, float32 `(num_vectors, hidden)`; all processes get those of the first.

    Raises:
        InputError: see `tokenizer.initializer_ids` and `word_encoder.row_from_photos`.
    """
    if config.initializer_from_photos:
        # each process's device may round differently
        row = broadcast(word_encoder.row_from_photos(models, concept))
        return row.expand(config.num_vectors, -1)
    ids = initializer_ids(
        models.tokenizer, config.initializer_token, config.num_vectors, config.initializer_phrase
    )
    return token_embedding.start_vectors(models, ids)


def monitor_for(
    config: TrainingConfig, concept: Concept, models: Models
) -> OverfittingMonitor | None:
    """What judges the pictures of --validation_prompt; None without a prompt or without a CLIP model.

    Raises:
        InputError: see `find_evaluator`.
    """
    if config.validation_prompt is None:
        return None
    clip = find_evaluator(config.evaluator, models)
    if clip is None:
        return None
    return OverfittingMonitor(
        clip,
        [photo.image for photo in concept.photos],
        config.validation_prompt.replace(config.placeholder_token, config.plain_word),
        config.output_dir,
        resumed=config.resume_from_checkpoint is not None,
    )


def make_accelerator(config: TrainingConfig) -> Accelerator:
    """Device, processes, mixed precision, and trackers, all through accelerate.

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
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS requires it
        torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(config.deterministic)
    torch.backends.cuda.matmul.allow_tf32 = config.allow_tf32
    output_dir = Path(config.output_dir)
    accelerator = Accelerator(
        cpu=best_device().type == "cpu",
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
    """Load the model as the config says, all but the U-Net onto the device.

    The U-Net follows once the photos are encoded, so that it and the VAE need not fit at the same time.
    """
    dtypes = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    models = load(
        name,
        revision=config.revision,
        variant=config.variant,
        tokenizer_name=config.tokenizer_name,
        dtype=dtypes[config.mixed_precision],
        quantize=config.quantize,
    )
    for part in (*models.text_encoders, models.vae):
        part.to(device)
    return models
