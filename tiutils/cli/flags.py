"""Command-line flags: those of `train` are the fields of TrainingConfig, and may come from a file."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import tomllib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from tiutils.config import SamplingConfig, TrainingConfig
from tiutils.errors import InputError, check_text
from tiutils.io import files

logger = logging.getLogger("tiutils")
EXIT_INPUT = 2

# flags of all commands that may be paths, which need not be UTF-8
PATHS = {
    "config", "embedding", "output_dir", "run_dirs", "run_dir", "held_out", "evaluator", "picture", "source",
    "target", "pretrained_model_name_or_path", "tokenizer_name", "train_data_dir", "resume_from_checkpoint",
    "logging_dir", "words",
}  # fmt: skip


POSITIONAL = {
    "source": "FILE", "target": "OUT", "run_dirs": "the run's folder", "run_dir": "the run's folder",
}  # fmt: skip


def check(options: argparse.Namespace) -> None:
    """Refuse empty paths, and texts that are not UTF-8, in the flags of any command.

    Raises:
        InputError: names the flag.
    """
    for name, found in vars(options).items():
        for value in found if isinstance(found, list) else [found]:
            if not isinstance(value, str):
                continue
            flag = POSITIONAL.get(name, f"--{name}")
            if name in PATHS:
                files.given(value, flag)
            else:
                check_text(flag, value)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, not a screen of all flags."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the command line and exit with status 2."""
        self.exit(EXIT_INPUT, f"tiutils: {message}; see `{self.prog} --help`\n")


def add_training_flags(parser: argparse.ArgumentParser) -> None:
    """One flag for each field of TrainingConfig; flags that are not given stay out of the namespace."""
    kinds = typing.get_type_hints(TrainingConfig)
    for field in dataclasses.fields(TrainingConfig):
        kind = kinds[field.name]
        if isinstance(kind, types.UnionType):  # `int | None`
            kind = next(part for part in kind.__args__ if part is not type(None))
        details: dict[str, Any] = {"default": argparse.SUPPRESS, "help": help_of(field)}
        if kind is bool:
            parser.add_argument(f"--{field.name}", action="store_true", **details)
        elif metavar := field.metadata["metavar"]:  # several whole numbers
            parser.add_argument(
                f"--{field.name}", type=int, nargs=len(metavar), metavar=metavar, **details
            )
        else:
            parser.add_argument(
                f"--{field.name}", type=kind, choices=field.metadata["choices"], **details
            )


def help_of(field: dataclasses.Field[Any]) -> str:
    """The field's help with its default."""
    text = field.metadata["help"].replace("%", "%%")
    says_nothing = field.default in (None, "") or field.default is False
    return text if says_nothing else f"{text} (default: {field.default})"


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Which model, as in `tiutils train`; by default the one that a run's folder names."""
    parser.add_argument(
        "--pretrained_model_name_or_path", help="model folder, .safetensors file, or Hub id"
    )
    for name in ("revision", "variant", "tokenizer_name"):
        parser.add_argument(f"--{name}", help=help_of(TrainingConfig.__dataclass_fields__[name]))


def model(
    options: argparse.Namespace, sources: Sequence[str], *, or_none: bool = False
) -> dict[str, Any]:
    """The flags of `add_model_flags` as arguments of `models.load`; without them, the model of the words' runs.

    Raises:
        InputError: the words were learned by runs on different models.
    """
    from tiutils.io import run_folder  # here: a command line is read without loading a library

    named = options.pretrained_model_name_or_path
    given = {name: getattr(options, name) for name in ("revision", "variant", "tokenizer_name")}
    folders = {Path(os.path.expanduser(source)) for source in sources}
    folders = {path if path.is_dir() else path.parent for path in folders}
    runs = [f for f in sorted(folders) if run_folder.read_record(f).get("model")]
    found = [] if named else [run_folder.model_of(run) for run in runs]
    if len({str(sorted(each.items(), key=str)) for each in found}) > 1:
        names = ", ".join(sorted({str(each["name"]) for each in found}))
        raise InputError(
            f"the words were learned on different models ({names}); give --pretrained_model_name_or_path"
        )
    chosen: dict[str, Any] = found[0] if found else {"name": named}
    changed = {name: value for name, value in given.items() if value is not None}
    if or_none and not named:
        return changed
    return {**given, **chosen, **changed}


def sampling_config(options: argparse.Namespace) -> SamplingConfig:
    """The flags of `add_sampling_flags`.

    Raises:
        InputError: one of them cannot work.
    """
    return SamplingConfig(
        num_images_per_prompt=options.num_images,
        seed=options.seed,
        num_inference_steps=options.num_inference_steps,
        guidance_scale=options.guidance_scale,
    )


def add_sampling_flags(
    parser: argparse.ArgumentParser, num_images: int, num_steps: int = 25, note: str = ""
) -> None:
    """Flags of every command that generates pictures; `note` is added to the help of --num_images."""
    parser.add_argument(
        "--num_images",
        type=int,
        default=num_images,
        help=f"number of pictures to draw for each prompt{note} (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the first picture (default: %(default)s)"
    )
    parser.add_argument(
        "--num_inference_steps",
        type=int,
        default=num_steps,
        help="number of sampling steps (default: %(default)s)",
    )
    parser.add_argument(
        "--guidance_scale",
        type=float,
        help="how closely to follow the prompt (default: the model's own, 7.5 in Stable Diffusion)",
    )


def add_framework_flag(parser: argparse.ArgumentParser) -> None:
    """Which library computes; files and results do not depend on it."""
    parser.add_argument(
        "--framework",
        choices=("pytorch", "flax"),
        default="pytorch",
        help="library that computes; flax runs on JAX, also on TPUs (default: %(default)s)",
    )


def read_config_file(path: str) -> dict[str, Any]:
    """Flags from a TOML or JSON file, by name, with or without leading dashes; or those in a `run.json`.

    Raises:
        InputError: it cannot be read, or has an entry that is not a flag.
    """
    try:
        file = files.given(path, "--config")
        text = files.read_text(file)
        is_json = file.suffix.lower() == ".json" or text.lstrip().startswith("{")
        values = json.loads(text) if is_json else tomllib.loads(text)
    except InputError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"--config {path} cannot be read ({error}); it must be TOML or JSON"
        ) from error
    values = values.get("flags", values) if isinstance(values, dict) else values
    if not isinstance(values, dict):
        raise InputError(
            f"--config {path} has a value of type {type(values).__name__} where flags with their values are expected"
        )
    known = {field.name for field in dataclasses.fields(TrainingConfig)}
    unknown = [name for name in values if name.lstrip("-") not in known]
    if unknown:
        raise InputError(
            f"--config {path} contains {unknown[0]!r}, which is not a flag; see `tiutils train --help`"
        )
    return {name.lstrip("-"): value for name, value in values.items()}


def training_config(options: argparse.Namespace) -> TrainingConfig:
    """The settings from the config file and the command line, which has precedence."""
    values = read_config_file(options.config) if options.config else {}
    known = {field.name for field in dataclasses.fields(TrainingConfig)}
    values |= {name: value for name, value in vars(options).items() if name in known}
    return TrainingConfig(**values)


def source_and_name(text: str) -> tuple[str, str | None]:
    """Split `FILE=<new-name>`, as given on the command line; a file may have a `=` in its name."""
    source, equals, name = text.rpartition("=")
    if not equals or os.path.lexists(os.path.expanduser(text)):
        return text, None
    check_text("--embedding", name)
    files.given(source, "--embedding")
    return source, name


def words(texts: Sequence[str]) -> list[tuple[str, str]]:
    """The file and the name of each word of --embedding: the name that was given, or every word in the file.

    Raises:
        InputError: a file cannot be read.
    """
    from tiutils.io import embeddings

    found = []
    for source, name in map(source_and_name, texts):
        learned = embeddings.read_all(source)
        found += [(source, token) for token in ([name] if name else [w.token for w in learned])]
    return found


def check_words(
    chosen: dict[str, Any], words: Sequence[tuple[str, str]], prompts: Sequence[str] | None = None
) -> None:
    """Refuse words that do not fit the model, before its weights are loaded; warn of words that no prompt contains.

    Raises:
        InputError: see `tokenizer.read_word`.
    """
    from tiutils.tokenizer import (
        absent_words,
        read_word,
        warn_of_misreadings,
        with_tokens,
        without_weights,
    )

    if not words:
        return
    parts = without_weights(**chosen)
    for source, name in words:
        learned = read_word(parts, source, name)
        parts.tokenizer, _ = with_tokens(parts.tokenizer, learned.tokens)
    if prompts is None:
        return
    for name in absent_words(parts.tokenizer, prompts, [name for _, name in words]):
        logger.warning("%s is in none of the prompts (it is case-sensitive)", name)
    warn_of_misreadings(parts.tokenizer, prompts)
