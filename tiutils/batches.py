"""Everything random in a training step, as a pure function of (seed, step, sample).

`batch_at(plan, step)` needs no generator that earlier steps have advanced. A run can be resumed at any step, cut into
micro-batches in any way, or spread over processes, and still trains on the same numbers; PyTorch and JAX get the same
batch. The random bits are counter-based: raw Philox4x64-10 words (Salmon et al. 2011, "Parallel random numbers: as easy
as 1, 2, 3"), keyed by seed and step, counted by sample and purpose. Uniforms and normals are made from them here,
because NumPy promises to keep its bit generators' streams, but not its distributions'.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

# What a stream of random bits is for. Numbers are never reused, so that a new purpose changes no existing stream.
_PHOTO_ORDER, _VIEW, _PROMPT, _TIMESTEP, _LATENT_NOISE, _NOISE = range(6)
SEED = 2302_04841  # a seed that no run is likely to have, for the fixed batch


@dataclass(frozen=True)
class BatchPlan:
    """What batches are sampled from.

    Attributes:
        seed: of the run, 0 to 2**63 - 1.
        batch_size: samples of one optimizer step, over all micro-batches and processes.
        views_per_photo: how many views (crops and flips) each photo has.
        num_prompts: how many prompt templates there are.
        latent_shape: `(channels, height, width)` of one sample's latents.
        num_train_timesteps: of the noise schedule, 1000 in Stable Diffusion.
        timestep_sampling: "uniform", or "noisy": more of the high ones, where shapes are decided.
        timestep_range: the lowest timestep and the one after the highest; None: all.
    """

    seed: int
    batch_size: int
    views_per_photo: tuple[int, ...]
    num_prompts: int
    latent_shape: tuple[int, int, int]
    num_train_timesteps: int = 1000
    timestep_sampling: str = "uniform"
    timestep_range: tuple[int, int] | None = None


@dataclass(frozen=True)
class Batch:
    """Samples of one step, NumPy arrays with one entry a sample.

    Attributes:
        views: int64 `(batch,)`, indices into all views of all photos in order.
        prompts: int64 `(batch,)`, indices of prompt templates.
        timesteps: int64 `(batch,)`.
        latent_noise: float32 `(batch, channels, height, width)`, turns a view's moments into a latent sample.
        noise: float32 `(batch, channels, height, width)`, what the U-Net is to predict.
    """

    views: np.ndarray
    prompts: np.ndarray
    timesteps: np.ndarray
    latent_noise: np.ndarray
    noise: np.ndarray


def batch_at(plan: BatchPlan, step: int, start: int = 0, stop: int | None = None) -> Batch:
    """Samples `start` to `stop` of the batch of one step; the whole batch by default.

    Each photo is seen equally often: each pass goes through a new shuffle of the photos. Views and prompts are uniform,
    timesteps as the plan says.
    """
    samples = range(start, plan.batch_size if stop is None else stop)
    first_view = np.concatenate([[0], np.cumsum(plan.views_per_photo)])
    columns: list[tuple[int, int, int]] = []
    for sample in samples:
        photo = _photo_of(plan, step * plan.batch_size + sample)
        view = first_view[photo] + _choice(plan, step, sample, _VIEW, plan.views_per_photo[photo])
        prompt = _choice(plan, step, sample, _PROMPT, plan.num_prompts)
        columns.append((view, prompt, _timestep(plan, step, sample)))
    views, prompts, timesteps = np.array(columns, dtype=np.int64).reshape(-1, 3).T
    latent_noise, noise = (
        np.stack([_normals(_bits(plan.seed, step, s, purpose, plan.latent_shape)) for s in samples])
        for purpose in (_LATENT_NOISE, _NOISE)
    )
    return Batch(views, prompts, timesteps, latent_noise, noise)


def _photo_of(plan: BatchPlan, position: int) -> int:
    """The photo at a position of the endless walk: pass `position // photos` is a shuffle keyed by (seed, pass)."""
    walk, place = divmod(position, len(plan.views_per_photo))
    keys = _bits(plan.seed, walk, 0, _PHOTO_ORDER, (len(plan.views_per_photo),))
    return int(np.argsort(keys, kind="stable")[place])


def _choice(plan: BatchPlan, step: int, sample: int, purpose: int, count: int) -> int:
    """A uniform integer below `count`."""
    return int(_uniforms(_bits(plan.seed, step, sample, purpose, (1,)))[0] * count)


def _timestep(plan: BatchPlan, step: int, sample: int) -> int:
    """A timestep in the plan's range: uniform, or of density proportional to 1 - cos(π t / T) / 2.

    The density is ReVersion's (Huang et al. 2023, arXiv 2303.13495), cut off outside the range.
    """
    low, high = plan.timestep_range or (0, plan.num_train_timesteps)
    if plan.timestep_sampling == "uniform":
        return low + _choice(plan, step, sample, _TIMESTEP, high - low)
    uniform = _uniforms(_bits(plan.seed, step, sample, _TIMESTEP, (1,)))[0]
    edges = np.arange(plan.num_train_timesteps + 1) / plan.num_train_timesteps
    below = edges - np.sin(np.pi * edges) / (2 * np.pi)  # proportional to the mass below each
    place = below[low] + uniform * (below[high] - below[low])
    return min(int(np.searchsorted(below, place, side="right")) - 1, high - 1)


def _bits(seed: int, step: int, sample: int, purpose: int, shape: tuple[int, ...]) -> np.ndarray:
    """Raw Philox words, uint64 of `shape`; the lowest counter word counts the blocks within one stream."""
    generator = np.random.Philox(key=[seed, step], counter=[0, 0, sample, purpose])
    return generator.random_raw(int(np.prod(shape))).reshape(shape)


def _uniforms(bits: np.ndarray) -> np.ndarray:
    """Float64 in [0, 1) from the upper 53 bits of each word."""
    return (bits >> np.uint64(11)) * 2.0**-53


def _normals(bits: np.ndarray) -> np.ndarray:
    """Standard normals, float32 of the same shape, one a word (Box and Muller 1958).

    The two halves of a word are the two uniforms; only the cosine is taken, so each value depends on its own word.
    """
    upper = (
        (bits >> np.uint64(32)).astype(np.float64) + 0.5
    ) * 2.0**-32  # in (0, 1): its logarithm is finite
    lower = (bits & np.uint64(0xFFFFFFFF)).astype(np.float64) * 2.0**-32
    return (np.sqrt(-2.0 * np.log(upper)) * np.cos(2.0 * np.pi * lower)).astype(np.float32)


def fixed_plan(plan: BatchPlan, num_samples: int) -> BatchPlan:
    """The same photos and prompts, with a batch of `num_samples` samples that belongs to no training run."""
    return dataclasses.replace(plan, seed=SEED, batch_size=num_samples)
