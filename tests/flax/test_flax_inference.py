"""Drawing in JAX: PyTorch's pictures, whatever the batch, the devices and the sampler."""

import inspect
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from tiutils import inference as torch_inference
from tiutils import models as torch_models
from tiutils.errors import InputError
from tiutils.flax import inference, models, noise
from tiutils.io import embeddings, pretrained
from tiutils.io.embeddings import LearnedEmbedding

PROMPTS = ["a photo of a dog", "a red car"]


@pytest.fixture(scope="module")
def parts(small_model):
    return models.load(small_model)


@pytest.fixture(scope="module")
def theirs(small_model):
    return torch_models.load(small_model)


def psnr(images, others):
    """Decibels, of the whole set; equal sets have infinitely many."""
    squares = [
        np.square(np.asarray(a, float) - np.asarray(b, float)).mean()
        for a, b in zip(images, others, strict=True)
    ]
    return 20 * np.log10(255) - 10 * np.log10(max(np.mean(squares), 1e-9))


@settings(max_examples=50, deadline=None)
@given(st.integers(-(2**40), 2**62), st.sampled_from([(16,), (17,), (4, 3, 5), (4, 8, 8)]))
def test_noise_is_what_torch_draws(seed, shape):
    expected = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).numpy()
    found = noise.standard_normal(shape, seed)
    assert found.dtype == np.float32 and found.shape == shape
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_noise_of_too_few_numbers_is_refused():
    with pytest.raises(ValueError, match="15 numbers"):
        noise.standard_normal((3, 5), 0)


def test_encoded_prompts_are_pytorchs(parts, theirs):
    found = inference.encode_prompts(parts, PROMPTS)
    expected = torch_inference.encode_prompts(theirs, PROMPTS)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_same_pictures_as_pytorch(parts, theirs):
    arguments = {"num_images_per_prompt": 2, "seed": 5, "num_inference_steps": 6, "batch_size": 3}
    found = inference.generate(parts, PROMPTS, negative_prompt="a cat", **arguments)
    expected = torch_inference.generate(theirs, PROMPTS, negative_prompt="a cat", **arguments)
    assert [image.size for image in found] == [(32, 32)] * 4
    assert psnr(found, expected) >= 40
    assert psnr(found[:1], found[1:2]) < 40  # the measure can tell pictures apart


def test_the_arguments_are_pytorchs():
    """Twice on purpose: who knows one `generate` knows the other."""
    ours, theirs = (
        inspect.signature(module.generate).parameters for module in (inference, torch_inference)
    )
    assert [name for name in ours if name not in ("sampler", "devices")] == list(theirs)
    assert all(ours[name].default == theirs[name].default for name in theirs)


def test_no_guidance_and_another_size(parts, theirs):
    arguments = {"num_inference_steps": 2, "guidance_scale": 1.0, "height": 16, "width": 32}
    found = inference.generate(parts, "a dog", **arguments)
    assert found[0].size == (32, 16)
    assert psnr(found, torch_inference.generate(theirs, "a dog", **arguments)) >= 40


@pytest.mark.release
@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["dpmsolver++", "ddim"])
def test_each_sampler_draws_the_bundled_models_pictures_as_diffusers(sampler, monkeypatch):
    parts = models.load(pretrained.BUNDLED_MODEL)
    theirs = torch_models.load(pretrained.BUNDLED_MODEL)
    make = torch_inference.pipeline

    def with_sampler(models):
        pipe = make(models)
        if sampler == "ddim":
            schedule = models.noise_scheduler.config
            pipe.scheduler = DDIMScheduler.from_config(schedule, clip_sample=False)
        return pipe

    monkeypatch.setattr(torch_inference, "pipeline", with_sampler)
    expected = torch_inference.generate(theirs, PROMPTS, seed=3, num_inference_steps=20)
    found = inference.generate(parts, PROMPTS, seed=3, num_inference_steps=20, sampler=sampler)
    assert psnr(found, expected) >= 40


def test_a_learned_word_is_drawn_as_in_pytorch(small_model, tmp_path):
    vectors = np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)
    path = embeddings.write(tmp_path / "word.safetensors", LearnedEmbedding("<my-toy>", vectors))
    ours, theirs = models.load(small_model), torch_models.load(small_model)
    prompts = ["a <my-toy> on sand", "a toy on sand"]
    before = inference.encode_prompts(ours, prompts)
    word = inference.load_embedding(ours, path)
    assert (word.token, word.num_vectors) == ("<my-toy>", 3)
    torch_inference.load_embedding(theirs, path)
    found = inference.encode_prompts(ours, prompts)
    np.testing.assert_allclose(found, torch_inference.encode_prompts(theirs, prompts), atol=1e-4)
    assert np.abs(found[0] - before[0]).max() > 1e-2
    np.testing.assert_allclose(found[1], before[1], atol=1e-6)
    with pytest.raises(InputError, match=r"already knows the token '<my-toy>'"):
        inference.load_embedding(ours, path)
    inference.load_embedding(ours, path, token="<other>")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"height": 20}, "height is 20; .* draws multiples of 8 pixels, for example 16"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"num_inference_steps": 2000}, "num_inference_steps is 2000; it must be 999 or less"),
        ({"sampler": "euler"}, "there is no sampler 'euler'"),
    ],
)
def test_what_cannot_be_drawn_is_named(parts, arguments, message):
    with pytest.raises(InputError, match=message):
        inference.generate(parts, "a toy", **arguments)


def test_no_prompts_no_pictures(parts):
    assert inference.generate(parts, []) == []


DRAW_ON_DEVICES = """
import json, sys, jax, numpy
from tiutils.flax import inference, models
parts = models.load(sys.argv[1])
draw = lambda devices: [numpy.asarray(image).tolist() for image in inference.generate(
    parts, ["a dog", "a cat", "a toy"], num_images_per_prompt=3, num_inference_steps=2, devices=devices)]
print(json.dumps([len(jax.devices()), draw(None), draw(jax.devices()[:1])]))
"""


@pytest.mark.release
@pytest.mark.slow
def test_eight_devices_draw_what_one_draws(small_model):
    done = subprocess.run(
        [sys.executable, "-c", DRAW_ON_DEVICES, str(small_model)],
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "8"},
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    count, shared, alone = json.loads(done.stdout.splitlines()[-1])
    assert count == 8 and len(shared) == 9
    assert np.abs(np.array(shared) - np.array(alone)).max() <= 1
