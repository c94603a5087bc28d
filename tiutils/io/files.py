"""Files whole or not at all: atomic writes, and reads that take no more than they should; what a path means."""

from __future__ import annotations

import codecs
import errno
import json
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tiutils.errors import InputError

MAX_BYTES = 64 * 2**20  # an embedding is kilobytes: 75 vectors of SD 1.5 are 230 kB


def given(path: str | os.PathLike[str], what: str = "a path") -> Path:
    """The path that a person wrote: `~` is their home, wherever it is read, and an empty one is a mistake.

    Raises:
        InputError: `what` is empty, as an unset variable of a shell is, or holds a null character.
    """
    text = os.fspath(path)
    if not text.strip():
        raise InputError(f"{what} is empty: give a path, or leave it out")
    if "\0" in text:
        raise InputError(f"{what} is {text!r}, which no path can be: give another one")
    return Path(os.path.expanduser(text))


def check_writable(folder: Path, flag: str) -> None:
    """Try to write into a folder that may not be there yet, before hours of work; leaves it as it was.

    Raises:
        InputError: it cannot be made or written to; names `flag`.
    """
    try:
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not there.is_dir():
            raise InputError(f"{flag} {folder}: {there} is a file; give a folder")
        if not os.access(there, os.W_OK):
            raise InputError(f"{flag} {folder}: {there} is not writable; give another folder")
        made = make_folder(folder)
        probe = folder / f".write-test-{os.getpid()}"
        try:
            probe.write_bytes(bytes(4096))  # a full disk may still take an empty file
        finally:
            with suppress(OSError):
                probe.unlink()
            remove_empty(made)
    except OSError as error:
        raise InputError(
            f"{flag} {folder} cannot be written to ({error.strerror or error}); give another folder"
        ) from error


def make_folder(folder: Path) -> list[Path]:
    """Make a folder and those above it; returns the new ones, the innermost first. Raises OSError."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return new


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove those folders that hold nothing, in this order."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def write(path: Path, data: bytes) -> None:
    """Put `data` at `path` as `replace_file` does, and make its folder.

    Raises:
        InputError: it could not be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, data)
    except OSError as error:
        raise _not_written(path, error) from error


def write_new(paths: Iterable[Path], data: bytes) -> Path:
    """Put `data` at the first of `paths` where nothing is, and return it; never over what is there.

    Raises:
        InputError: it could not be written.
    """
    for path in paths:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # the name is taken first, in one step: another process may be looking for one as well
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            if not path.parent.is_dir():
                raise InputError(f"{path.parent} is a file; give a folder") from None
            continue
        except OSError as error:
            raise _not_written(path, error) from error
        try:
            replace_file(path, data)
        except BaseException as error:
            with suppress(OSError):
                path.unlink()
            if isinstance(error, OSError):
                raise _not_written(path, error) from error
            raise
        return path
    raise AssertionError("paths without an end are expected")


def _not_written(path: Path, error: OSError) -> InputError:
    return InputError(
        f"could not write {str(path)!r} ({error.strerror or error}): free some space or choose another place; "
        "a file that was there before is unchanged"
    )


def to_json(value: Any) -> bytes:
    """JSON for people to read: letters as they are, and escapes for what is none, as in a name that is not UTF-8."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    return text.encode(
        "utf-8", "backslashreplace"
    )  # JSON's own escape, so that it comes back as it was


def read_text(path: Path) -> str:
    """A text file of any editor: UTF-8, or UTF-16 with its mark, as Windows writes it.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no text.
    """
    data = path.read_bytes()
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if wide else "utf-8-sig")


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
