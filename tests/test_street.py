"""The whole street on the bundled model: five photos in, pictures of the thing in new places out."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tiutils import concept
from tiutils.cli.main import main
from tiutils.evaluation import metrics
from tiutils.io.pretrained import BUNDLED_MODEL

pytestmark = pytest.mark.slow

WOOD_TOY = BUNDLED_MODEL.parent / "concepts" / "wood-toy"
LEARNED = BUNDLED_MODEL.parent / "embeddings" / "wood-toy.safetensors"  # of such a run

STOCK = """
import sys, torch
from diffusers import StableDiffusionPipeline
model, embedding, folder = sys.argv[1:]
pipe = StableDiffusionPipeline.from_pretrained(model)
pipe.set_progress_bar_config(disable=True)
pipe.load_textual_inversion(embedding)
ids = pipe.tokenizer("a photo of a <wood-toy>").input_ids
assert len(ids) == 7 and ids[-2] == len(pipe.tokenizer) - 1, ids  # start a photo of a <wood-toy> end
for word, name in (("<wood-toy>", "learned"), ("toy", "plain")):
    images = pipe(
        [f"a photo of a {word}"] * 4, num_inference_steps=15, guidance_scale=2.5,
        generator=torch.manual_seed(0),
    ).images
    for number, image in enumerate(images):
        image.save(f"{folder}/{name}-{number}.png")
assert not any(name.split(".")[0] == "tiutils" for name in sys.modules)
"""


@pytest.mark.release
def test_the_learned_word_beats_the_plain_one(tmp_path):
    folder = tmp_path / "wood-toy"
    flags = {
        "pretrained_model_name_or_path": str(BUNDLED_MODEL), "train_data_dir": str(WOOD_TOY),
        "placeholder_token": "<wood-toy>", "initializer_token": "toy", "max_train_steps": "100",
        "learning_rate": "0.005", "output_dir": str(folder),
    }  # fmt: skip
    assert main(["train", *(part for k, v in flags.items() for part in (f"--{k}", v))]) == 0
    assert main(["evaluate", str(folder), "--num_images", "1"]) == 0
    scores = json.loads((folder / "run.json").read_text())["scores"]["scores"]
    for measure in ("evaluation_loss", "image_similarity", "histogram_distance"):
        assert scores[measure]["better_by"] > 0, measure
    assert {"clip_similarity", "prompt_following"} <= set(scores), "the bundled judge was asked"


def test_stock_diffusers_draws_the_toy(tmp_path):
    """In a process that never imports tiutils: the word is one token, and its pictures have the toy's colors."""
    arguments = [str(BUNDLED_MODEL), str(LEARNED), str(tmp_path)]
    subprocess.run([sys.executable, "-c", STOCK, *arguments], check=True, timeout=600)
    held_out = [photo.image for photo in concept.load(WOOD_TOY / "held_out").photos]
    learned, plain = (
        [Image.open(tmp_path / f"{name}-{number}.png") for number in range(4)]
        for name in ("learned", "plain")
    )
    assert metrics.histogram_distance(learned, held_out) < metrics.histogram_distance(
        plain, held_out
    )
    assert np.mean([np.asarray(image).std() for image in learned]) > 20
