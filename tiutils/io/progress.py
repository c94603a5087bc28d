"""Progress on stderr: a bar on one line in a terminal, an occasional line in a log file."""

from __future__ import annotations

import contextlib
import contextvars
import sys
from collections.abc import Iterator
from typing import Any

from tqdm import std
from tqdm.auto import tqdm

SECONDS_BETWEEN_LINES = 10.0
_silent = contextvars.ContextVar("silent", default=False)


@contextlib.contextmanager
def silence(silent: bool = True) -> Iterator[None]:
    """Show no progress inside, as `--quiet` asks."""
    token = _silent.set(silent)
    try:
        yield
    finally:
        _silent.reset(token)


def say(line: str) -> None:
    """Print a line on stderr before something slow whose progress cannot be counted; nothing when silent."""
    if not _silent.get() and sys.stderr is not None:
        tqdm.write(f"{line} ...", file=sys.stderr)
        sys.stderr.flush()


@contextlib.contextmanager
def over_network(line: str) -> Iterator[None]:
    """Announce a download; hide the Hub client's own bars where they would fill a log file."""
    from huggingface_hub import constants, utils

    if not constants.HF_HUB_OFFLINE:
        say(line)
    is_log = not (_in_notebook() or _in_terminal())
    hides = (is_log or _silent.get()) and not utils.are_progress_bars_disabled()
    if hides:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        if hides:
            utils.enable_progress_bars()


def bar(total: int, what: str, unit: str, *, initial: int = 0, hidden: bool = False) -> Any:
    """A tqdm progress bar.

    Args:
        total: the number of units.
        what: what is being done, such as "learning".
        unit: such as "step".
        initial: the number of units done before.
        hidden: show nothing, as in all but one of several processes.
    """
    options: dict[str, Any] = {"total": total, "desc": what, "unit": unit, "initial": initial}
    options["disable"] = hidden or _silent.get() or sys.stderr is None
    if _in_notebook():
        return tqdm(**options)
    if _in_terminal():
        return std.tqdm(**options, dynamic_ncols=True)
    wait = SECONDS_BETWEEN_LINES
    options |= {"file": _Lines(sys.stderr), "mininterval": wait, "maxinterval": wait}
    return std.tqdm(**options, miniters=1, ncols=100)


def _in_terminal() -> bool:
    return bool(sys.stderr and sys.stderr.isatty())


def _in_notebook() -> bool:
    """Whether tqdm shows widgets."""
    return any(base.__name__ == "tqdm_notebook" for base in tqdm.__mro__)


class _Lines:
    """A stream on which each new state of a bar becomes a line of its own."""

    def __init__(self, stream: Any):
        self.stream, self.last = stream, ""
        self.encoding = getattr(stream, "encoding", "ascii")

    def write(self, text: str) -> None:
        """Write a state, unless it is the same as the last one."""
        text = text.strip()
        if text and text != self.last:
            self.stream.write(f"{text}\n")
            self.last = text

    def flush(self) -> None:
        """Flush the underlying stream."""
        self.stream.flush()
