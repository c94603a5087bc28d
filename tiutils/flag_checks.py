"""Refuse settings that cannot work, before anything is loaded."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
import typing
from typing import Any

from tiutils.config import TrainingConfig
from tiutils.errors import InputError

MAY_BE_ZERO = {
    "lr_warmup_steps",
    "adam_beta1",
    "adam_beta2",
    "adam_weight_decay",
    "seed",
    "dataloader_num_workers",
    "norm_control",
}
UPPER_BOUNDS = {
    "adam_beta1": 1,
    "adam_beta2": 1,
    "norm_control": 2,
    "seed": 2**63,  # half of a batch's key, of 64 bits
}


def check(config: TrainingConfig) -> None:
    """Refuse settings that cannot work, before anything is loaded.

    Raises:
        InputError: names the flag, what was given and what is allowed.
    """
    check_token(config.hub_token)  # first: its complaint alone does not show the value
    kinds = typing.get_type_hints(TrainingConfig)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        _check_type(field.name, value, kinds[field.name])
        choices = field.metadata["choices"]
        if choices and value is not None and value not in choices:
            raise InputError(f"--{field.name} is {value!r}; it must be one of {', '.join(choices)}")
        if isinstance(value, int | float) and not isinstance(value, bool):
            _check_number(field.name, value)
    if os.path.isabs(config.logging_dir) or ".." in re.split(r"[/\\]", str(config.logging_dir)):
        raise InputError(
            f"--logging_dir is {config.logging_dir}; it must be a folder inside --output_dir, such as logs"
        )
    for name in ("train_data_dir", "placeholder_token", "initializer_token"):
        instead = config.initializer_phrase or config.pick_initializer
        given = getattr(config, name) or (name == "initializer_token" and instead)
        if not given:
            example = TrainingConfig.__dataclass_fields__[name].metadata["help"]
            raise InputError(f"--{name} is missing: {example}")
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
    if (
        config.enable_xformers_memory_efficient_attention
        and importlib.util.find_spec("xformers") is None
    ):
        raise InputError(
            "--enable_xformers_memory_efficient_attention needs xformers: pip install xformers, or leave the flag out: "
            "PyTorch's own attention is as lean"
        )


def check_token(token: object) -> None:
    """Refuse an access token that cannot be one: other libraries would show it in their complaint.

    Raises:
        InputError: it is no text, empty, or more than one word of ASCII characters; it is not shown.
    """
    if token is not None and not (isinstance(token, str) and re.fullmatch(r"[!-~]+", token)):
        raise InputError(
            "--hub_token must be one word without spaces or line breaks, as the Hub gave it, such as hf_…"
        )


def _check_type(name: str, value: Any, kind: Any) -> None:
    """A value from a file or a notebook has had no argument parser to look at it."""
    kinds = typing.get_args(kind) or (kind,)
    allowed = {float: (float, int), str: (str, os.PathLike)}
    fits = isinstance(value, tuple(t for k in kinds for t in allowed.get(k, (k,))))
    if not fits or (isinstance(value, bool) and bool not in kinds):
        names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
        wanted = " or ".join(names.get(k, "left out") for k in kinds)
        raise InputError(f"--{name} is {value!r}; it must be {wanted}")


def _check_number(name: str, value: float) -> None:
    in_range = value >= 0 if name in MAY_BE_ZERO else value > 0
    bound = UPPER_BOUNDS.get(name, math.inf)
    if not (in_range and value < bound):  # false for NaN too
        allowed = "at least 0" if name in MAY_BE_ZERO else "above 0"
        if name in UPPER_BOUNDS:
            allowed += f" and below {bound}"
        elif isinstance(value, float):
            allowed += " and finite"
        raise InputError(f"--{name} is {value}; it must be {allowed}")
