"""The color space of a picture, and its conversion to sRGB, the space that models were trained in.

Phones write Display P3, cameras Adobe RGB, printers CMYK; the same numbers then mean other colors. A picture is marked
with an ICC profile, with code points (ITU-T H.273: PNG's cICP, nclx in AVIF and HEIC), with PNG's older gAMA and cHRM,
or with an EXIF tag. An unmarked picture is taken to be sRGB. The pixels of sRGB pictures are never changed.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from tiutils.errors import InputError, first_line
from tiutils.io import pictures

logger = logging.getLogger("tiutils")

D65 = (0.3127, 0.3290)
# x and y of red, green, blue and white
BT709 = (0.640, 0.330, 0.300, 0.600, 0.150, 0.060, *D65)  # sRGB's as well
ADOBE_RGB = (0.640, 0.330, 0.210, 0.710, 0.150, 0.060, *D65)
PRIMARIES = {  # H.273, table 2; 2 is "unspecified"
    1: BT709,
    2: BT709,
    4: (0.67, 0.33, 0.21, 0.71, 0.14, 0.08, 0.310, 0.316),
    5: (0.64, 0.33, 0.29, 0.60, 0.15, 0.06, *D65),
    6: (0.630, 0.340, 0.310, 0.595, 0.155, 0.070, *D65),
    7: (0.630, 0.340, 0.310, 0.595, 0.155, 0.070, *D65),
    9: (0.708, 0.292, 0.170, 0.797, 0.131, 0.046, *D65),
    11: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, 0.314, 0.351),
    12: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, *D65),  # Display P3
    22: (0.630, 0.340, 0.295, 0.605, 0.155, 0.077, *D65),
}
HDR = {16: "PQ", 18: "HLG"}  # table 3
EXIF, INTEROP, COLOR_SPACE = 0x8769, 0xA005, 0xA001
BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
MAX_PROFILE = 8 * 2**20  # bytes; a printer's profile has 2 million
TOLERANCE = 2  # of 255: a profile that changes no color by more is sRGB


def _srgb_to_linear(coded: np.ndarray) -> np.ndarray:
    return np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)


def _linear_to_srgb(linear: np.ndarray) -> np.ndarray:
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


def _power(exponent: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda coded: coded**exponent


# The video curves (1, 6, 14, 15) describe cameras; viewers display such pictures like sRGB.
TRANSFERS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    **dict.fromkeys((1, 2, 6, 13, 14, 15), _srgb_to_linear),
    4: _power(2.2),
    5: _power(2.8),
    8: _power(1),
    17: _power(2.6),
}


@dataclass(frozen=True)
class Space:
    """An RGB color space.

    Attributes:
        primaries: x and y of red, green, blue and white.
        to_linear: from coded values in 0..1 to linear light in 0..1.
        is_full_range: whether black is 0 and white 255; else 16 and 235, as in video.
    """

    primaries: tuple[float, ...]
    to_linear: Callable[[np.ndarray], np.ndarray]
    is_full_range: bool = True

    @property
    def is_srgb(self) -> bool:
        """Whether no conversion is needed."""
        return (
            np.allclose(self.primaries, BT709, atol=0.002)
            and self.to_linear is _srgb_to_linear
            and self.is_full_range
        )


def space_of(image: Image.Image, file: BinaryIO, name: str = "") -> Space | bytes | None:
    """The color space that a picture is marked with, or its ICC profile; None if unmarked, which means sRGB.

    Args:
        image: as Pillow opened it.
        file: the same picture's file; its position is not kept.
        name: for a warning.

    Raises:
        InputError: it is an HDR picture.
    """
    info = image.info
    if code := pictures.png_chunk(file, b"cICP"):  # takes precedence, by the standard
        return _from_code_points(code[0], code[1], code[3] != 0, name) if len(code) >= 4 else None
    profile = info.get("icc_profile")
    if isinstance(profile, bytes) and profile:
        if hdr := HDR.get(_transfer_of(profile)):
            _refuse_hdr(hdr)
        return profile
    if image.format in ("AVIF", "HEIF"):
        found = pictures.nclx(file)  # the decoder expands the range
        return _from_code_points(found[0], found[1], True, name) if found else None
    if image.format == "PNG":
        return None if "srgb" in info else _from_gamma(info.get("gamma"), info.get("chromaticity"))
    return Space(ADOBE_RGB, _power(563 / 256)) if _is_adobe_rgb(image) else None


def to_srgb(image: Image.Image, space: Space | bytes | None, name: str = "") -> Image.Image:
    """The picture in sRGB, mode RGB; an unusable profile is ignored with a warning.

    Args:
        image: without alpha.
        space: as from `space_of`.
        name: for a warning.
    """
    if isinstance(space, bytes):
        try:
            return _through_profile(image, space)
        except Exception as error:  # damaged profiles raise anything
            found = f"its color profile cannot be used ({first_line(error)[:120]})"
            logger.warning(f"{name!r}: {found}; its colors are read as sRGB")
            return image.convert("RGB")
    image = image.convert("RGB")
    return image if space is None or space.is_srgb else _converted(image, space)


def _refuse_hdr(transfer: str) -> None:
    raise InputError(
        f"an HDR picture ({transfer}), with highlights that a model cannot represent; save it as an ordinary JPEG"
    )


def _from_code_points(
    primaries: int, transfer: int, is_full_range: bool, name: str
) -> Space | None:
    """The space of these H.273 code points; HDR is refused, unknown ones are read as sRGB with a warning."""
    if transfer in HDR:
        _refuse_hdr(HDR[transfer])
    if primaries not in PRIMARIES or transfer not in TRANSFERS:
        found = f"unknown color code points {primaries}/{transfer}"
        logger.warning(f"{name!r}: {found}; its colors are read as sRGB")
        return None
    return Space(PRIMARIES[primaries], TRANSFERS[transfer], is_full_range)


def _from_gamma(gamma: Any, chromaticity: Any) -> Space | None:
    """The space of PNG's gAMA and cHRM, as Pillow gives them; implausible values are ignored."""
    to_linear: Callable[[np.ndarray], np.ndarray] = _srgb_to_linear
    primaries = BT709
    if isinstance(gamma, float) and 0.2 <= gamma <= 1.5 and abs(gamma - 1 / 2.2) > 0.01:
        to_linear = _power(1 / gamma)
    if isinstance(chromaticity, tuple) and len(chromaticity) == 8:  # white comes first
        found = (*chromaticity[2:], *chromaticity[:2])
        primaries = found if all(0 < number < 1 for number in found) else BT709
    try:
        _matrix(primaries)
    except np.linalg.LinAlgError:  # the three primaries lie on one line
        return None
    return Space(primaries, to_linear)


def _is_adobe_rgb(image: Image.Image) -> bool:
    """Whether EXIF data say so: with a color space of 2, or with DCF's interoperability index."""
    try:
        exif = image.getexif()
        named = str(exif.get_ifd(EXIF).get(INTEROP) and exif.get_ifd(INTEROP).get(1, ""))
        return exif.get_ifd(EXIF).get(COLOR_SPACE) == 2 or named.startswith("R03")
    except Exception:  # damaged tags
        return False


def _transfer_of(profile: bytes) -> int:
    """The transfer code point in an ICC profile of version 4.4; 0 if it has none."""
    count = min(int.from_bytes(profile[128:132], "big"), 200)
    for place in range(132, 132 + 12 * count, 12):
        if profile[place : place + 4] == b"cicp":
            offset = int.from_bytes(profile[place + 4 : place + 8], "big")
            return profile[offset + 9] if offset + 9 < len(profile) else 0
    return 0


def _through_profile(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert with an ICC profile, unless it is sRGB's. Raises any exception if the profile is unusable."""
    from PIL import ImageCms

    if len(profile) > MAX_PROFILE:
        raise ValueError(f"it has {len(profile) // 2**20} MiB")
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = source.profile.xcolor_space.strip()
    mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}.get(space, "")
    if space == "RGB" and image.mode not in ("CMYK", "LAB"):
        image = image.convert("RGB")  # gray as well: its grays are those of the space
    elif space == "GRAY" and image.mode in ("1", "L"):
        image = image.convert("L")
    if image.mode != mode:
        raise ValueError(f"it is for {space or 'nothing'}, but the picture is {image.mode}")
    transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    if mode in ("RGB", "L"):
        probe = _probe(mode)
        moved = np.asarray(ImageCms.applyTransform(probe, transform)).astype(int)
        if np.abs(moved - np.asarray(probe.convert("RGB"))).max() <= TOLERANCE:
            return image.convert("RGB")
    moved_image = ImageCms.applyTransform(image, transform)
    assert moved_image is not None  # only inPlace=True returns None
    return moved_image


def _probe(mode: str) -> Image.Image:
    """A picture of colors that sample the whole space."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    steps = np.linspace(0, 255, 17).round().astype(np.uint8)
    return Image.fromarray(np.stack(np.meshgrid(steps, steps, steps), -1).reshape(17, -1, 3))


def _matrix(primaries: tuple[float, ...]) -> np.ndarray:
    """(3, 3), from linear RGB of the space to linear sRGB, adapted from white to white (Bradford)."""
    to_xyz, white = _to_xyz(primaries)
    from_xyz, srgb_white = _to_xyz(BT709)
    gain = (BRADFORD @ srgb_white) / (BRADFORD @ white)
    adapted = np.linalg.inv(BRADFORD) @ np.diag(gain) @ BRADFORD
    return np.linalg.inv(from_xyz) @ adapted @ to_xyz


def _to_xyz(primaries: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.array(primaries, np.float64).reshape(4, 2).T
    columns = np.stack([x / y, np.ones(4), (1 - x - y) / y])
    white = columns[:, 3]
    return columns[:, :3] * np.linalg.solve(columns[:, :3], white), white


def _converted(image: Image.Image, space: Space) -> Image.Image:
    """Convert by lookup tables: 256 coded values to light, 65,536 values of light to sRGB."""
    coded = np.arange(256) / 255
    if not space.is_full_range:
        coded = (coded * 255 - 16) / 219
    to_linear = space.to_linear(coded.clip(0, 1)).astype(np.float32)
    encode = (_linear_to_srgb(np.arange(65536) / 65535) * 255).round().astype(np.uint8)
    matrix = _matrix(space.primaries).T.astype(np.float32)
    pixels = np.array(image)  # (height, width, 3)
    for row in range(0, len(pixels), 64):  # in strips: as floats, a large photo takes a gigabyte
        light = (to_linear[pixels[row : row + 64]] @ matrix).clip(0, 1)
        pixels[row : row + 64] = encode[(light * 65535).round().astype(np.uint16)]
    return Image.fromarray(pixels)
