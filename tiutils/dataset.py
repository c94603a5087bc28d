"""What a run learns from, in NumPy, for both frameworks: views, prompts, captions, masks, and timestep weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tiutils import concept as concepts
from tiutils.batches import BatchPlan
from tiutils.concept import Concept, View
from tiutils.config import TrainingConfig
from tiutils.errors import InputError, first_line
from tiutils.protocols import ModelsProtocol
from tiutils.tokenizer import absent_words, bracketed, prompt_ids, tokens_of


@dataclass(frozen=True)
class Dataset:
    """What a run learns from before its photos are encoded, as NumPy arrays.

    Attributes:
        views: all views of all photos.
        resolution: their side in pixels.
        plan: how batches are sampled from these.
        prompt_ids: int64 `(prompts, encoders × tokens)`, see `tokenizer.prompt_ids`: the templates with the word in
            them, then the photos' own captions.
        captions: int64 `(views,)`, which prompt is the caption of the view's photo, -1 if it has none; None without
            --captions.
        masks: float32 `(views, 1, height, width)` of mean 1, how much each place counts; None: all count the same.
    """

    views: tuple[View, ...]
    resolution: int
    plan: BatchPlan
    prompt_ids: np.ndarray
    captions: np.ndarray | None
    masks: np.ndarray | None


def make_dataset(
    models: ModelsProtocol,
    concept: Concept,
    word: str,
    config: TrainingConfig,
    num_processes: int = 1,
) -> Dataset:
    """Prepare photos, and prompts with `word` in them, learned or plain.

    Raises:
        InputError: with --captions, a caption that cannot be used; see `captions`.
    """
    resolution = config.resolution or models.resolution
    views = concepts.views(concept, center_crop=config.center_crop)
    prompts = [concepts.fill(t, word) for t in concepts.templates(config.learnable_property)]
    own, of_view = (
        own_captions(concept, word, views, len(prompts)) if config.captions else ([], None)
    )
    photo_of_view = np.array([view.photo for view in views])
    plan = BatchPlan(
        seed=config.seed,
        batch_size=config.samples_per_process * num_processes,
        views_per_photo=tuple(np.bincount(photo_of_view, minlength=len(concept.photos)).tolist()),
        num_prompts=len(prompts),
        latent_shape=models.latent_shape(resolution),
        num_train_timesteps=len(models.signal_levels()),
        timestep_sampling=config.timestep_sampling,
        timestep_range=config.timestep_range,
    )
    masks = loss_masks(concept, views, plan.latent_shape[1:]) if config.masked_loss else None
    ids = prompt_ids(models.tokenizers, [*prompts, *own])
    return Dataset(views, resolution, plan, ids, of_view, masks)


def captions(concept: Concept, word: str) -> tuple[str | None, ...]:
    """The photos' captions, from photo-1.txt for photo-1.jpg, with `word` for `{}`; None without a file.

    Raises:
        InputError: a file is not one line of text, or lacks the word, which could then not be learned from it.
    """
    return tuple(_caption(photo.path.with_suffix(".txt"), word) for photo in concept.photos)


def _caption(path: Path, word: str) -> str | None:
    try:
        text = path.read_bytes()[:4096].decode("utf-8-sig").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the caption {path.name!r} ({first_line(error)})") from None
    caption = concepts.fill(text, word)
    if word not in caption or not caption.isprintable():
        raise InputError(
            f"the caption {path.name!r} must be one line that holds {word} or {{}}, such as "
            f"'a {{}} on a table'; it begins with {text[:40]!r}"
        )
    return caption


def check_templates(word: str, templates: Sequence[str]) -> None:
    """Refuse a word that would tear apart words of a training sentence, as `ropp` does with "cropped".

    Raises:
        InputError: names the sentence, and suggests another word.
    """
    for template in templates:
        if " " not in word and any(word.lower() in part for part in template.split("{}")):
            raise InputError(
                f"the placeholder token {word!r} is also part of the training sentence {template!r}, "
                f"which would be torn apart; choose another, such as {bracketed(word)!r}"
            )


def check_num_vectors(
    tokenizer: Any, word: str, num_vectors: int, templates: Sequence[str]
) -> None:
    """Refuse more vectors than fit into every training sentence once it is truncated.

    Raises:
        InputError: names the sentence with the least space, and how many vectors fit into it.
    """
    room = tokenizer.model_max_length - 2  # the start and end tokens
    heads = tokenizer([t.split("{}")[0] for t in templates], add_special_tokens=False).input_ids
    longest, template = max(zip(map(len, heads), templates, strict=True))
    if num_vectors > room - longest:
        raise InputError(
            f"{word!r} has {num_vectors} vectors, too many for the training sentence {template!r}: a prompt holds "
            f"{room} tokens, and the last of them would not be learned; give --num_vectors {room - longest} or fewer"
        )


def check_sentences(
    tokenizer: Any, word: str, templates: Sequence[str], caption_of: Mapping[str, str]
) -> None:
    """Refuse a word that the run's sentences could not teach.

    Args:
        tokenizer: one that knows the word.
        word: the new word.
        templates: the training sentences, with `{}` for it.
        caption_of: the photos' own sentences, by the name of their file.

    Raises:
        InputError: a truncated sentence no longer has all of its vectors.
    """
    check_num_vectors(tokenizer, word, len(tokens_of(tokenizer, word)), templates)
    room = tokenizer.model_max_length - 2  # the start and end tokens
    for name, caption in caption_of.items():
        if absent_words(tokenizer, [caption], [word]):
            raise InputError(
                f"the caption {name!r} is cut after {room} tokens, before {word!r} ends, so the word "
                f"could not be learned from it; shorten the caption, or move the word toward its beginning"
            )


def own_captions(
    concept: Concept, word: str, views: Sequence[View], first: int
) -> tuple[list[str], np.ndarray]:
    """All captions, and for each view the index of its photo's caption, counted from `first`; -1 without one."""
    found = captions(concept, word)
    number = {photo: first + k for k, photo in enumerate(p for p, c in enumerate(found) if c)}
    of_view = np.array([number.get(view.photo, -1) for view in views], np.int64)
    return [caption for caption in found if caption], of_view


def loss_mask(concept: Concept, view: View, size: Sequence[int]) -> np.ndarray:
    """How much each position of a view counts, by the photo's alpha: float32 `(height, width)` of mean 1.

    Without alpha, and in a view that is entirely transparent, all positions count the same.
    """
    alpha, (height, width) = concept.photos[view.photo].alpha, size
    if alpha is None:
        return np.ones(size, np.float32)
    small = alpha.crop(view.box).resize((width, height), Image.Resampling.BOX)
    mask = np.asarray(small, np.float32)[:, :: -1 if view.flip else 1]
    return mask / mask.mean() if mask.any() else np.ones(size, np.float32)


def loss_masks(concept: Concept, views: Sequence[View], size: Sequence[int]) -> np.ndarray | None:
    """The masks of all views, `(views, 1, height, width)`; None where no photo has an alpha channel."""
    if all(photo.alpha is None for photo in concept.photos):
        return None
    return np.stack([loss_mask(concept, view, size)[None] for view in views])
