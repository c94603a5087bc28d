"""Learned embeddings on disk and on the Hub: read from every common format, written for other programs.

Files may come from strangers: reading one never runs code from it, uses no more memory than an embedding needs, and
raises only `InputError`.
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

# in a run's folder and on the Hub
FILE_NAMES = ("learned_embeds.safetensors", "learned_embeds.bin")
SUFFIXES = (".safetensors", ".bin", ".pt", ".npy", ".png")
MAX_WORD = 200  # characters
MAX_VECTORS = 256  # a prompt has room for 75 tokens
PAIR = ("clip_l", "clip_g")  # SDXL's text encoders
ENCODER_OF_WIDTH = {768: "clip_l", 1024: "clip_h", 1280: "clip_g", 4096: "t5"}


@dataclass(frozen=True, eq=False)
class LearnedEmbedding:
    """A word, its vectors and how they were made.

    Attributes:
        token: the word, such as `<toy>`.
        vectors: float32 of shape (n, hidden).
        metadata: text under any keys, such as base_model, steps, seed, license, initializer_token.
        text_encoder: the one whose token table the vectors extend, such as "clip_l"; guessed from their width if not
            given.
        others: the word's vectors for further text encoders, by name, such as SDXL's "clip_g".
        layout: the format of the file that it came from, in words.
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
        """The tokens that the vectors belong to, named as in diffusers: `<toy>`, `<toy>_1`, and so on."""
        return (self.token, *(f"{self.token}_{n}" for n in range(1, len(self.vectors))))

    @property
    def by_encoder(self) -> dict[str, np.ndarray]:
        """The vectors for each text encoder, by its name."""
        return {self.text_encoder: self.vectors, **self.others}

    @property
    def widths(self) -> tuple[int, ...]:
        """The width of the vectors for each text encoder."""
        return tuple(vectors.shape[1] for vectors in self.by_encoder.values())

    @property
    def rows(self) -> np.ndarray:
        """The vectors for all text encoders side by side, as a run learns them: `(n, sum(widths))`."""
        return np.concatenate(list(self.by_encoder.values()), axis=1)

    def refuse_pair(self) -> None:
        """Refuse a pair for SDXL, half of which would not do for Stable Diffusion 1.x.

        Raises:
            InputError: there are vectors for several text encoders; names their widths.
        """
        if self.others:
            halves = self.by_encoder.items()
            found = " and ".join(f"{name} {half.shape[1]} wide" for name, half in halves)
            raise InputError(
                f"{self.token!r} was learned for several text encoders, as SDXL has ({found}); "
                "expected one, as Stable Diffusion 1.x has (768 wide)"
            )


def from_rows(
    token: str, rows: np.ndarray, widths: Sequence[int], metadata: dict[str, str]
) -> LearnedEmbedding:
    """The word that a run has learned, from its rows, `(n, sum(widths))`, and the width for each text encoder."""
    first, *others = np.split(rows, np.cumsum(widths)[:-1], axis=1)
    names = PAIR if others else ("",)
    return LearnedEmbedding(
        token, first, metadata, names[0], dict(zip(names[1:], others, strict=True))
    )


def write(
    path: str | Path,
    embedding: LearnedEmbedding,
    *,
    safe_serialization: bool = True,
    form: str = "diffusers",
) -> Path:
    """Write a word as safetensors, or as torch's `.bin`, which has no metadata; return the path.

    Args:
        path: written atomically.
        embedding: the word; a pair for SDXL becomes `{clip_l: vectors, clip_g: vectors}` in either form.
        safe_serialization: as safetensors.
        form: "diffusers": `{token: vectors}`; or "emb_params", which most other programs read:
            `{emb_params: vectors}`, with the word in the metadata.

    Raises:
        InputError: `read` would refuse the embedding, or the file cannot be written.
    """
    token, metadata = embedding.token, dict(embedding.metadata)
    named = {token: embedding.vectors}
    if embedding.others or form != "diffusers":
        named = embedding.by_encoder if embedding.others else {form: embedding.vectors}
        metadata["name"] = json.dumps(token) if token.startswith('"') else token
    named = {name: _check(path, token, vectors) for name, vectors in named.items()}
    warn_of_case(token)
    if not safe_serialization:
        return _write(path, _torch_bytes(named))
    from tiutils.io import tensors  # here: reading a .pt needs no safetensors

    return _write(path, tensors.to_bytes(named, metadata))


def write_a1111(path: str | Path, embedding: LearnedEmbedding) -> Path:
    """Write a `.pt` as A1111's web UI does after training; there, the file's name becomes the word.

    Raises:
        InputError: as `write`; or it is a pair for SDXL, which `write` writes as A1111 reads it.
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
    """`content` as torch saves it, with arrays, nested ones too, as tensors."""
    import torch  # here: reading needs no torch

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


@functools.cache  # once per word, which a run saves many times
def warn_of_case(token: str) -> None:
    """Warn of a word that works here, but that other programs would mistake for another one."""
    if token != token.lower():
        logger.warning(
            f"stock diffusers ignores case: it reads {token!r} as {token.lower()!r}, and uses only the first of "
            f"several vectors; a lower-case word works everywhere"
        )


def read(source: str | Path, word: str | None = None) -> LearnedEmbedding:
    """Read one learned word.

    Args:
        source: a file; a folder or Hub repository ("sd-concepts-library/cat-toy") with a
            `learned_embeds.safetensors` or `.bin`; or a file in a repository ("owner/name/x.pt").
        word: which one, if the file has several.

    Raises:
        InputError: there is no such file, it is not an embedding, it has several words and none was chosen,
            its shape is wrong, it has NaN or infinite values, or it is a pickle that contains more than data.
    """
    return choose(source, read_all(source), word)


def choose(
    source: str | Path, found: Sequence[LearnedEmbedding], word: str | None
) -> LearnedEmbedding:
    """The chosen one of a file's words.

    Raises:
        InputError: there are several and none was chosen, or none has that name; says how to choose.
    """
    chosen = [embedding for embedding in found if word in (None, embedding.token)]
    if len(chosen) != 1:
        names = ", ".join(repr(embedding.token) for embedding in found[:5])
        names += ", …" if len(found) > 5 else ""
        wanted = "choose one of them" if word is None else f"{word!r} is not among them"
        one = found[0].token
        raise InputError(
            f"{str(source)!r} has {len(found)} words ({names}): {wanted}, such as token={one!r} "
            f"in Python, --embedding 'FILE={one}' or `tiutils convert FILE OUT --word '{one}'`"
        )
    return chosen[0]


def read_all(source: str | Path) -> tuple[LearnedEmbedding, ...]:
    """Read all words of a file; see `read`."""
    path = find(source)
    data = files.read_bytes(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old formats and large pictures
            content = formats.parse(data)
    except pickles.UnsafePickle as error:
        raise InputError(
            f"{str(path)!r} was not loaded: it is a pickle that asks for {_short(error)!r}, which is not "
            "data and could run code; ask for a .safetensors file"
        ) from None
    except Exception as error:  # for damaged files, the readers raise anything
        raise InputError(
            f"{str(path)!r} is not an embedding, or is damaged ({_short(error)})"
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
        raise InputError(
            f"{str(path)!r}: {token!r} has more vectors for one encoder than for another"
        )
    first = next(iter(checked))
    vectors = checked.pop(first)
    facts = {k: v for k, v in content.metadata.items() if _is_text(k) and _is_text(v)}
    return LearnedEmbedding(token, vectors, facts, first, checked, content.layout)


def _is_text(text: str) -> bool:
    """Whether it can be encoded in UTF-8: pickles and JSON may contain lone surrogates."""
    return encodable(text) == text


def check_word(word: str) -> None:
    """Refuse a word that cannot be stored in a file of learned words.

    Raises:
        InputError: it is blank, reserved, too long, or cannot be encoded in UTF-8.
    """
    shown = repr(word) if len(word) <= MAX_WORD else f"{word[:40]!r}… of {len(word)} characters"
    if not word.strip() or word == "__metadata__" or not _is_text(word) or len(word) > MAX_WORD:
        raise InputError(
            f"{shown} cannot be a placeholder token: a file of learned words allows up to {MAX_WORD} "
            "characters of UTF-8, and reserves __metadata__; choose one such as '<my-toy>'"
        )


def _short(error: Exception) -> str:
    return first_line(error)[:200]


def _check(path: str | Path, token: str, vectors: np.ndarray) -> np.ndarray:
    """The vectors as float32 `(n, hidden)`; in old files, a single one is `(hidden,)`. Raises InputError."""
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
        raise InputError(
            f"{str(path)!r}: {token!r} has {len(vectors)} vectors, too many for a word"
        )
    with np.errstate(over="ignore"):  # what overflows float32 becomes inf, refused below
        vectors = np.array(vectors, dtype=np.float32, order="C")  # a writable copy
    if not np.isfinite(vectors).all():
        raise InputError(f"{str(path)!r}: {token!r} has NaN or infinite values: train it again")
    return vectors


def find(source: str | Path) -> Path:
    """The file that `source` stands for; from the Hub it is downloaded into the client's cache.

    Raises:
        InputError: it is a folder without a learned word, or neither a file nor on the Hub.
    """
    path, name = files.given(source, "the learned word's file"), str(source)
    if os.path.isdir(path):
        inside = [path / name for name in FILE_NAMES if (path / name).is_file()]
        if not inside:
            raise InputError(f"the folder {name!r} has none of {', '.join(FILE_NAMES)}")
        return inside[0]
    match = hub.REPOSITORY.fullmatch(name)
    if os.path.lexists(path) or not match or os.path.isdir(path.parts[0]):
        return path
    repository, file = match.groups()
    if ".." in path.parts or (file is None and path.suffix in SUFFIXES):
        return path
    return hub.fetch_file(repository, [file] if file else list(FILE_NAMES))
