"""Photos in: open and check them, turn them upright; the views a run trains on; the prompt templates.

A file that cannot be used is skipped with a warning that names it; it never stops a run.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tiutils.errors import InputError, first_line
from tiutils.io import colors, files, hub, pictures

logger = logging.getLogger("tiutils")

# What cameras and browsers write. Pillow knows many more, and one of them (EPS) starts a program.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
PHOTO_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif",
)  # fmt: skip
EXPECTED_SUFFIXES = (".md", ".txt", ".json")  # cards, licenses and captions lie beside photos
MAX_PIXELS = 89_478_485  # Pillow's own limit against decompression bombs: 268 MB as RGB
MANY_PHOTOS = 36  # above this, a warning says that a few are enough
MAX_SHORT_SIDE = 2048  # pixels; larger photos are shrunk, so that fifty of them fit in memory
PIXEL_VALUES = (np.arange(256) / 127.5 - 1).astype(np.float32)  # a VAE's range: 0..255 -> [-1, 1]

# The sentences of Gal et al. 2022 (arXiv 2208.01618), in the order of the diffusers script.
_OBJECTS = (
    "a photo of a {}|a rendering of a {}|a cropped photo of the {}|the photo of a {}|"
    "a photo of a clean {}|a photo of a dirty {}|a dark photo of the {}|a photo of my {}|"
    "a photo of the cool {}|a close-up photo of a {}|a bright photo of the {}|"
    "a cropped photo of a {}|a photo of the {}|a good photo of the {}|a photo of one {}|"
    "a close-up photo of the {}|a rendition of the {}|a photo of the clean {}|a rendition of a {}|"
    "a photo of a nice {}|a good photo of a {}|a photo of the nice {}|a photo of the small {}|"
    "a photo of the weird {}|a photo of the large {}|a photo of a cool {}|"
    "a photo of a small {}"
)
_STYLES = (  # two occur twice, as in the script
    "a painting|a rendering|a cropped painting|the painting|a clean painting|a dirty painting|"
    "a dark painting|a picture|a cool painting|a close-up painting|a bright painting|"
    "a cropped painting|a good painting|a close-up painting|a rendition|a nice painting|"
    "a small painting|a weird painting|a large painting"
)
OBJECT_TEMPLATES: tuple[str, ...] = tuple(_OBJECTS.split("|"))
STYLE_TEMPLATES: tuple[str, ...] = tuple(f"{s} in the style of {{}}" for s in _STYLES.split("|"))


@dataclass(frozen=True)
class Photo:
    """A usable photo.

    Attributes:
        path: its file.
        image: its picture in mode RGB, upright, on white where it was transparent.
        alpha: how opaque it was, mode L, of the same size; None if it was opaque everywhere.
    """

    path: Path
    image: Image.Image
    alpha: Image.Image | None = None


@dataclass(frozen=True)
class Concept:
    """The photos of one concept, in natural order of their names, and the files that were skipped, with reasons."""

    photos: tuple[Photo, ...]
    skipped: tuple[tuple[Path, str], ...]
    name: str


@dataclass(frozen=True)
class View:
    """A crop of one photo: its index, a square (left, upper, right, lower) in pixels, and whether it is mirrored."""

    photo: int
    box: tuple[int, int, int, int]
    flip: bool


def templates(learnable_property: str) -> tuple[str, ...]:
    """The training sentences, each with one `{}` for the word: 27 for "object", 19 for "style"."""
    sentences = {"object": OBJECT_TEMPLATES, "style": STYLE_TEMPLATES}
    if learnable_property not in sentences:
        raise InputError(f"learnable property {learnable_property!r}: expected 'object' or 'style'")
    return sentences[learnable_property]


def fill(sentence: str, word: str) -> str:
    """The sentence with `word` in place of each `{}`; other braces, as in `{red|blue}`, are left alone."""
    return sentence.replace("{}", word)


def find_photos(train_data_dir: str | Path, *, token: str | None = None) -> Path:
    """The folder of photos: a local one, or that of a Hub dataset ("owner/name"), fetched first.

    Raises:
        InputError: there is no such folder, and no Hub dataset of that name can be reached.
    """
    name = str(train_data_dir)
    folder = str(files.given(name, "the folder of photos"))
    if os.path.isdir(folder):
        return Path(folder)
    if os.path.lexists(folder):
        raise InputError(f"{name!r} is not a folder: give the folder that holds the photos")
    if not hub.is_repository_id(name):
        expected = "a folder of photos, or a Hub dataset id (owner/name)"
        raise InputError(f"no folder {name!r}: give {expected}")
    patterns = [f"*{suffix}" for lower in PHOTO_SUFFIXES for suffix in (lower, lower.upper())]
    return hub.fetch_dataset(name, patterns, token)


def load(folder: str | Path) -> Concept:
    """Open every photo in `folder`, not in its subfolders, in natural order: 2.jpg before 10.jpg.

    Photos are turned upright by their EXIF tag and converted to sRGB, whatever they are marked with (a color profile,
    code points), including grayscale, palette, CMYK, and 16-bit ones; of an animation, the first frame is taken.
    Transparent pixels are put on white: the color stored in them is arbitrary (often black, with a ragged edge), while
    a thing cut out on white looks like the shop photos that the models have seen by the million.

    Raises:
        InputError: the folder is missing or has no usable photo; says why, file by file.
    """
    folder = files.given(folder, "the folder of photos")
    try:
        paths = sorted(folder.iterdir(), key=_natural_order)
    except OSError as error:
        raise InputError(
            f"cannot read {str(folder)!r} ({error.strerror}): give a folder of photos"
        ) from None
    photos: list[Photo] = []
    skipped: list[tuple[Path, str]] = []
    for path in paths:
        if os.path.isdir(path) and path.suffix.lower() not in PHOTO_SUFFIXES:
            continue  # a subfolder is no mistake: held-out photos are in one
        try:
            photos.append(Photo(path, *_open_photo(path)))
        except Exception as error:  # for damaged files, decoders raise anything
            skipped.append((path, _reason(path, error)))
            expected = path.suffix.lower() in EXPECTED_SUFFIXES or path.name == "LICENSE"
            level = logging.INFO if expected else logging.WARNING
            logger.log(level, "left out %r: %s", path.name, skipped[-1][1])
    if not photos:
        why = "; ".join(f"{path.name!r}: {reason}" for path, reason in skipped[:20])
        raise InputError(
            f"no photo left in {str(folder)!r} ({why or 'no files in it'}): "
            "give 3 to 5 photos, as JPEG, PNG or WebP files"
        )
    if len(photos) == 1:
        only = photos[0].path.name
        logger.warning("only one photo, %r: 3 to 5 from different sides teach a word better", only)
    if len(photos) > MANY_PHOTOS:
        logger.warning(
            f"{len(photos)} photos in {str(folder)!r}: 3 to 5 from different sides are enough for a word, and each "
            f"takes time and memory"
        )
    for group in _groups(near_duplicates(photos)):
        names = " and ".join(repr(photo.path.name) for photo in group[:2])
        if len(group) == 2:
            logger.warning("%s are nearly the same picture: keep one, or it counts twice", names)
        else:
            logger.warning(
                f"{names} and {len(group) - 2} more are nearly the same picture: keep one, or it counts "
                f"{len(group)} times"
            )
    return Concept(tuple(photos), tuple(skipped), _concept_name(folder.resolve()))


def warn_of_small_photos(concept: Concept, resolution: int) -> None:
    """Warn of photos that are enlarged for training: the model learns their blur as part of the concept."""
    small = [photo for photo in concept.photos if min(photo.image.size) < resolution]
    if small:
        named = ", ".join(
            f"{photo.path.name!r} ({photo.image.width} × {photo.image.height})"
            for photo in small[:3]
        )
        more = f" and {len(small) - 3} more" if len(small) > 3 else ""
        logger.warning(
            f"{named}{more}: smaller than the {resolution} pixels of training, so enlarged, and the blur is learned as "
            f"well; use a larger original, or a --resolution no larger than the photos"
        )


def near_duplicates(photos: Sequence[Photo]) -> list[tuple[Photo, Photo]]:
    """Pairs that show nearly the same picture: copied, re-saved, resized, brightened, or mirrored.

    Two pictures count as the same if their correlation at 8 × 8 pixels is above 0.95. The course's photos of one thing
    from different sides stay below 0.86; a copy that lost a twentieth on one side, or much of its quality, stays above.
    """
    small = [photo.image.resize((8, 8), Image.Resampling.BOX) for photo in photos]
    colors = np.array([np.asarray(image) for image in small], np.float32)  # (photos, 8, 8, 3)
    colors -= colors.mean(axis=(1, 2, 3), keepdims=True)
    colors /= np.maximum(np.sqrt((colors**2).sum(axis=(1, 2, 3), keepdims=True)), 1e-6)
    plain, mirrored = (c.reshape(len(photos), -1) for c in (colors, colors[:, :, ::-1]))
    alike = np.maximum(plain @ plain.T, plain @ mirrored.T) > 0.95
    return [(photos[i], photos[j]) for i, j in np.argwhere(np.triu(alike, 1))]


def _groups(pairs: Sequence[tuple[Photo, Photo]]) -> list[list[Photo]]:
    """Photos connected by a chain of pairs, in the order of the pairs."""
    group_of: dict[Path, list[Photo]] = {}
    for first, second in pairs:
        one, other = (group_of.setdefault(photo.path, [photo]) for photo in (first, second))
        if one is not other:
            one += other
            group_of |= {photo.path: one for photo in other}
    return list({id(group): group for group in group_of.values()}.values())


def _open_photo(path: Path) -> tuple[Image.Image, Image.Image | None]:
    """The picture in a file, RGB and upright, and its alpha. Raises any exception if the file is damaged."""
    if not stat.S_ISREG(path.stat().st_mode):  # before opening: a named pipe would wait forever
        raise InputError("a folder, not a photo" if path.is_dir() else "not a file")
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]
    with warnings.catch_warnings(), open(path, "rb") as file:
        warnings.simplefilter("ignore")  # Pillow's remarks on size and tags
        is_heic = pictures.check(file, path.suffix)
        with pictures.open_heic(file) if is_heic else Image.open(file, formats=formats) as image:
            if image.width * image.height > MAX_PIXELS:  # only the header has been read so far
                raise Image.DecompressionBombError
            with open(path, "rb") as again:  # Pillow's own handle stays where it is
                space = colors.space_of(image, again, path.name)
            upright = _upright(image)
            rgb, alpha = _shrink(_to_rgb(upright, space, path.name)), None
            if upright.has_transparency_data:
                alpha = _shrink(upright.convert("RGBA").getchannel("A"))
            return rgb, None if alpha is None or alpha.getextrema() == (255, 255) else alpha


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a damaged tag; if the pixels are damaged as well, `load` raises
        image.load()
        return image


def _to_rgb(image: Image.Image, space: colors.Space | bytes | None, name: str) -> Image.Image:
    """Any mode to sRGB: 16 bits scaled to 8 (`convert` would clip), alpha composited on white."""
    if image.mode == "F":
        raise InputError("floating-point colors of unknown range; save it with 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int32)
        if values.min() < 0 or values.max() > 65535:
            raise InputError("more than 16 bits per color; save it with 8 or 16 bits")
        # 65535 = 255 · 257: white stays white, and each value goes to the nearest
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if not image.has_transparency_data:
        return colors.to_srgb(image, space, name)
    is_gray = image.mode in ("LA", "L", "1")
    opaque = image.convert("LA").convert("L") if is_gray else image.convert("RGBA").convert("RGB")
    cut_out = colors.to_srgb(opaque, space, name)
    cut_out.putalpha(image.convert("RGBA").getchannel("A"))
    flat = Image.new("RGBA", image.size, "white")
    flat.alpha_composite(cut_out)
    return flat.convert("RGB")


def _shrink(image: Image.Image) -> Image.Image:
    """The same picture with a short side of at most MAX_SHORT_SIDE, well above any resolution in use."""
    scale = MAX_SHORT_SIDE / min(image.size)
    if scale >= 1:
        return image
    size = (round(image.width * scale), round(image.height * scale))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def _natural_order(path: Path) -> tuple[list[str | int], str]:
    """A sort key by number: photo-2 before photo-10, ignoring case; ties by the exact name."""
    parts = re.split(r"([0-9]+)", path.name.lower())  # text and digits alternate, so keys compare
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], path.name


def _reason(path: Path, error: Exception) -> str:
    """Why a file was skipped, in words that a photographer understands."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {MAX_PIXELS // 10**6} megapixels"
    if path.suffix.lower() in (".heic", ".heif"):
        return f"not a HEIC photo, or a damaged one ({first_line(error)[:80]}); save it as JPEG"
    if path.suffix.lower() in pictures.RAW_SUFFIXES:
        return pictures.RAW
    if isinstance(error, UnidentifiedImageError):
        return "not a photo (JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF)"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror  # such as a link that loops, or a file without permission to read
    return f"damaged: {first_line(error)}"


def _concept_name(folder: Path) -> str:
    """The folder's name; in the Hub's cache (datasets--owner--name/snapshots/…) the dataset's."""
    parts = folder.parts
    return parts[-3].split("--")[-1] if parts[-2:-1] == ("snapshots",) else folder.name


def views(concept: Concept, *, center_crop: bool = False) -> tuple[View, ...]:
    """Every view of every photo, grouped by photo; of each box, the plain view, then the mirrored one.

    A square photo has one box, all of it. Other photos are never squashed: they have three square boxes along the
    longer side (start, center, end), or with `center_crop` only the one in the center.
    """
    found = []
    for index, photo in enumerate(concept.photos):
        width, height = photo.image.size
        side, spare = min(width, height), abs(width - height)
        offsets = (0, spare // 2, spare) if spare and not center_crop else (spare // 2,)
        for offset in offsets:
            left, upper = (offset, 0) if width > height else (0, offset)
            box = (left, upper, left + side, upper + side)
            found += [View(index, box, flip) for flip in (False, True)]
    return tuple(found)


def render_view(concept: Concept, view: View, resolution: int) -> np.ndarray:
    """The view as the VAE reads it: float32 `(3, resolution, resolution)` in [-1, 1].

    Small photos are enlarged; a view that already has this size keeps its pixels bit for bit.
    """
    # cropped before it is resized: no color bleeds in from outside the box
    image = concept.photos[view.photo].image.crop(view.box)
    size = (resolution, resolution)
    pixels = np.asarray(image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0))
    pixels = pixels[:, ::-1] if view.flip else pixels  # (height, width, 3) uint8
    return np.ascontiguousarray(PIXEL_VALUES[pixels].transpose(2, 0, 1))
