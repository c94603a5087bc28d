"""The signals that ask a program to end: Ctrl-C, a cluster's or a service's, a terminal that is closed."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any]
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGBREAK")  # each where the system has it


@contextlib.contextmanager
def handled(handler: Handler) -> Iterator[dict[int, Any]]:
    """Give all of them one handler; yields the handlers of before, and puts them back at the end.

    `nohup` has a terminal's end ignored, and that stays so.
    """
    before: dict[int, Any] = {}
    # only the main thread of a program may say what its signals do
    if threading.current_thread() is threading.main_thread():
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
