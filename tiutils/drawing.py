"""What drawing asks for before any framework draws: how many, how large, and which learned word."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from tiutils import embedding_files, words
from tiutils.embedding_files import LearnedEmbedding
from tiutils.errors import InputError


def check_counts(**counts: int) -> None:
    """Refuse a count below one, by its name."""
    for name, value in counts.items():
        if value < 1:
            raise InputError(f"{name} is {value}; it must be 1 or more")


def check_size(model: str, factor: int, **sizes: int) -> None:
    """Refuse a height or width that is no multiple of `factor`: the U-Net halves latents, what is left is whole."""
    for name, value in sizes.items():
        if value < 1 or value % factor:
            nearest = max(factor, round(value / factor) * factor)
            raise InputError(
                f"{name} is {value}; {model} draws multiples of {factor} pixels, for example {nearest}"
            )


def read_word(models: Any, path: str | Path, token: str | None = None) -> LearnedEmbedding:
    """Read a learned embedding that `models`, of either framework, can be given as a new word.

    Args:
        models: the loaded parts.
        path: a file, folder or Hub repository that `embedding_files.read` understands.
        token: the word to use instead of the one in the file.

    Raises:
        InputError: the file cannot be read, was learned with a model of another width or of
            several text encoders, or the word is taken or cannot be one: another is offered.
    """
    learned = embedding_files.read(path)
    learned.refuse_pair()
    word, (count, width) = token or learned.token, learned.vectors.shape
    words.check_width(word, width, models.name, models.hidden_size)
    try:
        words.check_placeholder(models.tokenizer, word, count)
    except InputError as error:
        raise InputError(
            f"{path}: {error} (token=... in Python, --embedding 'FILE=<name>' on the command line)"
        ) from None
    return dataclasses.replace(learned, token=word)
