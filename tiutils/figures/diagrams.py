"""Figures about words: the path of a word through the model, and comparisons of words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from PIL import Image

from tiutils.errors import InputError
from tiutils.figures.output import BLUE, DPI, GRAY, VERMILION, sentence

FROZEN, LEARNED = "#E4E4E4", "#F9D9C6"  # a pale VERMILION, for text on it


def word_path(word: str = "<wood-toy>", number: int = 49408) -> Figure:
    """The path of a word through text, ids, rows, text encoder, U-Net and loss, and of the gradient back to one row.

    Args:
        word: the new word.
        number: its id, the first one after the vocabulary.
    """
    figure = Figure(figsize=(8.2, 3.3), dpi=DPI, layout="constrained")
    axis = figure.subplots()
    axis.set(xlim=(-0.1, 16.4), ylim=(-0.15, 6.5))
    axis.set_axis_off()
    box, arrow = partial(_box, axis), partial(_arrow, axis)
    box(0, 5.0, f"“a photo of\na {word}”", edge="white")
    box(3.2, 5.0, "tokenizer", face=FROZEN)
    box(6.4, 5.0, f"ids\n… 320, {number} …", edge="white")
    # the table: many frozen rows and a learned one
    for k in range(4):
        box(9.6, 5.95 - 0.33 * k, "", height=0.28, face=FROZEN)
    box(9.6, 4.55, f"row {number}", height=0.34, face=LEARNED, edge=VERMILION)
    axis.text(12.05, 5.7, "table of rows,\none for each id", va="center", size=8)
    axis.text(12.05, 4.72, "← all that is learned", va="center", size=8, color=VERMILION)
    box(9.6, 2.2, "text encoder", face=FROZEN)
    box(6.4, 2.2, "U-Net", face=FROZEN)
    box(3.2, 2.45, "which noise\nwas added?", height=1.2, edge="white")
    box(0, 2.2, "loss", edge=BLUE)
    box(0, 0, "the noise that\nwas added", edge="white")
    box(6.4, 0, "noisy latents,\nnoise level", edge="white")
    box(9.6, 0, "VAE", face=FROZEN)
    box(12.8, 0, "photo", edge="white")
    for x in (2.3, 5.5, 8.7):
        arrow((x, 5.65), (x + 0.85, 5.65))
    for x, y in ((9.55, 3.1), (6.35, 3.1), (3.3, 3.1), (12.75, 0.65), (9.55, 0.65)):
        arrow((x, y), (x - 0.85, y))
    arrow((10.5, 4.5), (10.5, 3.55))
    for x in (1.15, 7.55):
        arrow((x, 1.25), (x, 2.15))
    gradient = {"color": VERMILION, "linestyle": "--"}
    for x, end in ((2.35, 6.35), (8.75, 9.55)):
        arrow((x, 2.45), (end, 2.45), **gradient)
    arrow((11.1, 3.55), (11.1, 4.5), **gradient)
    axis.text(12.05, 2.85, "- - gradient: through the\nfrozen parts, to one row", size=8,
              color=VERMILION, va="center")  # fmt: skip
    figure.set_label(
        f"Diagram. The text “a photo of a {word}” goes through the tokenizer to ids, among them {number}; each id "
        "picks a row of a table; the rows go through the text encoder to the U-Net, which also gets a photo, "
        "made small by the VAE, with noise. It guesses which noise was added; the loss compares that with the "
        "noise that was. Tokenizer, table, text encoder, U-Net and VAE are gray: frozen. Dashed arrows bring "
        f"the gradient of the loss back through U-Net and text encoder to row {number}, which alone is learned."
    )
    return figure


def denoising() -> Figure:
    """What a diffusion model does: photo and noise in, the guessed noise out; and how that draws a picture."""
    figure = Figure(figsize=(8.2, 3.3), dpi=DPI, layout="constrained")
    axis = figure.subplots()
    axis.set(xlim=(-0.1, 16.4), ylim=(-0.15, 6.5))
    axis.set_axis_off()
    box, arrow = partial(_box, axis), partial(_arrow, axis)
    box(6.4, 5.0, "“a photo of a toy”", edge="white")
    box(9.6, 5.0, "text encoder", face=FROZEN)
    box(12.8, 5.0, "conditioning $c$", edge="white")
    box(0, 2.6, "photo", edge="white")
    box(3.2, 2.6, "VAE", face=FROZEN)
    box(6.4, 2.6, "latents $z$", edge="white")
    box(9.6, 2.6, "noisy\nlatents $z_t$", edge="white")
    box(12.8, 2.6, "U-Net", face=FROZEN)
    box(9.6, 0.1, "noise $\\varepsilon$, as much\nas timestep $t$ says", edge="white")
    box(12.8, 0.1, "guess: which\nnoise is in $z_t$?", edge=BLUE)
    for x, y in ((8.75, 5.65), (11.95, 5.65), (2.3, 3.25), (5.5, 3.25), (8.7, 3.25), (11.9, 3.25)):
        arrow((x, y), (x + 0.85, y))
    for x, start, end in ((13.95, 4.95, 4.0), (13.95, 2.55, 1.5), (10.75, 1.5, 2.55)):
        arrow((x, start), (x, end))
    arrow((12.75, 1.3), (11.6, 2.6), color=BLUE, linestyle="--")
    text = (
        "To train: compare the guess with $\\varepsilon$.\n"
        "To draw: begin with noise alone, remove some of\nthe guessed noise, and ask again (dashed)."
    )
    axis.text(0, 0.75, text, va="center", size=8, color=BLUE)
    figure.set_label(
        "Diagram. A photo goes through the VAE and becomes latents z. Noise, as much as timestep t says, makes "
        "them noisy latents z t. The U-Net gets these and the conditioning c, which the text encoder makes of the "
        "sentence “a photo of a toy”, and guesses which noise is in them. To train, the guess is compared with "
        "the noise. To draw, one begins with noise alone, removes some of the guessed noise, and asks again. "
        "VAE, text encoder and U-Net are gray: frozen."
    )
    return figure


def _box(axis: Axes, x: float, y: float, text: str, *, height: float = 1.35, face: str = "white",
         edge: str = GRAY) -> None:  # fmt: skip
    shape = FancyBboxPatch((x, y), 2.3, height, boxstyle="round,pad=0,rounding_size=0.15",
                           facecolor=face, edgecolor=edge)  # fmt: skip
    axis.add_patch(shape)
    axis.text(x + 1.15, y + height / 2, text, ha="center", va="center", size=8)


def _arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float], **look: Any) -> None:
    look = {"arrowstyle": "-|>", "color": "black"} | look
    axis.annotate("", xy=end, xytext=start, arrowprops=look)


def neighbor_bars(
    neighbors: Sequence[tuple[str, float]],
    *,
    title: str = "",
    chance: float | None = None,
    picture: Image.Image | None = None,
) -> Figure:
    """The nearest words as bars, the nearest at the top.

    Args:
        neighbors: words with their cosine similarity, nearest first, as from `token_embedding.neighbors`.
        title: above everything.
        chance: the similarity that chance alone gives, marked by a dashed line.
        picture: generated for the vector, shown beside the bars.

    Raises:
        InputError: there are no words.
    """
    if not neighbors:
        raise InputError("there is no word to show; give at least one")
    names, values = zip(*neighbors, strict=True)
    figure = Figure(figsize=(6.4, 0.6 + 0.25 * len(names)), dpi=DPI, layout="constrained")
    columns = 2 if picture is not None else 1
    axis, *rest = figure.subplots(1, columns, squeeze=False, width_ratios=[2, 1][:columns])[0]
    _bars(axis, names, values, BLUE)
    axis.set(xlabel="cosine similarity", xlim=(min(0, *values), max(1, *values)))
    if chance is not None:
        axis.axvline(chance, color=VERMILION, linestyle="--", linewidth=1)
        axis.text(chance, -0.65, "luck", color=VERMILION, size=8, ha="center", va="bottom")
    for other in rest:
        other.imshow(np.asarray(picture), interpolation="bicubic")
        other.set_axis_off()
    figure.suptitle(title, fontsize=10)
    listed = ", ".join(f"{name} {value:.2f}" for name, value in neighbors)
    luck = f" Luck alone gives {chance:.2f}." if chance is not None else ""
    drawn = " Beside them, what the model draws for it." if rest else ""
    figure.set_label(f"{sentence(title)}Nearest words: {listed}.{luck}{drawn}")
    return figure


def similarity_table(words: Sequence[str], likeness: np.ndarray, *, title: str = "") -> Figure:
    """The similarity of words as a table of numbers on colors.

    Args:
        words: their names.
        likeness: `(words, words)`, the cosine similarity of each pair.
        title: above everything.

    Raises:
        InputError: the shape does not match the number of words.
    """
    count = len(words)
    if np.shape(likeness) != (count, count) or not count:
        raise InputError(
            f"{count} words and a table of shape {np.shape(likeness)}: expected one row and column per word"
        )
    side = 1.2 + 0.38 * count
    figure = Figure(figsize=(side + 0.4, side), dpi=DPI, layout="constrained")
    axis = figure.subplots()
    axis.imshow(likeness, cmap="cividis", vmin=0, vmax=1)
    axis.set_xticks(range(count), words, rotation=45, ha="right", size=8)
    axis.set_yticks(range(count), words, size=8)
    for row, column in np.ndindex(count, count):
        value = likeness[row, column]
        text, color = f"{value:.1f}".replace("-0.0", "0.0"), "black" if value > 0.5 else "white"
        axis.text(column, row, text, ha="center", va="center", size=7, color=color)
    axis.set_title(title, fontsize=10)
    apart = np.where(np.eye(count, dtype=bool), -np.inf, likeness)
    pairs = "; ".join(
        f"{word} and {words[int(np.argmax(row))]} {row.max():.2f}"
        for word, row in zip(words, apart, strict=True)
    )
    figure.set_label(
        f"{sentence(title)}Cosine similarity of {count} words with each other. "
        f"Each word and the most like it: {pairs if count > 1 else 'none'}."
    )
    return figure


def word_bars(losses: Mapping[str, float]) -> Figure:
    """How far below their mean the words' losses are, in percent; the best word at the top.

    Raises:
        InputError: there are no words.
    """
    if not losses:
        raise InputError("there is no word to compare; give some nouns")
    ranked = sorted(losses, key=losses.__getitem__)
    mean = sum(losses.values()) / len(losses)
    gains = [round(100 * (mean - losses[word]) / mean, 2) + 0.0 for word in ranked]  # no "-0.0"
    figure = Figure(figsize=(5.2, 0.7 + 0.22 * len(ranked)), dpi=DPI, layout="constrained")
    axis = figure.subplots()
    _bars(axis, ranked, gains, [BLUE, *[GRAY] * (len(ranked) - 1)])
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_xlabel("loss below the words' mean, in percent (more is better)", fontsize=8)
    listed = ", ".join(f"{word} {gain:+.2f}" for word, gain in zip(ranked, gains, strict=True))
    figure.set_label(f"Words by how well they describe the photos, loss below the mean: {listed}.")
    return figure


def _bars(axis: Any, names: Sequence[str], values: Sequence[float], color: Any) -> None:
    """Horizontal bars, the first at the top."""
    axis.barh(names, values, color=color, height=0.7)
    axis.invert_yaxis()
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
