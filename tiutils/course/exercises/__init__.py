"""The checks behind the notebooks' exercises, a module for each notebook.

Each check returns one line that begins with "not yet", "not quite" or "right", and raises nothing,
so that a notebook runs to its end whatever was answered.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

NOT_YET = "not yet: replace the ... by your answer, then run the cell again"


def check_cases(
    function: Callable[[Any], Any], cases: Iterable[tuple[Any, Any, str]]
) -> str | None:
    """Try a reader's function on cases (argument, expected, reason); the first complaint, or None."""
    for argument, expected, reason in cases:
        try:
            answer = function(copy.deepcopy(argument))
        except Exception as error:  # a reader's function may raise anything
            return f"not quite: your function raised {type(error).__name__}: {error}"
        if answer is ... or answer is None:
            return NOT_YET
        if isinstance(answer, bool) or answer != expected:
            return f"not quite: for {argument} it gave {answer!r}, expected {expected}: {reason}"
    return None
