"""Any console, a pipe that is closed early, a disk that is full: the work is done all the same."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

from tiutils.cli import console


def test_what_a_console_cannot_show_is_spelled_out():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="cp1252")
    guard = console.Guarded(stream)
    print("猫 ↓ \udcf6", file=guard)
    guard.flush()
    assert raw.getvalue().strip() == b"\\u732b \\u2193 \\udcf6"


def test_a_closed_pipe_ends_nothing():
    reader, writer = os.pipe()
    os.close(reader)
    guard = console.Guarded(os.fdopen(writer, "w"))
    for _ in range(3):
        print("a", file=guard, flush=True)
    assert isinstance(guard.error, BrokenPipeError)
    guard.stream.close()  # what was buffered went elsewhere


def test_no_stream_at_all():
    print("a", file=console.Guarded(None), flush=True)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "tiutils", "inspect", "data/embeddings/wood-toy.safetensors"],
            stdout=full, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == "tiutils: could not print (No space left on device)"
