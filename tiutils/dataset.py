"""Sentences of a photo's own, from text files that lie beside the photos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tiutils.concept import Concept, View
from tiutils.errors import InputError, first_line


def captions(concept: Concept, word: str) -> tuple[str | None, ...]:
    """What the text files beside the photos say, photo-1.txt of photo-1.jpg, with `word` for `{}`; else None.

    Raises:
        InputError: a file is no text of a line, or does not hold the word: it could not be learned from it.
    """
    return tuple(_caption(photo.path.with_suffix(".txt"), word) for photo in concept.photos)


def _caption(path: Path, word: str) -> str | None:
    try:
        text = path.read_bytes()[:4096].decode("utf-8-sig").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the caption {path.name!r} ({first_line(error)})") from None
    caption = text.replace("{}", word)
    if word not in caption or not caption.isprintable():
        raise InputError(
            f"the caption {path.name!r} must be one line that holds {word} or {{}}, such as "
            f"'a {{}} on a table'; it begins with {text[:40]!r}"
        )
    return caption


def own_prompts(
    concept: Concept, word: str, views: Sequence[View], first: int
) -> tuple[list[str], np.ndarray]:
    """The captions there are, and for each view the number of its photo's, counted from `first`; -1 if none."""
    found = captions(concept, word)
    number = {photo: first + k for k, photo in enumerate(p for p, c in enumerate(found) if c)}
    of_view = np.array([number.get(view.photo, -1) for view in views], np.int64)
    return [caption for caption in found if caption], of_view
