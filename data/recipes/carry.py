"""Take what was made on a borrowed machine home, in pieces small enough for its mailbox.

    python -m data.recipes.carry --out DIR                # there
    python -m data.recipes.carry --put FOLDER             # at home, or on the next machine: put it in its place

That is the averaged weights of each training with their step, fp16 as they will be shipped; optimizer moments, pool and
latents stay behind, because they are made anew in a few minutes. A finished training is exported from them, one that
was cut off goes on.
"""

from __future__ import annotations

import argparse
import io
import tarfile
from pathlib import Path

import torch

from . import make, presets

PIECE = 15 * 2**20  # bytes


def half(path: Path) -> bytes:
    """A checkpoint's average, fp16, and how far it came."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    average = {k: v.half() if v.is_floating_point() else v for k, v in state["average"].items()}
    file = io.BytesIO()
    torch.save({"average": average, **{k: state[k] for k in ("step", "steps", "seconds")}}, file)
    return file.getvalue()


def pack_up(preset: presets.Preset) -> bytes:
    """A tar file of what is worth carrying, its names relative to the preset's folder."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in ("scaling.txt", "vae.png", "pictures"):
            if (preset.folder / name).exists():
                tar.add(preset.folder / name, name)
        for name in make.TRAININGS:
            if (preset.folder / f"{name}.pt").exists():
                content = half(preset.folder / f"{name}.pt")
                entry = tarfile.TarInfo(f"{name}.pt")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def split(content: bytes, out: Path) -> list[Path]:
    """Write `tiny-sd.tar.0`, `.1` ... of at most PIECE bytes each."""
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for number, start in enumerate(range(0, len(content), PIECE)):
        files.append(out / f"tiny-sd.tar.{number}")
        files[-1].write_bytes(content[start : start + PIECE])
    return files


def put(preset: presets.Preset, folder: Path) -> None:
    """Join the pieces and unpack them in the preset's folder."""
    pieces = sorted(folder.glob("tiny-sd.tar.*"), key=lambda path: int(path.suffix[1:]))
    if not pieces:
        raise SystemExit(f"no tiny-sd.tar.* in {folder}: name the folder where the pieces lie")
    with tarfile.open(fileobj=io.BytesIO(b"".join(p.read_bytes() for p in pieces))) as tar:
        tar.extractall(preset.folder, filter="data")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=presets.PRESETS, default="gpu")
    parser.add_argument("--out", type=Path, help="write the pieces here")
    parser.add_argument("--put", type=Path, help="the folder of pieces to unpack")
    arguments = parser.parse_args()
    preset = presets.PRESETS[arguments.preset]
    if arguments.put:
        put(preset, arguments.put)
    if arguments.out:
        for file in split(pack_up(preset), arguments.out):
            print(file.name, f"{file.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
