"""Color spaces of pictures: by profile, code points and older marks; sRGB pixels are unchanged."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from small_model import draw_photo

from tiutils import concept
from tiutils.errors import InputError
from tiutils.io import colors

P3 = (0.680, 0.320, 0.265, 0.690, 0.150, 0.060)
D50 = (0.9642, 1.0, 0.8249)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def profile(primaries=P3, gamma=2.2, space=b"RGB ", more=()) -> bytes:
    """An ICC profile of three colors and a power, or of gray and a power."""
    number = lambda value: struct.pack(">i", round(value * 65536))  # noqa: E731
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    xyz = lambda values: b"XYZ " + bytes(4) + b"".join(map(number, values))  # noqa: E731
    tags = {b"wtpt": xyz(D50)}
    if space == b"GRAY":
        tags[b"kTRC"] = curve
    else:
        to_xyz, white = colors._to_xyz((*primaries, *colors.D65))
        gain = (colors.BRADFORD @ D50) / (colors.BRADFORD @ white)
        adapted = np.linalg.inv(colors.BRADFORD) @ np.diag(gain) @ colors.BRADFORD @ to_xyz
        for name, column in zip((b"r", b"g", b"b"), adapted.T, strict=True):
            tags[name + b"XYZ"], tags[name + b"TRC"] = xyz(column), curve
    tags |= dict(more)
    table, data, offset = b"", b"", 132 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", offset + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    head = struct.pack(
        ">I4sI4s4s4s", offset + len(data), b"lcms", 0x02400000, b"mntr", space, b"XYZ "
    )
    head += bytes(12) + b"acsp" + bytes(28) + b"".join(map(number, D50)) + bytes(48)
    return head + struct.pack(">I", len(tags)) + table + data


def seen(folder: Path, name: str, image: Image.Image, kind: str = "PNG", **options) -> np.ndarray:
    image.save(folder / name, kind, **options)
    return np.asarray(concept._open_photo(folder / name)[0]).astype(int)


def with_chunk(png: bytes, name: bytes, data: bytes) -> bytes:
    chunk = struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return png[:33] + chunk + png[33:]


def marked(folder: Path, image: Image.Image, name: bytes, data: bytes) -> Path:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    path = folder / "marked.png"
    path.write_bytes(with_chunk(buffer.getvalue(), name, data))
    return path


RED_IN_P3 = Image.new("RGB", (8, 8), (234, 51, 35))  # sRGB's pure red


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_display_p3_by_its_profile(tmp_path, kind):
    options = {"quality": 100} if kind in ("JPEG", "AVIF") else {}
    options |= {"lossless": True} if kind == "WEBP" else {}
    found = seen(tmp_path, "x", RED_IN_P3, kind, icc_profile=profile(), **options)
    assert np.abs(found - (255, 0, 0)).max() <= 12, found[0, 0]


def test_a_profile_that_is_srgb_leaves_the_pixels_alone(tmp_path):
    photo = draw_photo(1)
    np.testing.assert_array_equal(seen(tmp_path, "x", photo, icc_profile=SRGB), np.asarray(photo))


@pytest.mark.parametrize("data", [b"no profile", SRGB[:200], profile(space=b"GRAY"), b"\xff" * 400])
def test_a_profile_that_cannot_be_used_keeps_the_pixels_and_is_said(tmp_path, caplog, data):
    photo = draw_photo(1)
    np.testing.assert_array_equal(seen(tmp_path, "x", photo, icc_profile=data), np.asarray(photo))
    assert "'x': its color profile cannot be used" in caplog.text


def test_grey_by_a_profile_for_grey_and_by_one_for_color(tmp_path):
    grey = Image.new("L", (4, 4), 128)
    light = (128 / 255) ** 1.0  # a linear profile: half the light
    expected = round(255 * (1.055 * light ** (1 / 2.4) - 0.055))
    for space in (b"GRAY", b"RGB "):
        found = seen(tmp_path, "x", grey, icc_profile=profile(gamma=1.0, space=space))
        assert np.abs(found - expected).max() <= 2, (space, found[0, 0], expected)


def test_alpha_lies_over_the_converted_colors(tmp_path):
    cut_out = RED_IN_P3.convert("RGBA")
    cut_out.putpixel((0, 0), (0, 0, 0, 0))
    found = seen(tmp_path, "x", cut_out, icc_profile=profile())
    assert found[0, 0].tolist() == [255, 255, 255] and np.abs(found[1, 1] - (255, 0, 0)).max() <= 12


def test_an_hdr_profile_is_refused(tmp_path):
    tag = (b"cicp", b"cicp" + bytes(4) + bytes((9, 16, 0, 1)))
    with pytest.raises(InputError, match=r"HDR picture \(PQ\)"):
        seen(tmp_path, "x", RED_IN_P3, icc_profile=profile(more=[tag]))


def test_display_p3_by_code_points_before_a_profile(tmp_path):
    path = marked(tmp_path, RED_IN_P3, b"cICP", bytes((12, 13, 0, 1)))
    found = np.asarray(concept._open_photo(path)[0]).astype(int)
    assert np.abs(found - (255, 0, 0)).max() <= 3
    srgb = marked(tmp_path, draw_photo(1), b"cICP", bytes((1, 13, 0, 1)))
    np.testing.assert_array_equal(concept._open_photo(srgb)[0], draw_photo(1))


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
def test_hdr_is_left_out_by_name(tmp_path, transfer, name):
    path = marked(tmp_path, RED_IN_P3, b"cICP", bytes((9, transfer, 0, 1)))
    with pytest.raises(InputError, match=rf"HDR picture \({name}\).*save it as an ordinary JPEG"):
        concept._open_photo(path)


def test_televisions_range_and_unknown_code_points(tmp_path, caplog):
    path = marked(tmp_path, Image.new("RGB", (2, 1), (235, 16, 16)), b"cICP", bytes((1, 13, 0, 0)))
    assert np.asarray(concept._open_photo(path)[0])[0, 0].tolist() == [255, 0, 0]
    path = marked(tmp_path, draw_photo(1), b"cICP", bytes((99, 99, 0, 1)))
    np.testing.assert_array_equal(concept._open_photo(path)[0], draw_photo(1))
    assert "unknown color code points 99/99" in caplog.text


def test_pngs_older_marks(tmp_path):
    half = Image.new("RGB", (4, 4), (128, 128, 128))
    path = marked(tmp_path, half, b"gAMA", struct.pack(">I", 100000))  # linear
    assert np.asarray(concept._open_photo(path)[0])[0, 0].tolist() == [188] * 3
    path = marked(tmp_path, half, b"gAMA", struct.pack(">I", 45455))
    assert np.asarray(concept._open_photo(path)[0])[0, 0].tolist() == [128] * 3
    data = struct.pack(">8I", *(round(n * 100000) for n in (*colors.D65, *P3)))
    found = np.asarray(concept._open_photo(marked(tmp_path, RED_IN_P3, b"cHRM", data))[0])
    assert np.abs(found.astype(int) - (255, 0, 0)).max() <= 3


def test_a_camera_set_to_adobe_rgb(tmp_path):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA001] = 2
    red = Image.new("RGB", (8, 8), (219, 0, 0))
    found = seen(tmp_path, "x.jpg", red, "JPEG", exif=exif, quality=100, subsampling=0)
    assert np.abs(found - (255, 0, 0)).max() <= 6, found[0, 0]


def box(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content) + 8) + name + content


def avif(nclx: tuple[int, int], **options) -> bytes:
    """Pillow's AVIF with the code points of its main picture changed, in the box that says them."""
    buffer = io.BytesIO()
    RED_IN_P3.resize((64, 64)).save(buffer, "AVIF", quality=100, subsampling="4:4:4", **options)
    data = bytearray(buffer.getvalue())
    place = data.index(b"colrnclx") + 8
    data[place : place + 4] = struct.pack(">2H", *nclx)
    return bytes(data)


def test_avif_by_its_code_points(tmp_path):
    (tmp_path / "p3.avif").write_bytes(avif((12, 13)))
    found = np.asarray(concept._open_photo(tmp_path / "p3.avif")[0]).astype(int)
    assert np.abs(found - (255, 0, 0)).max() <= 12, found[0, 0]
    (tmp_path / "hdr.avif").write_bytes(avif((9, 16)))
    with pytest.raises(InputError, match="HDR"):
        concept._open_photo(tmp_path / "hdr.avif")


SOUND = [
    with_chunk(b"\x89PNG\r\n\x1a\n" + bytes(25), b"cICP", bytes((12, 13, 0, 1))),
    avif((12, 13)),
    profile(),
]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_marks_give_a_picture_or_one_clear_line(data):
    source = bytearray(data.draw(st.sampled_from(SOUND)))
    for _ in range(data.draw(st.integers(1, 5))):
        source[data.draw(st.integers(0, min(len(source), 600) - 1))] = data.draw(
            st.integers(0, 255)
        )
    photo = draw_photo(1, (8, 8))
    for kind in ("PNG", "AVIF"):
        photo.format = kind
        for info in ({}, {"icc_profile": bytes(source)}):
            photo.info = info
            try:
                space = colors.space_of(photo, io.BytesIO(bytes(source)))
                assert colors.to_srgb(photo, space).mode == "RGB"
            except InputError as error:
                assert "HDR" in str(error)


def test_the_courses_photos_open_to_the_same_pixels():
    for path in sorted(Path("data/concepts").rglob("*.jpg"))[:6]:
        with Image.open(path) as image:
            np.testing.assert_array_equal(concept._open_photo(path)[0], image.convert("RGB"))


def test_a_photo_of_many_rows_is_converted_whole():
    tall = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 3, 3), dtype=np.uint8))
    space = colors.Space(colors.PRIMARIES[12], colors.TRANSFERS[13])
    whole = np.asarray(colors.to_srgb(tall, space))
    for row in (0, 63, 64, 199):
        one = Image.fromarray(np.asarray(tall)[row : row + 1])
        np.testing.assert_array_equal(np.asarray(colors.to_srgb(one, space))[0], whole[row])
