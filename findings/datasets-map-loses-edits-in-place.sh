#!/usr/bin/env bash
# A folder of photos is opened as a data set, and map prepares them for training: smaller (Pillow's thumbnail), a part painted
# white (paste), transparent where the loss must not look (putalpha). These three change the picture they are called on. You
# might expect prepared photos. Those whose files have an orientation tag, as phones write it, are; all others come out of map as
# they went in, with no message: without the white, without the mask. datasets stores a picture that knows its file's name as
# that name alone, and the next look opens the old file again. A tagged photo has been turned when it was opened, or copied
# if it was level, so it is a new picture with no name and is stored whole.
# The same function prepares all photos if the data set is streamed, since nothing is stored in between, or if it has been
# saved by save_to_disk and opened again, since it then holds the bytes (putalpha on a JPEG is an error there). Edits that
# return a new picture, such as resize, are kept in all cases, and any edit is after image.copy().
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet datasets==5.2.0 pyarrow==26.0.1 pillow==13.0.0 numpy==2.4.6
export HF_HOME="$folder/home" HF_HUB_OFFLINE=1
"$folder/venv/bin/python" - "$folder/photos" 2> "$folder/log" <<'PYTHON' || { cat "$folder/log" >&2; exit 1; }
import pathlib
import sys
import warnings
from importlib.metadata import version

import datasets
import numpy as np
from PIL import ExifTags, Image

print(*(f"{name} {version(name)}" for name in ("datasets", "pyarrow", "pillow")), sep=", ")
datasets.disable_progress_bars()
said = []
handler = datasets.logging.logging.Handler()
handler.emit = lambda record: said.append(record.getMessage())
datasets.logging.get_logger().addHandler(handler)

photos = pathlib.Path(sys.argv[1])
photos.mkdir()
chance = np.random.default_rng(0)
TAGS = {"held-upright.jpg": 6, "held-level.jpg": 1, "scan.jpg": None, "screenshot.png": None, "export.webp": None}
for name, tag in TAGS.items():
    photo = Image.fromarray(chance.integers(0, 200, (60, 80, 3), dtype=np.uint8))
    exif = photo.getexif()
    if tag:
        exif[ExifTags.Base.Orientation] = tag
    photo.save(photos / name, exif=exif)
names = sorted(TAGS)
tagged, rest = {name for name in names if TAGS[name]}, {name for name in names if not TAGS[name]}


def smaller(row):
    row["image"].thumbnail((16, 16))
    return row


def white(row):
    row["image"].paste("white", (0, 0, 40, 40))
    return row


def masked(row):
    row["image"].putalpha(Image.new("L", row["image"].size, 0))
    return row


def masked_copy(row):
    row["image"] = row["image"].copy()
    return masked(row)


def resized(row):
    return {"image": row["image"].resize((16, 16))}


DONE = {
    smaller: lambda image: max(image.size) == 16,
    white: lambda image: np.asarray(image.convert("RGB"))[5, 5].min() > 230,
    masked: lambda image: image.mode == "RGBA" and image.getextrema()[3] == (0, 0),
    masked_copy: lambda image: image.mode == "RGBA" and image.getextrema()[3] == (0, 0),
    resized: lambda image: image.size == (16, 16),
}


def of_batch(edit):
    def run(batch):
        for image in batch["image"]:
            edit({"image": image})
        return batch

    return run


def prepared(rows, edit):
    return {name for name, row in zip(names, rows, strict=True) if DONE[edit](row["image"])}


folder = datasets.load_dataset("imagefolder", data_dir=str(photos), split="train")
files = [pathlib.Path(row["image"]["path"]).name for row in folder.cast_column("image", datasets.Image(decode=False))]
assert files == names and not any(DONE[edit](row["image"]) for edit in DONE for row in folder)
folder.save_to_disk(photos.parent / "saved")
saved = datasets.load_from_disk(photos.parent / "saved")
streamed = datasets.load_dataset("imagefolder", data_dir=str(photos), split="train", streaming=True)
said.clear()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for edit in (smaller, white, masked):
        ways = {
            "map": prepared(folder.map(edit), edit),
            "map, batched": prepared(folder.map(of_batch(edit), batched=True), edit),
            "map, streamed": prepared(streamed.map(edit), edit),
        }
        if edit is not masked:  # a JPEG's bytes cannot take a mask: an error
            ways["map, saved before"] = prepared(saved.map(edit), edit)
        print(edit.__name__)
        for way, done in ways.items():
            print(f"  {way:17} prepared: {sorted(done)}")
        assert ways.pop("map") == ways.pop("map, batched") == tagged, ways
        assert all(done == tagged | rest for done in ways.values()), ways
    for edit in (masked_copy, resized):
        done = prepared(folder.map(edit), edit)
        print(f"{edit.__name__}\n  {'map':17} prepared: {sorted(done)}")
        assert done == tagged | rest, done
stored = folder.map(smaller).cast_column("image", datasets.Image(decode=False))
kinds = ["its name alone" if row["image"]["bytes"] is None else "a picture" for row in stored]
held = dict(zip(names, kinds, strict=True))
print("what map has stored of each photo:", held)
assert held == {name: "a picture" if name in tagged else "its name alone" for name in names}, held
print("said:", said, [str(warning.message) for warning in caught])
assert not said and not caught, (said, caught)
print("as described: map loses edits in place of photos without an orientation tag, and keeps the others'")
PYTHON
