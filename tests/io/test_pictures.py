"""Recognizing picture files by their content: RAW, HEIC and JPEG XL under any name."""

from __future__ import annotations

import importlib.util
import io
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_model import draw_photo

from tiutils import concept
from tiutils.errors import InputError
from tiutils.io import pictures


def tiff(
    tags: dict[int, tuple[int, ...]], inner: dict[int, int] | None = None, order: str = "<"
) -> bytes:
    """A TIFF with the tags of its first directory, and of one that tag 330 points to."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    second = 8 + 2 + 12 * (len(tags) + (inner is not None)) + 4

    def directory(entries: dict[int, tuple[int, ...]]) -> bytes:
        data = struct.pack(order + "H", len(entries))
        for tag, values in sorted(entries.items()):
            if tag == 50706:
                data += struct.pack(order + "HHI4B", tag, 1, 4, *values)
            else:
                data += struct.pack(order + "HHII", tag, 4, 1, values[0])
        return data + bytes(4)

    head = mark + struct.pack(order + "I", 8)
    if inner is None:
        return head + directory(tags)
    return (
        head + directory(tags | {330: (second,)}) + directory({k: (v,) for k, v in inner.items()})
    )


SIZE = {256: (160,), 257: (120,)}
RAW = {
    "DNG": tiff({**SIZE, 50706: (1, 4, 0, 0)}),
    "DNG, Motorola": tiff({**SIZE, 50706: (1, 4, 0, 0)}, order=">"),
    "NEF": tiff({**SIZE, 254: (1,)}, {256: 6000, 257: 4000, 262: 32803}),
    "NEF, unmarked": tiff(SIZE, {256: 6000, 257: 4000}),
    "linear": tiff({**SIZE, 262: (34892,)}),
    "leads nowhere": tiff({**SIZE, 330: (10**6,)}),
    "CR2": b"II*\0\x10\0\0\0CR\x02\0" + bytes(40),
    "CR3": b"\0\0\0\x18ftypcrx \0\0\0\x01crx isom",
    "ORF": b"IIRO\x08\0\0\0" + bytes(40),
    "RW2": b"IIU\0\x18\0\0\0" + bytes(40),
    "RAF": b"FUJIFILMCCD-RAW 0201" + bytes(40),
}


@pytest.mark.parametrize("suffix", ["", ".jpg", ".tif"])
@pytest.mark.parametrize("kind", RAW)
def test_a_raw_file_is_named_whatever_it_is_called(kind, suffix):
    with pytest.raises(InputError, match=r"a camera's RAW file.*save it as JPEG"):
        pictures.check(io.BytesIO(RAW[kind]), suffix)


def test_a_thumbnail_in_front_is_named_and_smaller_copies_behind_are_fine():
    with pytest.raises(InputError, match="begins with a thumbnail"):
        pictures.check(io.BytesIO(tiff({**SIZE, 254: (1,)})))
    assert not pictures.check(io.BytesIO(tiff(SIZE, {254: 1, 256: 80, 257: 60})))
    assert not pictures.check(io.BytesIO(tiff(SIZE)), ".tif")
    with pytest.raises(InputError, match="RAW"):
        pictures.check(io.BytesIO(tiff(SIZE)), ".NEF")


@pytest.mark.parametrize("data", [b"\xff\x0a" + bytes(30), b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(30)])
def test_jpeg_xl_is_named_by_its_signature(tmp_path, data):
    (tmp_path / "IMG.jpg").write_bytes(data)
    with pytest.raises(InputError, match=r"a JPEG XL picture.*save it as JPEG"):
        concept.load(tmp_path)


@pytest.mark.parametrize(
    ("head", "is_heic"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", True),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", True),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif", False),
        (b"\0\0\0\x18ftypavif\0\0\0\0avifmif1", False),
        (b"\0\0\0\x18ftypisom\0\0\0\0isommp41", False),
    ],
)
def test_heic_is_known_by_its_brands(head, is_heic):
    assert pictures.check(io.BytesIO(head)) == is_heic


def test_heic_under_another_name_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (tmp_path / "IMG_0001.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    with pytest.raises(
        InputError, match=r"a HEIC photo.*save it as JPEG, or pip install pillow-heif"
    ):
        concept.load(tmp_path)


@pytest.mark.parametrize("name", ["IMG_0001.HEIC", "IMG_0001.jpg"])
def test_heic_is_read_where_pillow_heif_is_installed(tmp_path, name):
    heif = pytest.importorskip("pillow_heif")
    photo = draw_photo(3, (64, 48))
    heif.from_pillow(photo).save(tmp_path / name, quality=100)
    (found,) = concept.load(tmp_path).photos
    assert found.image.mode == "RGB" and found.image.size == (64, 48)
    assert "HEIF" not in Image.OPEN, "nothing is registered"


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([*RAW.values(), tiff(SIZE, {256: 80})]),
    st.lists(st.tuples(st.integers(0, 90), st.integers(0, 255)), max_size=5),
    st.integers(0, 100),
)
def test_any_bytes_are_a_kind_or_one_clear_line(data, changes, length):
    damaged = bytearray(data[:length])
    for place, value in changes:
        if place < len(damaged):
            damaged[place] = value
    file = io.BytesIO(bytes(damaged))
    try:
        assert pictures.check(file) in (True, False)
    except InputError as error:
        assert "save it as JPEG" in str(error)
    assert pictures.png_chunk(file, b"cICP") is None
    pictures.nclx(file)
