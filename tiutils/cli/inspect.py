"""Describe a learned word: its file, the models it fits, its nearest words. Convert and blend words."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tiutils.errors import InputError, first_line, printable
from tiutils.io import blending, embeddings, engines, files, hub, pretrained
from tiutils.io.embeddings import LearnedEmbedding
from tiutils.tokenizer import check_placeholder, whole_words

logger = logging.getLogger("tiutils")

FITS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 1280: "SDXL's second encoder",
        4096: "a T5 encoder, as of SD 3 or Flux"}  # fmt: skip
NEAREST = 5
MAX_SHOWN = 100  # characters of one entry of a file's metadata


def describe(
    source: str | Path,
    name: str | None = None,
    *,
    revision: str | None = None,
    variant: str | None = None,
    tokenizer_name: str | None = None,
) -> str:
    """What `tiutils inspect` prints; includes a comparison with the model's vocabulary if the word fits the model.

    Args:
        source: see `embeddings.read`.
        name: the model, as in `models.load`.
        revision: branch, tag or commit on the Hub.
        variant: suffix of the weight files.
        tokenizer_name: a tokenizer other than the model's own.

    Raises:
        InputError: `source` is not a learned word; see `embeddings.read`.
    """
    found = embeddings.read_all(source)
    model = name or pretrained.default_model(accelerated=_has_gpu())
    lines = [f"{printable(str(source))}: a learned word in {found[0].layout} format"]
    for learned in found:
        lines += _facts(learned)
        try:
            folder = pretrained.locate(model, revision=revision, weights=False)
            lines += _comparison(learned, model, folder, variant, tokenizer_name)
        except InputError as error:  # the word itself can still be described
            lines.append(f"  not compared  {error}")
    return "\n".join(lines)


def _has_gpu() -> bool:
    import torch

    return torch.accelerator.is_available()


def _facts(learned: LearnedEmbedding) -> list[str]:
    halves = learned.by_encoder
    shapes = (
        f"{len(v)} vector{'s'[: len(v) != 1]} of width {v.shape[1]}{f' ({name})' if name else ''}"
        for name, v in halves.items()
    )
    width = learned.vectors.shape[1]
    fits = "SDXL" if halves.keys() == {"clip_l", "clip_g"} else FITS.get(width, "")
    if learned.others and fits != "SDXL":
        fits = "models with these text encoders"
    facts = {
        "fits": fits or f"models whose text encoder is {width} wide",
        **dict(sorted(learned.metadata.items())),
    }
    return [f"{learned.token!r}: {', '.join(shapes)}"] + [
        f"  {_shown(name):<12}  {_shown(value)}" for name, value in facts.items()
    ]


def _shown(text: str) -> str:
    """Text of unknown origin, shortened to a line of a terminal."""
    return printable(text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…")


def _comparison(
    learned: LearnedEmbedding,
    model: str,
    folder: Path,
    variant: str | None,
    tokenizer_name: str | None,
) -> list[str]:
    """Norm and nearest words of each vector, in each text encoder of the model.

    Raises:
        InputError: the model is unavailable, or has other text encoders.
    """
    sizes = pretrained.hidden_sizes(folder)
    if learned.widths != sizes:
        count = "one text encoder" if len(sizes) == 1 else f"{len(sizes)} text encoders"
        raise InputError(f"{model} has {count}, {' and '.join(map(str, sizes))} wide")
    tokenizer, *_ = pretrained.load_tokenizers(folder, tokenizer_name=tokenizer_name)
    lines = []
    for part, vectors in zip(
        pretrained.text_encoders(folder), learned.by_encoder.values(), strict=True
    ):
        table = _token_table(model, folder, part, variant)
        place = f"{part} of {model}" if len(sizes) > 1 else model
        lines += _in_table(learned.tokens, vectors, table, whole_words(tokenizer), place)
    try:
        check_placeholder(tokenizer, learned.token, len(learned.vectors))
    except InputError as error:  # it can be loaded under another name
        lines.insert(1, f"  in prompts    {error}")
    return lines


def _in_table(
    tokens: Sequence[str],
    vectors: np.ndarray,
    table: np.ndarray,
    vocabulary: dict[str, int],
    place: str,
) -> list[str]:
    """Norms and nearest words of vectors, `(n, hidden)`, among the rows of one text encoder's table."""
    norms = np.linalg.norm(table, axis=1)
    low, middle, high = np.percentile(norms, [1, 50, 99])
    lines = [
        f"  vocabulary    of {printable(place)}: norms {low:.3g} to {high:.3g}, median {middle:.3g}"
    ]
    names, ids = list(vocabulary), list(vocabulary.values())
    for token, vector in zip(tokens, vectors, strict=True):
        norm = np.linalg.norm(vector)
        cosines = table[ids] @ vector / np.maximum(norms[ids] * norm, 1e-12)
        best = np.argsort(-cosines)[:NEAREST]
        nearest = ", ".join(f"{names[place]} {cosines[place]:.2f}" for place in best)
        lines.append(f"  {token!r}: norm {norm:.3g}, nearest {nearest}")
    return lines


def _token_table(model: str, folder: Path, part: str, variant: str | None) -> np.ndarray:
    """A text encoder's token embeddings, float32 of shape (vocabulary, hidden).

    Raises:
        InputError: they are missing, or not stored as safetensors.
    """
    from safetensors import safe_open

    name = f"model.{variant}.safetensors" if variant else "model.safetensors"
    path = folder / part / name
    try:
        if not path.exists() and not os.path.isdir(model):  # this one part, not gigabytes
            commit = folder.name  # the snapshot that the folder is
            path = hub.download(model, [f"{part}/{name}"], revision=commit) / part / name
        with safe_open(path, framework="np") as file:
            names = file.keys()
            (name,) = (name for name in names if name.endswith("token_embedding.weight"))
            return file.get_tensor(name).astype(np.float32)
    except Exception as error:  # the parser's errors, the Hub client's, and its HTTP library's
        raise InputError(
            f"cannot read the text encoder of {model} ({first_line(error)})"
        ) from error


def convert_for(
    source: str | Path,
    engine_name: str,
    folder: str | Path | None = None,
    *,
    word: str | None = None,
    token: str | None = None,
    license: str | None = None,
) -> tuple[Path, list[str]]:
    """Write a learned word as a program needs it; return the file and lines that say how to use it.

    Args:
        source: see `embeddings.read`.
        engine_name: see `engines.ENGINES`.
        folder: where the file goes; the current one if None. The program determines the file's name.
        word: as in `convert`.
        token: as in `convert`.
        license: as in `convert`.

    Raises:
        InputError: as `convert`; or the program is unknown, or `folder` is the name of a file.
    """
    engine = engines.engine_of(engine_name)
    folder = Path(folder if folder is not None else ".")
    if folder.suffix in embeddings.SUFFIXES and not folder.is_dir():
        raise InputError(
            f"{str(folder)!r} is the name of a file, but --for {engine.name} names the file itself, after the word: "
            "give a folder, or none for the current one"
        )
    learned = _named_anew(embeddings.read(source, word), token, license)
    if note := engines.warning(engine, learned.token):
        logger.warning("%s", note)
    path = engines.write(folder, learned, engine)
    return path, [
        f"in {engine.title} the file goes to: {engines.place_of(engine, learned)}",
        f"in the prompt write: {printable(engine.written(learned.token))}",
    ]


def _named_anew(
    learned: LearnedEmbedding, token: str | None, license: str | None
) -> LearnedEmbedding:
    facts = learned.metadata | ({"license": license} if license else {})
    return dataclasses.replace(learned, token=token or learned.token, metadata=facts)


def convert(
    source: str | Path,
    target: str | Path,
    *,
    word: str | None = None,
    token: str | None = None,
    license: str | None = None,
) -> Path:
    """Read a learned word and write it as `.safetensors` or `.bin` (diffusers) or `.pt` (A1111).

    Args:
        source: see `embeddings.read`.
        target: a new file; its extension determines the format.
        word: the word to convert, if the file has several.
        token: a new name for it.
        license: the license to record, such as `cc-by-4.0`, in formats that have a place for it.

    Raises:
        InputError: the source is not a learned word, or the target exists or has another extension.
    """
    target = _new_file(target)
    learned = _named_anew(embeddings.read(source, word), token, license)
    return _write(learned, target)


def blend_files(sources: Sequence[str], target: str | Path, token: str) -> Path:
    """Read learned words, blend them (see `blending.blend`) and write the result; returns its path.

    Args:
        sources: `FILE` or `FILE=WEIGHT` of each word; a weight is 1 unless given.
        target: a new file, as in `convert`.
        token: the new word.

    Raises:
        InputError: as `convert` and `blending.blend`; or a weight is not a number.
    """
    target = _new_file(target)
    pairs = [_file_and_weight(text) for text in sources]
    words = [embeddings.read(source) for source, _ in pairs]
    return _write(blending.blend(words, [weight for _, weight in pairs], token), target)


def _file_and_weight(text: str) -> tuple[str, float]:
    """Split `FILE=0.7`; a file may have a `=` in its name."""
    source, equals, weight = text.rpartition("=")
    if not equals or os.path.lexists(os.path.expanduser(text)):
        return text, 1.0
    try:
        return source, float(weight)
    except ValueError:
        raise InputError(
            f"{text!r}: the weight {weight!r} is not a number; write FILE=0.7, or just FILE for a weight of 1"
        ) from None


def _new_file(target: str | Path) -> Path:
    """The path of a new file for a word.

    Raises:
        InputError: the extension is not that of a learned word, or the file already exists.
    """
    target = files.given(target, "OUT")
    if target.suffix not in (".safetensors", ".bin", ".pt"):
        raise InputError(
            f"{str(target)!r} must end in .safetensors, .bin (diffusers), or .pt (A1111)"
        )
    if os.path.lexists(target):
        raise InputError(f"{str(target)!r} already exists: choose another name")
    return target


def _write(learned: LearnedEmbedding, target: Path) -> Path:
    if target.suffix == ".pt":
        return embeddings.write_a1111(target, learned)
    is_safe = target.suffix == ".safetensors"
    return embeddings.write(target, learned, safe_serialization=is_safe)
