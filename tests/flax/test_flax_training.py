"""Training in JAX: the numbers of PyTorch, step by step, and the same run states."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
import torch
from small_model import save_small_model

from tiutils import TrainingConfig, concept, training
from tiutils import models as torch_models
from tiutils import token_embedding as torch_tokens
from tiutils.errors import InputError
from tiutils.flax import models, schedulers, token_embedding
from tiutils.flax import training as flax_training
from tiutils.runs import run as torch_run
from tiutils.tokenizer import Placeholder

CONFIG = TrainingConfig(
    placeholder_token="<my-toy>",
    initializer_token="toy",
    num_vectors=2,
    max_train_steps=20,
    train_batch_size=2,
    learning_rate=1e-2,
    lr_scheduler="linear",
    lr_warmup_steps=4,
    average_rows=5,
)
CONSTANT = dataclasses.replace(CONFIG, lr_scheduler="constant")
OTHER = Placeholder("<other>", ("<other>", "<other>_1"), (1, 2))


def word_of(config):
    """What both frameworks' `add_placeholder` takes."""
    return {
        "token": config.placeholder_token,
        "initializer_token": config.initializer_token,
        "num_vectors": config.num_vectors,
    }


def in_torch(folder, photos, **changes):
    """A `Training` in PyTorch."""
    config = dataclasses.replace(CONFIG, **changes)
    accelerator = torch_run.make_accelerator(config)
    parts = torch_models.load(folder)
    placeholder = torch_tokens.add_placeholder(parts, **word_of(config))
    return training.prepare(parts, placeholder, concept.load(photos), config, accelerator)


def in_jax(folder, photos, **changes):
    """The same in JAX."""
    config = dataclasses.replace(CONFIG, **changes)
    parts = models.load(folder)
    placeholder = token_embedding.add_placeholder(parts, **word_of(config))
    mesh = flax_training.make_mesh(config.train_batch_size, jax.devices()[:1])
    return flax_training.prepare(parts, placeholder, concept.load(photos), config, mesh)


def states_of(begun):
    """A callback that keeps the run state after each step, and the states."""
    states = {}

    def keep(progress):
        states[progress.step] = begun.capture(progress.step)

    return keep, states


@pytest.fixture(scope="module")
def velocity_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "velocity"
    return save_small_model(folder, prediction_type="v_prediction")


@pytest.fixture(scope="module")
def both(small_model, photos):
    """Twenty steps in each framework: losses, states after each step, and the trainings."""
    found = []
    for begin, loop in ((in_torch, training.train_rows), (in_jax, flax_training.train_rows)):
        begun = begin(small_model, photos)
        keep, states = states_of(begun)
        states[0] = begun.capture(0)
        found.append((loop(begun, callbacks=[keep]), states, begun))
    return found


@pytest.fixture
def fresh(both):
    """The run in JAX, set back to its start: what was compiled can be used again."""
    _, (_, states, begun) = both
    flax_training.restore(begun, states[0])
    return begun


# The same numbers as PyTorch


def test_moments_of_the_photos(both):
    (*_, ours), (*_, theirs) = both
    for name in ("mean", "std"):
        a, b = (np.asarray(getattr(one.dataset, name)) for one in (ours, theirs))
        assert a.shape == b.shape and np.abs(a - b).max() < 1e-4
    assert np.array_equal(ours.dataset.prompt_ids, theirs.dataset.prompt_ids)
    assert ours.dataset.plan == theirs.dataset.plan


def test_losses(both):
    (ours, *_), (theirs, *_) = both
    assert len(ours.losses) == len(theirs.losses) == 20
    np.testing.assert_allclose(theirs.losses, ours.losses, rtol=0, atol=1e-4)


def test_rows_and_moments_after_each_step(both):
    (_, ours, _), (_, theirs, _) = both
    for step in range(1, 21):
        a, b = ours[step].tensors, theirs[step].tensors
        assert a.keys() == b.keys()
        assert {k: (v.dtype, v.shape) for k, v in a.items()} == {
            k: (v.dtype, v.shape) for k, v in b.items()
        }
        assert a["optimizer.step"] == b["optimizer.step"] == step
        for name in a:
            np.testing.assert_allclose(b[name], a[name], rtol=1e-3, atol=1e-4, err_msg=name)
    assert ours[20].scalars.keys() == theirs[20].scalars.keys()


def test_the_mean_of_the_rows_by_hand(both):
    """That of all rows for five steps, then one that forgets; it is what the run has learned."""
    _, (_, states, begun) = both
    rows = [np.float64(states[step].tensors["rows"]) for step in range(1, 21)]
    mean = rows[0]
    for step, row in enumerate(rows, start=1):
        mean = np.mean(rows[:step], axis=0) if step <= 5 else mean + (row - mean) / 5
        found = states[step].tensors["mean_rows"]
        np.testing.assert_allclose(found, mean, rtol=1e-5, atol=1e-6)
    assert np.abs(mean - rows[-1]).max() > 1e-3
    assert np.array_equal(begun.vectors(), found)


@pytest.mark.release
@pytest.mark.slow  # each compiles a step of its own
@pytest.mark.parametrize(
    "changes",
    [
        {"gradient_accumulation_steps": 2, "train_batch_size": 1, "gradient_checkpointing": True},
        {"learnable_property": "style", "center_crop": True, "num_vectors": 1, "seed": 3}
        | {"lr_scheduler": "cosine", "scale_lr": True, "adam_weight_decay": 0.1},
    ],
    ids=["memory", "others"],
)
def test_settings_mean_what_they_mean_in_pytorch(small_model, photos, changes):
    changes = {"max_train_steps": 4, **changes}
    ours = training.train_rows(in_torch(small_model, photos, **changes))
    theirs = flax_training.train_rows(in_jax(small_model, photos, **changes))
    np.testing.assert_allclose(theirs.losses, ours.losses, rtol=0, atol=1e-4)


@pytest.mark.release
@pytest.mark.slow
def test_a_model_that_predicts_the_velocity(velocity_model, photos):
    ours = training.train_rows(in_torch(velocity_model, photos, max_train_steps=4))
    theirs = flax_training.train_rows(in_jax(velocity_model, photos, max_train_steps=4))
    np.testing.assert_allclose(theirs.losses, ours.losses, rtol=0, atol=1e-4)


@pytest.mark.release
@pytest.mark.slow
def test_bfloat16(small_model, photos):
    """The rows, their moments and the loss stay float32."""
    config = dataclasses.replace(CONFIG, mixed_precision="bf16", max_train_steps=2)
    parts = models.load(small_model, dtype=jax.numpy.bfloat16)
    placeholder = token_embedding.add_placeholder(
        parts, "<my-toy>", initializer_token="toy", num_vectors=2
    )
    begun = flax_training.prepare(parts, placeholder, concept.load(photos), config)
    exact = flax_training.train_rows(in_jax(small_model, photos, max_train_steps=2))
    losses = flax_training.train_rows(begun).losses
    np.testing.assert_allclose(losses, exact.losses, rtol=0.02)
    assert begun.vectors().dtype == np.float32


# Only the rows


@pytest.mark.slow
def test_no_weight_and_no_other_word_changes(small_model, photos):
    parts = models.load(small_model)
    first = token_embedding.add_placeholder(parts, "<one>", initializer_token="cat", num_vectors=2)
    second = token_embedding.add_placeholder(parts, "<two>", initializer_token="dog")
    last = token_embedding.add_placeholder(parts, "<three>", initializer_token="horse")
    networks = (parts.text_encoder, parts.unet, parts.vae)
    before = jax.tree.map(np.array, networks), np.array(parts.rows)
    config = dataclasses.replace(CONFIG, placeholder_token="<two>", max_train_steps=3)
    begun = flax_training.prepare(parts, second, concept.load(photos), config)
    flax_training.train_rows(begun)
    assert jax.tree.all(jax.tree.map(np.array_equal, before[0], networks))
    rows = np.array(parts.rows)
    assert np.array_equal(rows[[0, 1, 3]], before[1][[0, 1, 3]])
    assert not np.array_equal(rows[2], before[1][2])
    for word, expected in ((first, rows[:2]), (second, rows[2:3]), (last, rows[3:])):
        assert np.array_equal(token_embedding.rows_of(parts, word), expected)


# The loop


def test_a_dispatch_beyond_the_end(fresh, both):
    """Steps that a dispatch has room for, but the run has not, do nothing: twelve are ten and two."""
    _, (_, states, _) = both
    short = dataclasses.replace(fresh, total_steps=12, config=CONSTANT)
    whole = dataclasses.replace(fresh, config=CONSTANT)
    losses = flax_training.train_rows(short).losses
    flax_training.restore(whole, states[0])
    assert losses == flax_training.train_rows(whole).losses[:12]
    assert not np.array_equal(short.vectors(), whole.vectors())


def test_a_stop_keeps_the_rows_of_that_step(fresh, both):
    """The device has long gone on."""
    _, (result, states, _) = both
    stopped = flax_training.train_rows(fresh, callbacks=[lambda progress: progress.step == 7])
    assert (stopped.step, stopped.stopped) == (7, "stopped by request")
    assert stopped.losses == result.losses[:7]
    now, then = fresh.capture(7), states[7]
    assert now.tensors.keys() == then.tensors.keys() and now.scalars == then.scalars
    assert all(np.array_equal(now.tensors[name], then.tensors[name]) for name in now.tensors)
    assert np.array_equal(token_embedding.rows_of(fresh.models, fresh.placeholder), fresh.vectors())


def test_validation_draws_with_the_rows_of_its_step(fresh, both):
    _, (_, states, _) = both
    seen = {}

    def look(progress):
        models = progress.training.models
        seen[progress.step] = np.array(
            token_embedding.rows_of(models, progress.training.placeholder)
        )

    flax_training.train_rows(fresh, callbacks=[look])
    assert list(seen) == list(range(1, 21))
    assert all(np.array_equal(seen[step], states[step].tensors["mean_rows"]) for step in seen)


def test_a_loss_that_is_not_finite_ends_the_run_with_the_last_good_rows(small_model, photos, fresh):
    changes = {"learning_rate": 1e30, "lr_scheduler": "constant"}
    ours = in_torch(small_model, photos, **changes)
    theirs = dataclasses.replace(fresh, config=dataclasses.replace(CONFIG, **changes))
    a, b = training.train_rows(ours), flax_training.train_rows(theirs)
    assert b.diverged and (a.stopped, a.step) == (b.stopped, b.step)
    np.testing.assert_allclose(theirs.vectors(), ours.vectors(), rtol=1e-4)
    found = token_embedding.rows_of(theirs.models, theirs.placeholder)
    assert np.array_equal(found, theirs.vectors()), "what pictures are drawn with"


# Run states


def test_resume_is_exact(fresh, both):
    _, (result, states, _) = both
    flax_training.restore(fresh, states[7])
    resumed = flax_training.train_rows(fresh, start=7)
    assert resumed.losses == result.losses[7:]
    now = fresh.capture(20).tensors
    assert all(np.array_equal(now[name], value) for name, value in states[20].tensors.items())


def test_a_run_begun_in_pytorch_goes_on_in_jax(fresh, both):
    (whole, states, _), _ = both
    flax_training.restore(fresh, states[10])
    resumed = flax_training.train_rows(fresh, start=10)
    np.testing.assert_allclose(resumed.losses, whole.losses[10:], rtol=0, atol=1e-4)


def test_a_run_begun_in_jax_goes_on_in_pytorch(small_model, photos, both):
    _, (whole, states, _) = both
    begun = in_torch(small_model, photos)
    training.restore(begun, states[10])
    resumed = training.train_rows(begun, start=10)
    np.testing.assert_allclose(resumed.losses, whole.losses[10:], rtol=0, atol=1e-4)


def test_a_state_of_another_run_is_refused(fresh, both):
    _, (_, states, _) = both
    other = dataclasses.replace(fresh, placeholder=OTHER)
    with pytest.raises(
        InputError, match="has placeholder_token '<my-toy>', but this run has '<other>'"
    ):
        flax_training.restore(other, states[7])
    fewer = {**states[7].tensors, "rows": states[7].tensors["rows"][:1]}
    with pytest.raises(InputError, match="rows of shape"):
        flax_training.restore(fresh, dataclasses.replace(states[7], tensors=fewer))
    eight_bit = dataclasses.replace(
        states[7], scalars=states[7].scalars | {"optimizer": "AdamW8bit"}
    )
    with pytest.raises(InputError, match="optimizer 'AdamW8bit', but this run has 'AdamW'"):
        flax_training.restore(fresh, eight_bit)


# Devices


def test_a_batch_that_does_not_divide_is_refused():
    devices = jax.devices() * 8
    with pytest.raises(InputError, match=r"is 12, which does not divide over 8 devices.* as 16"):
        flax_training.make_mesh(12, devices[:8])


# On the bundled model


@pytest.mark.release
@pytest.mark.slow
def test_the_same_rows_after_a_hundred_steps():
    from tiutils.io.pretrained import BUNDLED_MODEL

    photos = BUNDLED_MODEL.parent / "concepts" / "wood-toy"
    changes = {"max_train_steps": 100, "num_vectors": 1, "learning_rate": 5e-3}
    changes |= {"lr_scheduler": "constant", "train_batch_size": 4, "average_rows": 0}
    trained = []
    for begin, loop in ((in_torch, training.train_rows), (in_jax, flax_training.train_rows)):
        begun = begin(BUNDLED_MODEL, photos, **changes)
        start, result = begun.vectors(), loop(begun)
        trained.append((begun.vectors(), result.losses))
    (ours, our_losses), (theirs, their_losses) = trained
    assert np.linalg.norm(theirs - ours) / np.linalg.norm(ours - start) <= 1e-2
    np.testing.assert_allclose(their_losses[:20], our_losses[:20], rtol=0, atol=1e-4)


def test_the_noise_schedule_is_that_of_diffusers(both):
    (*_, ours), (*_, theirs) = both
    expected = ours.models.noise_scheduler.alphas_cumprod
    found = schedulers.alphas_cumprod(theirs.models.scheduler_config)
    assert torch.allclose(torch.from_numpy(np.array(found)), expected, rtol=1e-6)
