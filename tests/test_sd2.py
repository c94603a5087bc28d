"""Stable Diffusion 2.1's kind of model, small and random: taught, drawn with, exported, in both frameworks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from small_model import SD2, save_small_model

import tiutils
from tiutils import models
from tiutils.cli import inspect
from tiutils.cli.main import backend
from tiutils.io import embeddings

DRAWING = {"num_inference_steps": 3, "guidance_scale": 5.0}
PROMPT = "a <my-toy> on sand"


@pytest.fixture(scope="module")
def sd2(tmp_path_factory):
    return save_small_model(tmp_path_factory.mktemp("models") / "sd2", **SD2)


def train(framework, sd2, photos, output_dir, **flags):
    config = tiutils.TrainingConfig(
        pretrained_model_name_or_path=str(sd2), train_data_dir=str(photos),
        placeholder_token="<my-toy>", initializer_token="toy", num_vectors=2, max_train_steps=5,
        output_dir=str(output_dir), **flags,
    )  # fmt: skip
    return backend("run", framework).train(config)


@pytest.fixture(scope="module")
def result(sd2, photos, tmp_path_factory):
    flags = {"save_as_full_pipeline": True, "validation_prompt": PROMPT, "validation_steps": 5}
    folder = tmp_path_factory.mktemp("runs") / "run"
    return train("pytorch", sd2, photos, folder, num_validation_images=1, **flags)


def draw_in_stock(pipe):
    from diffusers import DPMSolverMultistepScheduler

    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(
        pipe.scheduler.config,
        timestep_spacing="linspace",  # ours starts from pure noise
    )
    latents = torch.randn((1, 4, 16, 16), generator=torch.manual_seed(0))
    return np.asarray(pipe(PROMPT, latents=latents, **DRAWING).images[0])


def test_the_model_has_what_sets_it_apart(sd2):
    parts = models.load(sd2)
    assert (
        parts.tokenizer.pad_token == "!"
        and parts.tokenizer.pad_token_id != parts.tokenizer.eos_token_id
    )
    assert parts.noise_scheduler.config.prediction_type == "v_prediction"
    assert parts.unet.config.use_linear_projection and parts.unet.config.upcast_attention
    heads = [
        module.heads
        for name, module in parts.unet.down_blocks.named_modules()
        if name.endswith("attn2")
    ]
    assert heads == [2], "attention_head_dim is the number of heads of the block"


def test_only_its_new_rows_are_learned(sd2, result):
    assert np.isfinite(result.losses).all() and result.steps == 5
    before = models.load(sd2).text_encoder.get_input_embeddings().weight
    saved = StableDiffusionPipeline.from_pretrained(result.output_dir, safety_checker=None)
    after = saved.text_encoder.get_input_embeddings().weight
    assert torch.equal(after[: len(before)], before) and after.shape == (len(before) + 2, 64)
    rows = embeddings.read(result.embedding_path).vectors
    assert np.array_equal(after[-2:].detach().numpy(), rows)
    toy = before[models.load(sd2).tokenizer.encode("toy")[1]].detach().numpy()
    assert np.abs(rows - toy).min() > 0


def test_stock_diffusers_draws_the_word_as_we_do(sd2, result):
    """From the embedding file and from the whole pipeline: its padding and its velocity are understood."""
    ours = np.asarray(tiutils.generate(result.models, PROMPT, seed=0, **DRAWING)[0], int)
    with_word = StableDiffusionPipeline.from_pretrained(sd2, safety_checker=None)
    with_word.load_textual_inversion(str(result.embedding_path))
    whole = StableDiffusionPipeline.from_pretrained(result.output_dir, safety_checker=None)
    for pipe in (with_word, whole):
        assert np.abs(draw_in_stock(pipe).astype(int) - ours).max() <= 1
    loaded = models.load(sd2)
    tiutils.load_embedding(loaded, result.embedding_path)
    again = np.asarray(tiutils.generate(loaded, PROMPT, seed=0, **DRAWING)[0], int)
    assert np.array_equal(again, ours)


@pytest.mark.slow
@pytest.mark.release
def test_jax_learns_and_draws_the_same(sd2, photos, tmp_path):
    pytest.importorskip("jax")
    runs = {f: train(f, sd2, photos, tmp_path / f) for f in ("pytorch", "flax")}
    np.testing.assert_allclose(runs["flax"].losses, runs["pytorch"].losses, rtol=0, atol=1e-4)
    rows = [embeddings.read(run.embedding_path).vectors for run in runs.values()]
    np.testing.assert_allclose(rows[1], rows[0], rtol=1e-3, atol=1e-4)
    pictures = [
        np.asarray(
            backend("inference", framework).generate(run.models, PROMPT, seed=0, **DRAWING)[0],
            int,
        )
        for framework, run in runs.items()
    ]
    assert np.abs(pictures[0] - pictures[1]).max() <= 3


def test_what_it_fits_is_told_by_its_width(sd2, result):
    assert "64" in inspect.describe(str(result.embedding_path), str(sd2))
