"""Does a learned word do better than the plain word it started from? Three measures.

- `fixed_evaluation_loss`: the training loss itself, on photos and draws that are held fixed.
- `image_similarity`: whether drawn pictures look like photos of the thing, judged by the frozen U-Net.
- `histogram_distance`: whether they have its colors. It does not use the model, so it is an independent witness.

`clip` has two more, which need a CLIP model; `comparison` takes all of them for a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.nn.functional import normalize

from tiutils import concept, conditioning, diffusion
from tiutils.concept import Concept, Photo
from tiutils.config import TrainingConfig
from tiutils.errors import InputError
from tiutils.models import Models

Images = Sequence[Image.Image]

SEED = 2208_01618  # a seed that no run is likely to have
FEATURE_TIMESTEP = 260  # of 1000; as DIFT (Tang et al. 2023, arXiv 2306.03881)
FEATURE_DRAWS = 4


def fixed_evaluation_loss(
    models: Models,
    images: Images,
    word: str,
    *,
    learnable_property: str = "object",
    num_samples: int = 64,
    seed: int = SEED,
) -> float:
    """The diffusion loss on fixed draws of photo, prompt, timestep, latent sample, and noise.

    The draws depend only on the number of photos and `seed`, so two words, or one word before and after training, get
    the same ones. Photos are cropped to their center.

    Args:
        models: the frozen parts.
        images: photos, preferably ones that training has not seen.
        word: put into the prompt templates; learned or plain.
        learnable_property: which templates, "object" or "style".
        num_samples: the number of draws; the loss of a single one says little.
        seed: of the draws.

    Returns:
        the mean squared error of the noise prediction, over all draws.

    Raises:
        InputError: there are no photos or no samples.
    """
    losses = evaluation_losses(models, images, word, learnable_property, num_samples, seed)
    return losses.mean().item()


@torch.no_grad()
def evaluation_losses(
    models: Models,
    images: Images,
    word: str,
    learnable_property: str,
    num_samples: int,
    seed: int = SEED,
) -> torch.Tensor:
    """The loss of each fixed draw, float32 (num_samples,)."""
    if num_samples < 1:
        raise InputError(f"num_samples is {num_samples}; it must be 1 or more")
    config = TrainingConfig(
        learnable_property=learnable_property,
        center_crop=True,
        seed=seed,
        train_batch_size=num_samples,
        timestep_sampling="uniform",
    )
    dataset = diffusion.encode_dataset(models, _as_concept(images), word, config)
    losses = [
        diffusion.losses_at(models, dataset, 0, start, min(start + 16, num_samples))
        for start in range(0, num_samples, 16)
    ]
    return torch.cat(losses).cpu()


def image_similarity(models: Models, images: Images, references: Images) -> float:
    """Whether parts of the thing in the references can be found in the images, judged by features of the U-Net.

    For each place in a reference, the most similar place in the image counts, wherever it is, by the cosine of U-Net
    features (DIFT: Tang et al. 2023, arXiv 2306.03881); the center of the reference, where the thing is, counts most.
    So neither pose nor background decides. Features are standardized by the references' mean and deviation in each
    channel, because what all places share would bring every cosine near 1. With features pooled over the picture,
    things and backgrounds were confused. In the bundled model, held-out photos of the course's concepts are closer to
    photos of the same concept (0.68 to 0.75) than to those of others (0.61 to 0.69).

    Returns:
        the mean over all pairs (image, reference), in [-1, 1]; higher is more alike.

    Raises:
        InputError: one of the sets is empty.
    """
    return image_similarities(models, images, references).mean().item()


def image_similarities(models: Models, images: Images, references: Images) -> torch.Tensor:
    """`image_similarity` of each picture, float32 (images,)."""
    found, wanted = (_features(models, pictures) for pictures in (images, references))
    height, width = wanted.shape[2:]
    mean, std = wanted.mean(dim=(0, 2, 3)), wanted.std(dim=(0, 2, 3)) + 1e-6
    found, wanted = (
        normalize((f.flatten(2) - mean[:, None]) / std[:, None], dim=1) for f in (found, wanted)
    )
    weights = torch.from_numpy(np.outer(_bell(height), _bell(width)).ravel()).float()
    best = [[(reference.T @ image).amax(dim=1) for reference in wanted] for image in found]
    scores = [[(each * weights).sum() / weights.sum() for each in row] for row in best]
    return torch.tensor(scores).mean(dim=1)


def histogram_distance(images: Images, references: Images, *, bins: int = 8) -> float:
    """How much the thing's colors differ between pictures and references, independent of the model.

    A picture's colors are a joint histogram of red, green, and blue; the references' colors are those that they share.
    Backgrounds differ from photo to photo, so pixels count less away from the center (by a Gaussian whose standard
    deviation is a sixth of the side), and the references' histograms are combined, bin by bin, by the power mean
    (mean of h^¼)⁴, which is near a geometric mean: a color that only one of them has counts little. With plain means,
    photos of one of the course's concepts were no closer to other photos of it than to other things. Each picture is
    compared by itself, because the mean of many pictures has colors that none of them has.

    Args:
        images: drawn pictures.
        references: photos of the thing.
        bins: per color channel, 2 or more. A pixel is shared between the nearest bins, so that a slight change of
            color is a slight change of the histogram.

    Returns:
        the mean over the pictures of the Hellinger distance sqrt(1 - Σ sqrt(p q)): 0 for equal histograms, 1 for
        disjoint ones.

    Raises:
        InputError: one of the sets is empty, or there are fewer than 2 bins.
    """
    return float(histogram_distances(images, references, bins=bins).mean())


def histogram_distances(images: Images, references: Images, *, bins: int = 8) -> np.ndarray:
    """`histogram_distance` of each picture, float64 (images,)."""
    if bins < 2:
        raise InputError(f"bins is {bins}; it must be 2 or more")
    _as_concept(images), _as_concept(references)  # refuses empty ones
    histograms = np.stack([_color_histogram(image, bins) for image in images])
    common = np.stack([_color_histogram(image, bins) for image in references])
    common = (common**0.25).mean(axis=0) ** 4
    overlap = np.sqrt(histograms * (common / common.sum())).sum(axis=(1, 2, 3))
    return np.sqrt(np.maximum(0.0, 1.0 - overlap))


def _as_concept(images: Images) -> Concept:
    """Pictures in memory as a concept, RGB."""
    if not images:
        raise InputError("there is no picture to compare with; give at least one")
    photos = tuple(Photo(Path(f"{i}"), image.convert("RGB")) for i, image in enumerate(images))
    return Concept(photos, (), "pictures")


@torch.no_grad()
def _features(models: Models, images: Images) -> torch.Tensor:
    """The output of the U-Net's last up block at each place, float32 `(images, channels, h, w)`, on the CPU.

    Its input is the picture's central square with a little noise, and an empty prompt; the output is the mean over
    fixed draws of the noise.
    """
    pictures = _as_concept(images)
    views = [view for view in concept.views(pictures, center_crop=True) if not view.flip]
    latents, _ = diffusion.encode_views(models, pictures, views, models.resolution)
    states, pooled = conditioning.encode(models, [""])
    states = states.expand(FEATURE_DRAWS, -1, -1)
    pooled = None if pooled is None else pooled.expand(FEATURE_DRAWS, -1)
    generator = torch.Generator().manual_seed(SEED)
    noise = torch.randn((FEATURE_DRAWS, *latents.shape[1:]), generator=generator).to(latents)
    timesteps = torch.full((FEATURE_DRAWS,), FEATURE_TIMESTEP, device=latents.device)
    seen: list[torch.Tensor] = []
    block = models.unet.up_blocks[-1]
    hook = block.register_forward_hook(lambda _, __, output: seen.append(output))
    try:
        for latent in latents:
            noisy = models.noise_scheduler.add_noise(latent.expand_as(noise), noise, timesteps)
            conditioning.predict(models, noisy, timesteps, states, pooled)
    finally:
        hook.remove()
    return torch.stack([output.float().mean(dim=0) for output in seen]).cpu()


def _color_histogram(image: Image.Image, bins: int, side: int = 64) -> np.ndarray:
    """Joint RGB histogram of a picture's central square, (bins, bins, bins) float64, sum 1."""
    weights = np.outer(_bell(side), _bell(side)).ravel()
    small = ImageOps.fit(image.convert("RGB"), (side, side), Image.Resampling.BOX)
    pixels = np.asarray(small, dtype=np.float64).reshape(-1, 3) / 255 * (bins - 1)
    # share[p, c, b]: how much of pixel p's channel c belongs to bin b; its shares sum to 1
    share = np.maximum(0.0, 1.0 - np.abs(pixels[:, :, None] - np.arange(bins)))
    histogram = np.einsum(
        "p,pr,pg,pb->rgb", weights, share[:, 0], share[:, 1], share[:, 2], optimize=True
    )
    return histogram / weights.sum()


def _bell(side: int) -> np.ndarray:
    """Weights that decrease from the middle of a line, `(side,)`: a Gaussian with σ a sixth of the line."""
    offset = (np.arange(side) + 0.5) / side - 0.5
    return np.exp(-0.5 * (offset * 6.0) ** 2)
