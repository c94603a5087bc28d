"""Other versions of libraries, in place of those installed; `make overlays` puts them under build/."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BUILD = Path(__file__).resolve().parent.parent / "build"
VARIABLES = {
    "transformers-4.57": "TIUTILS_TRANSFORMERS4",
    "colab": "TIUTILS_COLAB",
    "invokeai": "TIUTILS_INVOKEAI",
}


def overlay(name: str) -> Path:
    """The folder of one set of versions; without it a test is skipped, or fails in CI."""
    folder = Path(os.environ.get(VARIABLES[name]) or BUILD / name)
    if not (folder / "installed").is_file():
        message = f"{folder} is not there: run `make overlays` (or set {VARIABLES[name]})"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return folder


def run_under(name: str, code: str, *arguments: str) -> str:
    """The standard output of a Python program that runs with the overlay's versions."""
    environment = {**os.environ, "PYTHONPATH": str(overlay(name)), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
