"""Prompts to pictures, with parts that are already loaded and words that were just learned.

diffusers' pipeline does the work; the prompt is encoded here, as in training (see `conditioning`), so that mixed-case
words and words of several vectors mean the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler
from PIL import Image
from torch import Tensor

from tiutils import conditioning, token_embedding
from tiutils.config import SamplingConfig
from tiutils.errors import InputError
from tiutils.io import embeddings
from tiutils.io.pretrained import TEXT_ENCODERS, TOKENIZERS
from tiutils.models import Models, as_pipeline
from tiutils.tokenizer import Placeholder, read_word


def encode_prompts(models: Models, prompts: Sequence[str]) -> torch.Tensor:
    """Text encoder output for prompts such as `"a <wood-toy> in the snow"`: float32 `(len(prompts), 77, hidden)`."""
    return conditioning.encode(models, prompts)[0]


def pipeline(models: Models) -> DiffusionPipeline:
    """A pipeline of diffusers, made of the parts in memory; nothing is read from disk or copied.

    The sampler is DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095), which needs 20 to 25 steps, with the betas and the
    prediction type of the model's own scheduler. It does not clip samples, since latents, unlike pixels, are not
    confined to [-1, 1]. It starts at the last timestep, that of pure noise; the scheduler's "leading" spacing would
    start some steps later.
    """
    schedule = {
        **models.noise_scheduler.config,
        "clip_sample": False,
        "thresholding": False,
        "timestep_spacing": "linspace",
    }
    sampler = DPMSolverMultistepScheduler.from_config(schedule, algorithm_type="dpmsolver++")
    pipe = as_pipeline(models, sampler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(
    models: Models,
    prompts: str | Sequence[str],
    sampling: SamplingConfig | None = None,
    *,
    on_image: Callable[[int, Image.Image], object] | None = None,
    **settings: Any,
) -> list[Image.Image]:
    """Generate pictures: `generate(models, "a <toy> in the snow", num_images_per_prompt=4, seed=1)`.

    Image k of each prompt starts from float32 noise of its own CPU generator, seeded `seed + k`. So a picture is the
    same, up to rounding, whatever the batch size and the device; and two prompts, or one prompt before and after
    training, start from the same noise.

    Args:
        models: the loaded parts.
        prompts: one prompt or several.
        sampling: how; the defaults of `SamplingConfig` if None.
        on_image: called with the number of each image, from 0, and the image, as soon as it is drawn.
        settings: fields of `SamplingConfig` that differ from `sampling`.

    Returns:
        `len(prompts) * num_images_per_prompt` RGB images, ordered by prompt.

    Raises:
        InputError: a setting cannot work, or the model cannot draw this size.
    """
    sampling = dataclasses.replace(sampling or SamplingConfig(), **settings)
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    height, width = sampling.size_for(models)
    if not prompts:
        return []

    encoded = conditioning.encode(models, prompts)  # once a prompt, not once an image
    unconditional = conditioning.encode_negative(models, sampling.negative_prompt)
    guidance_scale = sampling.guidance_scale
    if guidance_scale is None:
        guidance_scale = models.guidance_scale
    jobs = [(p, k) for p in range(len(prompts)) for k in range(sampling.num_images_per_prompt)]
    pipe = pipeline(models)
    # with a text encoder, which is always float32, the pipeline would compute in float32
    encoders = pipe.components.keys() & {*TEXT_ENCODERS, *TOKENIZERS}
    pipe.register_modules(**dict.fromkeys(encoders))
    images: list[Image.Image] = []
    with _vae_on_device(models), torch.autocast(models.device.type, enabled=False):
        for first in range(0, len(jobs), sampling.batch_size):
            chunk = jobs[first : first + sampling.batch_size]
            batch = pipe(
                **_told(models, encoded, [p for p, _ in chunk]),
                **_told(models, unconditional, [0] * len(chunk), "negative_"),
                latents=_first_noise(models, [sampling.seed + k for _, k in chunk], height, width),
                height=height,
                width=width,
                num_inference_steps=sampling.num_inference_steps,
                guidance_scale=guidance_scale,
            ).images
            for image in batch:
                images.append(image)
                if on_image is not None:
                    on_image(len(images) - 1, image)
    return images


def _told(
    models: Models, encoded: Sequence[Tensor | None], which: list[int], kind: str = ""
) -> dict[str, Tensor]:
    """What `conditioning.encode` returned for some of the prompts, as arguments of the pipeline."""
    names = (f"{kind}prompt_embeds", f"{kind}pooled_prompt_embeds")
    return {
        name: part[which].to(models.dtype)
        for name, part in zip(names, encoded, strict=True)
        if part is not None
    }


def load_embedding(models: Models, path: str | Path, token: str | None = None) -> Placeholder:
    """Read a learned embedding and add its word to `models`; arguments and errors as for `tokenizer.read_word`."""
    learned = read_word(models, path, token)
    return token_embedding.insert_placeholder(
        models, learned.tokens, torch.from_numpy(learned.rows)
    )


def load_words(models: Models, folder: str | Path) -> dict[str, Placeholder]:
    """Add every learned word in a folder to `models`, such as those that a class has handed in.

    A word that is already taken gets its file's name instead: `<my-thing>` in `Anna.safetensors` becomes `<anna>`.

    Returns:
        file name without its suffix → the word, in the order of file names.

    Raises:
        InputError: the folder has no learned words, or several in one file; or as `load_embedding`, with the file's
            name.
    """
    ends = (".safetensors", ".bin", ".pt")
    paths = sorted(path for path in Path(folder).glob("*") if path.suffix in ends)
    if not paths:
        raise InputError(f"{str(folder)!r} has no file that ends in {', '.join(ends)}")
    tokens = {path: _only_token(path) for path in paths}  # all, before the first is loaded
    found: dict[str, Placeholder] = {}
    for path, token in tokens.items():
        taken = token in models.tokenizer.get_added_vocab()
        own = f"<{'-'.join(path.stem.lower().split())}>" if taken else None
        try:
            found[path.stem] = load_embedding(models, path, own)
        except InputError as error:
            raise InputError(f"{path.name}: {error}") from error
    return found


def _only_token(path: Path) -> str:
    """The one word in a file."""
    try:
        first, *others = embeddings.read_all(path)
    except InputError as error:
        raise InputError(f"{path.name}: {error}") from error
    if others:
        raise InputError(
            f"{path.name}: it has {1 + len(others)} words ({first.token!r}, {others[0].token!r} …), but here each file "
            f"must have one word; `tiutils convert --word` writes one of them into a file of its own"
        )
    return first.token


def _first_noise(models: Models, seeds: Sequence[int], height: int, width: int) -> torch.Tensor:
    """The initial noise, `(len(seeds), 4, height / factor, width / factor)`.

    Sampled in float32 on the CPU, then cast and moved, because other dtypes and devices have other random numbers.
    """
    factor = models.vae_factor
    shape = (models.unet.config.in_channels, height // factor, width // factor)
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(noise).to(models.device, models.dtype)


@contextlib.contextmanager
def _vae_on_device(models: Models) -> Iterator[None]:
    """The VAE on the U-Net's device, to decode: training moves it away once all photos are encoded."""
    home = models.vae.device
    models.vae.to(models.device)
    try:
        yield
    finally:
        models.vae.to(home)
