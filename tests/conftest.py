"""Fixtures that every test file shares: a model small enough to train in milliseconds, and five photos."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may depend on the Hub
os.environ.setdefault("OMP_NUM_THREADS", "1")  # models this small are slower on several threads

from small_model import draw_photo, save_small_model

# the same examples in every run, so that a failure means a change; `make fuzz` looks for new ones
hypothesis.settings.register_profile("steady", derandomize=True)
hypothesis.settings.load_profile("steady")


@pytest.fixture(scope="session")
def small_model(tmp_path_factory) -> Path:
    """A Stable Diffusion model with about 100,000 random weights, 32 px, in the folder layout of SD 1.5."""
    return save_small_model(tmp_path_factory.mktemp("models") / "small-sd")


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """A folder with five generated photos of 48 × 48 pixels."""
    folder = tmp_path_factory.mktemp("photos")
    for index in range(5):
        draw_photo(index).save(folder / f"photo-{index}.png")
    return folder
