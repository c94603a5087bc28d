"""A whole run in JAX: the twin of `tiutils.runs.run`, which writes the same files."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from tiutils.concept import Concept
from tiutils.config import TrainingConfig
from tiutils.errors import InputError
from tiutils.flax import inference, token_embedding, word_encoder
from tiutils.flax.models import FlaxModels, load
from tiutils.flax.training import make_mesh, prepare, restore, train_rows
from tiutils.protocols import Callback
from tiutils.runs.callbacks import validation
from tiutils.runs.inputs import read_inputs, reserved
from tiutils.runs.session import Stopwatch, TrainingResult, run_session, warn_of_changes
from tiutils.tokenizer import initializer_ids

logger = logging.getLogger("tiutils")

DTYPES = {"no": jnp.float32, "bf16": jnp.bfloat16}


def train(
    config: TrainingConfig,
    callbacks: Sequence[Callback] = (),
    *,
    devices: Sequence[jax.Device] | None = None,
) -> TrainingResult:
    """Teach a model one new word.

    Args:
        config: all settings; `train_batch_size` is shared by all devices.
        callbacks: called after each step with a `protocols.Progress`; one that returns true ends the run, keeping what
            was learned.
        devices: those to train on; all that JAX sees by default.

    Raises:
        InputError: a setting or a file cannot be used; nothing has been overwritten.
    """
    check_flax_config(config)
    with reserved(config):
        return _train(config, callbacks, list(devices or jax.devices()))


def _train(
    config: TrainingConfig, callbacks: Sequence[Callback], devices: list[jax.Device]
) -> TrainingResult:
    """`train`, once the output folder is locked."""
    clock = Stopwatch()
    mesh = make_mesh(config.train_batch_size, devices)
    inputs = read_inputs(config, device=devices[0].platform)
    checkpoint, concept = inputs.checkpoint, inputs.concept
    if devices[0].platform != "tpu":
        logger.warning("there is no TPU here: JAX trains on %s", devices[0].device_kind)
    clock.lap("checks")
    models = load(
        inputs.model_name,
        revision=config.revision,
        variant=config.variant,
        tokenizer_name=config.tokenizer_name,
        dtype=DTYPES[config.mixed_precision],
    )
    clock.lap("loading")
    placeholder = token_embedding.insert_placeholder(
        models,
        inputs.tokens,
        first_rows(config, concept, models),
        config.initializer_phrase or config.initializer_token,
    )
    if config.validation_prompt is not None:  # refuse the schedule now, not during the run
        inference.make_sampler(models, 1, "dpmsolver++")
    training = prepare(models, placeholder, concept, config, mesh)
    if checkpoint is not None:
        restore(training, checkpoint)
        warn_of_changes(training, checkpoint)
    clock.lap("encoding")
    watching = [*validation(training, inference.generate), *callbacks]
    return run_session(training, inputs, clock, train_rows, watching)


def first_rows(config: TrainingConfig, concept: Concept, models: FlaxModels) -> jax.Array:
    """The initial rows, float32 `(num_vectors, hidden)`.

    Raises:
        InputError: see `tokenizer.initializer_ids` and `word_encoder.row_from_photos`.
    """
    if config.initializer_from_photos:
        return jnp.tile(word_encoder.row_from_photos(models, concept), (config.num_vectors, 1))
    ids = initializer_ids(
        models.tokenizer, config.initializer_token, config.num_vectors, config.initializer_phrase
    )
    return token_embedding.start_vectors(models, ids)


def check_flax_config(config: TrainingConfig) -> None:
    """Refuse flags that JAX cannot honor; warn of one that does not matter.

    Raises:
        InputError: names the flag and what to do.
    """
    refused = {
        "use_8bit_adam": (config.use_8bit_adam, "leave it out: rows have kilobytes of moments"),
        "enable_xformers_memory_efficient_attention": (
            config.enable_xformers_memory_efficient_attention,
            "leave it out: XLA chooses how attention is computed",
        ),
        "capture": (config.capture, "leave it out: XLA compiles the whole step"),
        "fit": (config.fit, "give --mixed_precision bf16 or --gradient_checkpointing"),
        "quantize": (config.quantize is not None, "give --mixed_precision bf16"),
        "evaluator": (config.evaluator is not None, "`tiutils evaluate` asks it afterwards"),
        "mixed_precision": (config.mixed_precision == "fp16", "use bf16, which needs no scaling"),
        "report_to": (
            config.report_to not in (None, "none"),
            "leave it out: run.json has the loss of each step",
        ),
        "save_as_full_pipeline": (
            config.save_as_full_pipeline,
            "leave it out: learned_embeds.safetensors can be used with every copy of the model",
        ),
        "no_safe_serialization": (
            config.no_safe_serialization and importlib.util.find_spec("torch") is None,
            "leave it out, or install PyTorch, which alone writes .bin",
        ),
    }
    for name, (is_given, advice) in refused.items():
        if is_given:
            value = getattr(config, name)
            flag = f"--{name}" if value is True else f"--{name} {value}"
            raise InputError(f"{flag} cannot be used with --framework flax; {advice}")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:  # each process would be a run of its own
        raise InputError(
            "--framework flax divides the batch among all devices of one machine by itself; start it "
            "without torchrun or accelerate launch"
        )
    if config.deterministic:
        logger.warning(
            "--deterministic has no effect with --framework flax: TPUs and CPUs repeat exactly anyway; "
            "for a GPU, set XLA_FLAGS=--xla_gpu_deterministic_ops=true"
        )
