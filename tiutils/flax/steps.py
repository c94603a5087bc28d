"""Optimizer steps in JAX, many in one compiled program, with the same numbers as PyTorch's AdamW."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import NamedSharding

from tiutils.config import TrainingConfig
from tiutils.flax.diffusion import Samples


class State(NamedTuple):
    """What a step changes: the rows, and the state of AdamW under PyTorch's names.

    Attributes:
        rows: float32 `(num_vectors, hidden)`.
        mean: what is learned, the same shape: with --average_rows the mean, see `tiutils.training.average_rows`;
            without it the rows.
        exp_avg: mean of the gradients, the same shape.
        exp_avg_sq: mean of their squares, the same shape.
        step: optimizer steps so far, int32.
    """

    rows: jax.Array
    mean: jax.Array
    exp_avg: jax.Array
    exp_avg_sq: jax.Array
    step: jax.Array


def compile_steps(
    loss: Callable[..., jax.Array],
    config: TrainingConfig,
    everywhere: NamedSharding,
    length: float,
) -> Callable[..., Any]:
    """Several optimizer steps as one compiled function; see `Training.steps`."""
    adamw = optax.chain(
        optax.scale_by_adam(config.adam_beta1, config.adam_beta2, config.adam_epsilon),
        optax.add_decayed_weights(config.adam_weight_decay),
    )

    def step(frozen: Any, state: State, samples: Samples, rate: jax.Array) -> Any:
        """One optimizer step: gradients of the micro-batches added up, then AdamW."""

        def add(sums: Any, micro_batch: Samples) -> Any:
            found = jax.value_and_grad(loss)(state.rows, frozen, micro_batch)
            return jax.tree.map(jnp.add, sums, found), None

        sums, _ = lax.scan(add, (jnp.zeros(()), jnp.zeros_like(state.rows)), samples)
        mean_loss, gradient = jax.tree.map(lambda x: x / config.samples_per_process, sums)
        if config.max_grad_norm is not None:
            gradient *= jnp.minimum(1.0, config.max_grad_norm / (jnp.linalg.norm(gradient) + 1e-6))
        moments = optax.ScaleByAdamState(state.step, state.exp_avg, state.exp_avg_sq)
        direction, (moments, _) = adamw.update(gradient, (moments, optax.EmptyState()), state.rows)
        rows = state.rows - rate * direction
        if config.norm_control:
            lengths = jnp.maximum(jnp.linalg.norm(rows, axis=1, keepdims=True), 1e-8)
            rows *= 1 + config.norm_control * (length / lengths - 1)
        mean = rows
        if config.average_rows:
            share = 1 / jnp.minimum(moments.count, config.average_rows)
            mean = (1 - share) * state.mean + share * rows
        return State(rows, mean, moments.mu, moments.nu, moments.count), mean_loss

    @functools.partial(jax.jit, donate_argnums=1, out_shardings=everywhere)
    def steps(
        frozen: Any, state: State, samples: Samples, rates: jax.Array, count: jax.Array
    ) -> Any:
        def one(number: jax.Array, carried: Any) -> Any:
            state, kept = carried
            batch, rate = jax.tree.map(lambda x: x[number], (samples, rates))
            state, loss = step(frozen, state, batch, rate)
            keep = functools.partial(jax.tree.map, lambda every, new: every.at[number].set(new))
            return state, keep(kept, (state, loss))

        room = jax.tree.map(
            lambda x: jnp.zeros((len(rates), *x.shape), x.dtype), (state, jnp.zeros(()))
        )
        with jax.default_matmul_precision(precision_of(config)):
            # steps beyond the end are skipped; a shorter loop would have to be compiled again
            return lax.fori_loop(0, count, one, (state, room))

    return steps


def precision_of(config: TrainingConfig) -> str | None:
    """The precision of matrix products; by default a TPU would compute float32 products in bfloat16."""
    return None if config.allow_tf32 or config.mixed_precision != "no" else "float32"
