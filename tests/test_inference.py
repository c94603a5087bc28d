"""Prompts to pictures: learned words count, seeds decide, batches do not, nothing is read from disk."""

import builtins
import shutil

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from small_model import save_small_model

from tiutils import inference, models, token_embedding
from tiutils.errors import InputError
from tiutils.io import embeddings
from tiutils.io.embeddings import LearnedEmbedding

STEPS = {"num_inference_steps": 3}


@pytest.fixture
def parts(small_model):
    return models.load(small_model)


def add_word(parts, token, num_vectors=1, seed=0):
    """A word whose rows are far from every other word's."""
    vectors = torch.randn(num_vectors, 32, generator=torch.Generator().manual_seed(seed))
    return token_embedding.add_placeholder(parts, token, vectors=vectors)


def difference(images, others):
    """Largest difference of any pixel of two lists of pictures, in 256ths."""
    pairs = zip(images, others, strict=True)
    return max(np.abs(np.asarray(a, int) - np.asarray(b, int)).max() for a, b in pairs)


def test_encode_prompts_is_the_text_encoder_on_the_tokenizers_ids(parts):
    ids = parts.tokenizer(["a toy"], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        expected = parts.text_encoder(ids).last_hidden_state
    found = inference.encode_prompts(parts, ["a toy"])
    assert found.shape == (1, 77, 32) and found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_encoding_follows_the_learned_rows_and_keeps_no_gradient(parts):
    word = add_word(parts, "<toy>")
    before = inference.encode_prompts(parts, ["a <toy>"])
    token_embedding.rows_of(parts, word).data += 1
    after = inference.encode_prompts(parts, ["a <toy>"])
    assert not torch.allclose(before, after)
    assert not after.requires_grad


def test_every_vector_of_a_mixed_case_word_counts(parts):
    word = add_word(parts, "<My-Toy>", num_vectors=3)
    encoded = inference.encode_prompts(parts, ["a <My-Toy>"])
    for row in range(3):
        rows = token_embedding.rows_of(parts, word)
        rows.data[row] += 1
        assert not torch.allclose(inference.encode_prompts(parts, ["a <My-Toy>"]), encoded)
        rows.data[row] -= 1


def test_words_that_differ_in_case_are_drawn_differently(parts):
    add_word(parts, "<Toy>", seed=1)
    add_word(parts, "<toy>", seed=2)
    upper, lower = inference.encode_prompts(parts, ["a <Toy>", "a <toy>"])
    assert not torch.allclose(upper, lower)


def test_generate_gives_all_images_of_a_prompt_then_the_next(parts):
    images = inference.generate(parts, ["a toy", "a cat"], num_images_per_prompt=2, seed=5, **STEPS)
    assert [(image.mode, image.size) for image in images] == [("RGB", (32, 32))] * 4
    assert difference(images[1:2], inference.generate(parts, "a toy", seed=6, **STEPS)) <= 1
    assert difference(images[2:3], inference.generate(parts, ["a cat"], seed=5, **STEPS)) <= 1
    assert difference(images[:1], images[1:2]) > 1


def test_no_prompts_no_pictures(parts):
    assert inference.generate(parts, []) == []


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(batch_size=st.integers(1, 8), count=st.integers(1, 3), seed=st.integers(0, 2**40))
def test_pictures_do_not_depend_on_the_batch_size(parts, batch_size, count, seed):
    options = {"num_images_per_prompt": count, "seed": seed, **STEPS}
    whole = inference.generate(parts, ["a toy", "my cat"], batch_size=100, **options)
    cut = inference.generate(parts, ["a toy", "my cat"], batch_size=batch_size, **options)
    assert difference(whole, cut) <= 1


def test_the_same_call_gives_the_same_pixels_and_leaves_pytorchs_generator_alone(parts):
    state = torch.random.get_rng_state()
    first = inference.generate(parts, "a toy", **STEPS)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert difference(first, inference.generate(parts, "a toy", **STEPS)) == 0


def test_the_guidance_scale_of_the_models_index_is_the_default(parts):
    assert parts.guidance_scale == 2.5
    own, told = (
        inference.generate(parts, "a toy", **g, **STEPS) for g in ({}, {"guidance_scale": 2.5})
    )
    assert difference(own, told) == 0


def test_generate_is_the_stock_pipeline(parts):
    """Same pixels as diffusers' own pipeline given the prompt as text and the same noise."""
    noise = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(3))[None]
    options = {"negative_prompt": "dark", "guidance_scale": 7.5, **STEPS}
    stock = inference.pipeline(parts)("a toy", latents=noise, **options)
    ours = inference.generate(parts, "a toy", seed=3, **options)
    assert difference(ours, stock.images) == 0


def test_what_is_asked_for_changes_the_picture(parts):
    plain = inference.generate(parts, "a toy", **STEPS)
    for change in (
        {"guidance_scale": 1.0},
        {"negative_prompt": "snow"},
        {"num_inference_steps": 4},
    ):
        assert difference(plain, inference.generate(parts, "a toy", **{**STEPS, **change})) > 0


def test_other_sizes(parts):
    (image,) = inference.generate(parts, "a toy", height=48, width=64, **STEPS)
    assert image.size == (64, 48)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 36}, "height is 36; .* multiples of 8 pixels, for example 32"),
        ({"width": -8}, "width is -8"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt is 0"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_impossible_requests_are_refused(parts, options, message):
    with pytest.raises(InputError, match=message):
        inference.generate(parts, "a toy", **options)


def test_nothing_is_read_from_disk(tmp_path, monkeypatch):
    folder = save_small_model(tmp_path / "model")
    parts = models.load(folder)
    add_word(parts, "<toy>", num_vectors=2)
    inference.generate(parts, "a <toy>", **STEPS)  # Python modules that are imported late
    shutil.rmtree(folder)

    def refuse(path, *arguments, **options):
        raise AssertionError(f"opened {path}")

    monkeypatch.setattr(builtins, "open", refuse)
    monkeypatch.setattr("io.open", refuse)
    inference.generate(parts, "a <toy>", **STEPS)


def test_the_pipeline_shares_the_parts(parts):
    pipe = inference.pipeline(parts)
    assert pipe.unet is parts.unet and pipe.vae is parts.vae
    assert pipe.text_encoder is parts.text_encoder and pipe.safety_checker is None


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_sampler_keeps_the_models_schedule_and_clips_nothing(tmp_path, prediction_type):
    parts = models.load(save_small_model(tmp_path / "model", prediction_type=prediction_type))
    parts.noise_scheduler.register_to_config(clip_sample=True)  # the class's own default
    sampler = inference.pipeline(parts).scheduler
    assert isinstance(sampler, DPMSolverMultistepScheduler)
    assert sampler.config.prediction_type == prediction_type
    assert not sampler.config.thresholding
    assert torch.equal(sampler.alphas_cumprod, parts.noise_scheduler.alphas_cumprod)
    latents = torch.full((1, 4, 16, 16), 5.0)
    sampler.set_timesteps(2)
    assert sampler.timesteps[0] == 999
    assert sampler.step(0 * latents, sampler.timesteps[0], latents).prev_sample.abs().max() > 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_parts_beside_a_float32_text_encoder(small_model, dtype):
    whole = inference.generate(models.load(small_model), "a toy", **STEPS)
    half = inference.generate(models.load(small_model, dtype=dtype), "a toy", **STEPS)
    assert difference(whole, half) < 40


def test_drawing_inside_autocast_is_not_autocast(parts):
    expected = inference.generate(parts, "a toy", **STEPS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert difference(expected, inference.generate(parts, "a toy", **STEPS)) == 0


def test_drawing_changes_no_part(parts):
    add_word(parts, "<toy>")
    names = ("text_encoder", "vae", "unet")
    before = {n: {k: v.clone() for k, v in getattr(parts, n).state_dict().items()} for n in names}
    inference.generate(parts, "a <toy>", **STEPS)
    for name in names:
        module = getattr(parts, name)
        assert not module.training
        for key, value in module.state_dict().items():
            assert torch.equal(value, before[name][key]), (name, key)


def test_load_embedding_gives_the_word_its_rows(parts, tmp_path):
    vectors = np.random.default_rng(0).normal(size=(2, 32)).astype(np.float32)
    path = embeddings.write(tmp_path / "toy.safetensors", LearnedEmbedding("<t>", vectors, {}))
    word = inference.load_embedding(parts, path)
    assert (word.token, word.num_vectors) == ("<t>", 2)
    np.testing.assert_array_equal(token_embedding.rows_of(parts, word).detach().numpy(), vectors)
    renamed = inference.load_embedding(parts, path, token="<other>")
    assert torch.equal(
        inference.encode_prompts(parts, ["a <t>"]), inference.encode_prompts(parts, ["a <other>"])
    )
    assert renamed.token == "<other>"


def test_load_embedding_refuses_another_models_width_and_a_taken_word(parts, tmp_path):
    narrow = LearnedEmbedding("<t>", np.ones((1, 8), np.float32), {})
    path = embeddings.write(tmp_path / "narrow.safetensors", narrow)
    with pytest.raises(InputError, match=r"8 .*32"):
        inference.load_embedding(parts, path)
    fits = LearnedEmbedding("toy", np.ones((1, 32), np.float32), {})
    path = embeddings.write(tmp_path / "taken.safetensors", fits)
    with pytest.raises(InputError, match="toy"):
        inference.load_embedding(parts, path)


def test_words_of_a_class_keep_their_names_where_they_can(small_model, tmp_path):
    parts = models.load(small_model)
    for value, name in enumerate(("Anna", "Ben B", "cara")):
        word = "<cat>" if name == "cara" else "<my-thing>"
        vectors = np.full((1, 32), value, np.float32)
        embeddings.write(tmp_path / f"{name}.safetensors", LearnedEmbedding(word, vectors))
    (tmp_path / "notes.txt").write_text("no word")
    found = inference.load_words(parts, tmp_path)
    assert {name: word.token for name, word in found.items()} == {
        "Anna": "<my-thing>", "Ben B": "<ben-b>", "cara": "<cat>",
    }  # fmt: skip
    for value, word in enumerate(found.values()):
        assert token_embedding.rows_of(parts, word).unique().item() == value


def test_a_class_folder_without_words_or_with_a_bad_one_is_named(parts, tmp_path):
    with pytest.raises(InputError, match="has no file"):
        inference.load_words(parts, tmp_path)
    (tmp_path / "anna.safetensors").write_bytes(b"no word")
    with pytest.raises(InputError, match=r"anna\.safetensors: "):
        inference.load_words(parts, tmp_path)


def test_two_words_in_one_file_of_a_class_are_refused_in_one_clear_line(parts, tmp_path):
    vectors = np.ones((1, 32), np.float32)
    embeddings.write(tmp_path / "anna.safetensors", LearnedEmbedding("<anna>", vectors))
    save_file({"<b>": vectors, "<c>": vectors}, tmp_path / "ben.safetensors")
    known = len(parts.tokenizer)
    with pytest.raises(InputError, match=r"^ben\.safetensors: it has 2 words .*--word") as caught:
        inference.load_words(parts, tmp_path)
    assert "\n" not in str(caught.value)
    assert len(parts.tokenizer) == known, "nothing was loaded by halves"
