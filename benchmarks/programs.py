"""Run a program to its end and report its time and memory, for the benchmarks that compare programs."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run_measured(words: list[str], environment: dict[str, str], device: str) -> dict[str, float]:
    """Run a command; the system reports a process's times to whoever waits for it.

    Returns:
        elapsed `seconds`, `cpu_seconds` of all its threads, and `peak_bytes`: of its memory, or with a
        GPU of the device's, as nvidia-smi reports it, less what was in use before.
    """
    with tempfile.TemporaryFile() as log:
        before, start = device_bytes() if device == "gpu" else 0, time.perf_counter()
        process = subprocess.Popen(words, env=environment, cwd=ROOT, stdout=log, stderr=log)
        ended, seen = threading.Event(), [0]

        def watch() -> None:
            while not ended.wait(0.1):
                seen.append(device_bytes() if device == "gpu" else host_bytes(process.pid))

        threading.Thread(target=watch, daemon=True).start()
        _, status, usage = os.wait4(process.pid, 0)
        ended.set()
        seconds, process.returncode = time.perf_counter() - start, os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            sys.exit(f"{' '.join(words)} failed:\n{log.read().decode(errors='replace')[-3000:]}")
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_bytes": max(seen) - before,
    }


def device_bytes() -> int:
    """Bytes in use on the first GPU."""
    query = ["nvidia-smi", "--id=0", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return int(subprocess.check_output(query, text=True)) * 2**20


def host_bytes(process: int) -> int:
    """The most memory that a process has used so far; what `wait` reports would include its parent's."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:  # it has just ended, or this is no Linux
        return 0
    peak = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(peak[0]) * 1024 if peak else 0


def machine() -> str:
    """The machine that measured, without its name."""
    names = [line.split(":")[1].strip() for line in _cpu_lines() if line.startswith("model name")]
    kind = names[0] if names else platform.machine()
    return f"{os.cpu_count()} cores of an {kind}"


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
