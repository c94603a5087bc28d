"""`tiutils doctor`: what is installed, what fits on this machine, and what to change."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

GIB = 2**30
LEAST_PYTHON = (3, 11)
OPTIONAL = {"bitsandbytes": "for --use_8bit_adam", "xformers": "memory-efficient attention"}
SECONDS_FOR_THE_HUB = 5.0


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        topic: what was checked, in a word or two.
        found: what was found.
        change: what to do about it; empty if all is well.
        fatal: whether training cannot run before that is done.
    """

    topic: str
    found: str
    change: str = ""
    fatal: bool = False


def diagnose() -> list[Finding]:
    """Run all checks; takes seconds, and about 15 at most when the network hangs. Raises nothing."""
    findings = [python_version(), *package_versions()]
    broken = import_all("torch", "diffusers", "transformers", "accelerate")
    if broken:
        return [*findings, broken, disk_space(Path.cwd())]
    return [*findings, *device_and_memory(), disk_space(Path.cwd()), *model_and_hub()]


def can_train(findings: list[Finding]) -> bool:
    """Whether nothing fatal was found."""
    return not any(finding.fatal for finding in findings)


def main() -> int:
    """Print one line for each finding; 0 if training can run, else 1."""
    findings = diagnose()
    width = max(len(finding.topic) for finding in findings)
    for finding in findings:
        print(f"{finding.topic:<{width}}  {finding.found}")
    problems = [finding for finding in findings if finding.change]
    print()
    for finding in problems:
        print(
            f"{'must change' if finding.fatal else 'could change'}: {finding.topic}: {finding.change}"
        )
    if not can_train(findings):
        print("Training cannot run yet.")
        return 1
    print("Training can run.")
    return 0


def python_version() -> Finding:
    """The interpreter's version, compared with the lowest one that is supported."""
    found = f"{platform.python_version()} ({sys.executable})"
    if sys.version_info[:2] >= LEAST_PYTHON:
        return Finding("python", found)
    least = ".".join(map(str, LEAST_PYTHON))
    return Finding("python", found, f"use Python {least} or newer", fatal=True)


def package_versions() -> Iterator[Finding]:
    """Installed versions, compared with the lowest ones that tiutils' own metadata allows."""
    try:
        requirements = [
            line for line in metadata.requires("tiutils") or [] if "extra ==" not in line
        ]
    except metadata.PackageNotFoundError:
        change = "not installed as a package; in the repository's folder run: pip install -e ."
        yield Finding("tiutils", "runs from its files", change)
        names = "accelerate diffusers numpy packaging pillow safetensors torch transformers"
        requirements = names.split()
    for requirement in sorted(requirements):
        yield package_version(requirement)
    for name, purpose in OPTIONAL.items():
        version = installed_version(name)
        yield Finding(name, version or f"not installed (optional, {purpose})")


def package_version(requirement: str) -> Finding:
    """A package's version, compared with a requirement such as `torch>=2.9`."""
    required = Requirement(requirement)
    version = installed_version(required.name)
    change = f"run: pip install '{requirement}'"
    if version is None:
        return Finding(required.name, "not installed", change, fatal=True)
    if not required.specifier.contains(version, prereleases=True):
        found = f"{version}; {required.specifier} is needed"
        return Finding(required.name, found, change, fatal=True)
    return Finding(required.name, version)


def installed_version(name: str) -> str | None:
    """A package's version, without importing it; None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def import_all(*names: str) -> Finding | None:
    """None if the packages can be imported together, otherwise the first failure."""
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # a broken installation can raise anything
            said = str(error).strip().splitlines() or [type(error).__name__]
            change = "install versions that work together: pip install -c constraints.txt -e ."
            return Finding(name, f"cannot be imported: {said[0]}", change, fatal=True)
    return None


def device_and_memory() -> Iterator[Finding]:
    """The GPU and its memory, or the CPU's cores; then the machine's own memory."""
    import torch

    if torch.cuda.is_available():
        from tiutils.config import TrainingConfig
        from tiutils.runs import memory

        free, total = memory.free_and_total(torch.device("cuda"))
        needed = memory.predicted(TrainingConfig()).peak_bytes / (1 - memory.MARGIN)
        change = ""
        if free < needed:
            change = f"for SD 1.5 add --fit: without it a run takes about {needed / GIB:.1f} GiB"
        found = f"{torch.cuda.get_device_name()}, {free / GIB:.1f} of {total / GIB:.1f} GiB free"
        yield Finding("device", found, change)
    else:
        change = ""
        if shutil.which("nvidia-smi"):
            change = "PyTorch sees no GPU; install a CUDA build of it: https://pytorch.org/get-started/locally"
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        found = str(accelerator) if accelerator else f"CPU, {usable_cores()} cores"
        yield Finding("device", found, change)
    ram = machine_memory()
    if ram:
        change = (
            "" if ram >= 4 * GIB else "the bundled model needs about 2 GiB; close other programs"
        )
        yield Finding("memory", f"{ram / GIB:.1f} GiB", change)


def usable_cores() -> int:
    """CPU cores that this process may use, which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine_memory() -> int | None:
    """Bytes of RAM; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def disk_space(folder: Path) -> Finding:
    """Free space in the folder where runs are written. A run needs kilobytes, a download of SD 1.5 about 4 GiB."""
    free = shutil.disk_usage(folder).free
    found = f"{free / GIB:.1f} GiB free at {folder}"
    if free >= 5 * GIB:
        return Finding("disk", found)
    if free >= GIB:
        return Finding("disk", found, "the bundled model fits; SD 1.5 needs about 5 GiB free")
    return Finding("disk", found, "free at least 1 GiB", fatal=free < GIB // 16)


def model_and_hub() -> Iterator[Finding]:
    """Whether the Hub answers, whether the bundled model exists, and which model a run would use."""
    import torch

    from tiutils.io import hub, pretrained

    def default_model() -> str:
        # as `models.default_model`, but importing that module takes seconds
        return pretrained.default_model(accelerated=torch.accelerator.is_available())

    bundled = (pretrained.BUNDLED_MODEL / "model_index.json").is_file()
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    online = within(SECONDS_FOR_THE_HUB, lambda: hub.answers(f"models/{pretrained.DEFAULT_MODEL}"))
    if online:
        yield Finding("hub", "reached")
    else:
        found = "switched off by HF_HUB_OFFLINE" if offline else "not reached"
        yield Finding("hub", f"{found}: only the bundled model and local folders can be used")
    # asks the Hub once more: an answer that came too late counts as none
    chosen = within(SECONDS_FOR_THE_HUB, default_model) or str(pretrained.BUNDLED_MODEL)
    yield Finding(
        "bundled model",
        str(pretrained.BUNDLED_MODEL) if bundled else f"not found at {pretrained.BUNDLED_MODEL}",
        "" if bundled else "clone the whole repository; the model is in data/tiny-sd",
        fatal=not bundled and chosen == str(pretrained.BUNDLED_MODEL),
    )
    yield Finding("model", f"{chosen} (unless --pretrained_model_name_or_path says otherwise)")


def within(seconds: float, ask: Callable[[], Any]) -> Any | None:
    """What `ask()` returns; None if it fails or takes longer, as looking up a host name may."""
    answers: list[Any] = []

    def worker() -> None:
        try:
            answers.append(ask())
        except Exception:  # of any kind: there is no answer
            return

    thread = threading.Thread(target=worker, daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else None


if __name__ == "__main__":
    sys.exit(main())
