"""Does a run that stops early learn as much as 3000 steps of the diffusers script?

    python -m benchmarks.early_stopping [--diffusers CHECKOUT]

Teaches three words to the bundled model with --early_stopping, each with three seeds. Given a
checkout of github.com/huggingface/diffusers, it also teaches each word once with that project's own
script and the field guide's command (batch 1 × 4, 5e-4, --scale_lr, 3000 steps). All words are scored
on photos of sides that training never saw. An interrupted run continues where it stopped, and scores
that are already in benchmarks/early_stopping.csv are not measured again; delete a line to repeat it.
It takes hours on two CPU cores, so it is not part of `make bench`.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.quality import (
    CONCEPTS,
    FOLLOWED,
    ROOT,
    SEEDS,
    card,
    photos,
    teach,
    write_between_markers,
)
from tiutils import models, token_embedding
from tiutils.evaluation import clip, comparison
from tiutils.io import embeddings
from tiutils.io.pretrained import BUNDLED_MODEL

TABLE = ROOT / "benchmarks" / "early_stopping.csv"
RUNS = ROOT / "runs" / "early_stopping"
THEIR_STEPS = 3000
OUR_LIMIT = THEIR_STEPS // 8
NUM_IMAGES = 16
KEY = ("concept", "program", "seed", "steps")
COLUMNS = (*KEY, "kept_step", "seconds", *comparison.METRICS)


def main() -> int:
    """Teach and score what the table lacks; print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.early_stopping")
    parser.add_argument("--diffusers", metavar="CHECKOUT", help="also run their script")
    parser.add_argument("--only", choices=CONCEPTS, help="this concept alone")
    options = parser.parse_args()
    logging.getLogger("tiutils").setLevel(logging.ERROR)
    names = [options.only] if options.only else CONCEPTS
    for seed in SEEDS:
        for name in names:
            if not rows_of(name, seed):
                add_row(teach_ours(name, seed))
    for name in names:
        if options.diffusers:
            teach_theirs(name, options.diffusers)
        for row in words_of_theirs(name):
            if row["steps"] not in {r["steps"] for r in rows_of(name, 0, "diffusers")}:
                add_row(row | score(name, row.pop("path")))
    text = as_markdown(read_table())
    write_between_markers(ROOT / "benchmarks" / "README.md", text, "early_stopping")
    print(text)
    return 0


def teach_ours(name: str, seed: int) -> dict[str, Any]:
    """One of our runs, scored: a line of the table."""
    result = teach(
        name,
        RUNS / f"tiutils-{name}-{seed}",
        max_train_steps=OUR_LIMIT,
        early_stopping=True,
        early_stopping_window=100,  # as in the notebooks with the bundled model
        checkpointing_steps=25,
        seed=seed,
    )
    seconds = result.seconds["training"] if len(result.losses) == result.steps else ""
    return {
        "concept": name, "program": "tiutils", "seed": seed, "steps": result.steps,
        "kept_step": result.best_step, "seconds": seconds, **score(name, result.embedding_path),
    }  # fmt: skip


def teach_theirs(name: str, checkout: str) -> None:
    """Run their script, unchanged, in a process of its own, from its last checkpoint if there is one."""
    folder, words = RUNS / f"diffusers-{name}", card(name)
    if (folder / "run" / "learned_embeds.safetensors").exists():
        return
    shutil.rmtree(folder / "photos", ignore_errors=True)
    (folder / "photos").mkdir(parents=True)
    (folder / "run").mkdir(exist_ok=True)
    for photo in (ROOT / "data" / "concepts" / name).glob("*.jpg"):  # it opens every file here
        shutil.copy(photo, folder / "photos")
    flags = {
        "pretrained_model_name_or_path": BUNDLED_MODEL, "train_data_dir": folder / "photos",
        "placeholder_token": words["placeholder_token"],
        "initializer_token": words["initializer_token"], "learnable_property": "object",
        "resolution": 128, "train_batch_size": 1, "gradient_accumulation_steps": 4,
        "max_train_steps": THEIR_STEPS, "learning_rate": 5e-4, "lr_scheduler": "constant",
        "lr_warmup_steps": 0, "seed": 0, "report_to": "all", "save_steps": 250,
        "checkpointing_steps": 250, "checkpoints_total_limit": 1,
        "resume_from_checkpoint": "latest", "output_dir": folder / "run",
    }  # fmt: skip
    given = [text for flag, value in flags.items() for text in (f"--{flag}", str(value))]
    command = [sys.executable, "-m", "benchmarks.diffusers_script", checkout, *given, "--scale_lr"]
    from_the_start = not any((folder / "run").glob("checkpoint-*"))
    start = time.perf_counter()
    with open(folder / "log.txt", "a") as log:
        subprocess.run(command, cwd=ROOT, check=True, stdout=log, stderr=log)
    if from_the_start:  # otherwise the time would be that of the last of several sessions
        seconds = round(time.perf_counter() - start, 3)
        (folder / "seconds.json").write_text(json.dumps(seconds))


def words_of_theirs(name: str) -> list[dict[str, Any]]:
    """The last file that their script wrote for a concept, if any: a line without scores."""
    folder, last = RUNS / f"diffusers-{name}", "learned_embeds.safetensors"
    files = {int(re.findall(r"\d+", p.stem)[-1]): p for p in folder.glob("run/*-steps-*")}
    if (folder / "run" / last).exists():
        files[THEIR_STEPS] = folder / "run" / last
    if not files:
        return []
    steps = max(files)
    seconds = folder / "seconds.json"
    return [{
        "concept": name, "program": "diffusers", "seed": 0, "steps": steps, "kept_step": steps,
        "seconds": json.loads(seconds.read_text()) if seconds.exists() else "",
        "path": files[steps],
    }]  # fmt: skip


def score(name: str, path: Path) -> dict[str, float]:
    """Each measure of a learned word on the held-out photos."""
    torch.manual_seed(0)
    parts, words = models.load(BUNDLED_MODEL), card(name)
    vectors = torch.from_numpy(embeddings.read(path).vectors)
    token_embedding.add_placeholder(parts, words["placeholder_token"], vectors=vectors)
    measured = comparison.evaluate_word(
        parts,
        words["placeholder_token"],
        photos(name, "held_out"),
        plain_word=words["initializer_token"],
        num_images=NUM_IMAGES,
        questions=comparison.Questions(clip.bundled_with(parts), FOLLOWED),
    )
    return {measure: round(float(values.mean()), 5) for measure, values in measured.items()}


def read_table() -> list[dict[str, str]]:
    """The lines of the table; none if there is no table."""
    if not TABLE.exists():
        return []
    with open(TABLE, newline="") as file:
        return list(csv.DictReader(file))


def rows_of(name: str, seed: int, program: str = "tiutils") -> list[dict[str, Any]]:
    """The lines of one concept, seed and program, their steps as numbers."""
    wanted = (name, str(seed), program)
    found = [r for r in read_table() if (r["concept"], r["seed"], r["program"]) == wanted]
    return [row | {"steps": int(row["steps"])} for row in found]


def add_row(row: dict[str, Any]) -> None:
    """Add a line to the table, in one atomic write."""
    rows = [*read_table(), row]
    rows.sort(key=lambda r: (r["concept"], r["program"], int(r["seed"]), int(r["steps"])))
    temporary = TABLE.with_suffix(".tmp")
    with open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, TABLE)


def as_markdown(table: list[dict[str, str]]) -> str:
    """The table for a page, with means over seeds: a line for each concept, program and number of runs."""
    names = [m for m in comparison.METRICS if any(row[m] for row in table)]
    lines = [
        "| concept | program | runs | steps | "
        + " | ".join(comparison.METRICS[m][0] for m in names),
        "|---|---|--:|--:|" + "--:|" * len(names),
    ]
    lines[0] += " |"
    for concept in CONCEPTS:
        for program in ("tiutils", "diffusers"):
            rows = [r for r in table if (r["concept"], r["program"]) == (concept, program)]
            if program == "diffusers":
                rows = rows[-1:]  # as far as it came
            if not rows:
                continue
            steps = [int(row["steps"]) for row in rows]
            span = f"{min(steps)}" if len(set(steps)) == 1 else f"{min(steps)}–{max(steps)}"
            means = [
                f"{sum(float(row[m]) for row in rows) / len(rows):.4f}" if rows[0][m] else ""
                for m in names
            ]
            cells = " | ".join([concept, program, str(len(rows)), span, *means])
            lines.append(f"| {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
