"""Scores: every measure of a word, and how much better one word is than another, with an interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tiutils import concept, inference
from tiutils.config import SamplingConfig
from tiutils.evaluation import metrics
from tiutils.evaluation.clip import ClipScorer
from tiutils.evaluation.metrics import SEED, Images
from tiutils.models import Models

# measure: what a table calls it, and +1 if more is better (↑), -1 if less is better (↓)
METRICS = {
    "evaluation_loss": ("loss on photos ↓", -1),
    "image_similarity": ("similarity to photos ↑", +1),
    "histogram_distance": ("color distance to photos ↓", -1),
    "clip_similarity": ("CLIP similarity to photos ↑", +1),
    "prompt_following": ("CLIP similarity to prompt ↑", +1),
}


class Gallery:
    """Pictures by prompt, each drawn only once: the scores reuse those of the figure.

    Picture k of a prompt always starts from the noise of seed + k.
    """

    def __init__(
        self,
        models: Models,
        sampling: SamplingConfig | None = None,
        *,
        on_image: Callable[[], object] | None = None,
    ):
        self.models, self.sampling = models, sampling or SamplingConfig()
        self.on_image = on_image
        self.drawn: dict[str, list[Image.Image]] = {}

    def missing(self, prompts: Sequence[str], count: int) -> int:
        """How many pictures `pictures` would have to draw."""
        return sum(
            max(0, count - len(self.drawn.get(prompt, ()))) for prompt in dict.fromkeys(prompts)
        )

    def pictures(self, prompts: Sequence[str], count: int) -> list[Image.Image]:
        """`count` pictures of each prompt: all of the first, then all of the second, as `generate` gives them."""
        there = {prompt: len(self.drawn.setdefault(prompt, [])) for prompt in prompts}
        for start in sorted({number for number in there.values() if number < count}):
            batch = [prompt for prompt, number in there.items() if number == start]
            more = count - start

            def keep(
                number: int, image: Image.Image, batch: list[str] = batch, more: int = more
            ) -> None:
                self.drawn[batch[number // more]].append(image)
                if self.on_image is not None:
                    self.on_image()

            inference.generate(
                self.models,
                batch,
                self.sampling,
                num_images_per_prompt=more,
                seed=self.sampling.seed + start,
                on_image=keep,
            )
        return [image for prompt in prompts for image in self.drawn[prompt][:count]]


@dataclass(frozen=True)
class Questions:
    """What a CLIP model is asked about each word.

    Attributes:
        evaluator: the CLIP model; without one, the last two measures are left out.
        prompts: with `{}` for the word, for prompt following; the first template if there are none.
        images_per_prompt: pictures drawn of each of `prompts`; as many as of the first template if None.
        learnable_property: which templates, "object" or "style".
    """

    evaluator: ClipScorer | None = None
    prompts: Sequence[str] = ()
    images_per_prompt: int | None = None
    learnable_property: str = "object"


def evaluate_word(
    models: Models,
    word: str,
    references: Images,
    *,
    plain_word: str,
    num_images: int = 8,
    questions: Questions | None = None,
    gallery: Gallery | None = None,
) -> dict[str, np.ndarray]:
    """Every measure of one word; the draws and the noise are the same for all words.

    Args:
        models: the frozen parts, the word among their tokens.
        word: the learned word, or the plain one.
        references: photos of the thing, preferably ones that training has not seen.
        plain_word: what CLIP reads in place of the word in a prompt.
        num_images: pictures drawn of the first template ("a photo of a …").
        questions: the defaults if None.
        gallery: how pictures are generated, and those that exist already; a new one with the defaults if None.

    Returns:
        for each name of `METRICS` the values of all draws of the loss, or of all pictures, (n,); their mean is the
        measure.
    """
    questions, gallery = questions or Questions(), gallery or Gallery(models)
    shown, evaluator = questions.learnable_property, questions.evaluator
    template = concept.templates(shown)[0]
    images = gallery.pictures([concept.fill(template, word)], num_images)
    losses = metrics.evaluation_losses(models, references, word, shown, num_samples=64)
    measured = {
        "evaluation_loss": losses.numpy(),
        "image_similarity": metrics.image_similarities(models, images, references).numpy(),
        "histogram_distance": metrics.histogram_distances(images, references),
    }
    if evaluator is not None:
        prompts = list(questions.prompts) or [template]
        each = questions.images_per_prompt or num_images
        drawn = gallery.pictures([concept.fill(prompt, word) for prompt in prompts], each)
        sentences = [concept.fill(p, plain_word) for p in prompts for _ in range(each)]
        measured["clip_similarity"] = evaluator.clip_i(images, references).numpy()
        measured["prompt_following"] = evaluator.clip_t(drawn, sentences).numpy()
    return measured


@dataclass(frozen=True)
class Score:
    """A word's value, how much better it is than another word's, and the ends of an interval for that.

    `better_by` is positive if the word is better, even where low values are good.
    """

    value: float
    better_by: float
    low: float
    high: float


def compare(
    word: dict[str, np.ndarray],
    other: dict[str, np.ndarray],
    *,
    level: float = 0.95,
    resamples: int = 1000,
) -> dict[str, Score]:
    """How much better one word is than another, with a confidence interval.

    Percentile bootstrap (Efron 1979) over the pictures, or the draws of the loss. Both words are resampled alike,
    because they are compared prompt by prompt and seed by seed. The interval covers other noise, not other training
    runs.
    """
    scores = {}
    for name, values in word.items():
        better = METRICS[name][1] * (values - other[name])
        chosen = np.random.default_rng(SEED).integers(len(better), size=(resamples, len(better)))
        low, high = np.quantile(better[chosen].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
        scores[name] = Score(*map(float, (values.mean(), better.mean(), low, high)))
    return scores
