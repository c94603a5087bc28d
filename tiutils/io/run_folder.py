"""A run's folder: the names of its files, run.json, and checks that nothing of the user's is overwritten."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from tiutils.errors import InputError
from tiutils.io import checkpoints, embeddings, files, hub, pretrained

logger = logging.getLogger("tiutils")
T = TypeVar("T")

RECORD = "run.json"
LOCK = ".run.lock"  # exists while a run writes into the folder
EMBEDDING = Path(embeddings.FILE_NAMES[0]).stem  # the learned rows; -steps-N and a suffix follow
SHEETS = "validation-steps-"  # generated images; followed by N.png
PIPELINE = "model_index.json"  # the whole model, with --save_as_full_pipeline


def read_record(output_dir: str | Path) -> dict[str, Any]:
    """The content of a folder's run.json; empty if there is none or it is damaged."""
    try:
        record = json.loads(files.read_text(Path(output_dir) / RECORD))
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def entry(record: dict[str, Any], name: str, kind: type[T]) -> T:
    """An entry of run.json, whose content is not trusted: empty if it is missing or not of this kind."""
    value = record.get(name)
    return value if isinstance(value, kind) else kind()


def update_record(output_dir: str | Path, entries: dict[str, Any]) -> None:
    """Set entries of run.json, keeping the others.

    Raises:
        InputError: it cannot be written.
    """
    files.write(Path(output_dir) / RECORD, files.to_json(read_record(output_dir) | entries))


def absolute(name: str | None) -> str | None:
    """The absolute path of a folder or file; a Hub id is left unchanged."""
    return os.path.abspath(name) if name and os.path.exists(name) else name


def find_again(run_dir: Path, name: str) -> str:
    """A folder or file that run.json names: under that name, or relative to a parent of the run's folder.

    So it is found although the run was started elsewhere with a relative path, or was moved along with its project.
    """
    places = (folder / name for folder in run_dir.resolve().parents)
    moved = next((place for place in places if os.path.exists(place)), None)
    if os.path.exists(name) or (hub.REPOSITORY.fullmatch(name) and not moved):
        return name
    if Path(name).name == pretrained.BUNDLED_MODEL.name:  # from another copy of this project
        return str(pretrained.BUNDLED_MODEL)
    return str(moved or name)


def model_of(run_dir: str | Path) -> dict[str, str | None]:
    """The model that a run used, as arguments for either framework's `models.load`.

    Raises:
        InputError: run.json does not say which.
    """
    run_dir = Path(run_dir)
    record = read_record(run_dir)
    flags = entry(record, "flags", dict)
    name = entry(record, "model", str) or entry(flags, "pretrained_model_name_or_path", str)
    if not name:
        raise InputError(
            f"{run_dir / RECORD} does not say which model was trained; give --pretrained_model_name_or_path"
        )
    tokenizer = entry(flags, "tokenizer_name", str)
    return {
        "name": find_again(run_dir, name),
        # the exact commit, since a branch may have moved on
        "revision": entry(record, "commit", str) or entry(flags, "revision", str) or None,
        "variant": entry(flags, "variant", str) or None,
        "tokenizer_name": find_again(run_dir, tokenizer) if tokenizer else None,
    }


@contextlib.contextmanager
def reserved(output_dir: str | Path) -> Iterator[None]:
    """Lock a run's folder against other runs; the system releases the lock when the process ends.

    Raises:
        InputError: another run has locked it, or it cannot be written to; the folder is unchanged.
    """
    folder = files.given(output_dir, "--output_dir")
    files.check_writable(folder, "--output_dir")
    made = files.make_folder(folder)
    path = folder / LOCK
    lock = _open_locked(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows cannot remove an open file
            path.unlink()  # while it is locked, as another process may be waiting for it
        os.close(lock)
        with contextlib.suppress(OSError):
            if sys.platform == "win32":
                path.unlink()
        files.remove_empty(made)


def _open_locked(path: Path) -> int:
    """Open and lock a file. Raises InputError if another process has locked it."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(handle)
            # its previous owner may have removed it, and another process created a new one
            if os.path.exists(path) and os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        except BlockingIOError:
            os.close(handle)
            raise InputError(
                f"--output_dir {path.parent} is in use by another run; wait until it ends, or give another folder"
            ) from None
        os.close(handle)


def _lock(handle: int) -> None:
    """Lock an open file or raise BlockingIOError; does nothing on file systems without locks."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK):
            raise BlockingIOError from error
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
            raise


def check_output_dir(
    output_dir: str | Path,
    train_data_dir: str | Path,
    logging_dir: str,
    placeholder_token: str,
    *,
    resumed: bool,
) -> None:
    """Make sure that a run overwrites nothing that the user made.

    Raises:
        InputError: the folder contains another run, or the photos; a link leads out of it; or it cannot be
            written to.
    """
    folder = files.given(output_dir, "--output_dir")
    files.check_writable(folder, "--output_dir")
    if folder.resolve() == Path(train_data_dir).resolve():
        raise InputError(f"--output_dir {folder} is the folder of the photos; give another one")
    for path in written_in_place(folder, logging_dir):
        if not Path(os.path.realpath(path)).is_relative_to(folder.resolve()):
            raise InputError(
                f"--output_dir {folder}: {path} is a link that leads outside; remove it, or give another folder"
            )
    held = [folder / RECORD, folder / PIPELINE, *folder.glob(f"{EMBEDDING}*")]
    held += folder.glob(f"{SHEETS}*.png")
    held = [path for path in [*held, *checkpoints.list_checkpoints(folder)] if path.exists()]
    if not held:
        return
    if not resumed:
        raise InputError(
            f"--output_dir {folder} already contains a run ({held[0].name}); give another folder, or "
            f"--resume_from_checkpoint latest to continue that run"
        )
    flags = entry(read_record(folder), "flags", dict)
    word = entry(flags, "placeholder_token", str) or placeholder_token
    if word != placeholder_token:
        raise InputError(
            f"--output_dir {folder} contains a run for {word!r}, but this one is for {placeholder_token!r}; "
            f"give another folder"
        )


def written_in_place(folder: Path, logging_dir: str) -> Iterator[Path]:
    """What other libraries write into a run's folder; unlike `files.replace_file`, they follow links."""
    yield from (folder / logging_dir, folder / PIPELINE)
    for part in pretrained.PARTS:
        yield from (folder / part, *(folder / part).glob("*"))


def find_checkpoint(
    resume_from_checkpoint: str | None, output_dir: str | Path
) -> checkpoints.RunState | None:
    """The state to resume from; None to start from the beginning, as `latest` does without a checkpoint.

    Raises:
        InputError: the named checkpoint is missing or damaged; or `latest` would undo a word that was learned
            after the newest complete checkpoint, or without any.
    """
    folder = Path(output_dir)
    if resume_from_checkpoint is None:
        return None
    if resume_from_checkpoint != "latest":
        path = files.given(resume_from_checkpoint, "--resume_from_checkpoint")
        if path.name == str(path) and not path.exists():  # a bare name, as in diffusers' script
            path = folder / path.name
        return checkpoints.load(path)
    state = checkpoints.load_latest(folder)
    if state is None and any(path.name != LOCK for path in folder.glob("*")):
        logger.warning("no complete checkpoint in %s: starting from the beginning", folder)
    step = state.step if state else 0
    word, steps = _finished_word(folder)
    if word is None or (state is not None and step >= steps):
        return state
    later = f" later than checkpoint-{step}" if state else ""
    advice = f", or --resume_from_checkpoint checkpoint-{step} to go back to it" if state else ""
    raise InputError(
        f"--output_dir {folder} contains a learned word ({word}) but no complete checkpoint{later} to resume from, "
        f"and starting over would replace the word; give another --output_dir{advice}"
    )


def _finished_word(folder: Path) -> tuple[str | None, int]:
    """The file of the word that a run left here, and its steps; an intermediate word counts if it is readable."""
    record = read_record(folder)
    for path in (folder / name for name in embeddings.FILE_NAMES):
        if path.exists():
            status = record.get("status")
            if status in (None, "running"):  # from a session before the interrupted one
                return path.name, _steps_of(path)
            return path.name, entry(record, "steps", int) if status == "finished" else 0
    if record.get("status") == "finished":
        return RECORD, entry(record, "steps", int)
    for path in folder.glob(f"{EMBEDDING}-steps-*"):
        with contextlib.suppress(InputError):
            embeddings.read(path)
            return path.name, 0
    return None, 0


def _steps_of(path: Path) -> int:
    """The number of steps that a word's file states; 0 if it states none."""
    try:
        steps = embeddings.read(path).metadata.get("steps", "")
    except InputError:
        return 0
    return int(steps) if steps.isdecimal() else 0


def keep_earlier(folder: str | Path, steps: int) -> None:
    """Before writing a word of `steps` steps, copy one of another number of steps to `…-steps-N`.

    Raises:
        InputError: it cannot be copied.
    """
    for path in (Path(folder) / name for name in embeddings.FILE_NAMES):
        there = _steps_of(path) if path.is_file() else 0
        kept = path.with_name(f"{EMBEDDING}-steps-{there}{path.suffix}")
        if there not in (0, steps) and not kept.exists():
            files.write(kept, files.read_bytes(path))
