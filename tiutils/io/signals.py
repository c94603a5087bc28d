"""Signals that ask a program to end: Ctrl-C, a cluster's or a service manager's, a closed terminal."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any]
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGBREAK")  # not every system has all of them


@contextlib.contextmanager
def handled(handler: Handler) -> Iterator[dict[int, Any]]:
    """Install one handler for all of them; yield the previous handlers and restore them at the end.

    Signals that are ignored stay ignored, such as SIGHUP under `nohup`.
    """
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():  # others may not set handlers
        for number in [getattr(signal, name) for name in NAMES if hasattr(signal, name)]:
            found = signal.getsignal(number)
            if found is signal.SIG_IGN and number != signal.SIGINT:
                continue
            before[number] = found if found is not None else signal.SIG_DFL
            signal.signal(number, handler)
    try:
        yield before
    finally:
        for number, found in before.items():
            signal.signal(number, found)


def interrupt(number: int, frame: FrameType | None) -> None:
    """A handler that ends a command as Ctrl-C does."""
    raise KeyboardInterrupt
