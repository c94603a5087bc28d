"""Overfitting, seen while it happens: pictures become more like the photos and stop following the prompt.

A CLIP model compares the pictures of --validation_prompt with the photos and with the prompt. They start from the same
noise every time, so only the word changes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from tiutils.evaluation.clip import ClipScorer
from tiutils.figures import output
from tiutils.io.run_folder import entry, read_record, update_record

logger = logging.getLogger("tiutils")
History = Mapping[int, Mapping[str, Sequence[float]]]


class OverfittingMonitor:
    """Scores the pictures of each validation and warns when prompt following has fallen.

    Attributes:
        history: by step, "similarity" to the photos and "following" of the prompt of each picture.
    """

    def __init__(
        self,
        clip: ClipScorer,
        photos: Sequence[Image.Image],
        sentence: str,
        output_dir: str | Path,
        *,
        resumed: bool = False,
    ):
        """`sentence` is the prompt with the plain word, as CLIP does not know the learned one."""
        self.clip, self.photos, self.sentence = clip, photos, sentence
        self.output_dir = output_dir
        self.history = history_in(read_record(output_dir)) if resumed else {}

    def __call__(self, step: int, images: Sequence[Image.Image]) -> dict[str, float]:
        """Score the pictures of one step; returns the means, for a tracker."""
        scores = {
            "similarity": self.clip.clip_i(images, self.photos).tolist(),
            "following": self.clip.clip_t(images, [self.sentence] * len(images)).tolist(),
        }
        # a resumed run repeats its last steps
        self.history = {s: kept for s, kept in self.history.items() if s < step} | {step: scores}
        update_record(self.output_dir, {"validation": self.history})
        best = has_fallen(self.history)
        if best is not None:
            before, now = (np.mean(each["following"]) for each in (self.history[best], scores))
            logger.warning(
                f"prompt following fell from {before:.3f} at step {best} to {now:.3f} at step {step}: the word is "
                f"starting to stand for the photos as they are; give fewer steps, or --early_stopping"
            )
        return {name: float(np.mean(values)) for name, values in scores.items()}


def history_in(record: dict[str, Any]) -> dict[int, dict[str, list[float]]]:
    """The scores by step in run.json; entries of another form are left out."""

    def is_scores(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(each, int | float) for each in value)

    return {
        int(step): scores
        for step, scores in entry(record, "validation", dict).items()
        if step.isdecimal()
        and isinstance(scores, dict)
        and all(
            is_scores(scores.get(name)) and scores[name] for name in ("similarity", "following")
        )
    }


def has_fallen(history: History) -> int | None:
    """The step that followed its prompt best, if the last step does so clearly worse; otherwise None.

    Clearly means by more than two standard errors of the differences, picture by picture.
    """
    *_, last = history
    best = max(history, key=lambda step: np.mean(history[step]["following"]))
    fall = np.subtract(history[best]["following"], history[last]["following"])
    if best == last or len(fall) < 2:
        return None
    error = np.std(fall, ddof=1) / np.sqrt(len(fall))
    return best if np.mean(fall) > 2 * error else None


def curves(history: History) -> Figure:
    """Similarity to the photos and prompt following by step: a dot for each picture, a line for the means."""
    figure = Figure(figsize=(6.4, 2.8), dpi=output.DPI, layout="constrained")
    text = []
    for axis, name, color in zip(
        figure.subplots(1, 2),
        ("similarity", "following"),
        (output.BLUE, output.VERMILION),
        strict=True,
    ):
        what = {"similarity": "likeness to the photos", "following": "following of the prompt"}[
            name
        ]
        means = [float(np.mean(scores[name])) for scores in history.values()]
        for step, scores in history.items():
            axis.plot([step] * len(scores[name]), scores[name], ".", color=color, alpha=0.4)
        axis.plot(list(history), means, color=color, linewidth=1.8)
        axis.set(xlabel="step", ylabel=f"{what} (cosine)")
        axis.spines[["top", "right"]].set_visible(False)
        first, *_, last = [*history, list(history)[-1]]
        text.append(
            f"{what} goes from {means[0]:.3f} at step {first} to {means[-1]:.3f} at step {last}"
        )
    figure.set_label("; ".join(text).capitalize() + ".")
    return figure
