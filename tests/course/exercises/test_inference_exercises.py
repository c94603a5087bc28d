"""What 04 builds by hand is what tiutils has; its checks check."""

import math
import runpy

import numpy as np
import pages
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image

from tiutils import inference, models, token_embedding
from tiutils.course.exercises import inference as exercises

SOLUTIONS = runpy.run_path(str(pages.ROOT / "notebooks" / "solutions" / "inference.py"))


@pytest.fixture(scope="module")
def parts(small_model):
    loaded = models.load(small_model)
    token_embedding.add_placeholder(loaded, "<t>", initializer_token="toy", num_vectors=2)
    return loaded


@pytest.fixture(scope="module")
def by_hand():
    """The definitions in the notebook's cells, without the lines that show them off."""
    cells = [f"{name}-by-hand" for name in ("levels", "guess", "draw", "decode")]
    return pages.definitions(
        "04_inference", *cells, torch=torch, Image=Image, np=np, inference=inference
    )


@pytest.mark.parametrize("steps", [1, 2, 5, 25])
@pytest.mark.parametrize("guidance", [2.0, 7.5])
def test_the_loop_by_hand_draws_what_generate_draws(parts, by_hand, steps, guidance):
    guesses = by_hand["draw_by_hand"](
        parts, "a <t> on sand", seed=3, steps=steps, guidance=guidance
    )
    (drawn,) = by_hand["decode_by_hand"](parts, guesses[-1])
    (expected,) = inference.generate(
        parts, "a <t> on sand", seed=3, num_inference_steps=steps, guidance_scale=guidance
    )
    assert len(guesses) == steps
    assert np.abs(np.asarray(drawn, int) - np.asarray(expected, int)).max() <= 1


def test_the_levels_by_hand_are_the_schedulers(parts, by_hand):
    scheduler = inference.pipeline(parts).scheduler
    for steps in (1, 7, 25, 50):
        scheduler.set_timesteps(steps)
        t, alpha, sigma = by_hand["levels_by_hand"](parts, steps)
        assert t.tolist() == scheduler.timesteps.tolist()
        torch.testing.assert_close(sigma / alpha, scheduler.sigmas)
        torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(steps + 1))


GUIDED, DDIM = SOLUTIONS["guided_noise"], SOLUTIONS["ddim_step"]


def test_the_guidance_of_exercise_1_is_that_of_the_loop(parts, by_hand):
    states, empty = (inference.encode_prompts(parts, [text]) for text in ("a <t> on sand", ""))
    latents = torch.randn(1, *parts.latent_shape(), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = GUIDED(lambda z, t, s: parts.unet(z, t, s).sample, latents, 500, states, empty, 7.5)
    expected = by_hand["guess_noise"](parts, latents, 500, states, empty, 7.5)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_step_of_exercise_2_is_that_of_diffusers():
    scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=True)
    scheduler.set_timesteps(10)
    latents, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for t in (900, 500, 100, 0):
        now = scheduler.alphas_cumprod[t]
        after = scheduler.alphas_cumprod[t - 100] if t >= 100 else torch.tensor(1.0)
        levels = (now.sqrt(), (1 - now).sqrt(), after.sqrt(), (1 - after).sqrt())
        expected = scheduler.step(noise, t, latents).prev_sample
        torch.testing.assert_close(DDIM(latents, noise, *levels), expected, rtol=1e-4, atol=1e-4)


CHECKS = {
    "guided_noise": exercises.check_guided_noise,
    "ddim_step": exercises.check_ddim_step,
    "mix_noise": exercises.check_mix_noise,
}


@pytest.mark.parametrize("name", CHECKS)
def test_solutions_are_right(name):
    assert CHECKS[name](SOLUTIONS[name]).startswith("right")


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("answer", [..., None])
def test_stubs_are_not_yet(name, answer):
    assert CHECKS[name](lambda *_: answer).startswith("not yet")


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("function", [lambda: 1, 50, lambda *_: 1 / 0, lambda *_: "50", max])
def test_what_is_no_answer_is_refused(name, function):
    assert CHECKS[name](function).startswith("not quite")


@pytest.mark.parametrize(
    "name, function",
    [
        ("guided_noise", lambda unet, z, t, states, empty, g: unet(z, t, states)),
        ("guided_noise", lambda unet, z, t, states, empty, g: g * unet(z, t, states)),
        (
            "guided_noise",
            lambda unet, z, t, states, empty, g: (
                unet(z, t, states) + g * (unet(z, t, states) - unet(z, t, empty))
            ),
        ),
        ("guided_noise", lambda unet, z, t, states, empty, g: GUIDED(unet, z, t, empty, states, g)),
        ("guided_noise", lambda unet, z, *rest: GUIDED(unet, z, *rest)[:1]),
        ("ddim_step", lambda z, noise, a, s, na, ns: (z - s * noise) / a),
        ("ddim_step", lambda z, noise, a, s, na, ns: na * (z - s * noise) + ns * noise),
        ("ddim_step", lambda z, noise, a, s, na, ns: na * (z - s * noise) / a + s * noise),
        ("ddim_step", lambda z, noise, a, s, na, ns: na * z + ns * noise),
        (
            "ddim_step",
            lambda z, noise, a, s, na, ns: na * (z - s * noise) / a + ns * torch.randn_like(noise),
        ),
        ("mix_noise", lambda first, second, amount: (1 - amount) * first + amount * second),
        ("mix_noise", lambda first, second, amount: first if amount < 0.5 else second),
        ("mix_noise", lambda first, second, amount: first),
        ("mix_noise", lambda first, second, amount: first + amount * second),
        (
            "mix_noise",
            lambda first, second, amount: math.cos(amount) * first + math.sin(amount) * second,
        ),
        (
            "mix_noise",
            lambda first, second, amount: (
                torch.randn_like(first) if 0 < amount < 1 else (second if amount else first)
            ),
        ),
        (
            "mix_noise",
            lambda first, second, amount: (
                (math.cos(amount * math.pi / 2) * first - math.sin(amount * math.pi / 2) * second)
                * (1 if amount < 1 else -1)
            ),
        ),
    ],
)
def test_wrong_answers_are_refused(name, function):
    assert CHECKS[name](function).startswith("not quite")


def test_any_shares_whose_squares_sum_to_one_are_right():
    assert exercises.check_mix_noise(
        lambda first, second, amount: (1 - amount) ** 0.5 * first + amount**0.5 * second
    ).startswith("right")
