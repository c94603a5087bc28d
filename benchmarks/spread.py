"""How many pictures does a score need? The standard error by the number of pictures.

    python -m benchmarks.spread [--num_inference_steps 25]

Draws pictures of one learned word and of the plain word it started from, on the bundled model, from
16 seeds, and scores each picture as `tiutils evaluate` does. Prints a row of the table for each
measure: by how much the learned word is better, the standard deviation s of that over the pictures,
and the standard error s / √n of the mean of 4, 8 and 16 pictures. Pictures of the two words start
from the same noise and are compared in pairs. Prompt following uses four prompts; its deviation is
that within a prompt, over 4 seeds each.
"""

from __future__ import annotations

import argparse
import logging
import time

import numpy as np

import tiutils
from benchmarks.quality import ROOT, card, photos
from tiutils.cli.main import PLACES
from tiutils.config import SamplingConfig
from tiutils.evaluation import clip, comparison
from tiutils.io.pretrained import BUNDLED_MODEL

PICTURES, PER_PROMPT = 16, 4
NUMBERS = (4, 8, 16)


def main() -> None:
    """Draw, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--concept", default="wood-toy")
    parser.add_argument("--num_inference_steps", type=int, default=25)
    options = parser.parse_args()
    logging.getLogger("tiutils").setLevel(logging.ERROR)
    begun = time.process_time()
    better = advantages(options.concept, options.num_inference_steps)
    print(as_markdown(better))
    print(
        f"\n{options.concept}, {options.num_inference_steps} steps of the sampler, "
        f"{time.process_time() - begun:.0f} CPU seconds"
    )


def advantages(name: str, steps: int) -> dict[str, np.ndarray]:
    """By how much the learned word is better in each picture, by measure; for prompt following (seeds, prompts)."""
    parts = tiutils.load(BUNDLED_MODEL)
    word = tiutils.load_embedding(parts, ROOT / "data" / "embeddings" / f"{name}.safetensors")
    plain_word, held_out = card(name)["initializer_token"], photos(name, "held_out")
    gallery = comparison.Gallery(parts, SamplingConfig(num_inference_steps=steps))
    questions = comparison.Questions(clip.bundled_with(parts), PLACES, PER_PROMPT)
    learned, plain = (
        comparison.evaluate_word(
            parts, each, held_out, plain_word=plain_word, num_images=PICTURES, questions=questions, gallery=gallery,
        )
        for each in (word.token, plain_word)
    )  # fmt: skip
    better = {
        key: comparison.METRICS[key][1] * (values - plain[key])
        for key, values in learned.items()
        if key != "evaluation_loss"  # the loss draws no pictures
    }
    better["prompt_following"] = better["prompt_following"].reshape(len(PLACES), PER_PROMPT).T
    return better


def as_markdown(better: dict[str, np.ndarray]) -> str:
    """The table: a row for each measure."""
    lines = [
        f"| measure | better by | deviation | {' | '.join(f'{n} pictures' for n in NUMBERS)} |",
        "|---|" + "--:|" * (2 + len(NUMBERS)),
    ]
    for key, values in better.items():
        spread = np.sqrt(values.var(axis=0, ddof=1).mean())
        errors = " | ".join(f"± {spread / np.sqrt(n):.3f}" for n in NUMBERS)
        title = comparison.METRICS[key][0]
        lines.append(f"| {title} | {values.mean():.3f} | {spread:.3f} | {errors} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
