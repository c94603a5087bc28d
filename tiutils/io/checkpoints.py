"""Save and restore a run: kilobytes, atomic, no pickle, no torch.

A checkpoint is a folder `checkpoint-<step>` with one file, `state.safetensors`: the tensors, and in
its metadata the step, the scalars as JSON and a sha256 over all of it. The folder is written under
a hidden name and renamed once it is whole: a kill at any moment leaves nothing half done in sight.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
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
    """All that the next step depends on, besides the configuration and the frozen model.

    Attributes:
        step: optimizer steps done so far.
        tensors: arrays by name, of any NumPy dtype and shape; "rows" and "best_rows" are float32
            (n, hidden), the optimizer's state stands under "optimizer.<name>".
        scalars: what JSON can hold; floats come back exactly, tuples come back as lists.
    """

    step: int
    tensors: dict[str, np.ndarray]
    scalars: dict[str, Any]


def save(output_dir: str | Path, state: RunState, *, limit: int | None = None) -> Path:
    """Write `output_dir/checkpoint-<step>` and return its path.

    With `limit`, that many are kept, this one among them; the oldest go only once this one stands.

    Raises:
        CheckpointError: the disk is full or not writable. The checkpoints of before are as they
            were, no temporary file is left, and the message names the newest whole one.
    """
    if limit is not None and limit < 1:
        raise InputError(f"a limit of {limit} checkpoints: expected at least 1, or none")
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
            f"newest whole checkpoint: {_newest_whole_name(output_dir)}. "
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
                    raise ValueError("its checksum differs")
                return RunState(int(metadata["step"]), arrays, json.loads(metadata["scalars"]))
    except Exception as error:  # damage shows as whatever the parser trips over first
        raise CheckpointError(
            f"{str(path)!r} is damaged or cut short ({error}): resume from another checkpoint"
        ) from None
    raise CheckpointError(
        f"{str(path)!r} has checkpoint format {version}, this tiutils reads {FORMAT_VERSION}: "
        "use the version that wrote it, or start anew"
    )


def check_state(state: RunState, token: str, shape: tuple[int, int], optimizer: str) -> None:
    """Refuse a run state that this run cannot go on from; needs no weights.

    Raises:
        InputError: it belongs to another word, another width or another optimizer.
    """
    expected = {
        "placeholder_token": token,
        "optimizer": optimizer,
        "rows of shape": shape,
    }
    found = {**state.scalars, "rows of shape": tuple(state.tensors["rows"].shape)}
    for name, value in expected.items():
        if found.get(name) != value:
            raise InputError(
                f"the checkpoint of step {state.step} has {name} {found.get(name)!r}, this run {value!r}; "
                f"use the flags the run was begun with, or another --output_dir"
            )


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """The folders named `checkpoint-<step>`, newest (highest step) first, whole or damaged."""
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
    """The newest whole checkpoint, or None; each damaged one on the way is warned about by name."""
    for _, found in _newest_first(output_dir):
        if isinstance(found, RunState):
            return found
        logger.warning("passed over a checkpoint: %s", found)
    return None


def _newest_first(output_dir: str | Path) -> Iterator[tuple[Path, RunState | CheckpointError]]:
    for path in list_checkpoints(output_dir):
        try:
            yield path, load(path)
        except CheckpointError as error:
            yield path, error


def _newest_whole_name(output_dir: Path) -> str:
    whole = (path for path, found in _newest_first(output_dir) if isinstance(found, RunState))
    return getattr(next(whole, None), "name", "none")


def _to_bytes(state: RunState) -> bytes:
    # np.ascontiguousarray would turn a 0-d array into a 1-d one
    arrays = {name: np.asarray(value, order="C") for name, value in state.tensors.items()}
    step, scalars = str(state.step), json.dumps(state.scalars)
    metadata = {"tiutils_checkpoint": FORMAT_VERSION, "step": step, "scalars": scalars}
    metadata["sha256"] = _digest(step, scalars, arrays)
    return tensors.to_bytes(arrays, metadata)


def _digest(step: str, scalars: str, tensors: dict[str, np.ndarray]) -> str:
    """The sha256 over everything that `load` returns: names, dtypes and shapes as well as bytes."""
    digest = hashlib.sha256(json.dumps([step, scalars]).encode())
    for name, value in sorted(tensors.items()):
        digest.update(json.dumps([name, str(value.dtype), value.shape]).encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def _write(final: Path, data: bytes) -> None:
    """Put a checkpoint in place in one move. Raises OSError, and then leaves nothing behind."""
    temporary = _temporary(final)
    try:
        temporary.mkdir()
        files.replace_file(temporary / STATE_FILE, data)
        if final.is_dir():
            # A folder cannot be renamed over a full one, and moving the old aside first would leave
            # a moment with neither. A file can be renamed over a file.
            os.replace(temporary / STATE_FILE, final / STATE_FILE)
            files.sync_folder(final)
        else:
            os.rename(temporary, final)
        files.sync_folder(final.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # after a success it is empty or gone


def _prune(output_dir: Path, newest: Path, limit: int) -> None:
    """Remove the oldest beyond `limit`, never `newest`, though others may have higher steps.

    (They have, when a run was resumed from an earlier checkpoint than its last.)
    """
    others = [path for path in list_checkpoints(output_dir) if path != newest]
    for path in others[limit - 1 :]:
        try:
            os.rename(path, _temporary(path))  # a kill half-way leaves a leftover, no damaged one
            shutil.rmtree(_temporary(path))
        except OSError as error:
            logger.warning("could not remove the old %s (%s)", path, error.strerror or error)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _remove_leftovers(output_dir: Path) -> None:
    """Remove what a killed run had not finished writing, or removing."""
    for path in output_dir.glob(".checkpoint-*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def find_checkpoint(resume_from_checkpoint: str | None, output_dir: str | Path) -> RunState | None:
    """The state to go on from. `latest` with no whole checkpoint starts anew; a named one must exist.

    Raises:
        InputError: the named checkpoint is missing or damaged.
    """
    if resume_from_checkpoint is None:
        return None
    if resume_from_checkpoint == "latest":
        state = load_latest(output_dir)
        folder = Path(output_dir)
        left = [path for path in folder.glob("*") if not path.name.startswith(".run.")]
        if state is None and left:  # a new folder surprises nobody
            logger.warning("no whole checkpoint in %s: starting anew", output_dir)
        return state
    path = files.given(resume_from_checkpoint, "--resume_from_checkpoint")
    is_bare_name = path.name == str(path)  # as the diffusers script takes it
    if is_bare_name and not path.exists():
        path = Path(output_dir) / path.name
    return load(path)
