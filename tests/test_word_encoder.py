"""A look at the photos as a start: the row, what is refused, and the same row in JAX."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

import tiutils
from tiutils import concept, diffusion, models, token_embedding, word_encoder
from tiutils.errors import InputError
from tiutils.io import pretrained
from tiutils.io.embeddings import read
from tiutils.runs import inputs, run

SIZES = {"hidden": 32, "side": 16, "latent_channels": 4, "channels": [16, 32]}


def add_word_encoder(folder, **changed):
    """Give a model's folder a word encoder of random weights in half precision, as the bundled model has one."""
    torch.manual_seed(1)
    encoder = word_encoder.WordEncoder(**(SIZES | changed))
    (folder / "word_encoder").mkdir()
    (folder / "word_encoder" / "config.json").write_text(json.dumps(encoder.sizes))
    half = {name: tensor.half() for name, tensor in encoder.state_dict().items()}
    safetensors.torch.save_file(half, folder / "word_encoder" / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def seeing_model(small_model, tmp_path_factory):
    """The small model with a word encoder beside its parts."""
    folder = tmp_path_factory.mktemp("seeing") / "model"
    return add_word_encoder(shutil.copytree(small_model, folder))


def config_of(model, photos, folder, **flags):
    defaults = {"max_train_steps": 1, "train_batch_size": 1, "initializer_from_photos": True}
    return tiutils.TrainingConfig(
        pretrained_model_name_or_path=str(model), train_data_dir=str(photos),
        placeholder_token="<t>", output_dir=str(folder), **(defaults | flags),
    )  # fmt: skip


STAY = {"learning_rate": 1e-12, "norm_control": 0.0}  # rows stay where they start


def test_unit_vectors_whatever_the_latents():
    encoder = word_encoder.WordEncoder(**SIZES)
    seen = encoder(torch.randn(3, 4, 16, 16))
    assert seen.shape == (3, 32) and seen.dtype == torch.float32
    torch.testing.assert_close(seen.norm(dim=1), torch.ones(3))


def test_the_row_by_hand(seeing_model, photos):
    parts, thing = models.load(seeing_model), concept.load(photos)
    encoder = word_encoder.load(seeing_model)
    assert not any(p.requires_grad for p in encoder.parameters()) and not encoder.training
    plain = concept.views(thing)[::2]
    assert not any(view.flip for view in plain)
    latents, _ = diffusion.encode_views(parts, thing, plain, 32)
    mean = encoder(latents).mean(dim=0)
    length = token_embedding.table_of(parts).norm(dim=1).quantile(0.5)
    row = word_encoder.row_from_photos(parts, thing)
    assert row.shape == (32,) and row.dtype == torch.float32
    torch.testing.assert_close(row, mean / mean.norm() * length)


def test_a_long_photo_is_looked_at_once_in_its_middle(seeing_model, photos, tmp_path):
    square = concept.load(photos).photos[0].image
    wide = Image.new("RGB", (144, 48), "green")
    wide.paste(square, (48, 0))
    for name, image in (("square", square), ("wide", wide)):
        (tmp_path / name).mkdir()
        image.save(tmp_path / name / "1.png")
    parts = models.load(seeing_model)
    rows = [
        word_encoder.row_from_photos(parts, concept.load(tmp_path / name))
        for name in ("square", "wide")
    ]
    assert torch.equal(*rows)


def test_half_precision_gives_nearly_the_same_row(seeing_model, photos):
    thing = concept.load(photos)
    rows = [
        word_encoder.row_from_photos(models.load(seeing_model, dtype=dtype), thing)
        for dtype in (torch.float32, torch.bfloat16)
    ]
    assert rows[1].dtype == torch.float32
    assert torch.cosine_similarity(*rows, dim=0) > 0.99


def test_a_run_starts_from_copies_of_the_row(seeing_model, photos, tmp_path):
    config = config_of(seeing_model, photos, tmp_path / "run", num_vectors=3, **STAY)
    result = tiutils.train(config)
    row = word_encoder.row_from_photos(models.load(seeing_model), concept.load(photos))
    np.testing.assert_allclose(read(result.embedding_path).vectors, row.expand(3, -1), atol=1e-6)
    flags = json.loads((tmp_path / "run" / "run.json").read_text())["flags"]
    assert flags["initializer_from_photos"] is True and flags["initializer_token"] == ""


@pytest.mark.parametrize("flags, word", [
    ({}, "object"), ({"learnable_property": "style"}, "style"), ({"initializer_token": "toy"}, "toy"),
    ({"initializer_token": "toy", "initializer_phrase": "red toy"}, "red toy"),
])  # fmt: skip
def test_the_noun_is_the_word_to_compare_with(flags, word):
    assert tiutils.TrainingConfig(**flags).plain_word == word


def test_the_noun_does_not_move_the_start(seeing_model, photos):
    parts, thing = models.load(seeing_model), concept.load(photos)
    plain = config_of(seeing_model, photos, "unused")
    named = dataclasses.replace(plain, initializer_token="toy")
    assert torch.equal(*(run.first_rows(config, thing, parts) for config in (plain, named)))


@pytest.mark.slow
def test_a_resumed_run_ends_as_the_uninterrupted_one(seeing_model, photos, tmp_path):
    whole = tiutils.train(config_of(seeing_model, photos, tmp_path / "whole", max_train_steps=4))
    tiutils.train(config_of(seeing_model, photos, tmp_path / "cut", max_train_steps=2))
    rest = {"max_train_steps": 4, "resume_from_checkpoint": "latest"}
    resumed = tiutils.train(config_of(seeing_model, photos, tmp_path / "cut", **rest))
    rows = [read(result.embedding_path).vectors for result in (whole, resumed)]
    np.testing.assert_array_equal(*rows)


# What is refused


def refused(config):
    with pytest.raises(InputError) as caught:
        inputs.read_inputs(config, device="cpu")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("phrase", ["red toy", ""])
def test_two_ways_to_start_are_refused_before_anything_is_read(tmp_path, phrase):
    folders = (tmp_path / "no-photos", tmp_path / "run")
    config = config_of("nobody/nothing", *folders, initializer_phrase=phrase)
    message = refused(config)
    assert "--initializer_from_photos and --" in message and "leave one of them out" in message


def test_a_model_without_a_word_encoder(small_model, photos, tmp_path):
    message = refused(config_of(small_model, photos, tmp_path / "run"))
    assert "needs a word encoder, but" in message and "give --initializer_token" in message
    assert word_encoder.load(small_model) is None
    parts = models.load(small_model)
    for folder in (small_model, None):
        parts.folder = folder
        with pytest.raises(InputError, match="needs a word encoder, but"):
            word_encoder.row_from_photos(parts, concept.load(photos))


@pytest.mark.parametrize("changed", [{"hidden": 64}, {"latent_channels": 8}])
def test_a_word_encoder_of_another_model(small_model, photos, tmp_path, changed):
    folder = add_word_encoder(shutil.copytree(small_model, tmp_path / "model"), **changed)
    message = refused(config_of(folder, photos, tmp_path / "run"))
    assert f"its {next(iter(changed))} is {next(iter(changed.values()))}" in message


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"hidden": -1}', '{"hidden": 32, "channels": [16]}', "no JSON"]
)
def test_damaged_sizes(small_model, tmp_path, content):
    folder = add_word_encoder(shutil.copytree(small_model, tmp_path / "model"))
    (folder / "word_encoder" / "config.json").write_text(content)
    with pytest.raises(InputError, match="cannot read") as caught:
        word_encoder.load(folder)
    assert "\n" not in str(caught.value)


def test_damaged_weights(small_model, tmp_path):
    folder = add_word_encoder(shutil.copytree(small_model, tmp_path / "model"))
    (folder / "word_encoder" / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot read the word encoder"):
        word_encoder.load(folder)


# Where it lies


def test_a_saved_pipeline_has_the_five_parts_alone(seeing_model, tmp_path):
    parts = models.load(seeing_model)
    models.save(token_embedding.merged(parts), tmp_path / "saved")
    assert not (tmp_path / "saved" / "word_encoder").exists()
    assert word_encoder.load(models.load(tmp_path / "saved").folder) is None


# The bundled model's own


def test_the_bundled_word_encoder_knows_the_courses_things_apart():
    folder = pretrained.BUNDLED_MODEL
    parts = models.load(folder)
    rows = torch.stack([
        word_encoder.row_from_photos(parts, concept.load(folder.parent / "concepts" / name))
        for name in ("wood-toy", "rocking-horse", "teddy-bear")
    ])  # fmt: skip
    usual = token_embedding.table_of(parts).norm(dim=1).median()
    torch.testing.assert_close(rows.norm(dim=1), usual.expand(3), rtol=1e-3, atol=0)
    alike = torch.nn.functional.cosine_similarity(rows[:, None], rows[None], dim=-1)
    assert alike[~torch.eye(3, dtype=torch.bool)].max() < 0.9
