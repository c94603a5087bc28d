#!/usr/bin/env bash
# Phones store photos as the sensor read them and say how to turn them in EXIF's Orientation. Pillow's way to keep that tag
# is save(..., exif=image.getexif()), and it works for PNG and WebP. In HEIC files written by pillow-heif the turn is lost:
# the photo lies on its side for good. Pillow's own AVIF keeps it in the file but removes the tag from the *source* image,
# so the next exif_transpose or save of that image is sideways. The bytes in image.info["exif"] work everywhere.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet pillow==13.0.0 pillow-heif==1.8.1 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
from importlib.metadata import version

import numpy as np
import pillow_heif
from PIL import Image, ImageOps

pillow_heif.register_heif_opener()
ORIENTATION, TURN_RIGHT = 0x0112, 6
stored = np.zeros((64, 96, 3), np.uint8)
stored[:32] = 255  # after the turn, white is on the right
exif = Image.Exif()
exif[ORIENTATION] = TURN_RIGHT
Image.fromarray(stored).save("photo.jpg", quality=95, exif=exif)


def upright(image):
    pixels = np.asarray(ImageOps.exif_transpose(image).convert("L"))
    return pixels.shape == (96, 64) and pixels[48, 60] > 200 and pixels[48, 4] < 50


print(*(f"{name} {version(name)}" for name in ("pillow", "pillow-heif")), sep=", ")
assert upright(Image.open("photo.jpg"))
seen = {}
for kind in ("png", "webp", "avif", "heic"):
    for how in ("getexif()", "info['exif']"):
        source = Image.open("photo.jpg")
        source.save(f"copy.{kind}", exif=source.getexif() if how == "getexif()" else source.info["exif"])
        seen[kind, how] = upright(Image.open(f"copy.{kind}")), upright(source)
        copy, left = ("upright" if fine else "on its side" for fine in seen[kind, how])
        print(f"{kind:4} saved with {how:12}: the copy is {copy}, the open source is {left}")
wrong = {case: fine for case, fine in seen.items() if fine != (True, True)}
assert wrong == {("avif", "getexif()"): (True, False), ("heic", "getexif()"): (False, True)}, wrong
print("as described: HEIC loses the turn in the copy, AVIF in the source")
PYTHON
