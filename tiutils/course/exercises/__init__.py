"""Checks for the notebooks' exercises, one module per notebook.

Each check returns one line that begins with "not yet", "not quite", or "right". It never raises an exception, so that a
notebook runs to its end whatever the answer is.
"""

from __future__ import annotations

import copy
import operator
import re
from collections.abc import Callable, Iterable
from typing import Any

NOT_YET = "not yet: replace the ... by your answer, then run the cell again"


def attempt(function: Callable[..., Any], *arguments: Any) -> tuple[Any, str | None]:
    """Call a reader's function on copies of the arguments; return its answer, or None and the complaint."""
    try:
        answer = function(*copy.deepcopy(arguments))
    except Exception as error:  # a reader's function may raise anything
        return None, _line(f"not quite: your function raised {type(error).__name__}: {error}")
    return answer, NOT_YET if answer is ... or answer is None else None


def check_cases(
    function: Callable[..., Any],
    cases: Iterable[tuple[tuple[Any, ...], Any, str]],
    praise: str,
    equal: Callable[[Any, Any], bool] = operator.eq,
) -> str:
    """Try a reader's function on cases (arguments, expected, reason); return the first complaint, or the praise."""
    for arguments, expected, reason in cases:
        answer, complaint = attempt(function, *arguments)
        if complaint is not None:
            return complaint
        try:
            is_right = bool(equal(answer, expected)) and not isinstance(answer, bool)
        except Exception:  # the answer may be of any type
            is_right = False
        if not is_right:
            given = ", ".join(map(str, arguments))
            return _line(
                f"not quite: for {given} it gave {answer!r}, expected {expected}: {reason}"
            )
    return praise


def _line(text: str) -> str:
    return re.sub(r"\s*\n\s*", " ", text)
