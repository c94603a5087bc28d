"""stdout and stderr that never interrupt the work, whatever the console, with a closed pipe, or on a full disk."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Any

# a reader that left (on Windows EINVAL), a terminal that was closed
GONE = (errno.EPIPE, errno.EINVAL, errno.EIO)


class Guarded:
    """A stream that discards everything once it can no longer be written to, and keeps the reason."""

    def __init__(self, stream: Any):
        self.stream = stream
        self.error: OSError | None = None if stream is not None else OSError(errno.EPIPE, "closed")
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # spells out what the console cannot show

    def write(self, text: str) -> int:
        """Write, if that is still possible."""
        self._attempt("write", text)
        return len(text)

    def flush(self) -> None:
        """Flush, if that is still possible."""
        self._attempt("flush")

    def _attempt(self, what: str, *arguments: str) -> None:
        if self.error is not None:
            return
        try:
            getattr(self.stream, what)(*arguments)
        except OSError as error:
            self.error = error
            self._let_go()

    def _let_go(self) -> None:
        """Redirect what is still buffered to nowhere, since Python would complain about it at exit."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def guarded() -> Iterator[tuple[Guarded, Guarded]]:
    """Guard stdout and stderr, and flush them at the end, so that an error is noticed before Python exits."""
    before = sys.stdout, sys.stderr
    streams = Guarded(sys.stdout), Guarded(sys.stderr)
    sys.stdout, sys.stderr = streams
    try:
        yield streams
    finally:
        for stream in streams:
            stream.flush()
        sys.stdout, sys.stderr = before
