"""The words that a notebook draws with: the course's own, and those that a class hands in as a folder or a zip."""

from __future__ import annotations

import itertools
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Container, Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from tiutils.config import TrainingConfig
from tiutils.errors import InputError, first_line
from tiutils.io import engines, files, pretrained, run_folder
from tiutils.models import Models

DATA = pretrained.BUNDLED_MODEL.parent
SUFFIXES = (".safetensors", ".bin", ".pt")
MAX_FILES = 200  # a class and its spare words
MAX_BYTES = 2**20  # of one file: 75 vectors for SDXL are 600 kB
# what zipfile raises for archives that are damaged, encrypted, or compressed in an unknown way
CANNOT_BE_READ = (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)


def of_course(models: Models, name: str) -> Path:
    """The file of one of the course's words; with a model other than the bundled one, it is learned now.

    Args:
        models: the loaded parts; a word fits the model it was learned with.
        name: of a folder in data/concepts.
    """
    if _bundled(models):
        return DATA / "embeddings" / f"{name}.safetensors"
    return _learn(models, name)


def stages(models: Models, name: str) -> dict[int, Path]:
    """The files of a course's word at several steps of its training, by step."""
    if _bundled(models):
        paths = (DATA / "embeddings" / "steps").glob(f"{name}-*.safetensors")
    else:
        paths = _learn(models, name).parent.glob(f"{run_folder.EMBEDDING}-steps-*.safetensors")
    return dict(sorted((int(path.stem.rsplit("-", 1)[1]), path) for path in paths))


def gather(source: str | Path, folder: str | Path) -> list[Path]:
    """Copy a class's words from a folder, or a zip, into one flat folder; returns the new files.

    Each is named after its file, or after its folder if the file is called `learned_embeds`, as after every training:
    `anna/learned_embeds.safetensors` is Anna's.

    Raises:
        InputError: there are no words in `source`, too many, or a file too large to be one; or it is damaged.
    """
    source, folder = files.given(source, "the class's words"), Path(folder)
    taken: dict[str, bytes] = {}
    try:
        for place, read in (_in_folder if source.is_dir() else _in_zip)(source):
            if len(taken) == MAX_FILES:
                raise InputError(f"more than {MAX_FILES} words in {str(source)!r}: give fewer")
            data = read(MAX_BYTES + 1)
            if len(data) > MAX_BYTES:
                raise InputError(
                    f"{str(place)!r} in {str(source)!r} is larger than {MAX_BYTES // 2**20} MiB: "
                    "a learned word is kilobytes"
                )
            taken[_free_name(place, taken)] = data
    except CANNOT_BE_READ as error:
        said = first_line(error)
        raise InputError(
            f"{str(source)!r} is not a folder, nor a zip that can be read ({said})"
        ) from error
    if not taken:
        raise InputError(f"{str(source)!r} has no file that ends in {', '.join(SUFFIXES)}")
    for name, data in taken.items():
        files.write(folder / name, data)
    return [folder / name for name in taken]


# where a word is in what was handed in, and a function that reads its first bytes, as many as asked
Entries = Iterator[tuple[PurePosixPath, Callable[[int], bytes]]]


def _in_folder(source: Path) -> Entries:
    for path in sorted(source.rglob("*")):
        place = PurePosixPath(path.relative_to(source).as_posix())
        if path.is_file() and _is_word(place):
            yield place, partial(_start_of_file, path)


def _in_zip(source: Path) -> Entries:
    """Names of entries are never used as paths; no more is unpacked than is read."""
    with zipfile.ZipFile(source) as archive:
        for entry in archive.infolist():
            place = PurePosixPath(entry.filename.replace("\\", "/"))
            if not entry.is_dir() and _is_word(place):
                yield place, partial(_start_of_entry, archive, entry)


def _is_word(place: PurePosixPath) -> bool:
    """Judged by its name; macOS adds hidden copies to a zip."""
    hidden = place.name.startswith(".") or "__MACOSX" in place.parts
    return place.suffix.lower() in SUFFIXES and not hidden


def _start_of_file(path: Path, count: int) -> bytes:
    with path.open("rb") as file:
        return file.read(count)


def _start_of_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, count: int) -> bytes:
    with archive.open(entry) as file:
        return file.read(count)


def _free_name(place: PurePosixPath, taken: Container[str]) -> str:
    is_any = place.stem == run_folder.EMBEDDING and place.parent.name
    stem = engines.file_name_of(place.parent.name if is_any else place.stem)
    numbers = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
    names = (f"{stem}{number}{place.suffix.lower()}" for number in numbers)
    return next(name for name in names if name not in taken)


def _bundled(models: Models) -> bool:
    return Path(models.name).resolve() == pretrained.BUNDLED_MODEL


def _learn(models: Models, name: str) -> Path:
    """Learn a course's word with this model, or continue an interrupted run; return its file."""
    from tiutils.runs import run

    photos = DATA / "concepts" / name
    about = json.loads((photos / "concept.json").read_text())
    on_gpu, steps = models.device.type == "cuda", int(os.getenv("TIUTILS_STEPS", "300"))
    config = TrainingConfig(
        train_data_dir=str(photos), placeholder_token=about["placeholder_token"],
        initializer_token=about["initializer_token"], pretrained_model_name_or_path=models.name,
        max_train_steps=steps, save_steps=min(50, steps),
        mixed_precision="fp16" if on_gpu else "no", gradient_checkpointing=on_gpu,
        resume_from_checkpoint="latest", output_dir=f"runs/{Path(models.name).name}-{name}",
    )  # fmt: skip
    return run.train(config).embedding_path
