"""What the first cell of every notebook calls: install what is missing, and say what is available.

It runs before anything is installed, so at the top it imports only the standard library.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec

NEEDED = (
    "torch", "accelerate", "bitsandbytes", "diffusers", "ipywidgets", "matplotlib", "psutil", "safetensors",
    "transformers",
)  # fmt: skip
FOR_JAX = ("jax", "flax", "optax")


def start() -> None:
    """Install what is missing, silence the libraries, and print versions, device, and memory.

    A line about a problem ends with what to change.
    """
    install(NEEDED)
    from tiutils.cli import doctor, quiet_libraries

    quiet_libraries()
    for name in ("torch", "diffusers", "transformers"):
        print(f"{name:14}{doctor.installed_version(name)}")
    for finding in doctor.device_and_memory():
        print(f"{finding.topic:14}{finding.found}  {finding.change}".rstrip())


def install(needed: Sequence[str]) -> None:
    """Install the missing packages, and print their names; nothing that is installed is replaced."""
    if missing := missing_of(needed):
        print("installing", ", ".join(missing), "…")
        subprocess.run([*pip_install(needed, missing), "--quiet"], check=True)


def missing_of(needed: Sequence[str]) -> list[str]:
    """Those that cannot be imported."""
    return [name for name in needed if find_spec(name) is None]


def pip_install(needed: Sequence[str], missing: Sequence[str]) -> list[str]:
    """The command that installs the missing ones; it pins the others, so that they stay as they are."""
    there = [f"{name}=={version(name)}" for name in needed if name not in missing]
    return [sys.executable, "-m", "pip", "install", *there, *missing]
