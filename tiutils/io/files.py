"""Reading and writing files safely: atomic writes, bounded reads, and paths that people type."""

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

MAX_BYTES = 64 * 2**20  # an embedding takes kilobytes: 75 vectors for SD 1.5 are 230 kB


def given(path: str | os.PathLike[str], what: str = "a path") -> Path:
    """The path that a person typed, with `~` expanded.

    Raises:
        InputError: it is blank, as an unset shell variable is, or contains a null character; names `what`.
    """
    text = os.fspath(path)
    if not text.strip():
        raise InputError(f"{what} is empty: give a path, or leave it out")
    if "\0" in text:
        raise InputError(f"{what} is {text!r}, which is not a valid path: give another one")
    return Path(os.path.expanduser(text))


def check_writable(folder: Path, flag: str) -> None:
    """Check, before hours of work, that a folder can be created and written to; leave no trace.

    Raises:
        InputError: it cannot; names `flag`.
    """
    try:
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not existing.is_dir():
            raise InputError(f"{flag} {folder}: {existing} is a file; give a folder")
        if not os.access(existing, os.W_OK):
            raise InputError(f"{flag} {folder}: {existing} is not writable; give another folder")
        created = make_folder(folder)
        probe = folder / f".write-test-{os.getpid()}"
        try:
            probe.write_bytes(bytes(4096))  # even a full disk may accept an empty file
        finally:
            with suppress(OSError):
                probe.unlink()
            remove_empty(created)
    except OSError as error:
        raise InputError(
            f"{flag} {folder} cannot be written to ({error.strerror or error}); give another folder"
        ) from error


def make_folder(folder: Path) -> list[Path]:
    """Create a folder and its parents; return those that are new, innermost first. Raises OSError."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return new


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove, in this order, those folders that are empty."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def write(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically (see `replace_file`), creating its folder.

    Raises:
        InputError: it could not be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, data)
    except OSError as error:
        raise _not_written(path, error) from error


def write_new(paths: Iterable[Path], data: bytes) -> Path:
    """Write `data` to the first of an endless series of paths that is free; return that path.

    Raises:
        InputError: it could not be written.
    """
    for path in paths:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            open(path, "xb").close()  # claims the name, which another process may want as well
        except FileExistsError:
            if path.parent.is_dir():
                continue
            raise InputError(f"{path.parent} is a file; give a folder") from None
        except OSError as error:
            raise _not_written(path, error) from error
        try:
            write(path, data)
        except BaseException:
            with suppress(OSError):
                path.unlink()
            raise
        return path
    raise AssertionError("the series of paths must not end")


def _not_written(path: Path, error: OSError) -> InputError:
    return InputError(
        f"could not write {str(path)!r} ({error.strerror or error}): free some space or choose another place; "
        "an existing file is unchanged"
    )


def to_json(value: Any) -> bytes:
    """Readable JSON in UTF-8; only what UTF-8 cannot represent (lone surrogates) is escaped."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace")  # JSON escapes them in the same way


def read_text(path: Path) -> str:
    """The content of a text file: UTF-8, or UTF-16 with a byte order mark, as Windows writes it.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not text.
    """
    data = path.read_bytes()
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if is_utf16 else "utf-8-sig")


def replace_file(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically: after a kill or on a full disk, either the old or the new file is there.

    Raises:
        OSError: it could not be written; no temporary file is left.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # left over from a killed run
        with open(temporary, "xb") as file:  # "x": never through a link that another user put there
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):  # on success it is already gone
            temporary.unlink()
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a folder's entries survive a power cut, where the file system supports it. Raises OSError."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows cannot open folders
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):  # some mounted drives
            raise
    finally:
        os.close(handle)


def read_bytes(path: Path) -> bytes:
    """The content of a learned embedding's file, once its size is known to be reasonable.

    Raises:
        InputError: it is missing, too large, unreadable or not a regular file.
    """
    try:
        status = path.stat()
        is_file = stat.S_ISREG(status.st_mode)
        if is_file and status.st_size <= MAX_BYTES:
            return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"cannot read {str(path)!r} ({reason}): give a learned embedding"
        ) from None
    if is_file:
        refuse_size(str(path), status.st_size)
    # a folder, or a pipe, where reading would wait forever
    raise InputError(f"{str(path)!r} is not a file: give a learned embedding (.safetensors, .bin)")


def refuse_size(name: str, size: int) -> None:
    """Raise an InputError if a file is far too large for an embedding."""
    if size > MAX_BYTES:
        found, limit = size // 2**20, MAX_BYTES // 2**20
        raise InputError(
            f"{name!r} has {found} MiB; an embedding has less than {limit}: is it a model?"
        )
