"""Measure everything that the pages claim about a GPU in one session: minutes, no network, failures are named.

    python -m benchmarks.gpu --out DIR [--minutes 8] [--diffusers-script FILE] [--stages NAME ...]
    python -m benchmarks.gpu --out DIR --thin        a rehearsal on a CPU, with thin shapes, in two minutes
    python -m benchmarks.gpu --tables DIR/gpu.json   writes the tables into the pages

The stages run in order of importance, each in a process of its own and with a share of the remaining time; what one
does not use goes to the later ones. Each writes DIR/NAME.json after every measurement, and DIR/gpu.json collects them.
FILE is `textual_inversion.py` of github.com/huggingface/diffusers. Compiling starts at once and runs beside the stages
that measure no time; it is suspended during the others.
"""

# ruff: noqa: E402  the environment must be set before PyTorch is imported
from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
import traceback

BEGUN = time.time()  # importing PyTorch is part of the time

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault(
    "PYTORCH_NVML_BASED_CUDA_CHECK", "1"
)  # asking for a GPU must not initialize CUDA before a fork
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # needed for bit-exact repetition
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import psutil

from benchmarks import gpu_stages, gpu_tables
from benchmarks.gpu_steps import Setting

ROOT = Path(__file__).resolve().parent.parent
NO_CUDA_AFTER_FORK = 77
PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "jax", "numpy")


@dataclass(frozen=True)
class Stage:
    """What to run, its share in seconds of eight minutes, whether it measures time, and the least time it needs."""

    work: Callable[[gpu_stages.Notes], None]
    seconds: float
    is_timed: bool = True
    least: float = 8


# What each took on an H200 whose host launches kernels slowly, with 4.3 minutes for all of them, and what was
# skipped: correctness 33 s (14 of them the deterministic runs; skipped: the same in fp16, float32 on the CPU);
# speed 59 (batch 1 and 4: 45, of which the script's start 10; skipped: attention kernels, profile, joined
# projections); captured 26 (skipped: rounds at batch 4); memory 38 (skipped: caps of 8 GiB and less); jax 49
# (JAX did not finish in 31); whole 25 (ended at step 211 of 500); compile until the end (145 s for the repeated
# blocks, suspended for most of them; skipped: the whole U-Net).
STAGES = {
    "correctness": Stage(gpu_stages.correctness, 60, is_timed=False),
    "speed": Stage(gpu_stages.speed, 110),
    "captured": Stage(gpu_stages.captured, 45),
    "memory": Stage(gpu_stages.memory_rows, 110, is_timed=False),
    "jax": Stage(gpu_stages.jax, 80),
    "whole": Stage(gpu_stages.whole, 65),
    "sdxl": Stage(gpu_stages.sdxl, 30, is_timed=False),
    "compile": Stage(gpu_stages.compiling, 10),
}
BESIDE = "compile"  # started first, ended last


def main(arguments: list[str] | None = None) -> int:
    """Measure, or write the tables; 1 if a stage failed or was skipped."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    if options.tables:
        gpu_tables.write(json.loads(options.tables.read_text()))
        return 0
    if options.stage:
        return child(options.stage, options, options.until)
    options.out.mkdir(parents=True, exist_ok=True)
    begun = BEGUN if arguments is None else time.time()
    report = {
        "command": "python -m benchmarks.gpu",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "card": card(options),
        "thin": options.thin,
        "minutes": options.minutes,
        "versions": {name: version(name) for name in PACKAGES},
        "stages": {},
    }
    with tempfile.TemporaryDirectory() as work:
        options.work = Path(work)
        Driver(options, report, begun + 60 * options.minutes).run()
    report["seconds"] = round(time.time() - begun, 1)
    save(options, report)
    print(gpu_tables.everything(report))
    for name, found in report["stages"].items():
        print(f"{name}: {found['state']}, {found.get('stage_seconds', 0)} s", file=sys.stderr)
    return int(any(found["state"] != "done" for found in report["stages"].values()))


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("--out", type=Path, default=Path("build", "benchmark-gpu"))
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--thin", action="store_true", help="on a CPU, to test this program")
    parser.add_argument("--stages", nargs="*", choices=STAGES, default=list(STAGES))
    parser.add_argument("--diffusers-script", type=Path, help="their textual_inversion.py")
    parser.add_argument("--tables", type=Path, help="only write these results into the pages")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def card(options: argparse.Namespace) -> str:
    """The GPU's name and driver; a CPU has no name here."""
    if options.thin:
        return "no GPU: a rehearsal on a CPU"
    query = ["nvidia-smi", "--id=0", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        name, driver = subprocess.check_output(query, text=True).strip().split(", ")
    except (OSError, ValueError, subprocess.SubprocessError):
        return "a GPU without a name"
    return f"{name}, driver {driver}"


def version(package: str) -> str | None:
    """The installed version."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def save(options: argparse.Namespace, report: dict[str, Any]) -> None:
    """Write gpu.json atomically."""
    half = options.out / "gpu.part"
    half.write_text(json.dumps(report, indent=1) + "\n")
    os.replace(half, options.out / "gpu.json")


def child(name: str, options: argparse.Namespace, until: float) -> int:
    """What a stage's process does; returns its exit status."""
    notes = gpu_stages.Notes(
        options.out / f"{name}.json",
        Setting("cpu", "sd15-thin") if options.thin else Setting("cuda", "sd15"),
        until,
        options.diffusers_script,
        options.work,
    )
    if not options.thin:
        import torch

        try:
            torch.zeros(1, device="cuda")
        except Exception:
            traceback.print_exc()
            return NO_CUDA_AFTER_FORK
    notes.save()
    STAGES[name].work(notes)
    notes.save()
    return 0


class Process:
    """A running stage: a fork, in which everything is already imported, or a new interpreter."""

    can_fork = True

    def __init__(self, name: str, options: argparse.Namespace, until: float):
        self.name, self.options, self.until = name, options, until
        self.log = options.work / f"{name}.log"
        if Process.can_fork:
            context = multiprocessing.get_context("fork")
            self.process: Any = context.Process(target=self._forked, daemon=False)
            self.process.start()
        else:
            words = [sys.executable, "-m", "benchmarks.gpu", "--stage", name, "--until", str(until)]
            words += ["--out", str(options.out), "--work", str(options.work)]
            words += ["--minutes", str(options.minutes), *["--thin"] * options.thin]
            if options.diffusers_script:
                words += ["--diffusers-script", str(options.diffusers_script)]
            with open(self.log, "w") as log:
                self.process = subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=log)

    def _forked(self) -> None:
        with open(self.log, "w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        try:
            status = child(self.name, self.options, self.until)
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # skip the parent's exit handlers

    @property
    def status(self) -> int | None:
        """The exit status; None while it runs."""
        if isinstance(self.process, subprocess.Popen):
            return self.process.poll()
        return self.process.exitcode

    def wait(self, until: float) -> int | None:
        """The exit status, or None if it is still running after that time."""
        while self.status is None and time.time() < until:
            time.sleep(0.05)
        return self.status

    def tree(self) -> list[psutil.Process]:
        """The process and its descendants, the youngest first."""
        with contextlib.suppress(psutil.NoSuchProcess):
            mine = psutil.Process(self.process.pid)
            return [*reversed(mine.children(recursive=True)), mine]
        return []

    def each(self, act: Callable[[psutil.Process], object]) -> None:
        """Suspend, resume or kill all of them."""
        for one in self.tree():
            with contextlib.suppress(psutil.Error):
                act(one)

    def kill(self) -> None:
        """End all of them."""
        self.each(psutil.Process.kill)
        self.wait(time.time() + 5)


class Driver:
    """Runs the stages in order, within the time allowed."""

    def __init__(self, options: argparse.Namespace, report: dict[str, Any], until: float):
        self.options, self.report, self.until = options, report, until
        self.beside: Process | None = None
        self.rests: list[tuple[float, float]] = []

    def run(self) -> None:
        """Run all stages that were asked for."""
        names = [name for name in STAGES if name in self.options.stages]
        begun = time.time()
        if BESIDE in names and Process.can_fork:
            self.beside = Process(BESIDE, self.options, self.until - 3)
        for number, name in enumerate(names):
            rest = sum(STAGES[other].seconds for other in names[number:])
            limit = (self.until - time.time()) * STAGES[name].seconds / rest
            forked = self.beside is not None and self.beside.status != NO_CUDA_AFTER_FORK
            if name == BESIDE and forked:
                found = self.finish(begun)
            elif limit < STAGES[name].least:
                reason = f"{limit:.0f} seconds were left for it"
                found = {"state": "skipped: " + reason}
            else:
                with self.resting(STAGES[name].is_timed):
                    found = self.run_stage(name, limit)
                self.grant()
            self.report["stages"][name] = found
            save(self.options, self.report)
            print(f"{time.time() - begun:5.0f} s  {name}: {found['state']}", flush=True)

    def run_stage(self, name: str, limit: float) -> dict[str, Any]:
        """Run one stage, and end it when its time is up."""
        begun = time.time()
        process = Process(name, self.options, begun + limit)
        status = process.wait(begun + limit + 4)
        if status == NO_CUDA_AFTER_FORK and Process.can_fork:
            Process.can_fork = False
            process = Process(name, self.options, begun + limit)
            status = process.wait(begun + limit + 4)
        if status is None:
            process.kill()
        return self.result(process, status, begun)

    def result(self, process: Process, status: int | None, begun: float) -> dict[str, Any]:
        """What the stage has written, and how it ended."""
        path = self.options.out / f"{process.name}.json"
        found = json.loads(path.read_text()) if path.exists() else {}
        state = {0: "done", None: "ended: its time was over"}.get(status, "failed")
        if status != 0:
            log = process.log.read_text(errors="replace") if process.log.exists() else ""
            found["log"] = log[-1500:]
        if state == "failed":
            lines = found["log"].strip().splitlines() or [f"exit status {status}"]
            state = f"failed: {lines[-1][:300]}"
        found |= {"state": state, "stage_seconds": round(time.time() - begun, 1)}
        path.write_text(json.dumps(found, indent=1) + "\n")
        return found

    @contextlib.contextmanager
    def resting(self, is_timed: bool) -> Iterator[None]:
        """Suspend the background process while time is measured."""
        if not is_timed or self.beside is None:
            yield
            return
        self.beside.each(psutil.Process.suspend)
        start = time.time()
        try:
            yield
        finally:
            self.rests.append((start, time.time()))
            half = self.options.work / "rests.part"
            half.write_text(json.dumps(self.rests))
            os.replace(half, self.options.work / "rests.json")
            self.beside.each(psutil.Process.resume)

    def grant(self) -> None:
        """Give the device to the background process for a few seconds, if it asks."""
        time.sleep(0.1)
        ready, go = (gpu_stages.slot(self.options.work, name) for name in ("ready", "go"))
        if self.beside is None or self.beside.status is not None or not ready.exists():
            return
        go.touch()
        until = min(self.until, time.time() + 15)
        while ready.exists() and self.beside.status is None and time.time() < until:
            time.sleep(0.05)

    def finish(self, begun: float) -> dict[str, Any]:
        """Wait for the background process until the time is up."""
        assert self.beside is not None
        while self.beside.status is None and time.time() < self.until:
            self.grant()
        status = self.beside.status
        if status is None:
            self.beside.kill()
        return self.result(self.beside, status, begun)


if __name__ == "__main__":
    sys.exit(main())
