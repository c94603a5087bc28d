"""The figures behind the notebooks' controls: plain functions of the values chosen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageEnhance

from tiutils import concept as concepts
from tiutils import conditioning, diffusion, inference, token_embedding
from tiutils.concept import Concept, View
from tiutils.errors import InputError
from tiutils.evaluation import metrics
from tiutils.figures import diagrams, grids, output
from tiutils.io import blending
from tiutils.models import Models
from tiutils.tokenizer import check_initializer

CROPS = ("start", "center", "end")
FRAME_WIDTH = 0.015  # of the square's side


def crop_preview(
    concept: Concept, chosen: Sequence[int], crop: str, mirrored: bool, resolution: int
) -> Figure:
    """The chosen photos with the square that is cut out, and what the model sees below.

    Args:
        concept: the photos.
        chosen: indices of photos.
        crop: "start", "center" or "end" of the long side; a square photo is used whole.
        mirrored: whether left and right are swapped.
        resolution: the side in pixels of what the model sees.

    Raises:
        InputError: no photo is chosen.
    """
    if not chosen:
        raise InputError("no photo is chosen; choose 3 to 5")
    framed, seen = [], []
    for index in chosen:
        views = [v for v in concepts.views(concept) if v.photo == index and v.flip == mirrored]
        view = views[CROPS.index(crop)] if len(views) > 1 else views[0]
        framed.append(_framed(concept.photos[index].image, view))
        pixels = concepts.render_view(concept, view, resolution).transpose(1, 2, 0)
        seen.append(Image.fromarray(((pixels + 1) * 127.5).round().astype("uint8")))
    names = [concept.photos[index].path.name for index in chosen]
    how = f"crop at the {crop}{', mirrored' if mirrored else ''}"
    return grids.image_grid(
        [framed, seen],
        row_labels=["photo", f"what the model sees, {resolution} × {resolution}"],
        column_labels=names,
        alt=f"{', '.join(names)}: the photo with the square that is cut out, and below it what the "
        f"model sees: {how}.",
    )


def _framed(photo: Image.Image, view: View) -> Image.Image:
    """The photo, dark outside the view's square."""
    dimmed = ImageEnhance.Brightness(photo).enhance(0.35)
    dimmed.paste(photo.crop(view.box), view.box[:2])
    left, upper, right, lower = view.box
    width = max(1, round(FRAME_WIDTH * (right - left)))
    frame = (left, upper, right - 1, lower - 1)
    ImageDraw.Draw(dimmed).rectangle(frame, outline=output.VERMILION, width=width)
    return dimmed


def noise_preview(
    models: Models, concept: Concept, photo: int, prompt: str, timestep: int, *, seed: int = 0
) -> Figure:
    """A photo, its latents with the noise of a timestep, and the photo as the U-Net guesses it.

    Args:
        models: the frozen parts.
        concept: the photos.
        photo: the index of one, whose center crop is used.
        prompt: for the U-Net.
        timestep: the noise level, from 0 to the model's last, usually 999.
        seed: of the noise, which is the same for all timesteps.
    """
    pictures = _noised_and_guessed(models, concept, photo, prompt, timestep, seed)
    kept = float(models.noise_scheduler.alphas_cumprod[timestep])
    return grids.image_grid(
        [pictures],
        column_labels=["photo, from its latents", f"timestep {timestep}", "the model's guess"],
        alt=f"A photo; the same with the noise of timestep {timestep}, {kept:.0%} of the variance "
        f"left to the photo; and the photo as the model guesses it, told “{prompt}”.",
        cell=1.5,
    )


def noise_levels(
    models: Models, concept: Concept, photo: int, prompt: str, timesteps: Sequence[int]
) -> Figure:
    """A photo with the noise of several timesteps, and the U-Net's one-step guesses of it below."""
    columns = [_noised_and_guessed(models, concept, photo, prompt, t, 0)[1:] for t in timesteps]
    return grids.image_grid(
        list(zip(*columns, strict=True)),
        row_labels=["with noise", "the model's guess"],
        column_labels=[f"timestep {t}" for t in timesteps],
        alt=f"Above, a photo with the noise of timesteps {', '.join(map(str, timesteps))}; below, the photo as the "
        f"model guesses it in one step, told “{prompt}”.",
        cell=1.6,
    )


@torch.no_grad()
def _noised_and_guessed(
    models: Models, concept: Concept, photo: int, prompt: str, timestep: int, seed: int
) -> list[Image.Image]:
    """A photo from its latents, the same with noise, and the photo as the U-Net guesses it."""
    scheduler = models.noise_scheduler
    views = [v for v in concepts.views(concept, center_crop=True) if v.photo == photo]
    latents, _ = diffusion.encode_views(models, concept, views[:1], models.resolution)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed))
    noise, time = noise.to(latents), torch.tensor([timestep], device=latents.device)
    noisy = scheduler.add_noise(latents, noise, time)
    told = conditioning.encode(models, [prompt])
    output = conditioning.predict(models, noisy, time, *told).float()
    # from the predicted noise or velocity to the latents without it
    guess = scheduler.step(output, timestep, noisy).pred_original_sample
    return diffusion.decode(models, torch.cat([latents, noisy, guess]))


def word_losses(
    models: Models, images: Sequence[Image.Image], words: Iterable[str], *, num_samples: int = 32
) -> dict[str, float]:
    """How well each word describes the photos: word → loss on the same fixed samples, lowest first.

    A diffusion model can classify: of several prompts, the one with the lowest loss fits the image best
    (Li et al. 2023, arXiv 2303.16203).

    Raises:
        InputError: a word has several tokens, so that no row could start as its copy.
    """
    words = list(words)
    for word in words:
        check_initializer(models.tokenizer, word)
    losses = {
        w: metrics.fixed_evaluation_loss(models, images, w, num_samples=num_samples) for w in words
    }
    return dict(sorted(losses.items(), key=lambda pair: pair[1]))


def blend_preview(models: Models, first: str, second: str, amount: float) -> Figure:
    """A vector on the way from one word to another (`blending.slerp`): its neighbors, and an image generated for it.

    Raises:
        InputError: a word has several tokens.
    """
    start, end = (token_embedding.vector_of(models, word.strip()) for word in (first, second))
    mixed = blending.slerp(start.float().cpu().numpy(), end.float().cpu().numpy(), amount)
    vector = torch.from_numpy(mixed).to(start)
    blend = token_embedding.add_placeholder(models, "<explored-blend>", vectors=vector[None])
    try:
        picture = inference.generate(models, f"a photo of a {blend.token}", seed=1)[0]
    finally:
        token_embedding.remove_placeholder(models, blend)
    title = f"{1 - amount:.0%} {first} + {amount:.0%} {second}"
    return diagrams.neighbor_bars(
        token_embedding.neighbors(models, vector), title=title, picture=picture
    )


def play(
    models: Models, prompt: str, negative_prompt: str, seed: int, guidance_scale: float
) -> Figure:
    """Generate the image of a playground; raises as `inference.generate`."""
    picture = inference.generate(
        models, prompt, negative_prompt=negative_prompt, seed=seed, guidance_scale=guidance_scale
    )[0]
    alt = (
        f"“{prompt}”{f', away from “{negative_prompt}”' if negative_prompt else ''}, drawn from "
        f"seed {seed} with guidance {guidance_scale:g}."
    )
    return grids.image_grid([[picture]], title=prompt, alt=alt, cell=1.8)
