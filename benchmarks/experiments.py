"""Ways to train that tiutils does not have: `benchmarks.ablation` puts them into its training while a word is taught.

Each has the name of a setting, `{"prodigy": True}`, and is made for one word and its noun.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from tiutils import conditioning, token_embedding, training
from tiutils.batches import batch_at
from tiutils.concept import Concept
from tiutils.config import TrainingConfig
from tiutils.evaluation import clip
from tiutils.models import Models
from tiutils.runs import run
from tiutils.tokenizer import Placeholder, prompt_ids, whole_words

NEAREST = 5  # words whose mean is a start, the noun among them
# The term that keeps the sentence: how often it counts, and how much then, so that on average its weight is that of
# the loss. Neither `sensitivity.SENTENCES` nor `identity.ASKED` has these places: what is judged is not trained.
EVERY, WEIGHT = 4, 4.0
KEPT = ("on a table", "in a room", "in the mountains", "at sunset", "in a garden", "on the moon")


def prodigy(word: str, noun: str) -> AbstractContextManager[Any]:
    """The authors' Prodigy (Mishchenko & Defazio 2023, arXiv 2306.06101) in the place of AdamW."""
    from prodigyopt import Prodigy

    def optimizer(rows: Tensor, config: TrainingConfig, widths: Any = None) -> Prodigy:
        return Prodigy([rows], lr=1.0)

    return mock.patch.object(training, "make_optimizer", optimizer)


def pick_initializer(word: str, noun: str) -> AbstractContextManager[Any]:
    """The row of the whole word in the vocabulary that the model's own CLIP model finds nearest to the photos.

    Norm control pulls toward its length, not the noun's.
    """
    patches, picked = contextlib.ExitStack(), []

    def first_rows(config: TrainingConfig, concept: Concept, models: Models) -> Tensor:
        judge = clip.bundled_with(models)
        photos = [photo.image for photo in concept.photos]
        picked.append(token_embedding.vector_of(models, nearest_word(judge, models, photos)))
        return picked[0][None]

    def length(models: Models, placeholder: Placeholder) -> tuple[float]:
        return (picked[0].norm().item(),)

    patches.enter_context(mock.patch.object(run, "first_rows", first_rows))
    patches.enter_context(mock.patch.object(training, "usual_norms", length))
    return patches


def nearest_word(judge: clip.ClipScorer, models: Models, photos: Sequence[Any]) -> str:
    """The word for which "a photo of a …" has the highest mean cosine to the photos."""
    words = list(whole_words(models.tokenizer))
    sentences = [f"a photo of a {name}" for name in words]
    parts = [judge.encode_text(sentences[k : k + 256]) for k in range(0, len(sentences), 256)]
    fits = torch.cat(parts) @ judge.encode_images(photos).mean(dim=0)
    return words[int(fits.argmax())]


def start_from_several_nouns(word: str, noun: str) -> AbstractContextManager[Any]:
    """The mean of the rows of the noun and the words nearest to it, as long as the noun's row."""

    def first_rows(config: TrainingConfig, concept: Concept, models: Models) -> Tensor:
        row = token_embedding.vector_of(models, noun)
        nearest = [name for name, _ in token_embedding.neighbors(models, row, NEAREST)]
        mean = torch.stack([token_embedding.vector_of(models, name) for name in nearest]).mean(0)
        return (mean * row.norm() / mean.norm())[None]

    return mock.patch.object(run, "first_rows", first_rows)


def start_from_no_word(word: str, noun: str) -> AbstractContextManager[Any]:
    """The row of the token that an empty prompt consists of, as long as the noun's row."""

    def first_rows(config: TrainingConfig, concept: Concept, models: Models) -> Tensor:
        row = token_embedding.vector_of(models, noun)
        empty = token_embedding.start_vectors(models, [models.tokenizer.eos_token_id])
        return empty * row.norm() / empty.norm()

    return mock.patch.object(run, "first_rows", first_rows)


def cross_initialization(word: str, noun: str) -> AbstractContextManager[Any]:
    """What the text encoder makes of the noun alone (Cross Initialization, Pang et al. 2023, arXiv 2312.15905)."""

    def first_rows(config: TrainingConfig, concept: Concept, models: Models) -> Tensor:
        return conditioning.encode(models, [noun])[0][0, 1:2]

    return mock.patch.object(run, "first_rows", first_rows)


def min_snr(word: str, noun: str) -> AbstractContextManager[Any]:
    """Losses times min(SNR, 5) / SNR, so that those of nearly clean pictures count less.

    Min-SNR, Hang et al. 2023, arXiv 2303.09556, section 3.4.
    """
    usual = training.losses_at

    def losses_at(models: Models, dataset: Any, step: int, start: int, stop: int) -> Tensor:
        levels = models.noise_scheduler.alphas_cumprod
        ratios = levels / (1 - levels)
        timesteps = batch_at(dataset.plan, step, start, stop).timesteps
        weights = ratios.clamp(max=5) / ratios
        return usual(models, dataset, step, start, stop) * weights[timesteps]

    return mock.patch.object(training, "losses_at", losses_at)


def keep_the_sentence(word: str, noun: str) -> AbstractContextManager[Any]:
    """A term that asks the word to leave a sentence's effect as it is with the noun; see `sentence_loss`."""
    usual = training.losses_at

    def losses_at(models: Models, dataset: Any, step: int, start: int, stop: int) -> Tensor:
        losses = usual(models, dataset, step, start, stop)
        return losses if step % EVERY else losses + WEIGHT * sentence_loss(models, step, word, noun)

    return mock.patch.object(training, "losses_at", losses_at)


def sentence_loss(models: Models, step: int, word: str, noun: str) -> Tensor:
    """How differently a place changes the first prediction, for the word and for the noun: a scalar.

    From pure noise x, with e the U-Net's prediction: the mean square of
    [e(x, "a <word> in a room") − e(x, "a <word>")] − [e(x, "a noun in a room") − e(x, "a noun")]. Noise and place are
    those of the step.
    """
    noise = torch.randn(1, *models.latent_shape(), generator=torch.Generator().manual_seed(step))
    place = KEPT[step // EVERY % len(KEPT)]
    timesteps = torch.full((2,), models.noise_scheduler.config.num_train_timesteps - 1)

    def effect_of_the_place(name: str) -> Tensor:
        ids = torch.from_numpy(prompt_ids(models.tokenizers, [f"a {name}", f"a {name} {place}"]))
        states, pooled = conditioning.encode_ids(models, ids)
        without, within = conditioning.predict(
            models, noise.expand(2, -1, -1, -1), timesteps, states, pooled
        )
        return within - without

    with torch.no_grad():
        asked = effect_of_the_place(noun)
    return (effect_of_the_place(word) - asked).square().mean()


EXPERIMENTS: dict[str, Callable[[str, str], AbstractContextManager[Any]]] = {
    "prodigy": prodigy,
    "pick_initializer": pick_initializer,
    "cross_initialization": cross_initialization,
    "snr_gamma": min_snr,
    "several_nouns": start_from_several_nouns,
    "no_word": start_from_no_word,
    "keep_sentence": keep_the_sentence,
}


@contextlib.contextmanager
def put_in_place(settings: Mapping[str, Any], word: str, noun: str) -> Iterator[None]:
    """Within this context, training does what the experiments among `settings` say."""
    with contextlib.ExitStack() as stack:
        for name in EXPERIMENTS.keys() & {key for key, value in settings.items() if value}:
            stack.enter_context(EXPERIMENTS[name](word, noun))
        yield
