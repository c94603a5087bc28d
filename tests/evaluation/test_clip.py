"""The CLIP judge, against transformers' own answers on a small random CLIP model."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel

from tiutils import models
from tiutils.config import SamplingConfig
from tiutils.errors import InputError
from tiutils.evaluation import clip as clip_model
from tiutils.evaluation import comparison
from tiutils.io import pretrained

PICTURES = [Image.new("RGB", (64, 64), c) for c in ("red", "green", "blue")]
PROMPTS = ["a red toy", "a cat in the snow", "a toy"]


@pytest.fixture(scope="module")
def clip_folder(small_model, tmp_path_factory):
    """A random CLIP of two narrow layers a tower, with the small model's tokenizer."""
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = pretrained.load_tokenizer(small_model)
    end = len(tokenizer) - 1
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
             "num_attention_heads": 2}  # fmt: skip
    text = {**tower, "vocab_size": end + 1, "bos_token_id": end - 1, "eos_token_id": end}
    torch.manual_seed(3)
    config = CLIPConfig(
        text_config=text,
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(clip_folder):
    return clip_model.load(clip_folder)


def test_it_answers_as_transformers_does(clip):
    pixels = np.stack([np.asarray(p.resize((32, 32)), np.float32) / 255 for p in PICTURES])
    pixels = ((pixels - clip_model.MEAN) / clip_model.STD).transpose(0, 3, 1, 2).astype(np.float32)
    ids = clip.tokenizer(PROMPTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        answer = clip.model(**ids, pixel_values=torch.from_numpy(pixels))
    torch.testing.assert_close(clip.encode_images(PICTURES), answer.image_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(clip.encode_text(PROMPTS), answer.text_embeds, atol=1e-5, rtol=0)
    cosines = answer.image_embeds @ answer.text_embeds.T
    torch.testing.assert_close(
        clip.clip_t(PICTURES, PROMPTS), cosines.diagonal(), atol=1e-5, rtol=0
    )


def test_similarity_is_the_mean_cosine(clip):
    vectors = clip.encode_images(PICTURES)
    expected = torch.stack([(v @ vectors[:2].T).mean() for v in vectors])
    torch.testing.assert_close(clip.clip_i(PICTURES, PICTURES[:2]), expected)
    assert clip.clip_i(PICTURES[:1], PICTURES[:1]).item() == pytest.approx(1, abs=1e-5)


def test_the_folder_says_how_pixels_are_normalized(clip_folder, clip, tmp_path):
    assert (clip.mean, clip.std) == (clip_model.MEAN, clip_model.STD)
    for file in clip_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    other = clip_model.load(tmp_path)
    assert other.mean == (0.5, 0.5, 0.5) and other.std == (0.25, 0.25, 0.25)
    assert not torch.equal(other.encode_images(PICTURES), clip.encode_images(PICTURES))


def test_measure_asks_it_for_every_prompt(small_model, clip):
    parts = models.load(small_model)
    prompts = ["a {} in the snow", "a {} on grass"]
    measured = comparison.evaluate_word(
        parts, "toy", PICTURES, plain_word="toy", num_images=3, questions=comparison.Questions(clip, prompts, 2),
        gallery=comparison.Gallery(parts, SamplingConfig(num_inference_steps=2)),
    )  # fmt: skip
    assert set(measured) == set(comparison.METRICS)
    assert measured["clip_similarity"].shape == (3,)
    drawn = [
        comparison.inference.generate(
            parts, p.format("toy"), num_images_per_prompt=2, num_inference_steps=2
        )
        for p in prompts
    ]
    follows = [clip.clip_t(d, [p.format("toy")] * 2) for d, p in zip(drawn, prompts, strict=True)]
    assert measured["prompt_following"] == pytest.approx(torch.cat(follows).numpy())


def test_a_judge_comes_with_its_model(small_model, clip_folder, clip, tmp_path):
    parts = models.load(small_model)
    assert clip_model.bundled_with(parts) is None
    (tmp_path / "evaluator").symlink_to(clip_folder)
    found = clip_model.bundled_with(dataclasses.replace(parts, name=str(tmp_path)))
    torch.testing.assert_close(found.encode_images(PICTURES), clip.encode_images(PICTURES))


def test_refusals(clip, small_model, tmp_path):
    with pytest.raises(InputError, match="3 pictures, 1 prompts"):
        clip.clip_t(PICTURES, ["a toy"])
    with pytest.raises(InputError, match="no CLIP model 'nobody/no-clip'"):
        clip_model.load("nobody/no-clip")
    with pytest.raises(InputError, match="as a CLIP model"):
        clip_model.load(tmp_path)


def test_a_clip_model_with_a_tower_missing_is_refused(clip_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    for file in clip_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(clip_folder / "model.safetensors")
    kept = {name: w for name, w in weights.items() if not name.startswith("vision_model")}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="lacks vision_model"):
        clip_model.load(tmp_path)
