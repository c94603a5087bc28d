"""Learned embeddings on disk, as diffusers reads them: one token, float32 vectors (n, hidden).

Files come from strangers: reading one never runs code from it, takes no more memory than an
embedding may need, and raises nothing but `InputError`.
"""

from __future__ import annotations

import errno
import functools
import io
import json
import logging
import os
import pickle
import stat
import warnings
import zipfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tiutils.errors import InputError

logger = logging.getLogger("tiutils")

MAX_BYTES = 64 * 2**20  # an embedding is kilobytes: 75 vectors of SD 1.5 are 230 kB
FLOATS = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}  # safetensors' names; NumPy has no bfloat16


@dataclass(frozen=True, eq=False)
class LearnedEmbedding:
    """A word, its vectors (float32, (n, hidden)) and how they were made.

    `metadata` holds text under any keys: base model, steps, seed, initializer token …
    """

    token: str
    vectors: np.ndarray
    metadata: dict[str, str] = field(default_factory=dict)


def write(
    path: str | Path, embedding: LearnedEmbedding, *, safe_serialization: bool = True
) -> Path:
    """Write `{token: vectors}` as safetensors, or else as torch's `.bin`, which keeps no metadata.

    A kill at any moment leaves the old file or the new one, whole. Returns the path.

    Raises:
        InputError: `read` would refuse the embedding, or the file cannot be written.
    """
    path, token = Path(path), embedding.token
    vectors = _check(path, token, embedding.vectors)
    warn_of_case(token)
    if safe_serialization:
        from safetensors.numpy import save

        data = save({token: vectors}, metadata=dict(embedding.metadata))
    else:
        import torch  # here and in `_read_torch` only: safetensors needs no torch

        buffer = io.BytesIO()
        torch.save({token: torch.tensor(vectors)}, buffer)
        data = buffer.getvalue()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, data)
    except OSError as error:
        raise InputError(
            f"could not write {str(path)!r} ({error.strerror}): free some space or choose another "
            "place; a file that was there before is unchanged"
        ) from error
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


def read(path: str | Path) -> LearnedEmbedding:
    """Read one learned word. Whether the file is safetensors or `.bin`, its content decides.

    Raises:
        InputError: no such file, not an embedding, several words, a wrong shape, NaN or infinite
            values, or a pickle that holds more than tensors (it is not run).
    """
    path = Path(path)
    data = _read_bytes(path)
    # safetensors begins with eight bytes of length and a JSON object
    reader = _read_safetensors if data[8:9] == b"{" else _read_torch
    token, values, metadata = reader(path, data)
    return LearnedEmbedding(token, _check(path, token, values), metadata)


def replace_file(path: Path, data: bytes) -> None:
    """Put `data` at `path`; a kill or a full disk leaves the old file or the new one, whole.

    Raises:
        OSError: it could not be written; no temporary file is left.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):  # after a success it is no longer there
            temporary.unlink()
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power cut, where the file system can. Raises OSError."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows opens no folders
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):  # some mounted drives
            raise
    finally:
        os.close(handle)


def _read_bytes(path: Path) -> bytes:
    """The file's content, once its size is known to be sane."""
    try:
        status = path.stat()
        if stat.S_ISREG(status.st_mode) and status.st_size <= MAX_BYTES:
            return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"cannot read {str(path)!r} ({reason}): give a learned embedding"
        ) from None
    if stat.S_ISREG(status.st_mode):
        size, limit = status.st_size // 2**20, MAX_BYTES // 2**20
        raise InputError(
            f"{str(path)!r} has {size} MiB, an embedding under {limit}: is it a model?"
        )
    # a folder; or a pipe, on which reading would wait forever
    raise InputError(f"{str(path)!r} is not a file: give a learned embedding (.safetensors, .bin)")


def _read_safetensors(path: Path, data: bytes) -> tuple[str, np.ndarray, dict[str, str]]:
    import safetensors

    try:
        tensors = dict(safetensors.deserialize(data))
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except Exception as error:  # the parser's own type of error, and JSON's
        raise _damaged(path, error) from None
    token = _only_key(path, tensors)
    tensor = tensors[token]
    if tensor["dtype"] == "BF16":  # the upper half of a float32
        values = (np.frombuffer(tensor["data"], "<u2").astype(np.uint32) << 16).view(np.float32)
    elif tensor["dtype"] in FLOATS:
        values = np.frombuffer(tensor["data"], FLOATS[tensor["dtype"]])
    else:
        raise InputError(f"{str(path)!r} holds {tensor['dtype']} values: expected floats")
    return token, values.reshape(tensor["shape"]), header.get("__metadata__") or {}


def _read_torch(path: Path, data: bytes) -> tuple[str, np.ndarray, dict[str, str]]:
    import torch

    try:
        if zipfile.is_zipfile(io.BytesIO(data)):  # a zip can unpack to a thousand times its size
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > MAX_BYTES:
                    raise ValueError("it unpacks to far more than an embedding")
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # torch's remarks on old formats; it decides all the same
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"{str(path)!r} was not loaded: it is damaged, or a pickle of more than tensors, "
            "which could run code; ask for a .safetensors file"
        ) from None
    except Exception as error:  # over damaged archives, torch raises anything
        raise _damaged(path, error) from None
    token = _only_key(path, content)
    tensor = content[token]
    if (
        not isinstance(tensor, torch.Tensor)
        or not tensor.is_floating_point()
        or (tensor.layout, tensor.device.type) != (torch.strided, "cpu")
        or tensor.numel() > MAX_BYTES // 4  # a few bytes can pose as an endless shape
    ):
        found = f"{type(tensor).__name__} {tuple(getattr(tensor, 'shape', ()))}"
        raise InputError(f"{str(path)!r} holds {found} for {token!r}: expected floats (n, hidden)")
    return token, tensor.detach().float().numpy(), {}


def _damaged(path: Path, error: Exception) -> InputError:
    found = (str(error).strip() or type(error).__name__).splitlines()[0]
    return InputError(f"{str(path)!r} is no embedding, or a damaged one ({found}): fetch it again")


def _only_key(path: Path, content: Any) -> str:
    if not isinstance(content, dict):
        raise InputError(
            f"{str(path)!r} holds a {type(content).__name__}: expected {{word: floats}}"
        )
    names = sorted(repr(key)[:40] for key in content)  # safetensors' own order is arbitrary
    if len(content) != 1 or not isinstance(next(iter(content)), str):
        found = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
        raise InputError(f"{str(path)!r} holds {len(names)} entries ({found}): expected one word")
    return next(iter(content))


def _check(path: Path, token: str, vectors: np.ndarray) -> np.ndarray:
    """The vectors as float32 (n, hidden), or an InputError; old files hold one as (hidden,)."""
    if not token.strip() or token == "__metadata__":  # the latter is safetensors' own key
        raise InputError(f"{str(path)!r}: {token!r} cannot be a placeholder token")
    vectors = vectors[None] if vectors.ndim == 1 else vectors
    if vectors.ndim != 2 or vectors.size == 0:
        raise InputError(
            f"{str(path)!r}: {token!r} has shape {vectors.shape}, expected (n, hidden)"
        )
    with np.errstate(over="ignore"):  # what is too large for float32 becomes inf, refused below
        vectors = np.array(vectors, dtype=np.float32, order="C")  # a copy, so writable
    if not np.isfinite(vectors).all():
        raise InputError(f"{str(path)!r}: {token!r} holds NaN or infinite values: train it again")
    return vectors
