"""One Chromium for all pages of a file."""

from __future__ import annotations

import pytest
from lab import ARGUMENTS, ARTIFACTS, chromium


@pytest.fixture(scope="session", autouse=True)
def artifacts():
    """The folder of the screenshots; `make browser` empties it before."""
    ARTIFACTS.mkdir(parents=True, exist_ok=True)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="make setup installs it")
    with playwright.sync_playwright() as started:
        program = started.chromium.launch(executable_path=chromium(), args=ARGUMENTS)
        yield program
        program.close()
