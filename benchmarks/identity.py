"""Does a learned word show its thing? An independent network judges nine things, for one or several models.

    python -m benchmarks.identity --model data/tiny-sd --steps 400 --seeds 3

Teaches the three concepts and the six held-out things, one row each, with the program's own
training and its defaults, and draws each word: many pictures of "a photo of a …", and as many in
four places that no photo shows. The witness (`benchmarks.witness`) ranks sixty things for each
picture and counts how often the right one comes first, or among the first five. The first model's
evaluator counts how many pictures show the place asked for. The plain noun and real photos are
judged in the same way for comparison.

Words that were taught before, with this model and these settings, are taken from the folder `--runs`,
so an interrupted benchmark continues where it stopped. Nothing is picked: the figure shows each
seed's first pictures, and the folder of each word has all of them in one PNG.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import itertools
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

import tiutils
from benchmarks import witness
from data.recipes.world.places import PLACES
from tiutils import models
from tiutils.evaluation import clip as clip_model
from tiutils.figures import output
from tiutils.io import pretrained, run_folder

PROMPT = "a photo of a {}"
ASKED = ("on the beach", "in the snow", "in space", "in the desert")
COLUMNS = 8  # of the PNG with all pictures of a word
CELL = 160  # pixels of a picture in the figure
SHOWN_NOUN, SHOWN_LEARNED = 2, 4  # pictures in the figure, of the noun and of each seed
WHO = ("real", "autoencoder", "noun", "learned")
GROUPS = {"concepts": witness.CONCEPTS, "held-out things": witness.HELD_OUT}


@dataclass(frozen=True)
class Settings:
    """How words are taught, and how many pictures are drawn of the plain prompt and of all places together."""

    steps: int
    pictures: int
    start: str  # "noun", or "look": the row that a word encoder sees in the photos
    more: tuple[tuple[str, Any], ...] = ()  # other settings of the training, by name

    def flags(self, word: str, noun: str) -> dict[str, Any]:
        """The training flags that depend on the start."""
        start = {"initializer_token": noun}
        if self.start == "look":
            start = {"initializer_from_photos": True}
        known = {field.name for field in dataclasses.fields(tiutils.TrainingConfig)}
        if not start.keys() <= known:
            sys.exit("this tiutils cannot start from photos: leave --start look out")
        return {
            "placeholder_token": word,
            "max_train_steps": self.steps,
            **start,
            **dict(self.more),
        }


@dataclass(frozen=True)
class Drawn:
    """A word's pictures: of the plain prompt, and as many in the places of ASKED."""

    plain: list[Image.Image]
    placed: list[Image.Image]


@dataclass(frozen=True)
class Result:
    """One model and thing: the pictures of its noun, and those of its word for each seed."""

    model: str
    thing: str
    noun: Drawn
    learned: list[Drawn]
    folder: Path = pretrained.BUNDLED_MODEL


def card(thing: str) -> tuple[str, str]:
    """The thing's placeholder and its noun."""
    facts = json.loads((witness.taught()[thing] / "concept.json").read_text())
    return facts["placeholder_token"], facts["initializer_token"]


@functools.cache
def fingerprint(folder: Path) -> str:
    """Twelve hexadecimal digits that depend on a model or a thing's photos, and on what training does by default."""
    on = {name: value for name, value in vars(tiutils.TrainingConfig()).items() if value}
    digest = hashlib.sha256(repr((sorted(on.items()), PROMPT, ASKED)).encode())
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".safetensors", ".json", ".jpg"):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def draw(parts: models.Models, word: str, pictures: int) -> Drawn:
    """Pictures from fixed noise, the same for every word, seed and model of one size."""
    plain = tiutils.generate(parts, PROMPT.format(word), num_images_per_prompt=pictures)
    prompts = [f"a {word} {place}" for place in ASKED]
    each = pictures // len(ASKED)
    return Drawn(plain, tiutils.generate(parts, prompts, num_images_per_prompt=each))


def save(drawn: Drawn, path: Path, word: str) -> None:
    """All pictures in one PNG, those of the plain prompt first."""
    images = [*drawn.plain, *drawn.placed]
    side, rows = images[0].width, -(-len(images) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * side, rows * side))
    for number, image in enumerate(images):
        sheet.paste(image, (number % COLUMNS * side, number // COLUMNS * side))
    alt = f"{len(drawn.plain)} pictures of “{PROMPT.format(word)}”, {len(drawn.placed)} in places"
    output.save(sheet, path, alt=alt)


def read(path: Path, pictures: int) -> Drawn:
    """Read what `save` wrote."""
    with Image.open(path) as sheet:
        side, sheet = sheet.width // COLUMNS, sheet.convert("RGB")
    corners = [(n % COLUMNS * side, n // COLUMNS * side) for n in range(2 * pictures)]
    images = [sheet.crop((x, y, x + side, y + side)) for x, y in corners]
    return Drawn(images[:pictures], images[pictures:])


def noun_pictures(model: Path, thing: str, settings: Settings, runs: Path) -> Drawn:
    """The pictures of the thing's noun, kept for the next run."""
    noun = card(thing)[1]
    path = runs / fingerprint(model) / f"nouns-{settings.pictures}" / f"{noun}.png"
    if not path.exists():
        save(draw(tiutils.load(model), noun, settings.pictures), path, noun)
    return read(path, settings.pictures)


def word_pictures(model: Path, thing: str, seed: int, settings: Settings, runs: Path) -> Drawn:
    """Teach the thing's word and draw it, unless both were done before."""
    folder = word_folder(model, thing, seed, settings, runs)
    path = folder / "pictures.png"
    if not path.exists():
        clock = time.perf_counter()
        if not (folder / "learned_embeds.safetensors").exists():
            teach(model, thing, seed, settings, folder)
        parts, word = tiutils.load(model), card(thing)[0]
        tiutils.load_embedding(parts, folder / "learned_embeds.safetensors")
        save(draw(parts, word, settings.pictures), path, word)
        print(f"{model} {thing} {seed}: {time.perf_counter() - clock:.0f} s", flush=True)
    return read(path, settings.pictures)


def word_folder(model: Path, thing: str, seed: int, settings: Settings, runs: Path) -> Path:
    """The folder of the word for one thing and seed, by model, settings and photos."""
    mark = fingerprint(witness.taught()[thing])[:6]
    parts = [settings.start, settings.steps, settings.pictures]
    name = "-".join(map(str, [*parts, *(f"{key}={value}" for key, value in settings.more)]))
    return runs / fingerprint(model) / name / f"{thing}-{seed}-{mark}"


def teach(model: Path, thing: str, seed: int, settings: Settings, folder: Path) -> None:
    """Train, and save the learned row in `folder`."""
    config = tiutils.TrainingConfig(
        pretrained_model_name_or_path=str(model),
        train_data_dir=str(witness.taught()[thing]),
        output_dir=str(folder / "run"),
        resume_from_checkpoint="latest",
        seed=seed,
        **settings.flags(*card(thing)),
    )
    result = tiutils.train(config)
    if result.stopped:
        sys.exit(f"{folder}: {result.stopped}")
    os.replace(folder / "run" / "learned_embeds.safetensors", folder / "learned_embeds.safetensors")
    shutil.rmtree(folder / "run")


def is_finished(run: Path) -> bool:
    """Whether a run was trained to its end: one that was interrupted leaves a word, too."""
    return run_folder.read_record(run).get("status") == "finished"


def in_place(clip: clip_model.ClipScorer, placed: Sequence[Image.Image]) -> np.ndarray:
    """Whether the evaluator, choosing among all places, finds each picture in the one asked for: bool (n,)."""
    return places_of(clip, placed) == np.repeat(ASKED, len(placed) // len(ASKED))


def places_of(clip: clip_model.ClipScorer, pictures: Sequence[Image.Image]) -> np.ndarray:
    """The place that the evaluator finds in each picture, out of all: str (n,)."""
    names = list(PLACES)
    found = (clip.encode_images(list(pictures)) @ clip.encode_text(names).T).argmax(dim=1)
    return np.array(names)[found.numpy()]


@torch.no_grad()
def through_autoencoder(parts: models.Models, images: Sequence[Image.Image]) -> list[Image.Image]:
    """Photos after a pass through the model's autoencoder: the most that a word could show."""
    side, found = parts.resolution, []
    for image in images:
        small = image.resize((side, side), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.asarray(small, np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
        seen = parts.vae.decode(parts.vae.encode(pixels).latent_dist.mean).sample[0]
        array = ((seen.clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 0).numpy()
        found.append(Image.fromarray(array.astype(np.uint8)))
    return found


@dataclass(frozen=True)
class Judges:
    """The witness, the stricter one that looks at every edge, and the evaluator that knows places."""

    soft: witness.Witness
    sharp: witness.Witness
    clip: clip_model.ClipScorer

    @classmethod
    def call(cls, evaluator: Path = pretrained.BUNDLED_MODEL / "evaluator") -> Judges:
        """The witness at both of its sizes, and the evaluator in a folder."""
        both = witness.Witness.call(), witness.Witness.call(sharp=True)
        return cls(*both, clip_model.load(evaluator))

    def identity(self, pictures: Sequence[Image.Image], thing: str, end: str = "") -> dict:
        """Shares of pictures for which the right thing comes first, and among the first five."""
        first, five = witness.shares(self.soft.rank(pictures, thing))
        return {f"first{end}": first, f"among_five{end}": five}

    def all(self, drawn: Drawn, thing: str) -> dict[str, float]:
        """All shares of one word: for the plain prompt, in places, by the stricter witness; places found."""
        first, five = witness.shares(self.sharp.rank(drawn.plain, thing))
        return {
            **self.identity(drawn.plain, thing),
            **self.identity(drawn.placed, thing, "_in_places"),
            "first_sharp": first,
            "among_five_sharp": five,
            "place": float(in_place(self.clip, drawn.placed).mean()),
        }


def mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each share."""
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def measure(judges: Judges, results: Sequence[Result]) -> list[dict[str, Any]]:
    """A row for each model and thing: the shares of photos, of the noun, of the word's seeds and their mean."""
    parts = {result.folder: tiutils.load(result.folder) for result in results}
    rows = []
    for result in results:
        photos = witness.photos(witness.taught()[result.thing])
        kept = through_autoencoder(parts[result.folder], photos)
        seeds = [judges.all(drawn, result.thing) for drawn in result.learned]
        rows.append(
            {
                "model": result.model,
                "thing": result.thing,
                "real": judges.identity(photos, result.thing),
                "autoencoder": judges.identity(kept, result.thing),
                "noun": judges.all(result.noun, result.thing),
                "learned": mean(seeds),
                "seeds": seeds,
            }
        )
    return rows


def grouped(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The means over the concepts and over the held-out things, for each model."""
    found = []
    for model in dict.fromkeys(row["model"] for row in rows):
        for name, root in GROUPS.items():
            inside = [
                row
                for row in rows
                if row["model"] == model and (root / row["thing"] / "concept.json").exists()
            ]
            if inside:
                means = {who: mean([r[who] for r in inside]) for who in WHO}
                found.append({"model": model, "thing": f"**{name}**", **means, "seeds": []})
    return found


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The table as Markdown; each cell has the share first and the share among the first five."""

    def both(shares: dict[str, float], end: str = "") -> str:
        return f"{shares['first' + end]:.2f} / {shares['among_five' + end]:.2f}"

    lines = [
        "| model | thing | real photos | through the autoencoder | noun | learned "
        "| lowest and highest seed, first | in places | to the sharp eye | place: noun | learned |",
        "|---|---|" + "--:|" * 9,
    ]
    for row in rows:
        seeds = [seed["first"] for seed in row["seeds"]]
        cells = [
            both(row["real"]),
            both(row["autoencoder"]),
            both(row["noun"]),
            both(row["learned"]),
            f"{min(seeds):.2f}, {max(seeds):.2f}" if seeds else "",
            both(row["learned"], "_in_places"),
            both(row["learned"], "_sharp"),
            f"{row['noun']['place']:.2f}",
            f"{row['learned']['place']:.2f}",
        ]
        lines.append(f"| {row['model']} | {row['thing']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def figure(results: Sequence[Result]) -> Image.Image:
    """A row for each thing and model: a photo; pictures of the noun; pictures of the word, seed by seed."""
    seeds = max(len(result.learned) for result in results)
    count = 1 + SHOWN_NOUN + SHOWN_LEARNED * seeds
    step, left, top, gap = CELL + 4, 130, 24, 12
    size = (left + count * step + (1 + seeds) * gap, top + len(results) * step)
    sheet, font = Image.new("RGB", size, "white"), ImageFont.load_default(13)
    pen = ImageDraw.Draw(sheet)
    heads = ["photo", "the noun", *(f"learned, seed {seed}" for seed in range(seeds))]
    for number, result in enumerate(results):
        y = top + number * step
        noun = card(result.thing)[1]
        label = f"{result.thing}\nfrom “{noun}”\n{result.model.replace(', ', chr(10))}"
        pen.multiline_text((4, y + 50), label, fill="black", font=font)
        groups = [
            witness.photos(witness.taught()[result.thing])[:1],
            result.noun.plain[:SHOWN_NOUN],
            *(drawn.plain[:SHOWN_LEARNED] for drawn in result.learned),
        ]
        x = left
        for head, group in zip(heads, groups, strict=False):
            if number == 0:
                pen.text((x, 4), head, fill="black", font=font)
            for image in group:
                sheet.paste(image.resize((CELL, CELL), Image.Resampling.LANCZOS), (x, y))
                x += step
            x += gap
    return sheet


def label_of(model: Path, start: str, starts: Sequence[str]) -> str:
    return f"{model}, {start}" if len(starts) > 1 else str(model)


def setting(text: str) -> tuple[str, Any]:
    """NAME=VALUE: a setting's name, and its value from JSON or, if it is none, as text."""
    name, _, value = text.partition("=")
    if name not in {field.name for field in dataclasses.fields(tiutils.TrainingConfig)}:
        raise argparse.ArgumentTypeError(f"{name!r} is not a setting of TrainingConfig")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, action="append", help="folder; may be given again")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3, help="words of each thing")
    parser.add_argument("--pictures", type=int, default=16, help="a multiple of 4")
    parser.add_argument("--things", nargs="+", choices=witness.taught(), default=witness.taught())
    parser.add_argument("--start", nargs="+", choices=("noun", "look"), default=["noun"])
    parser.add_argument(
        "--set", nargs="+", type=setting, default=[], metavar="NAME=VALUE",
        help="settings of the training, such as average_rows=100; the others are the defaults",
    )  # fmt: skip
    parser.add_argument("--drawn", action="store_true", help="only judge what is already drawn")
    parser.add_argument("--evaluator", type=Path, help="that says the place; the first model's own")
    parser.add_argument("--runs", type=Path, default=Path("runs/identity"))
    parser.add_argument("--out", type=Path, default=Path("runs/identity/identity.json"))
    parser.add_argument("--figure", type=Path, default=Path("runs/identity/identity.png"))
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    given.model = given.model or [pretrained.BUNDLED_MODEL.relative_to(witness.ROOT)]
    if given.pictures < 1 or given.pictures % len(ASKED):
        parser.error(f"--pictures must be a multiple of {len(ASKED)}")
    return given


def collect(given: argparse.Namespace) -> list[Result]:
    """Teach and draw what is missing, one seed of every thing before the next; results thing by thing.

    With `--drawn` nothing is missing: what was not drawn before is left out.
    """
    found: dict[tuple[str, str], list[Drawn]] = {}
    nouns: dict[tuple[str, str], Drawn] = {}
    for seed, start, model in itertools.product(range(given.seeds), given.start, given.model):
        settings = Settings(given.steps, given.pictures, start, tuple(given.set))
        label = label_of(model, start, given.start)
        for thing in given.things:
            folder = word_folder(model, thing, seed, settings, given.runs)
            if given.drawn and not (folder / "pictures.png").exists():
                continue
            nouns[thing, label] = noun_pictures(model, thing, settings, given.runs)
            drawn = word_pictures(model, thing, seed, settings, given.runs)
            found.setdefault((thing, label), []).append(drawn)
    order = [key for thing in given.things for key in found if key[0] == thing]
    return [
        Result(label, thing, nouns[thing, label], found[thing, label]) for thing, label in order
    ]


def main() -> None:
    given = arguments()
    logging.getLogger("tiutils").setLevel(logging.ERROR)
    torch.set_num_threads(given.threads)
    results = collect(given)
    if not results:
        sys.exit("nothing was drawn before with these models and settings: leave --drawn out")
    judges = Judges.call(given.evaluator or given.model[0] / "evaluator")
    rows = measure(judges, results)
    rows += grouped(rows)
    record = {
        "command": "python -m benchmarks.identity",
        "steps": given.steps,
        "seeds": given.seeds,
        "pictures": given.pictures,
        "things_to_choose_among": len(witness.gallery()),
        "models": {str(model): fingerprint(model) for model in given.model},
        "rows": rows,
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(record, indent=2) + "\n")
    alt = (
        "A row for each thing and model: a photo; pictures drawn by the plain noun; the first "
        f"{SHOWN_LEARNED} pictures of “{PROMPT.format('…')}” by the learned word, for every seed."
    )
    output.save(figure(results), given.figure, alt=alt)
    print(table(rows))


if __name__ == "__main__":
    main()
