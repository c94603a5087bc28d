"""Is the learned word better than the word it started from? Three concepts, three seeds, no picking.

    python -m benchmarks.quality [--seeds 3]

Teaches each concept's word to the bundled model with each seed, as `make run` and the notebook do,
and compares it with its initializer word on photos of sides that training never saw: the fixed
evaluation loss, image similarity, and color distance, all of which must improve. In addition, the
bundled evaluator, a small CLIP model, scores likeness and prompt following. Writes
benchmarks/quality.json, docs/quality.png and the table in docs/results.md. Runs that were measured
before, with this model and these settings, are taken from runs/quality/; delete that folder to
measure again. The exit status is 1 if some advantage is not larger than the spread over seeds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from PIL import Image

import tiutils
from tiutils import concept
from tiutils.evaluation import clip, comparison, metrics
from tiutils.figures import grids, output
from tiutils.io.pretrained import BUNDLED_MODEL

ROOT = Path(__file__).resolve().parent.parent
CONCEPTS = ("wood-toy", "rocking-horse", "teddy-bear")
SEEDS = (0, 1, 2)
STEPS = 300
NUM_IMAGES = 8  # drawn for each word and seed, for similarity and color distance
PROMPTS = ("a photo of a {}", "a {} on the beach", "a {} in the snow", "two {} on grass")
ACCEPTANCE = ("evaluation_loss", "image_similarity", "histogram_distance")
FOLLOWED = PROMPTS[1:3]  # for prompt following, NUM_IMAGES of each
BEGIN, END = "<!-- quality:begin -->", "<!-- quality:end -->"


@dataclass(frozen=True)
class Measured:
    """One concept and seed: every measure of the learned and of the plain word, and pictures of PROMPTS."""

    concept: str
    seed: int
    learned: dict[str, float]
    plain: dict[str, float]
    seconds: float
    before: list[Image.Image]
    after: list[Image.Image]


def main() -> int:
    """Measure what is missing, then write the JSON file, the picture and the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many of them")
    seeds = range(parser.parse_args().seeds)
    logging.getLogger("tiutils").setLevel(logging.ERROR)
    fingerprint = fingerprint_of(BUNDLED_MODEL)
    results = []
    for name in CONCEPTS:
        for seed in seeds:
            folder = ROOT / "runs" / "quality" / fingerprint / f"{name}-{seed}"
            if not (folder / "measured.json").is_file():
                print(f"{name}, seed {seed} ...", flush=True)
                measure(name, seed, folder)
            results.append(read(name, seed, folder))
    table = summarize(results)
    record = {
        "command": f"python -m benchmarks.quality --seeds {len(seeds)}",
        "fingerprint": fingerprint,
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "versions": {
            name: metadata.version(name) for name in ("torch", "diffusers", "transformers")
        },
        "images_per_score": NUM_IMAGES,
        "summary": table,
        "runs": [
            {
                "concept": r.concept,
                "seed": r.seed,
                "seconds": r.seconds,
                "learned": r.learned,
                "plain": r.plain,
            }
            for r in results
        ],
    }
    (ROOT / "benchmarks" / "quality.json").write_text(json.dumps(record, indent=2) + "\n")
    output.save(picture(results), ROOT / "docs" / "quality.png")
    text = as_markdown(table, results)
    write_between_markers(ROOT / "docs" / "results.md", text)
    print(text)
    accepted = [row for row in table if row["measure"] in ACCEPTANCE]
    return 0 if all(row["advantage"] > row["spread"] for row in accepted) else 1


def fingerprint_of(model: Path) -> str:
    """Sixteen hexadecimal digits that depend on the model, the photos, the settings, and the scores."""
    settings = (PROMPTS, FOLLOWED, NUM_IMAGES, STEPS, tiutils.TrainingConfig())
    digest = hashlib.sha256(repr(settings).encode())
    for folder in (model, *(ROOT / "data" / "concepts" / name for name in CONCEPTS)):
        for path in sorted(folder.rglob("*")):
            if path.suffix in (".safetensors", ".json", ".jpg"):
                digest.update(path.read_bytes())
    for module in (metrics, clip, comparison):
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()[:16]


def card(name: str) -> dict[str, Any]:
    """The concept's own words: placeholder and initializer token."""
    return json.loads((ROOT / "data" / "concepts" / name / "concept.json").read_text())


def photos(name: str, sub_folder: str = "") -> list[Image.Image]:
    """The concept's photos, or those in a sub-folder."""
    folder = ROOT / "data" / "concepts" / name / sub_folder
    return [photo.image for photo in concept.load(folder).photos]


def teach(name: str, folder: Path, watch: Sequence[Any] = (), **flags: Any) -> Any:
    """Teach the bundled model a concept's word, continuing from the last checkpoint in `folder`."""
    words = card(name)
    config = tiutils.TrainingConfig(
        pretrained_model_name_or_path=str(BUNDLED_MODEL),
        train_data_dir=str(ROOT / "data" / "concepts" / name),
        placeholder_token=words["placeholder_token"],
        initializer_token=words["initializer_token"],
        output_dir=str(folder),
        resume_from_checkpoint="latest",
        **flags,
    )
    result = tiutils.train(config, callbacks=watch)
    if result.stopped:
        sys.exit(f"{folder}: {result.stopped}")
    return result


def measure(name: str, seed: int, folder: Path) -> None:
    """Train, score, draw; everything goes into `folder`, measured.json last."""
    start = time.perf_counter()
    result = teach(name, folder, seed=seed, max_train_steps=STEPS)
    plain_word, held_out = card(name)["initializer_token"], photos(name, "held_out")
    found = {
        label: {
            measure: float(values.mean())
            for measure, values in comparison.evaluate_word(
                result.models,
                word,
                held_out,
                plain_word=plain_word,
                num_images=NUM_IMAGES,  # from the same noise for every word and seed
                questions=comparison.Questions(clip.bundled_with(result.models), FOLLOWED),
            ).items()
        }
        for label, word in (("learned", result.placeholder.token), ("plain", plain_word))
    }
    for label, word in (("before", plain_word), ("after", result.placeholder.token)):
        prompts = [prompt.format(word) for prompt in PROMPTS]
        drawn = tiutils.generate(result.models, prompts, seed=seed)
        for number, (image, prompt) in enumerate(zip(drawn, prompts, strict=True)):
            output.save(image, folder / f"{label}-{number}.png", alt=prompt)
    measured = {**found, "seconds": round(time.perf_counter() - start, 1)}
    (folder / "measured.json").write_text(json.dumps(measured))


def read(name: str, seed: int, folder: Path) -> Measured:
    """Read what `measure` wrote."""
    measured = json.loads((folder / "measured.json").read_text())
    before, after = (
        [Image.open(folder / f"{label}-{i}.png").convert("RGB") for i in range(len(PROMPTS))]
        for label in ("before", "after")
    )
    return Measured(
        name, seed, measured["learned"], measured["plain"], measured["seconds"], before, after
    )


def summarize(results: list[Measured]) -> list[dict[str, Any]]:
    """One row for each concept and measure.

    `advantage` is the mean over seeds of learned word against initializer, positive where the
    learned word is better; `spread` is the largest minus the smallest of the learned word's values.
    """
    rows = []
    for name in dict.fromkeys(result.concept for result in results):
        runs = [result for result in results if result.concept == name]
        for key in runs[0].learned:
            sign = comparison.METRICS[key][1]
            learned, initial = [r.learned[key] for r in runs], [r.plain[key] for r in runs]
            gains = [sign * (a - b) for a, b in zip(learned, initial, strict=True)]
            rows.append(
                {
                    "concept": name,
                    "measure": key,
                    "initializer": statistics.mean(initial),
                    "learned": statistics.mean(learned),
                    "advantage": statistics.mean(gains),
                    "spread": max(learned) - min(learned),
                }
            )
    return rows


def picture(results: list[Measured]) -> Any:
    """A row for every seed: a photo, the prompts with the initializer word, the same with the new one."""
    rows, labels = [], []
    for result in results:
        own_photos = photos(result.concept)
        rows.append([own_photos[result.seed % len(own_photos)], *result.before, *result.after])
        # a no-break space keeps the number beside its word
        labels.append(f"{card(result.concept)['placeholder_token']} seed\u00a0{result.seed}")
    columns = [prompt.format("…") for prompt in PROMPTS]
    alt = (
        "Three concepts, a row for every seed: a photo; four prompts drawn with "
        "the plain word; the same prompts, from the same noise, with the learned word."
    )
    return grids.image_grid(
        rows,
        row_labels=labels,
        column_labels=["photo", *columns, *columns],
        title="photo | with the plain word | with the learned word",
        alt=alt,
        cell=1.07,
        gaps=(0, len(PROMPTS)),
    )


def as_markdown(table: list[dict[str, Any]], results: list[Measured]) -> str:
    """Picture and table for docs/results.md."""
    minutes = sum(result.seconds for result in results) / 60
    seeds = len({result.seed for result in results})
    keys = ["initializer", "learned", "advantage", *(["spread"] if seeds > 1 else [])]
    titles = ["plain word", "learned word", "better by", "spread"][: len(keys)]
    lines = [
        "![Photos of three things, and what the bundled model draws with the plain word and with "
        "the learned one, for every seed](quality.png)",
        "",
        f"Three concepts, {seeds} seed{'s' * (seeds > 1)} each, all shown, on the bundled model; made by "
        f"`python -m benchmarks.quality --seeds {seeds}` in {minutes:.0f} minutes on {os.cpu_count()} CPU cores. "
        "Photos are held-out sides"
        + (
            "; means over seeds; the spread is the range of the learned word's values."
            * (seeds > 1)
            or "."
        ),
        "",
        f"| concept | measure | {' | '.join(titles)} |",
        "|---|---|" + "--:|" * len(keys),
    ]
    for row in table:
        name = comparison.METRICS[row["measure"]][0]
        digits = 4 if row["measure"] == "evaluation_loss" else 3
        values = [row[key] for key in keys]
        cells = " | ".join(f"{value:.{digits}f}" for value in values)
        lines.append(f"| {row['concept']} | {name} | {cells} |")
    return "\n".join(lines)


def write_between_markers(path: Path, text: str, name: str = "quality") -> None:
    """Replace the text between the two markers of `name`; everything else stays as it is."""
    page, begin, end = path.read_text(), f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
        sys.exit(f"{path.name} must hold {begin} and then {end}, once each")
    head, tail = page[: page.index(begin) + len(begin)], page[page.index(end) :]
    path.write_text(f"{head}\n{text}\n{tail}")


if __name__ == "__main__":
    sys.exit(main())
