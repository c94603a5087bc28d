"""Batches are a pure function of seed, step and sample, and their numbers never change."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import stats

from tiutils.batches import BatchPlan, batch_at

PLAN = BatchPlan(
    seed=7, batch_size=4, views_per_photo=(2, 2, 6), num_prompts=27, latent_shape=(4, 8, 8)
)
GOLDEN = {
    "views": [2, 0, 9, 1],
    "prompts": [9, 12, 0, 19],
    "timesteps": [801, 921, 569, 129],
    "noise": [-0.423699409, -1.4341073, -0.382153273],
    "latent_noise": [-0.283646673, -0.595607281, 0.0877396166],
}
FIELDS = ("views", "prompts", "timesteps", "latent_noise", "noise")


def test_golden_values():
    # Checkpoints of years ago must go on the same way: if this fails, all resumed runs have changed.
    batch = batch_at(PLAN, step=3)
    assert batch.views.tolist() == GOLDEN["views"]
    assert batch.prompts.tolist() == GOLDEN["prompts"]
    assert batch.timesteps.tolist() == GOLDEN["timesteps"]
    np.testing.assert_allclose(batch.noise[0, 0, 0, :3], GOLDEN["noise"], rtol=1e-6)
    np.testing.assert_allclose(batch.latent_noise[3, 3, 7, -3:], GOLDEN["latent_noise"], rtol=1e-6)


def test_a_philox_word_by_hand():
    """The bits are those of the published generator: its known answer for key and counter zero."""
    # Random123's kat_vectors: philox4x64-10, counter 0, key 0. NumPy counts up before it draws.
    generator = np.random.Philox(key=[0, 0], counter=[2**64 - 1] * 4)
    assert f"{int(generator.random_raw()):016x}" == "16554d9eca36314c"


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_micro_batches_are_slices_of_the_batch(cut):
    whole, head, tail = batch_at(PLAN, 5), batch_at(PLAN, 5, 0, cut), batch_at(PLAN, 5, cut)
    for name in FIELDS:
        joined = np.concatenate([getattr(head, name), getattr(tail, name)])
        np.testing.assert_array_equal(joined, getattr(whole, name))


def test_steps_seeds_and_samples_differ():
    other_seed = dataclasses.replace(PLAN, seed=8)
    noises = [batch_at(PLAN, 0).noise, batch_at(PLAN, 1).noise, batch_at(other_seed, 0).noise]
    samples = np.concatenate(noises).reshape(12, -1)
    assert np.abs(np.corrcoef(samples) - np.eye(12)).max() < 0.3
    assert (
        np.abs(np.corrcoef(noises[0].ravel(), batch_at(PLAN, 0).latent_noise.ravel())[0, 1]) < 0.1
    )


def test_photos_are_seen_equally_often_in_shuffled_order():
    first_view = np.array([0, 2, 4])
    photos = np.concatenate([
        np.searchsorted(first_view, batch_at(PLAN, step).views, side="right") - 1
        for step in range(30)
    ])  # fmt: skip
    passes = photos.reshape(-1, 3)
    assert (np.sort(passes, axis=1) == [0, 1, 2]).all()
    assert len({tuple(order) for order in passes.tolist()}) == 6, "all orders of three photos occur"


def test_distributions():
    plan = dataclasses.replace(PLAN, batch_size=500)
    batches = [batch_at(plan, step) for step in range(4)]
    timesteps = np.concatenate([b.timesteps for b in batches])
    prompts = np.concatenate([b.prompts for b in batches])
    assert timesteps.min() >= 0 and timesteps.max() < 1000
    assert stats.kstest(timesteps / 1000, "uniform").pvalue > 0.01
    assert stats.chisquare(np.bincount(prompts, minlength=27)).pvalue > 0.01
    normals = np.concatenate([b.noise.ravel() for b in batches])
    assert normals.dtype == np.float32
    assert stats.kstest(normals[:50_000], "norm").pvalue > 0.01
    assert np.isfinite(normals).all() and np.abs(normals).max() > 3.5
