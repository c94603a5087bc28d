"""A run's folder: the names of its files, run.json, and that nothing the user made is overwritten."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tiutils.errors import InputError
from tiutils.io import checkpoints, files, pretrained

RECORD = "run.json"
EMBEDDING = "learned_embeds"  # the learned rows; before -steps-N and the suffix
SHEETS = "validation-steps-"  # pictures of the run, never of the photos; before N.png
PIPELINE = "model_index.json"  # of the whole model, with --save_as_full_pipeline


def read_record(output_dir: str | Path) -> dict[str, Any]:
    """run.json of a folder; empty if there is none or it is damaged."""
    try:
        record = json.loads((Path(output_dir) / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def update_record(output_dir: str | Path, entries: dict[str, Any]) -> None:
    """Set entries of run.json, keeping the others.

    Raises:
        InputError: it cannot be written.
    """
    path = Path(output_dir) / RECORD
    record = read_record(output_dir) | entries
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.replace_file(path, text.encode())
    except OSError as error:
        raise InputError(
            f"could not write {path} ({error.strerror or error}); free some space, or give another "
            f"--output_dir"
        ) from error


def check_output_dir(
    output_dir: str | Path,
    train_data_dir: str | Path,
    logging_dir: str,
    placeholder_token: str,
    *,
    resumed: bool,
) -> None:
    """Nothing the user made is overwritten: a folder with a run in it is left alone.

    Raises:
        InputError: the folder holds a run, and this one is not its continuation; or it holds the
            photos, among which the run's pictures would be; or it cannot be written to.
    """
    folder = Path(output_dir)
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise InputError(f"--output_dir {folder}: {there} is a file; give a folder")
    if not os.access(there, os.W_OK):
        raise InputError(f"--output_dir {folder}: {there} is not writable; give another folder")
    if folder.resolve() == Path(train_data_dir).resolve():
        raise InputError(f"--output_dir {folder} is the folder of the photos; give another one")
    for path in written_in_place(folder, logging_dir):
        if not Path(os.path.realpath(path)).is_relative_to(folder.resolve()):
            raise InputError(
                f"--output_dir {folder}: {path} is a link that leads out of it; remove the link, or give another folder"
            )
    held = [folder / RECORD, folder / PIPELINE, *folder.glob(f"{EMBEDDING}*")]
    held = [path for path in [*held, *checkpoints.list_checkpoints(folder)] if path.exists()]
    if not held:
        return
    if not resumed:
        raise InputError(
            f"--output_dir {folder} already holds a run ({held[0].name}); give another folder, or "
            f"--resume_from_checkpoint latest to go on with that run"
        )
    word = read_record(folder).get("flags", {}).get("placeholder_token", placeholder_token)
    if word != placeholder_token:
        raise InputError(
            f"--output_dir {folder} holds a run of {word!r}, this one is of "
            f"{placeholder_token!r}; give another folder"
        )


def written_in_place(folder: Path, logging_dir: str) -> Iterator[Path]:
    """What other libraries write into a run's folder: through links, unlike `files.replace_file`."""
    yield from (folder / logging_dir, folder / PIPELINE)
    for part in (*pretrained.PARTS, "scheduler"):
        yield from (folder / part, *(folder / part).glob("*"))
