"""Noise schedules and samplers are those of diffusers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

from tiutils.errors import InputError
from tiutils.flax import schedulers

SD = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
    "set_alpha_to_one": False, "skip_prk_steps": True, "num_train_timesteps": 1000,
}  # fmt: skip
CLASSES = {
    "ddim": (DDIMScheduler, {"clip_sample": False}),
    "dpmsolver++": (DPMSolverMultistepScheduler, {}),
}


def accepted(cls, config):
    return {name: value for name, value in config.items() if name in cls().config}


def trajectory_of_diffusers(kind, config, steps, predict, noise):
    cls, extra = CLASSES[kind]
    scheduler = cls(**accepted(cls, config), **extra)
    scheduler.set_timesteps(steps)
    latents = torch.tensor(noise)
    for t in scheduler.timesteps:
        latents = scheduler.step(predict(latents, t), t, latents).prev_sample
    return latents.numpy()


def follow(table, predict, noise):
    """The docstring's formula, in NumPy."""
    now, before, said = noise, np.zeros_like(noise), []
    for t, weights in zip(*map(np.asarray, table), strict=True):
        said = [predict(now, t), *said]
        terms = zip(weights, (now, before, *said), strict=False)
        now, before = sum(weight * term for weight, term in terms), now
    return now


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 25, 50])
def test_samplers_go_where_diffusers_go(kind, prediction, spacing, steps):
    config = SD | {"prediction_type": prediction, "timestep_spacing": spacing}
    noise = np.random.default_rng(0).normal(size=(2, 4, 3, 3)).astype(np.float32)
    expected = trajectory_of_diffusers(
        kind, config, steps, lambda x, t: torch.tanh(x * 0.7) * (1 + t / 1000), noise
    )
    table = schedulers.sampler(config, steps, kind)
    found = follow(table, lambda x, t: np.tanh(x * 0.7) * (1 + t / 1000), noise)
    scale = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(found, expected, atol=1e-4 * scale, rtol=0)


@pytest.mark.parametrize("kind", CLASSES)
def test_the_compiled_loop_follows_the_table(kind):
    table = schedulers.sampler(SD, 7, kind)
    noise = np.random.default_rng(0).normal(size=(2, 4, 3, 3)).astype(np.float32)
    found = jax.jit(lambda table, x: schedulers.sample(table, lambda x, t: x * t / 999, x))
    expected = follow(table, lambda x, t: x * np.float32(t / 999), noise)
    np.testing.assert_allclose(found(table, noise), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("change", [{"set_alpha_to_one": True}, {"steps_offset": 0}])
def test_the_ends_are_respected(change):
    noise = np.random.default_rng(0).normal(size=(1, 4, 2, 2)).astype(np.float32)
    ends = []
    for config in (SD, SD | change):
        expected = trajectory_of_diffusers("ddim", config, 7, lambda x, t: x * t / 999, noise)
        table = schedulers.sampler(config, 7, "ddim")
        found = follow(table, lambda x, t: x * t / 999, noise)
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
        ends.append(expected)
    assert np.abs(ends[0] - ends[1]).max() > 1e-3


def test_a_table_holds_what_the_formula_says():
    table = schedulers.sampler(SD | {"timestep_spacing": "leading"}, 2, "ddim")
    a = schedulers.alphas_cumprod(SD)[[501, 1, 0]].astype(float)
    assert table.timesteps.tolist() == [501, 1]
    keep = np.sqrt(a[1:] / a[:-1])
    np.testing.assert_allclose(table.weights[:, 0], keep, rtol=1e-6)
    np.testing.assert_allclose(
        table.weights[:, 2], np.sqrt(1 - a[1:]) - keep * np.sqrt(1 - a[:-1]), rtol=1e-4
    )


@pytest.mark.parametrize(
    "change",
    [{}, {"beta_schedule": "linear"}, {"beta_schedule": "squaredcos_cap_v2"},
     {"trained_betas": [0.1, 0.2, 0.3], "num_train_timesteps": 3}, {"rescale_betas_zero_snr": True}],
)  # fmt: skip
def test_schedule_noise_and_velocity_are_ddpms(change):
    config = SD | change
    scheduler = DDPMScheduler(**accepted(DDPMScheduler, config))
    products = schedulers.alphas_cumprod(config)
    assert products.dtype == np.float32
    expected = scheduler.alphas_cumprod.numpy()
    np.testing.assert_allclose(products, expected, rtol=2e-6, atol=2e-7)
    random = np.random.default_rng(0)
    samples, noise = random.normal(size=(2, 2, 4, 3, 3)).astype(np.float32)
    timesteps = np.array([0, len(products) - 1])
    tensors = [torch.tensor(x) for x in (samples, noise, timesteps)]
    for ours, theirs in (
        (schedulers.add_noise, scheduler.add_noise),
        (schedulers.velocity, scheduler.get_velocity),
    ):
        found = ours(jnp.asarray(products), timesteps, samples, noise)
        np.testing.assert_allclose(found, theirs(*tensors), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "kind", "steps", "message"),
    [
        ({}, "euler", 5, "no sampler 'euler'; choose one of dpmsolver"),
        ({}, "ddim", 0, "num_inference_steps is 0; it must be 1 to 999"),
        ({}, "ddim", 1001, "num_inference_steps is 1001"),
        ({"prediction_type": "sample"}, "ddim", 5, "prediction_type is 'sample'"),
        ({"beta_schedule": "exp"}, "ddim", 5, "beta_schedule is 'exp'"),
        ({"timestep_spacing": "odd"}, "ddim", 5, "timestep_spacing is 'odd'"),
        ({"use_karras_sigmas": True}, "dpmsolver++", 5, "use_karras_sigmas is True"),
        ({"steps_offset": 600}, "ddim", 2, "begin after the last timestep"),
    ],
)
def test_what_is_not_supported_is_named(change, kind, steps, message):
    with pytest.raises(InputError, match=message):
        schedulers.sampler(SD | change, steps, kind)
