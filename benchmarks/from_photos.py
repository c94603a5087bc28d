"""How many steps does the word encoder save? Two concepts, started from their nouns and from their photos.

    python -m benchmarks.from_photos

Teaches each word to the bundled model twice, for 200 steps with one seed: from its noun's row, and with
--initializer_from_photos. Prints the fixed evaluation loss on photos of sides that training never
saw, at the start and after some steps, as in the table in docs/better_rows.md.
"""

from __future__ import annotations

import logging
import shutil
import sys
from typing import Any

import tiutils
from benchmarks.quality import ROOT, card, photos, teach
from tiutils import concept, models, token_embedding
from tiutils.evaluation import metrics
from tiutils.io.pretrained import BUNDLED_MODEL
from tiutils.runs import run

CONCEPTS = ("wood-toy", "teddy-bear")
LOOKS = (0, 10, 25, 50, 100, 200)
STARTS = {"the noun": False, "the photos": True}
DRAWS = 64


def main() -> int:
    """Measure; print a line for each run."""
    logging.getLogger("tiutils").setLevel(logging.ERROR)
    print("| concept | start | " + " | ".join(map(str, LOOKS)) + " |")
    print("|---|---|" + "--:|" * len(LOOKS))
    for name in CONCEPTS:
        for start, from_photos in STARTS.items():
            losses = [measure_start(name, from_photos), *measure_run(name, from_photos)]
            cells = " | ".join(f"{loss:.4f}" for loss in losses)
            print(f"| `<{name}>` | {start} | {cells} |", flush=True)
    return 0


def measure_start(name: str, from_photos: bool) -> float:
    """The loss before the first step."""
    words, folder = card(name), ROOT / "data" / "concepts" / name
    config = tiutils.TrainingConfig(
        initializer_token=words["initializer_token"], initializer_from_photos=from_photos
    )
    parts = models.load(BUNDLED_MODEL)
    rows = run.first_rows(config, concept.load(folder), parts)
    token_embedding.add_placeholder(parts, words["placeholder_token"], vectors=rows)
    return held_out_loss(parts, name)


def measure_run(name: str, from_photos: bool) -> list[float]:
    """The losses after the steps of LOOKS."""
    folder = ROOT / "runs" / "from_photos" / f"{name}-{'photos' if from_photos else 'noun'}"
    shutil.rmtree(folder, ignore_errors=True)
    losses = []

    def look(progress: Any) -> None:
        if progress.step in LOOKS:
            losses.append(held_out_loss(progress.training.models, name))

    teach(name, folder, [look], max_train_steps=LOOKS[-1], initializer_from_photos=from_photos)
    return losses


def held_out_loss(parts: models.Models, name: str) -> float:
    """The fixed evaluation loss of a concept's word."""
    word, held_out = card(name)["placeholder_token"], photos(name, "held_out")
    return metrics.fixed_evaluation_loss(parts, held_out, word, num_samples=DRAWS)


if __name__ == "__main__":
    sys.exit(main())
