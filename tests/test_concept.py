"""Photos in: what is mended, what is left out by name, the views, and their pixels."""

from __future__ import annotations

import logging
import os
import struct
import subprocess
import sys
import tempfile
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_model import draw_photo

from tiutils import concept
from tiutils.concept import Concept, Photo, View
from tiutils.errors import InputError


def pixels_of(folder: Path, name: str) -> np.ndarray:
    """The pixels that `load` gives for one file of the folder, uint8 (height, width, 3)."""
    (photo,) = [photo for photo in concept.load(folder).photos if photo.path.name == name]
    assert photo.image.mode == "RGB"
    return np.asarray(photo.image)


def png(width: int, height: int, depth: int, color_type: int, rows: bytes) -> bytes:
    """A PNG file by hand, for what Pillow does not write; each row of `rows` starts with a zero."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with two good photos, to which tests add a bad one."""
    folder = tmp_path / "my-toy"
    folder.mkdir()
    for index in range(2):
        draw_photo(index).save(folder / f"good-{index}.png")
    return folder


# Mended


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_turned_upright(folder, orientation):
    upright = draw_photo(7, (40, 24))
    as_stored = {  # what the camera wrote: the inverse of what a viewer does
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright if orientation == 1 else upright.transpose(as_stored[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(folder / "turned.png", exif=exif)
    np.testing.assert_array_equal(pixels_of(folder, "turned.png"), np.asarray(upright))


def test_alpha_is_composited_on_white(folder):
    cut_out = np.zeros((1, 3, 4), np.uint8)  # black everywhere beneath
    cut_out[0, :, 3] = (0, 255, 51)  # nothing, all, a fifth
    Image.fromarray(cut_out).save(folder / "alpha.png")
    assert pixels_of(folder, "alpha.png")[0, :, 0].tolist() == [255, 0, 204]


def test_grey_with_alpha_and_a_see_through_palette_are_composited_on_white(folder):
    Image.fromarray(np.array([[[100, 255], [100, 0]]], np.uint8)).save(folder / "la.png")
    palette = Image.new("P", (2, 1))
    palette.putpalette([200, 10, 20, 0, 0, 0])
    palette.putpixel((1, 0), 1)
    palette.save(folder / "palette.png", transparency=1)
    assert pixels_of(folder, "la.png").tolist() == [[[100] * 3, [255] * 3]]
    assert pixels_of(folder, "palette.png").tolist() == [[[200, 10, 20], [255] * 3]]


def test_grey_one_bit_and_palette_become_rgb(folder):
    grey = draw_photo(3).convert("L")
    grey.save(folder / "grey.png")
    grey.convert("1").save(folder / "bits.png")
    draw_photo(3).quantize(16).save(folder / "palette.png")
    np.testing.assert_array_equal(pixels_of(folder, "grey.png"), np.stack([grey] * 3, -1))
    assert set(np.unique(pixels_of(folder, "bits.png"))) == {0, 255}
    palette = np.asarray(draw_photo(3).quantize(16).convert("RGB"))
    np.testing.assert_array_equal(pixels_of(folder, "palette.png"), palette)


def test_cmyk_becomes_rgb(folder):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(folder / "red.jpg")
    np.testing.assert_allclose(pixels_of(folder, "red.jpg"), [[[254, 0, 0]] * 16] * 16, atol=2)


def test_sixteen_bit_grey_is_scaled_and_not_clipped(folder):
    values = np.array([[0, 128, 129, 257, 32896, 65406, 65407, 65535]], np.uint16)
    Image.fromarray(values).save(folder / "deep.png")
    Image.fromarray(values).save(folder / "deep.tif")
    for name in ("deep.png", "deep.tif"):
        assert pixels_of(folder, name)[0, :, 0].tolist() == [0, 0, 1, 1, 128, 254, 255, 255]


def test_sixteen_bit_color_is_scaled_and_not_clipped(folder):
    row = b"\0" + np.array([0, 32896, 65535, 257, 514, 51400], ">u2").tobytes()
    (folder / "deep.png").write_bytes(png(2, 1, 16, 2, row))
    assert pixels_of(folder, "deep.png").tolist() == [[[0, 128, 255], [1, 2, 200]]]


@pytest.mark.parametrize(("name", "kind"), [("moving.gif", "GIF"), ("phone.jpg", "MPO")])
def test_of_several_frames_the_first_is_taken(folder, name, kind):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(folder / name, kind, save_all=True, append_images=frames[1:])
    np.testing.assert_allclose(pixels_of(folder, name)[0, 0], [255, 0, 0], atol=2)


def test_a_photo_with_a_damaged_exif_tag_is_kept(folder):
    draw_photo(4).save(folder / "odd.png", exif=b"Exif\0\0no such thing")
    np.testing.assert_array_equal(pixels_of(folder, "odd.png"), np.asarray(draw_photo(4)))


def test_a_photo_without_a_suffix_is_known_by_its_content(folder):
    (folder / "IMG 1").write_bytes(encoded(draw_photo(4), "PNG"))
    np.testing.assert_array_equal(pixels_of(folder, "IMG 1"), np.asarray(draw_photo(4)))


def test_a_huge_photo_is_shrunk_and_keeps_its_shape(folder, monkeypatch):
    monkeypatch.setattr(concept, "MAX_SHORT_SIDE", 24)
    draw_photo(0, (96, 48)).save(folder / "huge.png")
    assert pixels_of(folder, "huge.png").shape == (24, 48, 3)


# Left out by name

BAD_FILES = {
    ".DS_Store": (lambda path: path.write_bytes(b"\0\0\0\1Bud1"), "not a photo"),
    "notes.docx": (lambda path: path.write_bytes(b"PK\3\4 words"), "not a photo"),
    "empty.jpg": (lambda path: path.write_bytes(b""), "not a photo"),
    "vector.eps": (lambda path: draw_photo(0).save(path), "not a photo"),
    "phone.heic": (lambda path: path.write_bytes(b"\0\0\0\x18ftypheic"), "save it as JPEG"),
    "half.jpg": (lambda path: path.write_bytes(encoded(draw_photo(0), "JPEG")[:-200]), "truncated"),
    "half.png": (lambda path: path.write_bytes(encoded(draw_photo(0), "PNG")[:500]), "damaged"),
    "bomb.png": (
        lambda path: path.write_bytes(png(30_000, 30_000, 8, 0, b"")),
        "more than 89 mega",
    ),
    "small-bomb.png": (
        lambda path: path.write_bytes(png(9500, 9500, 8, 0, b"")),
        "more than 89 mega",
    ),
    "folder.jpg": (lambda path: path.mkdir(), "a folder"),
    "loop.jpg": (lambda path: path.symlink_to(path), "symbolic links"),
    "gone.jpg": (lambda path: path.symlink_to(path.parent / "nowhere"), "No such file"),
    "pipe.jpg": (lambda path: os.mkfifo(path), "not a file"),
    "float.tif": (lambda path: Image.fromarray(np.ones((4, 4), np.float32)).save(path), "8 or 16"),
    "deep.tif": (
        lambda path: Image.fromarray(np.full((4, 4), 70_000, np.int32)).save(path),
        "16 bits",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_left_out_by_name(folder, caplog, name):
    make, reason = BAD_FILES[name]
    make(folder / name)
    found = concept.load(folder)
    assert [photo.path.name for photo in found.photos] == ["good-0.png", "good-1.png"]
    ((path, why),) = found.skipped
    assert path.name == name and reason in why and "\n" not in why
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("tiutils", logging.WARNING)
    assert repr(name) in record.getMessage() and why in record.getMessage()


def test_cards_and_licenses_beside_the_photos_are_no_cause_for_a_warning(folder, caplog):
    for name in ("README.md", "LICENSE", "good-0.txt"):
        (folder / name).write_text("words")
    assert len(concept.load(folder).skipped) == 3
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_photos_in_sub_folders_are_never_training_photos(folder, caplog):
    (folder / "held_out").mkdir()
    draw_photo(5).save(folder / "held_out" / "side.png")
    found = concept.load(folder)
    assert len(found.photos) == 2 and not found.skipped and not caplog.records


def test_one_photo_alone_is_warned_about(folder, caplog):
    (folder / "good-1.png").unlink()
    assert len(concept.load(folder).photos) == 1
    assert "only one photo, 'good-0.png'" in caplog.text


def test_no_photo_left_lists_what_was_left_out_and_why(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"words")
    (tmp_path / "b.jpg").mkdir()
    with pytest.raises(InputError, match=r"'a.jpg': not a photo .*; 'b.jpg': a folder") as caught:
        concept.load(tmp_path)
    assert "\n" not in str(caught.value) and "3 to 5 photos" in str(caught.value)


def test_an_empty_folder_and_a_missing_one_are_refused(tmp_path):
    with pytest.raises(InputError, match="no files in it"):
        concept.load(tmp_path)
    with pytest.raises(InputError, match="No such file"):
        concept.load(tmp_path / "missing")


def test_photos_come_in_natural_order_and_the_folder_names_the_concept(tmp_path):
    names = ["10.png", "2.png", "A1.png", "a01.png", "a1.png", "b10.png", "b9.png"]
    for name in reversed(names):
        draw_photo(0).save(tmp_path / name)
    found = concept.load(tmp_path)
    in_order = ["2.png", "10.png", "A1.png", "a01.png", "a1.png", "b9.png", "b10.png"]
    assert [photo.path.name for photo in found.photos] == in_order
    assert found.name == tmp_path.name


# Any bytes at all

SAMPLES = [encoded(draw_photo(1), kind) for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")]


@st.composite
def damaged_photo(draw) -> bytes:
    """A real file of some format, with a few bytes altered and perhaps cut short."""
    data = bytearray(draw(st.sampled_from(SAMPLES)))
    for _ in range(draw(st.integers(0, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.binary(max_size=60) | damaged_photo(), min_size=1, max_size=3))
def test_whatever_the_files_hold_load_gives_rgb_photos_or_one_clear_error(contents):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for index, data in enumerate(contents):
            (folder / f"{index}.jpg").write_bytes(data)
        try:
            found = concept.load(folder)
        except InputError as error:
            assert "no photo left" in str(error) and "\n" not in str(error)
            return
        assert len(found.photos) + len(found.skipped) == len(contents)
        assert all(photo.image.mode == "RGB" for photo in found.photos)
        assert all(0x0112 not in photo.image.getexif() for photo in found.photos)


# Where the photos are


def test_a_local_folder_is_taken_as_it_is(folder, monkeypatch):
    assert concept.find_photos(folder) == folder
    assert concept.find_photos(str(folder)) == folder
    monkeypatch.setenv("HOME", str(folder.parent))
    assert concept.find_photos("~/my-toy") == folder


@pytest.mark.parametrize("name", ["", "no-such-folder", "./a/b", "/no/such", "a\0b", "x" * 5000])
def test_what_is_neither_a_folder_nor_a_dataset_id_is_refused(name):
    with pytest.raises(InputError, match=r"no folder|is empty|not a valid path"):
        concept.find_photos(name)


def test_a_file_is_refused(folder):
    with pytest.raises(InputError, match=r"good-0.png' is not a folder"):
        concept.find_photos(folder / "good-0.png")


def test_a_dataset_id_is_fetched_from_the_hub_pictures_only(tmp_path, monkeypatch):
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    asked = {}
    cache = tmp_path / "datasets--owner--cat_toy" / "snapshots" / "0a1b"
    cache.mkdir(parents=True)
    draw_photo(0).save(cache / "1.jpeg")

    def fake_download(repo_id, **options):
        asked.update(options, repo_id=repo_id)
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake_download)
    folder = concept.find_photos("owner/cat_toy", token="secret")
    assert concept.load(folder).name == "cat_toy"
    assert (asked["repo_id"], asked["repo_type"], asked["token"]) == (
        "owner/cat_toy",
        "dataset",
        "secret",
    )
    there = ["1.jpeg", "2.JPG", "README.md", "all.zip", "held_out/3.jpg", "data/train.parquet"]
    patterns = {key: asked[key] for key in ("allow_patterns", "ignore_patterns")}
    assert list(filter_repo_objects(there, **patterns)) == ["1.jpeg", "2.JPG"]


def test_hub_out_of_reach_says_what_to_do():
    with pytest.raises(InputError, match="check the name and the connection") as caught:
        concept.find_photos("nobody/no-such-dataset")  # HF_HUB_OFFLINE is set for all tests
    assert "'nobody/no-such-dataset'" in str(caught.value) and "\n" not in str(caught.value)


def test_the_token_is_not_in_the_error(monkeypatch):
    import huggingface_hub

    def refuse(*args, **options):
        raise ConnectionError

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(InputError, match="ConnectionError") as caught:
        concept.find_photos("owner/private", token="hf_secret")
    assert "hf_secret" not in str(caught.value)


def test_import_is_light():
    heavy = "{'torch', 'huggingface_hub', 'diffusers', 'transformers'} & set(sys.modules)"
    modules = "tiutils.concept, tiutils.io.checkpoints, tiutils.io.embeddings"
    command = f"import sys, {modules}; print(len({heavy}))"
    output = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert output.stdout.strip() == "0", output.stderr


# Templates


def test_templates_are_those_of_textual_inversion():
    assert len(concept.templates("object")) == 27 and len(concept.templates("style")) == 19
    assert all(sentence.count("{}") == 1 for sentence in concept.templates("object"))
    assert concept.OBJECT_TEMPLATES[::13] == (
        "a photo of a {}",
        "a good photo of the {}",
        "a photo of a small {}",
    )
    assert concept.STYLE_TEMPLATES[::9] == (
        "a painting in the style of {}",
        "a close-up painting in the style of {}",
        "a large painting in the style of {}",
    )
    with pytest.raises(InputError, match="'texture': expected 'object' or 'style'"):
        concept.templates("texture")


def test_a_sentence_is_filled_and_its_other_braces_stay():
    for sentence, expected in {
        "a {} and a {}": "a <t> and a <t>",
        "a {} in {red|blue}": "a <t> in {red|blue}",
        "a {} {": "a <t> {",
        "{0} {} }": "{0} <t> }",
    }.items():
        assert concept.fill(sentence, "<t>") == expected
    assert concept.fill("a {}", "<{}>") == "a <{}>"


# Many photos


def test_photos_that_are_nearly_the_same_are_one_line(tmp_path, caplog):
    for index in range(9):
        draw_photo(index % 2 if index < 8 else 5).save(tmp_path / f"{index}.png")
    assert len(concept.load(tmp_path).photos) == 9
    assert [message.split(": keep")[0] for message in caplog.messages] == [
        "'0.png' and '2.png' and 2 more are nearly the same picture",
        "'1.png' and '3.png' and 2 more are nearly the same picture",
    ]
    assert all("it counts 4 times" in message for message in caplog.messages)


def test_that_a_few_photos_are_enough_is_said_of_dozens(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(concept, "near_duplicates", lambda photos: [])
    for index in range(concept.MANY_PHOTOS + 1):
        draw_photo(index).save(tmp_path / f"{index}.png")
        concept.load(tmp_path) if index == concept.MANY_PHOTOS - 1 else None
    assert not [message for message in caplog.messages if "are enough" in message]
    concept.load(tmp_path)
    assert f"{concept.MANY_PHOTOS + 1} photos in" in caplog.messages[-1]


# Views


def test_photos_smaller_than_training_are_named_with_their_sizes(tmp_path, caplog):
    for number, size in enumerate([(128, 128), (127, 300), (40, 30), (200, 150), (9, 9), (8, 300)]):
        Image.new("RGB", size, "red").save(tmp_path / f"{number}.png")
    thing = concept.load(tmp_path)
    caplog.clear()
    concept.warn_of_small_photos(thing, 128)
    (said,) = caplog.messages
    assert said.startswith("'1.png' (127 × 300), '2.png' (40 × 30), '4.png' (9 × 9) and 1 more: ")
    assert "128 pixels" in said and "--resolution" in said
    caplog.clear()
    concept.warn_of_small_photos(thing, 8)
    assert not caplog.messages


def concept_of(*images: Image.Image) -> Concept:
    photos = tuple(Photo(Path(f"{index}.png"), image) for index, image in enumerate(images))
    return Concept(photos, (), "test")


def test_a_square_photo_has_two_views_others_six():
    found = concept.views(
        concept_of(*(Image.new("RGB", size) for size in [(8, 8), (13, 8), (8, 20)]))
    )
    boxes = [
        [(0, 0, 8, 8)],
        [(0, 0, 8, 8), (2, 0, 10, 8), (5, 0, 13, 8)],
        [(0, 0, 8, 8), (0, 6, 8, 14), (0, 12, 8, 20)],
    ]
    expected = [
        View(photo, box, flip)
        for photo, its_boxes in enumerate(boxes)
        for box in its_boxes
        for flip in (False, True)
    ]
    assert list(found) == expected


def test_center_crop_keeps_the_center_box_alone():
    found = concept.views(
        concept_of(Image.new("RGB", (13, 8)), Image.new("RGB", (8, 8))), center_crop=True
    )
    assert [(view.photo, view.box, view.flip) for view in found] == [
        (0, (2, 0, 10, 8), False),
        (0, (2, 0, 10, 8), True),
        (1, (0, 0, 8, 8), False),
        (1, (0, 0, 8, 8), True),
    ]


@given(st.integers(1, 60), st.integers(1, 60), st.booleans())
def test_every_box_is_a_square_within_the_photo(width, height, center_crop):
    for view in concept.views(
        concept_of(Image.new("RGB", (width, height))), center_crop=center_crop
    ):
        left, upper, right, lower = view.box
        assert right - left == lower - upper == min(width, height)
        assert min(left, upper) >= 0 and right <= width and lower <= height


def test_a_view_of_the_right_size_keeps_its_pixels_bit_for_bit():
    values = np.arange(16 * 16 * 3, dtype=np.uint32).astype(np.uint8).reshape(16, 16, 3)
    rendered = concept.render_view(
        concept_of(Image.fromarray(values)), View(0, (0, 0, 16, 16), False), 16
    )
    expected = (values / 127.5 - 1).astype(np.float32).transpose(2, 0, 1)
    assert rendered.dtype == np.float32 and rendered.flags.c_contiguous
    np.testing.assert_array_equal(rendered, expected)
    assert rendered.min() == -1 and rendered.max() == 1


def test_a_box_of_the_right_size_keeps_its_pixels_bit_for_bit():
    image = draw_photo(2, (30, 16))
    rendered = concept.render_view(concept_of(image), View(0, (7, 0, 23, 16), False), 16)
    expected = (np.asarray(image)[:, 7:23] / 127.5 - 1).astype(np.float32).transpose(2, 0, 1)
    np.testing.assert_array_equal(rendered, expected)


@pytest.mark.parametrize("size", [(8, 8), (100, 60), (700, 900)])
def test_a_single_color_stays_that_color(size):
    found = concept_of(Image.new("RGB", size, (0, 51, 255)))
    for view in concept.views(found):
        rendered = concept.render_view(found, view, 32)
        assert rendered.shape == (3, 32, 32)
        for channel, value in enumerate((-1.0, np.float32(51 / 127.5 - 1), 1.0)):
            assert (rendered[channel] == value).all()


@pytest.mark.parametrize("size", [(20, 20), (48, 90), (400, 300)])
def test_a_flipped_view_is_the_mirrored_array(size):
    found = concept_of(draw_photo(6, size))
    seen = concept.views(found)
    for plain, flipped in zip(seen[::2], seen[1::2], strict=True):
        assert plain.box == flipped.box and not plain.flip and flipped.flip
        mirrored = concept.render_view(found, plain, 32)[:, :, ::-1]
        np.testing.assert_array_equal(concept.render_view(found, flipped, 32), mirrored)


def test_no_color_bleeds_in_from_outside_the_box():
    image = Image.new("RGB", (40, 20), "black")
    image.paste("white", (20, 0, 40, 20))
    rendered = concept.render_view(concept_of(image), View(0, (0, 0, 20, 20), False), 16)
    assert (rendered == -1).all()


def test_a_large_photo_is_averaged_and_not_sampled():
    checkerboard = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    image = Image.fromarray(checkerboard).convert("RGB")
    rendered = concept.render_view(concept_of(image), View(0, (0, 0, 256, 256), False), 16)
    np.testing.assert_allclose(rendered, 0, atol=0.02)  # without antialiasing it would be ±1
