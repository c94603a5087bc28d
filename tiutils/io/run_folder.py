"""run.json: flags, versions, times, losses; all that is needed to know what made a folder's files."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import tiutils
from tiutils import embedding_files
from tiutils.concept import Concept
from tiutils.config import TrainingConfig
from tiutils.errors import InputError
from tiutils.progress import Watched


class Stopwatch:
    """Wall-clock seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """The time since the last call belongs to `stage`."""
        now = time.perf_counter()
        self.seconds[stage], self.last = round(now - self.last, 3), now


def public_flags(config: TrainingConfig) -> dict[str, Any]:
    """The settings as JSON has them, without the access token, which belongs in no file."""
    flags = {k: v for k, v in dataclasses.asdict(config).items() if k != "hub_token"}
    return {k: os.fspath(v) if isinstance(v, os.PathLike) else v for k, v in flags.items()}


def write_record(
    training: Watched,
    photos: Concept,
    clock: Stopwatch,
    status: str,
    steps: int,
    losses: Sequence[float | None] = (),
) -> None:
    """Write run.json: all that is needed to know what made these files, and to make them again.

    `losses` has an entry for each step from the first; null where it is not known or not finite.
    """
    record = {
        "status": status,
        "steps": steps,
        "total_steps": training.total_steps,
        "model": training.models.name,
        **training.machine(),
        "photos": [photo.path.name for photo in photos.photos],
        "skipped": {path.name: reason for path, reason in photos.skipped},
        "flags": public_flags(training.config),
        "versions": {"tiutils": tiutils.__version__, "python": platform.python_version()}
        | {name: metadata.version(name) for name in training.packages},
        "seconds": clock.seconds,
        "losses": [
            None if loss is None or not math.isfinite(loss) else round(loss, 6) for loss in losses
        ],
    }
    update_record(training.config.output_dir, record)


def read_record(output_dir: str | Path) -> dict[str, Any]:
    """run.json of a folder; empty if there is none or it is damaged."""
    try:
        record = json.loads((Path(output_dir) / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def update_record(output_dir: str | Path, entries: dict[str, Any]) -> None:
    """Set entries of run.json, keeping the others.

    Raises:
        InputError: it cannot be written.
    """
    path = Path(output_dir) / "run.json"
    record = read_record(output_dir) | entries
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        embedding_files.replace_file(path, text.encode())
    except OSError as error:
        raise InputError(
            f"could not write {path} ({error.strerror or error}); free some space, or give another "
            f"--output_dir"
        ) from error
