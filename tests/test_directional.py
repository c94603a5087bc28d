"""Directional Textual Inversion: by hand, resumed, in several processes, in JAX, and in SDXL."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_model import save_small_sdxl

import tiutils
from tiutils import directional, models
from tiutils.errors import InputError
from tiutils.io import checkpoints, embeddings
from tiutils.runs import inputs


def config_of(model, photos, folder, **flags):
    flags = {
        "train_batch_size": 2, "max_train_steps": 6, "num_vectors": 2, "learning_rate": 0.05,
        "optimizer": "directional",
    } | flags  # fmt: skip
    return tiutils.TrainingConfig(
        pretrained_model_name_or_path=str(model), train_data_dir=str(photos), output_dir=str(folder),
        placeholder_token="<my-toy>", initializer_token="toy", **flags,
    )  # fmt: skip


def learn(model, photos, folder, callbacks=(), **flags):
    result = tiutils.train(config_of(model, photos, folder, **flags), list(callbacks))
    return result, embeddings.read(result.embedding_path).rows


def vectors_of_toy(folder):
    """The vector of "toy" in each text encoder."""
    parts = models.load(folder)
    return [
        encoder.get_input_embeddings().weight[tokenizer.encode("toy")[1]].numpy()
        for encoder, tokenizer in zip(parts.text_encoders, parts.tokenizers, strict=True)
    ]


def test_a_turn_by_hand():
    """A row of length 2 along the first axis, a gradient along the second: a turn by atan(η) against it."""
    row, start = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[2.0, 0.0, 0.0]])
    gradient = torch.tensor([[7.0, 0.3, 0.0]])  # what points along the row is not followed
    found = directional.turned(row, gradient, start, 0.1, 0.0)
    expected = 2 * torch.tensor([[1.0, -0.1, 0.0]]) / np.sqrt(1.01)
    torch.testing.assert_close(found, expected)


def test_the_prior_turns_back_to_the_start():
    row, start = torch.tensor([[0.0, 3.0]]), torch.tensor([[5.0, 0.0]])
    found = directional.turned(row, torch.zeros(1, 2), start, 0.1, 1e-4)
    torch.testing.assert_close(found, 3 * torch.tensor([[0.1, 1.0]]) / np.sqrt(1.01))
    stays = directional.turned(row, torch.zeros(1, 2), start, 0.1, 0.0)
    torch.testing.assert_close(stays, row)


@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1.0), st.floats(1e-3, 1e3))
def test_lengths_stay_and_the_gradients_scale_does_not_matter(seed, lr, scale):
    draw = torch.Generator().manual_seed(seed)
    rows, gradient, start = torch.randn(3, 2, 8, generator=draw, dtype=torch.float64)
    new = directional.turned(rows, gradient, start, lr, 0.0)
    torch.testing.assert_close(new.norm(dim=1), rows.norm(dim=1))
    torch.testing.assert_close(directional.turned(rows, scale * gradient, start, lr, 0.0), new)
    angles = torch.cosine_similarity(new, rows).clamp(-1, 1).arccos()
    torch.testing.assert_close(angles, torch.full_like(angles, np.arctan(lr)), rtol=1e-5, atol=1e-7)


def test_the_optimizer_turns_each_half_by_itself():
    rows = torch.nn.Parameter(torch.randn(2, 5, generator=torch.Generator().manual_seed(0)))
    before, gradient = rows.detach().clone(), torch.ones(2, 5)
    optimizer = directional.Directional(rows, 0.1, 1e-4, (2, 3))
    rows.grad = gradient
    optimizer.step()
    for half in (slice(0, 2), slice(2, 5)):
        old = before[:, half]
        expected = directional.turned(old, gradient[:, half], old, 0.1, 1e-4)
        torch.testing.assert_close(rows.detach()[:, half], expected)


def test_a_run_learns_directions_and_keeps_lengths(small_model, photos, tmp_path):
    lengths = []
    _, rows = learn(
        small_model, photos, tmp_path / "run",
        [lambda progress: lengths.append(np.linalg.norm(progress.training.vectors(), axis=1))],
    )  # fmt: skip
    np.testing.assert_allclose(lengths, np.broadcast_to(lengths[0], (6, 2)), rtol=1e-5)
    toy = vectors_of_toy(small_model)[0]
    cosines = rows @ toy / (np.linalg.norm(rows, axis=1) * np.linalg.norm(toy))
    assert (cosines < 0.999).all()


@pytest.mark.parametrize("killed_after", [2, 5])
def test_resumed_bit_for_bit(small_model, photos, tmp_path, killed_after):
    def kill(progress):
        if progress.step == killed_after:
            raise KeyboardInterrupt

    flags = {"checkpointing_steps": 1, "average_rows": 2}
    _, whole = learn(small_model, photos, tmp_path / "whole", **flags)
    flags["resume_from_checkpoint"] = "latest"
    with pytest.raises(KeyboardInterrupt):
        learn(small_model, photos, tmp_path / "killed", [kill], **flags)
    _, resumed = learn(small_model, photos, tmp_path / "killed", **flags)
    assert resumed.tobytes() == whole.tobytes()
    states = [checkpoints.load_latest(tmp_path / name) for name in ("whole", "killed")]
    for name, tensor in states[0].tensors.items():
        assert tensor.tobytes() == states[1].tensors[name].tobytes(), name


def test_a_checkpoint_of_another_optimizer_is_refused(small_model, photos, tmp_path):
    learn(small_model, photos, tmp_path / "run", optimizer="adamw", checkpointing_steps=3)
    with pytest.raises(InputError, match="AdamW"):
        learn(small_model, photos, tmp_path / "run", resume_from_checkpoint="latest")


@pytest.mark.slow
def test_jax_turns_as_pytorch_does(small_model, photos, tmp_path):
    from tiutils.flax import run as in_jax

    config = config_of(small_model, photos, tmp_path / "torch", checkpointing_steps=3)
    _, ours = learn(small_model, photos, tmp_path / "torch", checkpointing_steps=3)
    theirs = in_jax.train(dataclasses.replace(config, output_dir=str(tmp_path / "jax")))
    theirs = embeddings.read(theirs.embedding_path).rows
    np.testing.assert_allclose(theirs, ours, rtol=1e-3, atol=1e-4)
    half = str(tmp_path / "jax" / "checkpoint-3")
    _, handed_over = learn(small_model, photos, tmp_path / "on", resume_from_checkpoint=half)
    np.testing.assert_allclose(handed_over, ours, rtol=1e-3, atol=1e-4)


def test_sdxl_keeps_the_length_of_each_half(photos, tmp_path):
    sdxl = save_small_sdxl(tmp_path / "sdxl")
    _, rows = learn(sdxl, photos, tmp_path / "run", max_train_steps=3)
    for half, toy in zip(np.split(rows, [32], axis=1), vectors_of_toy(sdxl), strict=True):
        np.testing.assert_allclose(np.linalg.norm(half, axis=1), np.linalg.norm(toy), rtol=1e-5)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"direction_prior": -1.0}, "direction_prior"),
        ({"direction_prior": float("nan")}, "direction_prior"),
        ({"learning_rate": float("inf")}, "learning_rate"),
        ({"optimizer": "sgd"}, "adamw"),
        ({"use_8bit_adam": True}, "has none; leave one of them out"),
    ],
)
def test_what_cannot_be_is_refused_before_weights_are_loaded(
    small_model, photos, tmp_path, flags, said
):
    config = config_of(small_model, photos, tmp_path / "run", **flags)
    with pytest.raises(InputError, match=said):
        inputs.read_inputs(config, device="cpu")
