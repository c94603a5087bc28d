"""A JupyterLab on loopback and a headless Chromium that looks at it."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pages
import pytest

ARTIFACTS = pages.ROOT / "build" / "browser"
LOG = ARTIFACTS / f"server-{os.environ.get('PYTEST_XDIST_WORKER', 'only')}.log"  # a worker's
ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
# No news, no building of extensions; every cell in the page, also those out of sight.
SETTINGS = {
    "@jupyterlab/apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false}',
    "@jupyterlab/notebook-extension/tracker": '{"windowingMode": "none"}',
}


def chromium() -> str:
    """The program; without it the tests fail, and say what to install."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    pytest.fail(
        "no Chromium on this machine: install it (Debian, Ubuntu: `sudo apt-get install chromium`), "
        "then `make browser`"
    )


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def server(course: Path, home: Path, variables: dict[str, str]) -> Iterator[tuple[str, str]]:
    """JupyterLab over a folder: its address and its token, as long as the context lasts."""
    for name, text in SETTINGS.items():
        path = home / "settings" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    places = {
        "JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces", "HOME": "",
    }  # fmt: skip
    environment = {**os.environ, **{name: str(home / path) for name, path in places.items()}}
    # As after "Trust Notebook": otherwise JupyterLab shows stored widgets and links as mere text.
    notebooks = sorted((course / "notebooks").glob("*.ipynb"))
    subprocess.run(
        [sys.executable, "-m", "jupyter", "trust", *notebooks],
        env=environment, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    port, token = free_port(), secrets.token_hex(16)
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser",
        "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0",
        f"--ServerApp.root_dir={course}", f"--IdentityProvider.token={token}",
    ]  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    with LOG.open("w") as log:
        process = subprocess.Popen(
            command, env=environment | variables, stdout=log, stderr=log, cwd=course
        )
        try:
            wait_for(f"{address}/api/status?token={token}", process)
            yield address, token
        finally:
            process.terminate()  # the server ends its kernels
            process.wait(30)


def wait_for(url: str, process: subprocess.Popen, seconds: float = 120) -> None:
    """Return when the server answers."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            urllib.request.urlopen(url, timeout=5).close()
            return
        time.sleep(0.5)
    pytest.fail(f"JupyterLab did not start:\n{LOG.read_text()[-3000:]}")
