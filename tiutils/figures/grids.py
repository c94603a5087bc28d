"""Pictures to look at together: words side by side, where a word acts, before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from tiutils import inference
from tiutils.errors import InputError
from tiutils.figures import Images, image_grid
from tiutils.models import Models


def class_gallery(
    pictures: Mapping[str, Images],
    prompts: Sequence[str],
    *,
    photos: Mapping[str, Image.Image] | None = None,
    title: str = "",
) -> Figure:
    """A row for each word, a column for each prompt; who looks down a column compares words.

    Args:
        pictures: word → one picture of each prompt.
        prompts: with `{}` where the word stands.
        photos: word → a photo of the thing, shown in front where there is one.
        title: above everything.

    Raises:
        InputError: no words, or a word that has not one picture for each prompt.
    """
    for word, drawn in pictures.items():
        if len(drawn) != len(prompts):
            raise InputError(
                f"{word!r} has {len(drawn)} pictures for {len(prompts)} prompts; give one of each"
            )
    photos = photos or {}
    front = [[photos.get(word)] if photos else [] for word in pictures]
    rows = [[*first, *drawn] for first, drawn in zip(front, pictures.values(), strict=True)]
    columns = [prompt.replace("{}", "…") for prompt in prompts]
    alt = (
        f"{title + '. ' if title else ''}A row for each word: {', '.join(pictures)}. "
        f"A column for each prompt: {'; '.join(columns)}."
    )
    labels = ["a photo", *columns] if photos else columns
    gaps = (0,) if photos else ()
    return image_grid(
        rows,
        row_labels=list(pictures),
        column_labels=labels,
        title=title,
        alt=alt,
        gaps=gaps,
        cell=0.9,
    )


def attention_figure(
    pictures: Images, maps: Sequence[Mapping[str, Tensor]], *, title: str = ""
) -> Figure:
    """Each picture, then where each of its words acts: bright where the share is largest.

    Args:
        pictures: as `attention.draw_with_maps` gives them.
        maps: for each picture word → share of the attention, `(h, w)`.
        title: above everything.

    Raises:
        InputError: not as many maps as pictures, or none.
    """
    if not pictures or len(pictures) != len(maps):
        raise InputError(
            f"{len(pictures)} pictures and {len(maps)} maps: give one of each, or more"
        )
    rows = [
        [picture, *(heat_overlay(picture, heat) for heat in words.values())]
        for picture, words in zip(pictures, maps, strict=True)
    ]
    alt = f"{title + '. ' if title else ''}Pictures, and where each word acts. " + " ".join(
        f"{word}: most at the {_whereabouts(heat)}."
        for words in maps
        for word, heat in words.items()
    )
    return image_grid(
        rows, column_labels=["picture", *maps[0]], title=title, alt=alt, gaps=(0,), cell=0.85
    )


def wipe(before: Image.Image, after: Image.Image, percent: int) -> Figure:
    """One picture laid over another: the left `percent` of its width is `after`.

    Raises:
        InputError: the two have different sizes.
    """
    if before.size != after.size:
        raise InputError(f"pictures of {before.size} and {after.size} pixels; give two of one size")
    seam = round(before.width * percent / 100)
    both = before.convert("RGB")
    both.paste(after.convert("RGB").crop((0, 0, seam, after.height)))
    title = f"{percent} % after, {100 - percent} % before"
    alt = f"Left of the seam, {percent} % of the width, the picture after; right of it the one before."
    return image_grid([[both]], title=title, alt=alt, cell=1.8)


def play(
    models: Models, prompt: str, negative_prompt: str, seed: int, guidance_scale: float
) -> Figure:
    """Draw one picture of what a playground's controls say; raises as `inference.generate`."""
    picture = inference.generate(
        models, prompt, negative_prompt=negative_prompt, seed=seed, guidance_scale=guidance_scale
    )[0]
    alt = (
        f"“{prompt}”{f', away from “{negative_prompt}”' if negative_prompt else ''}, drawn from "
        f"seed {seed} with guidance {guidance_scale:g}."
    )
    return image_grid([[picture]], title=prompt, alt=alt, cell=1.8)


def heat_overlay(picture: Image.Image, heat: Tensor, *, strength: float = 0.6) -> Image.Image:
    """The picture in gray under its map in color, dark blue (least) to yellow (most); RGB.

    The map `(h, w)` is stretched to its own range: colors compare places in a map, not maps. The
    color map is cividis, made for color-blind readers.
    """
    values = heat.float()[None, None]
    enlarged = F.interpolate(values, picture.size[::-1], mode="bicubic", align_corners=False)[0, 0]
    low, high = enlarged.min(), enlarged.max()
    scaled = ((enlarged - low) / (high - low).clamp(min=1e-12)).numpy()
    colors = (colormaps["cividis"](scaled)[..., :3] * 255).round().astype("uint8")
    return Image.blend(picture.convert("L").convert("RGB"), Image.fromarray(colors), strength)


def _whereabouts(heat: Tensor) -> str:
    """The ninth of the map with its largest value, in words."""
    row, column = divmod(int(heat.argmax()), heat.shape[1])
    vertical = ("top", "middle", "bottom")[3 * row // heat.shape[0]]
    horizontal = ("left", "center", "right")[3 * column // heat.shape[1]]
    return f"{vertical} {horizontal}"
