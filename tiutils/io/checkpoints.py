"""Save and restore a run in a few kilobytes: atomically, without pickle or torch.

A checkpoint is a folder `checkpoint-<step>` with one file, `state.safetensors`: the tensors, and in its metadata the
step, the scalars as JSON, and a sha256 of everything. The folder is written under a hidden name and renamed once
complete, so that a kill never leaves a partial checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from tiutils.errors import InputError
from tiutils.io import files, tensors

logger = logging.getLogger("tiutils")

FORMAT_VERSION = "1"
STATE_FILE = "state.safetensors"


class CheckpointError(InputError):
    """A checkpoint that cannot be written or read."""


@dataclass(frozen=True, eq=False)
class RunState:
    """Everything that the next step depends on besides the configuration and the frozen model.

    Attributes:
        step: the number of optimizer steps done.
        tensors: arrays by name, of any NumPy dtype and shape; "rows", "mean_rows", and "best_rows" are float32
            (n, hidden), the optimizer's state has names of the form "optimizer.<name>".
        scalars: anything JSON can represent; floats are restored exactly, tuples as lists.
    """

    step: int
    tensors: dict[str, np.ndarray]
    scalars: dict[str, Any]


def save(output_dir: str | Path, state: RunState, *, limit: int | None = None) -> Path:
    """Write `output_dir/checkpoint-<step>` and return its path.

    With a `limit`, the oldest checkpoints beyond it are removed, once this one is complete.

    Raises:
        CheckpointError: the disk is full or not writable. Earlier checkpoints are unchanged, no
            temporary file is left, and the message names the newest complete checkpoint.
    """
    if limit is not None and limit < 1:
        raise InputError(
            f"the limit of {limit} checkpoints must be at least 1, or None for no limit"
        )
    output_dir = Path(output_dir)
    final = output_dir / f"checkpoint-{state.step}"
    data = _to_bytes(state)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(output_dir)
        _write(final, data)
    except OSError as error:
        raise CheckpointError(
            f"could not save {final.name} in {str(output_dir)!r} ({error.strerror or error}); "
            f"newest complete checkpoint: {_newest_complete(output_dir)}. "
            "Free some space or choose another folder, then resume"
        ) from error
    if limit is not None:
        _prune(output_dir, final, limit)
    return final


def load(path: str | Path) -> RunState:
    """Read one checkpoint folder.

    Raises:
        CheckpointError: it is missing, cut short, altered, or of another format version.
    """
    file = Path(path) / STATE_FILE
    if not os.path.isfile(file):
        raise CheckpointError(
            f"no checkpoint at {str(path)!r}: expected a folder with {STATE_FILE}"
        )
    try:
        with safetensors.safe_open(file, framework="np") as content:
            metadata = content.metadata() or {}
            version = metadata.get("tiutils_checkpoint")
            if version == FORMAT_VERSION:
                arrays = {name: content.get_tensor(name) for name in list(content.keys())}
                if metadata["sha256"] != _digest(metadata["step"], metadata["scalars"], arrays):
                    raise ValueError("its checksum does not match")
                return RunState(int(metadata["step"]), arrays, json.loads(metadata["scalars"]))
    except Exception as error:  # damaged files raise anything
        raise CheckpointError(
            f"{str(path)!r} is damaged or cut short ({error}): resume from another checkpoint"
        ) from None
    raise CheckpointError(
        f"{str(path)!r} has checkpoint format {version}, but this tiutils reads {FORMAT_VERSION}: "
        "use the version that wrote it, or start over"
    )


def check_state(state: RunState, token: str, shape: tuple[int, int], optimizer: str) -> None:
    """Refuse a run state that this run cannot continue from; needs no weights.

    Raises:
        InputError: it belongs to another word, another width or another optimizer.
    """
    expected = {"placeholder_token": token, "optimizer": optimizer, "rows of shape": shape}
    found = {**state.scalars, "rows of shape": tuple(state.tensors["rows"].shape)}
    for name, value in expected.items():
        if found.get(name) != value:
            raise InputError(
                f"the checkpoint of step {state.step} has {name} {found.get(name)!r}, but this run has {value!r}; "
                f"use the flags that the run was started with, or another --output_dir"
            )


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """The folders named `checkpoint-<step>`, complete or damaged, newest (highest step) first."""
    output_dir = Path(output_dir)
    try:
        names = os.listdir(output_dir)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise CheckpointError(f"cannot read {str(output_dir)!r} ({error.strerror})") from None
    matches = [re.fullmatch(r"checkpoint-(0|[1-9][0-9]{0,17})", name) for name in names]
    steps = sorted((int(match[1]) for match in matches if match), reverse=True)
    paths = [output_dir / f"checkpoint-{step}" for step in steps]
    return [path for path in paths if os.path.isdir(path)]


def load_latest(output_dir: str | Path) -> RunState | None:
    """The newest complete checkpoint, or None; warns of each damaged one that is skipped."""
    for path in list_checkpoints(output_dir):
        try:
            return load(path)
        except CheckpointError as error:
            logger.warning("skipped a checkpoint: %s", error)
    return None


def _newest_complete(output_dir: Path) -> str:
    for path in list_checkpoints(output_dir):
        with suppress(CheckpointError):
            load(path)
            return path.name
    return "none"


def _to_bytes(state: RunState) -> bytes:
    # np.ascontiguousarray would turn a 0-d array into a 1-d one
    arrays = {name: np.asarray(value, order="C") for name, value in state.tensors.items()}
    step, scalars = str(state.step), json.dumps(state.scalars)
    metadata = {"tiutils_checkpoint": FORMAT_VERSION, "step": step, "scalars": scalars}
    metadata["sha256"] = _digest(step, scalars, arrays)
    return tensors.to_bytes(arrays, metadata)


def _digest(step: str, scalars: str, tensors: dict[str, np.ndarray]) -> str:
    """The sha256 of everything that `load` returns: names, dtypes and shapes as well as bytes."""
    digest = hashlib.sha256(json.dumps([step, scalars]).encode())
    for name, value in sorted(tensors.items()):
        digest.update(json.dumps([name, str(value.dtype), value.shape]).encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def _write(final: Path, data: bytes) -> None:
    """Write a checkpoint atomically. Raises OSError, and then leaves nothing behind."""
    temporary = _temporary(final)
    try:
        temporary.mkdir()
        files.replace_file(temporary / STATE_FILE, data)
        if final.is_dir():
            # a folder cannot replace one that is not empty, and moving the old one away first would leave a moment
            # with neither; but a file can replace a file
            os.replace(temporary / STATE_FILE, final / STATE_FILE)
            files.sync_folder(final)
        else:
            os.rename(temporary, final)
        files.sync_folder(final.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # on success it is empty or gone


def _prune(output_dir: Path, newest: Path, limit: int) -> None:
    """Remove the oldest beyond `limit`, but never `newest`.

    Others may have higher steps, if the run was resumed from an earlier checkpoint than its last.
    """
    others = [path for path in list_checkpoints(output_dir) if path != newest]
    for path in others[limit - 1 :]:
        try:
            os.rename(path, _temporary(path))  # so a kill leaves no damaged one
            shutil.rmtree(_temporary(path))
        except OSError as error:
            logger.warning("could not remove the old %s (%s)", path, error.strerror or error)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _remove_leftovers(output_dir: Path) -> None:
    """Remove what a killed run did not finish writing or removing."""
    for path in output_dir.glob(".checkpoint-*.tmp"):
        shutil.rmtree(path, ignore_errors=True)
