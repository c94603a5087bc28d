"""Where a learned word's file is: here, in a run's folder, or in a repository of the Hub.

The concept library is the Hub's "sd-concepts-library": a repository for each word. Reading from it
needs no token; what was fetched once is in the Hub client's cache and is found there offline.
"""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress
from pathlib import Path

from tiutils.errors import InputError, first_line

MAX_BYTES = 64 * 2**20  # an embedding is kilobytes: 75 vectors of SD 1.5 are 230 kB
NAMES = ("learned_embeds.safetensors", "learned_embeds.bin")  # in a run's folder, and on the Hub
SUFFIXES = (".safetensors", ".bin", ".pt", ".npy", ".png")
REPOSITORY = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:/(.+))?", re.ASCII)


def source_and_name(text: str) -> tuple[str, str | None]:
    """Split `FILE=<new-name>`, as the command line takes it; a file may have a `=` in its name."""
    source, equals, name = text.rpartition("=")
    return (source, name) if equals and not os.path.lexists(text) else (text, None)


def find(source: str | Path) -> Path:
    """The file that `source` means; one on the Hub is fetched into the Hub client's cache.

    Raises:
        InputError: a folder without a learned word, or neither a file nor on the Hub.
    """
    path, name = Path(source), str(source)
    if os.path.isdir(path):
        inside = [path / name for name in NAMES if (path / name).is_file()]
        if not inside:
            raise InputError(f"the folder {name!r} holds none of {', '.join(NAMES)}")
        return inside[0]
    match = REPOSITORY.fullmatch(name)
    if os.path.lexists(path) or not match or os.path.isdir(path.parts[0]):
        return path
    repository, file = match.groups()
    if ".." in path.parts or (file is None and path.suffix in SUFFIXES):
        return path
    return _fetch(repository, [file] if file else list(NAMES))


def _fetch(repository: str, names: list[str]) -> Path:
    """The first of the files that the repository has; from the cache where there is no Hub."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    from tiutils.folders import hub_answers

    online = hub_answers(f"models/{repository}")
    try:
        for name in names:
            with suppress(EntryNotFoundError):
                if online:
                    _check_size(repository, name)
                file = huggingface_hub.hf_hub_download(
                    repository, name, local_files_only=not online
                )
                return Path(file)
    except InputError:
        raise
    except Exception as error:  # the client's own errors, and its HTTP library's
        raise InputError(f"the Hub did not give {repository!r}: {first_line(error)}") from error
    where = "it is not on the Hub or not yours, nor in the cache"
    raise InputError(
        f"no file {repository!r} here, and no {' or '.join(names)} of that repository: "
        + ("name a file it has, owner/name/FILE" if online else f"{where}, or there is no network")
    )


def _check_size(repository: str, name: str) -> None:
    """Refuse a file that is far too large for an embedding, before it is fetched."""
    import huggingface_hub

    url = huggingface_hub.hf_hub_url(repository, name)
    _refuse_size(f"{repository}/{name}", huggingface_hub.get_hf_file_metadata(url).size or 0)


def _refuse_size(name: str, size: int) -> None:
    if size > MAX_BYTES:
        found, limit = size // 2**20, MAX_BYTES // 2**20
        raise InputError(f"{name!r} has {found} MiB, an embedding under {limit}: is it a model?")


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
        _refuse_size(str(path), status.st_size)
    # a folder; or a pipe, on which reading would wait forever
    raise InputError(f"{str(path)!r} is not a file: give a learned embedding (.safetensors, .bin)")
