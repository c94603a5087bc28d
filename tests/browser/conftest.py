"""One Chromium for all pages of a file."""

from __future__ import annotations

import pytest
from lab import ARGUMENTS, chromium


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="make setup installs it")
    with playwright.sync_playwright() as started:
        program = started.chromium.launch(executable_path=chromium(), args=ARGUMENTS)
        yield program
        program.close()
