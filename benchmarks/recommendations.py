"""What the course recommends, with and without: one small trained figure for each recommendation.

    python -m benchmarks.recommendations

Teaches one word again and again to the bundled model, each time with one thing changed: the photos, their backgrounds,
the sentences, the number of vectors, the learning rate, the noise levels. Then come figures that need no training: a
row in fewer bits, a mixture of the nearest words, and what a word gains at each noise level. All words are drawn from
the same noise. Writes the figures in docs/recommendations/ and benchmarks/recommendations.json; takes about fifty CPU
minutes. What is in `--runs` is not made again. Three runs that went wrong are shown with their curves, for an exercise
of notebook 05.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

import tiutils
from benchmarks import ablation, experiments, identity, witness
from benchmarks.quality import ROOT
from data.recipes.results.embeddings import WORDS
from data.recipes.world import compose, places, things
from tiutils import concept, diffusion, models, token_embedding
from tiutils.figures import grids, output
from tiutils.io import embeddings, run_folder
from tiutils.io.pretrained import BUNDLED_MODEL

FOLDER = ROOT / "docs" / "recommendations"
RECORD = ROOT / "benchmarks" / "recommendations.json"
TOY, NOUN = "wood-toy", "toy"
OTHER_NOUN, PROMPT_OF_A_NOUN = "horse", "a photo of a horse"
STEPS, PICTURES = 300, 8
NAMELESS = 9000  # a thing that none of the model's trainings had
BEHIND = ("on a carpet", "in a garden", "on a table", "in the forest", "at sunset")
# pictures of a sheet in the figure: two plain ones, one in each of three places
SHOWN = (0, 1, 8, 10, 12)
HEADS = ("a photo of a …", "", "… on the beach", "… in the snow", "… in space")
FREE_8: dict[str, Any] = {"num_vectors": 8, "norm_control": 0.0}
STAGES = (25, 100, 300)  # steps after which three learning rates are compared
LEVELS, DRAWS = 10, 32  # tenths of the timesteps, and samples in each
CONCEPTS = ("wood-toy", "teddy-bear", "rocking-horse")


OF_A_BIRD = ("twenty", "backgrounds")  # figures of a thing that the witness does not know


@dataclass(frozen=True)
class Taught:
    """A word to teach: its label in a figure, the name of its run, its photos, and what differs from the defaults."""

    label: str
    run: str = "defaults"
    photos: Callable[[Path], Path] = lambda folder: witness.taught()[TOY]
    flags: dict[str, Any] = field(default_factory=dict)
    noun: str = NOUN


def some(count: int, caption: str = "") -> Callable[[Path], Path]:
    """A folder with the first photos of the toy, each with this caption beside it, if one is given."""

    def write(folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(witness.taught()[TOY].glob("*.jpg"))[:count]:
            shutil.copy(path, folder)
            if caption:
                (folder / path.name).with_suffix(".txt").write_text(caption)
        return folder

    return write


def nameless(behind: Sequence[str]) -> Callable[[Path], Path]:
    """A folder with a photo of a thing without a name in front of each of these places, from several sides."""

    def write(folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        cuts = things.draw_things([NAMELESS], torch.device("cpu"))[NAMELESS]
        thing, _ = things.thing_of(NAMELESS, cuts, [])
        nobody = compose.World({}, [], np.zeros(0))
        for number, name in enumerate(behind):
            scene, floor = places.place(np.random.default_rng(3), 256, name)
            view = dataclasses.replace(thing, sides=[thing.sides[number % len(thing.sides)]])
            rng = np.random.default_rng(number)
            picture, _ = compose.stand(nobody, rng, scene, floor, view, 1, "", "a photo of a {}")
            Image.fromarray(picture).save(folder / f"{number + 1}.jpg", quality=92)
        return folder

    return write


# twenty backgrounds, none of them asked for when the word is drawn
OTHERS = [name for name in places.PLACES if name not in (*identity.ASKED, *BEHIND)]
SCENES = [*BEHIND, *OTHERS, *BEHIND, *OTHERS][:20]
FIGURES: dict[str, tuple[Taught, ...]] = {
    "photos": (
        Taught("1 photo", "one-photo", some(1)),
        Taught("3 photos", "three-photos", some(3)),
        Taught("5 photos"),
    ),
    "twenty": (
        Taught("5 photos", "five-of-bird", nameless(BEHIND), noun="bird"),
        Taught("20 photos", "twenty-of-bird", nameless(SCENES), noun="bird"),
    ),
    "backgrounds": (
        Taught("one carpet, 1 vector", "carpet", nameless(5 * BEHIND[:1]), noun="bird"),
        Taught(
            "one carpet, 8 vectors, no norm control",
            "carpet-8",
            nameless(5 * BEHIND[:1]),
            FREE_8,
            "bird",
        ),
        Taught(
            "5 backgrounds, 8 vectors, no norm control",
            "backgrounds-8",
            nameless(BEHIND),
            FREE_8,
            "bird",
        ),
    ),
    "sentences": (
        Taught("only “a photo of a …”", "sentence", some(5, "a photo of a {}"), {"captions": True}),
        Taught("27 sentences"),
    ),
    "vectors": (
        Taught("1 vector"),
        Taught("2 vectors", "two-vectors", flags={"num_vectors": 2}),
        Taught("8 vectors", "eight-vectors", flags={"num_vectors": 8}),
    ),
    "rates": (
        Taught("1e-5", "1e-5", flags={"learning_rate": 1e-5}),
        Taught("5e-4", "5e-4", flags={"learning_rate": 5e-4}),
        Taught("5e-3, the default"),
        Taught("5e-2", "5e-2", flags={"learning_rate": 5e-2}),
        Taught("1", "1", flags={"learning_rate": 1.0}),
        Taught("1, no norm control", "1-free", flags={"learning_rate": 1.0, "norm_control": 0.0}),
    ),
    "timesteps": (
        Taught("mostly high, the default"),
        Taught("evenly drawn", "uniform", flags={"timestep_sampling": "uniform"}),
        Taught("only 300 to 950", "range", flags={"timestep_range": (300, 950)}),
    ),
}
OVER_STEPS = FIGURES["rates"][1:4]  # shown once more after each of STAGES


def teach(taught: Taught, runs: Path) -> Path:
    """The folder of the word's run, with its photos."""
    folder = runs / identity.fingerprint(BUNDLED_MODEL) / taught.run
    if not identity.is_finished(folder):
        config = tiutils.TrainingConfig(
            pretrained_model_name_or_path=str(BUNDLED_MODEL),
            train_data_dir=str(taught.photos(folder / "photos")),
            placeholder_token="<thing>",
            initializer_token=taught.noun,
            output_dir=str(folder),
            max_train_steps=STEPS,
            early_stopping=True,
            early_stopping_window=STEPS - 1,
            save_steps=STAGES[0],
            resume_from_checkpoint="latest",
            **taught.flags,
        )
        if stopped := tiutils.train(config).stopped:
            sys.exit(f"{folder}: {stopped}")
    return folder


@dataclass(frozen=True)
class Row:
    """A row of a figure: its label, pictures, and what was counted in all of them."""

    label: str
    pictures: identity.Drawn
    counted: dict[str, float]

    def cells(self) -> list[Image.Image]:
        everything = [*self.pictures.plain, *self.pictures.placed]
        return [everything[number] for number in SHOWN]


def drawn_row(label: str, word: Path | np.ndarray, judges: ablation.Judges, kept: Path) -> Row:
    """Load a word from a file, or as rows, into a fresh model, draw it, and judge the pictures."""
    path, parts = kept / "pictures.png", tiutils.load(judges.model)
    name = "<thing>"
    if isinstance(word, np.ndarray):
        token_embedding.add_placeholder(parts, name, vectors=torch.from_numpy(word))
    else:
        tiutils.load_embedding(parts, word, name)
    if not path.exists():
        identity.save(identity.draw(parts, name, PICTURES), path, name)
    drawn = identity.read(path, PICTURES)
    counted = judges.pictures.all(drawn, TOY)
    spread = ablation.spread(parts, NOUN)
    counted["sensitivity"] = ablation.spread(parts, name) / spread
    counted["length"] = ablation.length(parts, name) / ablation.length(parts, NOUN)
    return Row(label, drawn, {key: round(value, 3) for key, value in counted.items()})


def labeled(row: Row, known: bool = True) -> str:
    """The row's label with its shares below; `known` things are those that the witness has photos of."""
    counted = row.counted
    thing = f"thing {(counted['first'] + counted['first_in_places']) / 2:.2f}, " if known else ""
    return f"{row.label}: {thing}place {counted['place']:.2f}, sensitivity {counted['sensitivity']:.2f}"


def grid(rows: Sequence[Row], title: str, photos: Sequence[Path] = ()) -> Figure:
    """A line for each row, all from the same noise; with `photos`, folders, the first photo of each before it."""
    firsts = [[witness.photo(min(folder.glob("*.jpg")))] for folder in photos]
    return grids.image_grid(
        [
            [*first, *row.cells()]
            for first, row in zip(firsts or [[]] * len(rows), rows, strict=True)
        ],
        row_labels=[labeled(row, known=not photos) for row in rows],
        column_labels=["one of its photos", *HEADS] if photos else HEADS,
        title=title,
        cell=1.2,
    )


TITLES = {
    "photos": "The same word from one, three, and five photos",
    "twenty": "A made-up bird, from five photos and from twenty",
    "backgrounds": "A made-up bird, from five photos on one carpet, and on five backgrounds",
    "sentences": "Trained with one sentence, and with 27",
    "vectors": "One vector, two, and eight",
    "rates": "Learning rates from 1e-5 to 1",
    "timesteps": "Three ways to draw the noise levels of training",
    "bits": "A row in 32, 16, 8, and 4 bits for each number",
    "mixture": "The learned word, and the three nearest words in its place",
    "length": "Three words, and how many times as long as that of “toy” their rows are",
}


def stages(run: Path, judges: ablation.Judges) -> dict[int, Row]:
    """What the word of a run drew after each of STAGES."""
    files = {step: run / f"{run_folder.EMBEDDING}-steps-{step}.safetensors" for step in STAGES}
    return {n: drawn_row(str(n), file, judges, run / f"steps-{n}") for n, file in files.items()}


def stages_figure(rows: dict[str, dict[int, Row]]) -> Figure:
    """A line for each learning rate, three pictures after each of STAGES."""
    shown = (0, 1, 3)  # of a row's cells
    labels = []
    for rate, after in rows.items():
        counted = [row.counted for row in after.values()]
        things = ", ".join(f"{(c['first'] + c['first_in_places']) / 2:.2f}" for c in counted)
        heard = ", ".join(f"{c['sensitivity']:.2f}" for c in counted)
        labels.append(f"{rate}: thing {things}; sensitivity {heard}")
    heads = [HEADS[0], "", HEADS[3]]
    return grids.image_grid(
        [[row.cells()[n] for row in after.values() for n in shown] for after in rows.values()],
        row_labels=labels,
        column_labels=[
            f"step {step}: {head}" if n == 0 else head
            for step in STAGES
            for n, head in enumerate(heads)
        ],
        title="Three learning rates after 25, 100, and 300 steps",
        cell=1.1,
        gaps=(2, 5),
    )


def of_three_lengths(runs: Path, model: Path) -> list[tuple[str, Path, Path]]:
    """The default word, one that trained far too long without norm control, and Prodigy's: label, file, folder."""
    settings = ablation.settings_of("Prodigy without norm control")
    with experiments.put_in_place(dict(settings.more), *identity.card(TOY)):
        identity.word_pictures(model, TOY, 0, settings, runs)
    prodigy = identity.word_folder(model, TOY, 0, settings, runs)
    kept = runs / identity.fingerprint(BUNDLED_MODEL) / "length"
    return [
        ("defaults", WORDS / f"{TOY}.safetensors", kept / "0"),
        ("1200 steps, no norm control", WORDS / "steps" / f"{TOY}-1200.safetensors", kept / "1"),
        ("Prodigy", prodigy / "learned_embeds.safetensors", kept / "2"),
    ]


def _lengths(model: Path, word: Path) -> str:
    """How long a word's row is."""
    noun = token_embedding.vector_of(tiutils.load(model), NOUN).norm().item()
    own = float(np.linalg.norm(embeddings.read(word).vectors))
    return f"length {own / noun:.1f} ×"


def in_bits(rows: np.ndarray, bits: int) -> np.ndarray:
    """The rows as evenly spaced whole numbers of so many bits, with one scale for each row, and back."""
    top = 2 ** (bits - 1) - 1
    scale = np.abs(rows).max(axis=1, keepdims=True) / top
    return (np.round(rows / scale) * scale).astype(np.float32)


def nearest_mixture(rows: np.ndarray) -> tuple[list[str], np.ndarray]:
    """The three whole words nearest to a row, and their mean weighted by cosine, at the row's length."""
    parts = tiutils.load(BUNDLED_MODEL)
    near = token_embedding.neighbors(parts, torch.from_numpy(rows[0]), 3)
    table = token_embedding.table_of(parts)
    ids = [parts.tokenizer.convert_tokens_to_ids(token) for token, _ in near]
    weights = np.array([cosine for _, cosine in near])
    mixed = weights @ table[ids].numpy()
    mixed = mixed / np.linalg.norm(mixed) * np.linalg.norm(rows[0])
    return [token.removesuffix("</w>") for token, _ in near], mixed[None].astype(np.float32)


@torch.no_grad()
def gains_by_level() -> dict[str, list[float]]:
    """For each word and tenth of the timesteps: the loss of the plain noun on unseen sides, less that of the word."""
    found = {}
    for thing in CONCEPTS:
        parts, names = tiutils.load(BUNDLED_MODEL), identity.card(thing)
        tiutils.load_embedding(parts, WORDS / f"{thing}.safetensors")
        photos = concept.load(witness.taught()[thing] / "held_out")
        word, noun = ([loss_at(parts, photos, name, n) for n in range(LEVELS)] for name in names)
        found[thing] = [round(other - own, 5) for own, other in zip(word, noun, strict=True)]
    return found


def loss_at(parts: models.Models, photos: concept.Concept, name: str, level: int) -> float:
    """The mean loss of `DRAWS` fixed draws from one tenth of the timesteps."""
    edges = (1000 * level // LEVELS, 1000 * (level + 1) // LEVELS)
    config = tiutils.TrainingConfig(
        center_crop=True, train_batch_size=DRAWS, timestep_sampling="uniform", timestep_range=edges
    )
    dataset = diffusion.encode_dataset(parts, photos, name, config)
    return diffusion.losses_at(parts, dataset, 0, 0, DRAWS).mean().item()


def levels_figure(gains: dict[str, list[float]]) -> Figure:
    """Bars for each tenth of the timesteps."""
    figure = Figure(figsize=(8, 3.4), dpi=output.DPI, layout="constrained")
    axis = figure.subplots()
    colors = (output.BLUE, output.VERMILION, output.GREEN)
    for number, (thing, values) in enumerate(gains.items()):
        x = np.arange(LEVELS) + 0.27 * (number - 1)
        axis.bar(x, values, 0.25, color=colors[number], label=f"<{thing}>")
    axis.set(
        xlabel="timestep: 0 is nearly the photo, 1000 nearly pure noise",
        ylabel="noun's loss minus the word's",
        xticks=np.arange(LEVELS + 1) - 0.5,
        xticklabels=[100 * n for n in range(LEVELS + 1)],
    )
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    means = np.mean(list(gains.values()), axis=0)
    figure.set_label(
        "By how much a learned word lowers the loss on unseen sides, for each tenth of the timesteps: "
        f"{means[0]:.4f} in the lowest, {means.max():.4f} in that from {100 * means.argmax()} on, "
        f"{means[-3:].mean():.4f} on average in the highest three."
    )
    return figure


@torch.no_grad()
def broken_figure(rows: dict[str, Row], runs: dict[str, Path], judges: ablation.Judges) -> Figure:
    """Three words that went wrong, in three sentences, and a plain noun drawn beside each."""
    parts = tiutils.load(judges.model)
    horses = tiutils.generate(parts, PROMPT_OF_A_NOUN, num_images_per_prompt=2)
    row = torch.from_numpy(embeddings.read(runs["A"] / "learned_embeds.safetensors").vectors[0])
    row_of_table = parts.tokenizer.convert_tokens_to_ids(f"{OTHER_NOUN}</w>")
    token_embedding.table_of(parts)[row_of_table] = row
    toys = tiutils.generate(parts, PROMPT_OF_A_NOUN, num_images_per_prompt=2)
    cells = [
        [witness.photo(sorted((photos_of(runs[name])).glob("*.jpg"))[0]), *rows[name].cells()[:4]]
        + (toys if name == "A" else horses)
        for name in rows
    ]
    return grids.image_grid(
        cells,
        row_labels=[f"run {name}" for name in rows],
        column_labels=["one of its photos", *HEADS[:4], PROMPT_OF_A_NOUN, ""],
        title="Three words that went wrong, and the plain noun “horse” afterwards",
        cell=1.1,
    )


def photos_of(run: Path) -> Path:
    """The photos that a run was taught with."""
    own = run / "photos"
    return own if own.is_dir() else witness.taught()[TOY]


def write_histories(runs: dict[str, Path]) -> None:
    """The fixed losses and prompt sensitivities of the three runs."""
    record = {}
    for name, run in runs.items():
        history = json.loads((run / "run.json").read_text())
        record[name] = {key: history[key] for key in ("fixed_losses", "prompt_sensitivity")}
    (FOLDER / "broken.json").write_text(json.dumps(record, indent=1) + "\n")


def main() -> int:
    """Teach, draw and judge what is missing; write the figures, their record, and the three broken runs' curves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/recommendations"))
    given = parser.parse_args()
    logging.getLogger("tiutils").setLevel(logging.ERROR)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    words = {
        name: [(taught.label, teach(taught, given.runs)) for taught in rows]
        for name, rows in FIGURES.items()
    }
    judges = ablation.Judges.call(BUNDLED_MODEL.relative_to(ROOT))
    rows = {
        name: [
            drawn_row(label, run / "learned_embeds.safetensors", judges, run) for label, run in runs
        ]
        for name, runs in words.items()
    }
    learned = embeddings.read(WORDS / f"{TOY}.safetensors").vectors
    near, mixture = nearest_mixture(learned)
    others = {
        "bits": {
            "32 bits": learned,
            "16 bits": learned.astype(np.float16).astype(np.float32),
            "8 bits": in_bits(learned, 8),
            "4 bits": in_bits(learned, 4),
        },
        "mixture": {"learned": learned, " + ".join(near): mixture},
    }
    for name, variants in others.items():
        folder = given.runs / identity.fingerprint(BUNDLED_MODEL) / name
        rows[name] = [
            drawn_row(label, row, judges, folder / label.replace(" ", "-"))
            for label, row in variants.items()
        ]
    rows["length"] = [
        drawn_row(f"{label}, {_lengths(judges.model, word)}", word, judges, kept)
        for label, word, kept in of_three_lengths(given.runs, judges.model)
    ]
    gains = gains_by_level()
    for name, title in TITLES.items():
        own = [photos_of(run) for _, run in words[name]] if name in OF_A_BIRD else []
        output.save(grid(rows[name], title, own), FOLDER / f"{name}.png")
    output.save(levels_figure(gains), FOLDER / "levels.png")
    over_steps = {taught.label: stages(teach(taught, given.runs), judges) for taught in OVER_STEPS}
    output.save(stages_figure(over_steps), FOLDER / "steps.png")
    rows |= {f"steps, {rate}": list(after.values()) for rate, after in over_steps.items()}
    broken = {
        "A": (rows["photos"][-1], words["photos"][-1][1]),
        "B": (rows["rates"][0], words["rates"][0][1]),
        "C": (rows["backgrounds"][1], words["backgrounds"][1][1]),
    }
    folders = {name: run for name, (_, run) in broken.items()}
    pictures = broken_figure({name: row for name, (row, _) in broken.items()}, folders, judges)
    output.save(pictures, FOLDER / "broken.png")
    write_histories(folders)
    counted = {name: {row.label: row.counted for row in some} for name, some in rows.items()}
    record = {"command": "python -m benchmarks.recommendations", "rows": counted, "gains": gains}
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    for name, some in counted.items():
        for label, values in some.items():
            print(name, repr(label), values)
    return 0


if __name__ == "__main__":
    sys.exit(main())
