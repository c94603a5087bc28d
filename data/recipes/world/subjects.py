"""The nine things that words are taught for, from `subjects.tsv` and `photos.tsv`.

Three are the course's concepts, six are held out for judging. The bundled model must never have seen any of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from . import tables

HERE = Path(__file__).parent
DATA = HERE.parents[1]


@dataclass(frozen=True)
class Photo:
    """One photo: the camera's position (degrees), the place behind the subject, how much of the frame it fills."""

    azimuth: float
    elevation: float
    place: str
    seed: int
    fill: float = 0.84
    off_center: float = 0.0


@dataclass(frozen=True)
class Subject:
    """A thing to photograph: a model of the furniture libraries, or `kit:NAME` of `held_out.KITS`."""

    name: str
    folder: Path
    source: str
    initializer: str
    exposure: float
    description: str
    photos: tuple[Photo, ...]
    held_out: tuple[Photo, ...]

    @property
    def placeholder(self) -> str:
        return f"<{self.name}>"

    @property
    def title(self) -> str:
        return self.name.replace("-", " ").capitalize()


def read_photos() -> dict[tuple[str, str], tuple[Photo, ...]]:
    """The photos of `photos.tsv` by subject and use, `train` or `held_out`."""
    found: dict[tuple[str, str], tuple[Photo, ...]] = {}
    for row in tables.read(HERE / "photos.tsv"):
        camera = float(row["azimuth"]), float(row["elevation"])
        frame = float(row["fill"]), float(row["off_center"])
        photo = Photo(*camera, row["place"], int(row["seed"]), *frame)
        key = row["subject"], row["use"]
        found[key] = (*found.get(key, ()), photo)
    return found


def read_subjects() -> tuple[Subject, ...]:
    """Every subject of `subjects.tsv` with its photos."""
    photos = read_photos()
    return tuple(
        Subject(
            name=row["subject"],
            folder=DATA / row["folder"] / row["subject"],
            source=row["source"],
            initializer=row["initializer"],
            exposure=float(row["exposure"]),
            description=row["description"],
            photos=photos[row["subject"], "train"],
            held_out=photos[row["subject"], "held_out"],
        )
        for row in tables.read(HERE / "subjects.tsv")
    )


SUBJECTS = read_subjects()
CONCEPTS = tuple(subject for subject in SUBJECTS if subject.folder.parent.name == "concepts")
HELD_OUT = tuple(subject for subject in SUBJECTS if subject.folder.parent.name == "held_out")
# Models that no noun of the world may use. Two emoji look nearly like a concept, and are excluded as well.
EXCLUDED_MODELS = tuple(s.source for s in SUBJECTS if not s.source.startswith("kit:"))
EXCLUDED_EMOJI = ("teddy bear", "carousel horse")
