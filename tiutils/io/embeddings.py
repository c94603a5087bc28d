"""Learned embeddings on disk and on the Hub: read from every format people have, written in two.

Files come from strangers: reading one never runs code from it, takes no more memory than an
embedding may need, and raises nothing but `InputError`. What is written, diffusers or A1111 reads.
"""

from __future__ import annotations

import functools
import io
import json
import logging
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tiutils.errors import InputError, encodable, first_line
from tiutils.io import files, formats, hub, pickles

logger = logging.getLogger("tiutils")

FILE_NAMES = (
    "learned_embeds.safetensors",
    "learned_embeds.bin",
)  # in a run's folder, and on the Hub
SUFFIXES = (".safetensors", ".bin", ".pt", ".npy", ".png")
MAX_WORD = 200  # characters
MAX_VECTORS = 256  # a prompt holds 75 tokens
ENCODER_OF_WIDTH = {768: "clip_l", 1024: "clip_h", 1280: "clip_g", 4096: "t5"}


@dataclass(frozen=True, eq=False)
class LearnedEmbedding:
    """A word, its vectors and how they were made.

    Attributes:
        token: the word, such as `<toy>`.
        vectors: float32 of shape (n, hidden).
        metadata: text under any keys: base_model, steps, seed, license, initializer_token …
        text_encoder: whose token table the vectors extend: "clip_l" …; by their width unless given.
        others: the same word for further text encoders, by name: SDXL's "clip_g".
        layout: how the file was laid out, in words.
    """

    token: str
    vectors: np.ndarray
    metadata: dict[str, str] = field(default_factory=dict)
    text_encoder: str = ""
    others: dict[str, np.ndarray] = field(default_factory=dict)
    layout: str = ""

    def __post_init__(self) -> None:
        if not self.text_encoder:
            name = ENCODER_OF_WIDTH.get(np.shape(self.vectors)[-1], "")
            object.__setattr__(self, "text_encoder", name)

    @property
    def tokens(self) -> tuple[str, ...]:
        """The tokens that the vectors belong to, as in diffusers: `<toy>`, `<toy>_1`, and so on."""
        return (self.token, *(f"{self.token}_{n}" for n in range(1, len(self.vectors))))

    def refuse_pair(self) -> None:
        """Stable Diffusion 1.x has one text encoder; a pair's first half alone is no word for it.

        Raises:
            InputError: there are vectors for several text encoders; names the widths.
        """
        if self.others:
            halves = {self.text_encoder: self.vectors, **self.others}
            found = " and ".join(f"{name} {half.shape[1]} wide" for name, half in halves.items())
            raise InputError(
                f"{self.token!r} was learned for several text encoders, as SDXL has ({found}); "
                "expected one, as Stable Diffusion 1.x has (768 wide)"
            )


def write(
    path: str | Path, embedding: LearnedEmbedding, *, safe_serialization: bool = True
) -> Path:
    """Write `{token: vectors}` as safetensors, or else as torch's `.bin`, which keeps no metadata.

    A pair for SDXL becomes `{clip_l: vectors, clip_g: vectors}`, its word goes to the metadata. A
    kill at any moment leaves the old file or the new one, whole. Returns the path.

    Raises:
        InputError: `read` would refuse the embedding, or the file cannot be written.
    """
    token, metadata = embedding.token, dict(embedding.metadata)
    tensors = {token: _check(path, token, embedding.vectors)}
    if embedding.others:
        halves = {embedding.text_encoder: embedding.vectors, **embedding.others}
        tensors = {name: _check(path, token, half) for name, half in halves.items()}
        metadata["name"] = _named(token)
    warn_of_case(token)
    if not safe_serialization:
        return _write(path, _torch_bytes(tensors))
    from tiutils.io import tensors as safe  # here: whoever only reads .pt needs no safetensors

    return _write(path, safe.to_bytes(tensors, metadata))


def write_emb_params(path: str | Path, embedding: LearnedEmbedding) -> Path:
    """Write `{emb_params: vectors}`, the word in the metadata: the form that most programs take, other than diffusers.

    Raises:
        InputError: as `write`; or a pair, which these programs read as `write` writes it.
    """
    embedding.refuse_pair()
    from safetensors.numpy import save

    tensors = {formats.NAMELESS[0]: _check(path, embedding.token, embedding.vectors)}
    warn_of_case(embedding.token)
    return _write(
        path, save(tensors, metadata=embedding.metadata | {"name": _named(embedding.token)})
    )


def _named(token: str) -> str:
    """A word as the metadata hold it: as JSON where it would be taken for JSON."""
    return json.dumps(token) if token.startswith('"') else token


def write_a1111(path: str | Path, embedding: LearnedEmbedding) -> Path:
    """Write as A1111's web UI does when it trains: a `.pt`. There, the file's name is the word.

    Raises:
        InputError: as `write`; or a pair, which A1111 reads as `write` writes it.
    """
    embedding.refuse_pair()
    steps = embedding.metadata.get("steps", "")
    content = {
        **embedding.metadata,
        "string_to_token": {"*": 265},  # CLIP's id of "*", which the first script used
        "string_to_param": {"*": _check(path, embedding.token, embedding.vectors)},
        "name": embedding.token,
        "step": int(steps) if steps.isdecimal() else None,
        "sd_checkpoint": None,
        "sd_checkpoint_name": embedding.metadata.get("base_model"),
    }
    return _write(path, _torch_bytes(content))


def _torch_bytes(content: dict[str, Any]) -> bytes:
    """`content` as torch saves it, its arrays, also those one level down, as tensors."""
    import torch  # here only: reading needs no torch

    def tensors(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: tensors(part) for name, part in value.items()}
        return torch.tensor(value) if isinstance(value, np.ndarray) else value

    buffer = io.BytesIO()
    torch.save(tensors(content), buffer)
    return buffer.getvalue()


def _write(path: str | Path, data: bytes) -> Path:
    path = files.given(path)
    files.write(path, data)
    return path


@functools.cache  # once for each word: a run writes its embedding many times
def warn_of_case(token: str) -> None:
    """Warn of a word that works here, but that other programs would mistake for another."""
    if token != token.lower():
        logger.warning(
            "stock diffusers folds case: it reads %r as %r, and of several vectors uses only the "
            "first; a word in lower case works everywhere",
            token,
            token.lower(),
        )


def read(source: str | Path, word: str | None = None) -> LearnedEmbedding:
    """Read one learned word.

    Args:
        source: a file; a folder or a Hub repository ("sd-concepts-library/cat-toy") that holds
            `learned_embeds.safetensors` or `.bin`; or a file in a repository ("owner/name/x.pt").
        word: which one, of a file with several.

    Raises:
        InputError: no such file, not an embedding, several words and none chosen, a wrong shape,
            NaN or infinite values, or a pickle that holds more than data (it is not run).
    """
    return choose(source, read_all(source), word)


def choose(
    source: str | Path, found: Sequence[LearnedEmbedding], word: str | None
) -> LearnedEmbedding:
    """The one of a file's words that is meant.

    Raises:
        InputError: there are several and none is chosen, or none is called so; says how to choose.
    """
    chosen = [embedding for embedding in found if word in (None, embedding.token)]
    if len(chosen) != 1:
        names = ", ".join(repr(embedding.token) for embedding in found[:5])
        names += ", …" if len(found) > 5 else ""
        wanted = "choose one of them" if word is None else f"{word!r} is not among them"
        one = found[0].token
        raise InputError(
            f"{str(source)!r} holds {len(found)} words ({names}): {wanted}, such as token={one!r} "
            f"in Python, --embedding 'FILE={one}' or `tiutils convert FILE OUT --word '{one}'`"
        )
    return chosen[0]


def read_all(source: str | Path) -> tuple[LearnedEmbedding, ...]:
    """Read all words of a file; see `read`."""
    path = find(source)
    data = files.read_bytes(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on old formats and large pictures
            content = formats.parse(data)
    except pickles.UnsafePickle as error:
        raise InputError(
            f"{str(path)!r} was not loaded: it is a pickle with {_short(error)!r}, which is no "
            "data and could run code; ask for a .safetensors file"
        ) from None
    except Exception as error:  # over damaged files, the readers raise anything
        raise InputError(
            f"{str(path)!r} is no embedding, or a damaged one ({_short(error)})"
        ) from None
    return tuple(
        _embedding(source, path, word, halves, content) for word, halves in content.words.items()
    )


def _embedding(
    source: str | Path, path: Path, word: str | None, halves: dict[str, Any], content: Any
) -> LearnedEmbedding:
    token = Path(source).stem if word is None else word
    checked = {name: _check(path, token, values) for name, values in halves.items()}
    if len({len(vectors) for vectors in checked.values()}) > 1:
        raise InputError(f"{str(path)!r}: {token!r} has more vectors for one encoder than another")
    first = next(iter(checked))
    vectors = checked.pop(first)
    facts = {k: v for k, v in content.metadata.items() if _is_text(k) and _is_text(v)}
    return LearnedEmbedding(token, vectors, facts, first, checked, content.layout)


def _is_text(text: str) -> bool:
    """Whether it can be written: pickles and JSON can hold halves of letters."""
    return encodable(text) == text


def check_word(word: str) -> None:
    """Refuse a word that no file could hold.

    Raises:
        InputError: it is empty, reserved, too long, or not UTF-8.
    """
    shown = repr(word) if len(word) <= MAX_WORD else f"{word[:40]!r}… of {len(word)} characters"
    if not word.strip() or word == "__metadata__" or not _is_text(word) or len(word) > MAX_WORD:
        raise InputError(
            f"{shown} cannot be a placeholder token: a file of learned words takes up to {MAX_WORD} "
            "characters of UTF-8, and keeps __metadata__ for itself; choose one such as '<my-toy>'"
        )


def _short(error: Exception) -> str:
    return first_line(error)[:200]


def _check(path: str | Path, token: str, vectors: np.ndarray) -> np.ndarray:
    """The vectors as float32 (n, hidden), or an InputError; old files hold one as (hidden,)."""
    try:
        check_word(token)
    except InputError as error:
        raise InputError(f"{str(path)!r}: {error}") from None
    vectors = vectors[None] if vectors.ndim == 1 else vectors
    if vectors.ndim != 2 or vectors.size == 0:
        raise InputError(
            f"{str(path)!r}: {token!r} has shape {vectors.shape}, expected (n, hidden)"
        )
    if len(vectors) > MAX_VECTORS:
        raise InputError(f"{str(path)!r}: {token!r} has {len(vectors)} vectors: that is no word")
    with np.errstate(over="ignore"):  # what is too large for float32 becomes inf, refused below
        vectors = np.array(vectors, dtype=np.float32, order="C")  # a copy, so writable
    if not np.isfinite(vectors).all():
        raise InputError(f"{str(path)!r}: {token!r} holds NaN or infinite values: train it again")
    return vectors


def find(source: str | Path) -> Path:
    """The file that `source` means; one on the Hub is fetched into the Hub client's cache.

    Raises:
        InputError: a folder without a learned word, or neither a file nor on the Hub.
    """
    path, name = files.given(source, "the learned word's file"), str(source)
    if os.path.isdir(path):
        inside = [path / name for name in FILE_NAMES if (path / name).is_file()]
        if not inside:
            raise InputError(f"the folder {name!r} holds none of {', '.join(FILE_NAMES)}")
        return inside[0]
    match = hub.REPOSITORY.fullmatch(name)
    if os.path.lexists(path) or not match or os.path.isdir(path.parts[0]):
        return path
    repository, file = match.groups()
    if ".." in path.parts or (file is None and path.suffix in SUFFIXES):
        return path
    return hub.fetch_file(repository, [file] if file else list(FILE_NAMES))
