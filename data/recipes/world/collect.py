"""Fetch the public packages the world is made of, and unpack what is used.

It uses only package registries, through their ordinary clients, so it also works where nothing else can be reached.
What is already in `work/packages/` is not fetched again.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from . import lexicon, subjects

WORK = Path(__file__).parents[1] / "work"
PACKAGES = WORK / "packages"
SOURCES = WORK / "sources"

LIBRARIES = {  # of furniture models, by the short names in the tables
    "zero": "BlendSwap-CC-0",
    "by": "BlendSwap-CC-BY",
    "kl": "KatorLegaz",
    "re": "Reallusion",
    "sc": "Scopia",
}
FETCH = {  # file pattern: command that fetches it into the current folder
    "lobehub-fluent-emoji-3d-*.tgz": ["npm", "pack", "@lobehub/fluent-emoji-3d@1.1.0"],
    "emojibase-data-*.tgz": ["npm", "pack", "emojibase-data@17.0.0"],
    "sweethome3d-furniture_*.deb": ["apt-get", "download", "sweethome3d-furniture"],
    "open_clip_torch-*.whl": [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "open_clip_torch==3.3.0",
    ],
}
MERGES = SOURCES / "bpe_simple_vocab_16e6.txt.gz"


def fetch() -> dict[str, Path]:
    """Fetch the missing packages; return the file of each pattern."""
    PACKAGES.mkdir(parents=True, exist_ok=True)
    for pattern, command in FETCH.items():
        if not list(PACKAGES.glob(pattern)):
            print("fetching", pattern, flush=True)
            subprocess.run(command, cwd=PACKAGES, check=True, stdout=subprocess.DEVNULL)
    return {pattern: next(PACKAGES.glob(pattern)) for pattern in FETCH}


def unpack(files: dict[str, Path]) -> None:
    """Emoji, their labels, the five furniture libraries and CLIP's merges, into `work/sources/`."""
    emoji, labels, furniture, merges = files.values()
    for archive, name in ((emoji, "emoji"), (labels, "labels")):
        if not (SOURCES / name).exists():
            with tarfile.open(archive) as tar:
                tar.extractall(SOURCES / name, filter="data")
    if not (SOURCES / "deb").exists():
        subprocess.run(["dpkg-deb", "-x", furniture, SOURCES / "deb"], check=True)
    for library in LIBRARIES.values():
        folder = SOURCES / "models" / library
        if not folder.exists():
            with zipfile.ZipFile(next((SOURCES / "deb").rglob(f"{library}.sh3f"))) as archive:
                archive.extractall(folder)
    if not MERGES.exists():
        with zipfile.ZipFile(merges) as wheel:
            MERGES.write_bytes(wheel.read("open_clip/bpe_simple_vocab_16e6.txt.gz"))


def emoji_files() -> dict[str, Path]:
    """Label to picture; code points in file names come with or without the variation selector."""
    entries = json.loads((SOURCES / "labels/package/en/data.json").read_text())
    pictures = SOURCES / "emoji/package/assets"
    found = {}
    for entry in entries:
        code = entry["hexcode"].lower()
        for name in (code, code.replace("-fe0f", ""), code + "-fe0f"):
            if (pictures / f"{name}.webp").exists():
                found[entry["label"]] = pictures / f"{name}.webp"
                break
    return found


def catalog() -> dict[str, dict[str, str]]:
    """`library:file` to the model's name, author, license and path."""
    found = {}
    for key, library in LIBRARIES.items():
        folder = SOURCES / "models" / library
        text = (folder / "PluginFurnitureCatalog.properties").read_text("latin-1")
        license = "CC0 1.0" if key == "zero" else "CC-BY 3.0"
        fields = {
            field: dict(re.findall(rf"^{field}#(\d+)=(.*)$", text, re.M))
            for field in ("name", "model", "creator")
        }
        for number, model in fields["model"].items():
            found[f"{key}:{Path(model).stem}"] = {
                "name": fields["name"][number],
                "author": fields["creator"].get(number, library),
                "license": license,
                "library": library,
                "path": str(folder / model.lstrip("/")),
            }
    return found


def check_tables() -> None:
    """Check that the packages have every emoji and model that the tables name.

    Raises:
        ValueError: some are missing; the message lists them.
    """
    emoji, models = emoji_files(), catalog()
    named = [label for noun in lexicon.nouns() for label in noun.emoji]
    missing = [label for label in named if label not in emoji]
    named = [model for noun in lexicon.nouns() for model in noun.models]
    named += [s.source for s in subjects.SUBJECTS if not s.source.startswith("kit:")]
    missing += [model for model in named if model not in models]
    if missing:
        raise ValueError(
            f"nouns.tsv or subjects.tsv name pictures or models that no package has: {missing}"
        )


def main() -> None:
    """Fetch, unpack and check."""
    unpack(fetch())
    check_tables()
    print(f"{len(emoji_files())} emoji, {len(catalog())} models in {SOURCES}", flush=True)
