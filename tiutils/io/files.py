"""Files whole or not at all: atomic writes, and reads that take no more than they should."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

from tiutils.errors import InputError

MAX_BYTES = 64 * 2**20  # an embedding is kilobytes: 75 vectors of SD 1.5 are 230 kB


def replace_file(path: Path, data: bytes) -> None:
    """Put `data` at `path`; a kill or a full disk leaves the old file or the new one, whole.

    Raises:
        OSError: it could not be written; no temporary file is left.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # of a run that was killed
        with open(temporary, "xb") as file:  # never through a link that another user put there
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


def read_bytes(path: Path) -> bytes:
    """The file's content, once its size is known to be sane.

    Raises:
        InputError: it is missing, no regular file, far too large, or cannot be read.
    """
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
        refuse_size(str(path), status.st_size)
    # a folder; or a pipe, on which reading would wait forever
    raise InputError(f"{str(path)!r} is not a file: give a learned embedding (.safetensors, .bin)")


def refuse_size(name: str, size: int) -> None:
    """Refuse a file that is far too large for an embedding."""
    if size > MAX_BYTES:
        found, limit = size // 2**20, MAX_BYTES // 2**20
        raise InputError(f"{name!r} has {found} MiB, an embedding under {limit}: is it a model?")
