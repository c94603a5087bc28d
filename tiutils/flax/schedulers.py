"""Noise schedules and samplers: DDPM's noising, and DDIM and DPM-Solver++ as tables of numbers.

Both samplers are linear in the latents and the U-Net's predictions, of this step and the previous one. Their formulas
are therefore evaluated beforehand, in float64 on the host, as a table of weights; on the device, one loop serves both
and is compiled once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from tiutils.errors import InputError
from tiutils.io.pretrained import PREDICTION_TYPES

SAMPLERS = ("dpmsolver++", "ddim")
SPACINGS = ("linspace", "leading", "trailing")
# options of DPM-Solver++, with the only value that is supported
DPM_OPTIONS = {
    "solver_order": 2, "solver_type": "midpoint", "algorithm_type": "dpmsolver++", "final_sigmas_type": "zero",
    "euler_at_final": False, "use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False,
    "use_lu_lambdas": False, "use_flow_sigmas": False,
}  # fmt: skip
NEVER_ZERO = 2.0**-24  # for ᾱ of pure noise, as in diffusers


def alphas_cumprod(config: Mapping[str, Any]) -> np.ndarray:
    """ᾱ_t = Π (1 − β): how much of the picture is left at each timestep, float32 `(num_train_timesteps,)`.

    Args:
        config: of a scheduler, as in a model's scheduler_config.json.

    Raises:
        InputError: the schedule is not supported.
    """
    steps, schedule = _train_timesteps(config), config.get("beta_schedule", "linear")
    start, end = config.get("beta_start", 0.0001), config.get("beta_end", 0.02)
    if config.get("trained_betas") is not None:
        betas = np.asarray(config["trained_betas"], np.float32)
    elif schedule == "linear":
        betas = np.linspace(start, end, steps, dtype=np.float32)
    elif schedule == "scaled_linear":
        betas = np.linspace(start**0.5, end**0.5, steps, dtype=np.float32) ** 2
    elif schedule == "squaredcos_cap_v2":  # Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 17
        cosine = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - cosine[1:] / cosine[:-1], 0.999).astype(np.float32)
    else:
        raise _unsupported("beta_schedule", schedule, "linear, scaled_linear, squaredcos_cap_v2")
    products = np.cumprod(1 - betas, dtype=np.float64)
    if config.get("rescale_betas_zero_snr"):  # Lin et al. 2023, arXiv 2305.08891, algorithm 1
        roots = np.sqrt(products)
        products = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2
    return products.astype(np.float32)


def add_noise(alphas_cumprod: Array, timesteps: Array, samples: Array, noise: Array) -> Array:
    """√ᾱ x + √(1 − ᾱ) ε (Ho et al. 2020, eq. 4); `timesteps` is `(batch,)`, the others `(batch, c, h, w)`."""
    signal, sigma = _scales(alphas_cumprod, timesteps)
    return signal * samples + sigma * noise


def velocity(alphas_cumprod: Array, timesteps: Array, samples: Array, noise: Array) -> Array:
    """√ᾱ ε − √(1 − ᾱ) x (Salimans & Ho 2022, arXiv 2202.00512, section 4); shapes as for `add_noise`."""
    signal, sigma = _scales(alphas_cumprod, timesteps)
    return signal * noise - sigma * samples


def _scales(alphas_cumprod: Array, timesteps: Array) -> tuple[Array, Array]:
    product = alphas_cumprod[timesteps][:, None, None, None]
    return jnp.sqrt(product), jnp.sqrt(1 - product)


class Sampler(NamedTuple):
    """A way from noise to latents in n steps, as tables; made by `sampler`.

    With x_i the latents before step i and u_i the U-Net's prediction for them, x_{i+1} is the sum of
    (x_i, x_{i-1}, u_i, u_{i-1}, …) times row i of the weights.

    Attributes:
        timesteps: int32 `(n,)`, from noise to picture.
        weights: float32 `(n, 2 + k)`, two for latents and k for predictions.
    """

    timesteps: Array
    weights: Array


def sampler(
    config: Mapping[str, Any], num_inference_steps: int, kind: str = "dpmsolver++"
) -> Sampler:
    """Compute a sampler's tables.

    Args:
        config: of a scheduler, as in a model's scheduler_config.json: betas, prediction type, timestep spacing, …
            Samples are never clipped, since latents, unlike pixels, are not confined to [-1, 1].
        num_inference_steps: how many.
        kind: `"ddim"` (Song et al. 2020, arXiv 2010.02502) or `"dpmsolver++"` (2M: Lu et al. 2022, arXiv 2211.01095).

    Raises:
        InputError: the kind, an option, or the number of steps is not supported.
    """
    makers = {"dpmsolver++": _dpm_solver, "ddim": _ddim}
    if kind not in makers:
        raise InputError(f"there is no sampler {kind!r}; choose one of {', '.join(SAMPLERS)}")
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in PREDICTION_TYPES:
        raise _unsupported("prediction_type", prediction, " and ".join(PREDICTION_TYPES))
    limit = _train_timesteps(config) - 1
    if not 1 <= num_inference_steps <= limit:
        raise InputError(f"num_inference_steps is {num_inference_steps}; it must be 1 to {limit}")
    timesteps, weights = makers[kind](config, num_inference_steps)
    return Sampler(jnp.asarray(timesteps, jnp.int32), jnp.asarray(weights, jnp.float32))


def sample(sampler: Sampler, predict: Callable[[Array, Array], Array], latents: Array) -> Array:
    """Go from noise to latents; one `lax.scan`, so that it can be jitted.

    Args:
        sampler: the tables.
        predict: the U-Net: latents and a timestep (int32 scalar) to its prediction, of the latents' shape.
        latents: float32 noise.
    """

    def step(carry: tuple[Array, Array, Array], row: Sampler) -> Any:
        now, before, said_before = carry
        said = predict(now, row.timesteps).astype(jnp.float32)
        said_lately = jnp.concatenate([said[None], said_before])
        # products and sums, because a TPU would round a matrix product to bfloat16
        terms = zip(row.weights, (now, before, *said_lately), strict=True)
        later = sum(weight * term for weight, term in terms)
        return (later, now, said_lately[:-1]), None

    said_before = jnp.zeros((sampler.weights.shape[1] - 3, *latents.shape))
    start = (latents, jnp.zeros_like(latents), said_before)
    (latents, *_), _ = lax.scan(step, start, sampler)
    return latents


def _ddim(config: Mapping[str, Any], steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Eq. 12 without noise, from the x_0 and ε that are predicted now."""
    timesteps = _timesteps(config, steps)
    products = alphas_cumprod(config).astype(np.float64)
    ends = timesteps - len(products) // steps
    last = 1.0 if config.get("set_alpha_to_one", True) else products[0]  # ᾱ below timestep 0
    later = np.where(ends >= 0, products[ends], last)
    clean, noise = _predicted(config, products[timesteps])
    keep, add = np.sqrt(later) * clean + np.sqrt(1 - later) * noise
    return timesteps, np.stack([keep, np.zeros_like(keep), add], axis=1)


def _dpm_solver(config: Mapping[str, Any], steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Algorithm 2 of DPM-Solver++: second order but for the first and the last step, in the predicted x_0."""
    for name, value in DPM_OPTIONS.items():
        if config.get(name, value) != value:
            raise _unsupported(name, config[name], repr(value))
    if str(config.get("variance_type")).startswith("learned"):  # fixed ones have no effect here
        raise _unsupported("variance_type", config["variance_type"], "'fixed_small'")
    # one more timestep than steps; the last one, the image itself, is left out
    trailing = config.get("timestep_spacing", "linspace") == "trailing"
    timesteps = _timesteps(config, steps) if trailing else _timesteps(config, steps + 1)[:-1]
    products = np.maximum(alphas_cumprod(config).astype(np.float64), NEVER_ZERO)[timesteps]
    clean, _ = _predicted(config, products)
    products = np.append(products, 1.0)  # ends at the picture itself
    signal, sigma = np.sqrt(products), np.sqrt(1 - products)
    with np.errstate(divide="ignore"):
        h = np.diff(np.log(signal) - np.log(sigma))  # inf at the end
    gain = -signal[1:] * np.expm1(-h)
    slope = np.zeros_like(h)  # of the extrapolation from the step before
    slope[1:-1] = 0.5 * h[1:-1] / h[:-2]
    weights = np.zeros((len(timesteps), 4))
    weights[:, 0] = sigma[1:] / sigma[:-1]
    weights[:, [0, 2]] += (gain * (1 + slope) * clean).T
    weights[1:, [1, 3]] -= (gain[1:] * slope[1:] * clean[:, :-1]).T
    return timesteps, weights


def _predicted(config: Mapping[str, Any], products: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The predicted x_0 and ε as weights of the latents and of the U-Net's output, `(2, n)` each."""
    signal, sigma = np.sqrt(products), np.sqrt(1 - products)
    if config.get("prediction_type", "epsilon") == "v_prediction":
        return np.stack([signal, -sigma]), np.stack([sigma, signal])
    zeros, ones = np.zeros_like(signal), np.ones_like(signal)
    return np.stack([ones, -sigma]) / signal, np.stack([zeros, ones])


def _timesteps(config: Mapping[str, Any], steps: int) -> np.ndarray:
    """Timesteps from noise to picture, int64 `(steps,)` (Lin et al. 2023, arXiv 2305.08891, table 2)."""
    count, spacing = _train_timesteps(config), config.get("timestep_spacing", "leading")
    if spacing == "linspace":
        timesteps = np.linspace(0, count - 1, steps).round()[::-1]
    elif spacing == "leading":
        timesteps = (np.arange(steps) * (count // steps))[::-1] + config.get("steps_offset", 0)
    elif spacing == "trailing":
        timesteps = np.arange(count, 0, -count / steps).round() - 1
    else:
        raise _unsupported("timestep_spacing", spacing, ", ".join(SPACINGS))
    if timesteps[0] >= count:
        raise InputError(
            f"{steps} steps with steps_offset {config.get('steps_offset')} begin after the last timestep, "
            f"{count - 1}: use fewer steps"
        )
    return timesteps.astype(np.int64)


def _train_timesteps(config: Mapping[str, Any]) -> int:
    return config.get("num_train_timesteps", 1000)


def _unsupported(name: str, value: Any, supported: str) -> InputError:
    return InputError(
        f"the scheduler's option {name} is {value!r}, supported in JAX: {supported}; use PyTorch for this model"
    )
