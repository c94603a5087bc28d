"""Solutions to the exercises of 04_inference.ipynb."""

import math


def guided_noise(unet, latents, t, states, empty, guidance):
    """Exercise 1: from the answer without the prompt, past the answer with it."""
    with_prompt, without = unet(latents, t, states), unet(latents, t, empty)
    return without + guidance * (with_prompt - without)


def ddim_step(latents, noise, alpha, sigma, next_alpha, next_sigma):
    """Exercise 2: solve the mixture for the clean latents, then mix again."""
    clean = (latents - sigma * noise) / alpha
    return next_alpha * clean + next_sigma * noise


def mix_noise(first, second, amount):
    """Exercise 3: on a quarter of a circle, whose squared coordinates sum to 1."""
    angle = amount * math.pi / 2
    return math.cos(angle) * first + math.sin(angle) * second
