"""Optimizer steps in JAX, many in one compiled program, with the same numbers as in PyTorch."""

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
    """What a step changes: the rows, and the optimizer's state under PyTorch's names.

    Attributes:
        rows: float32 `(num_vectors, hidden)`.
        mean: what is learned, of the same shape: with --average_rows the mean, see `tiutils.training.average_rows`;
            otherwise the rows.
        taken: steps so far, int32.
        optimizer: AdamW's `exp_avg` and `exp_avg_sq`, means of the gradients and of their squares; or the `start`
            from which `--optimizer directional` turns the rows; of the rows' shape.
    """

    rows: jax.Array
    mean: jax.Array
    taken: jax.Array
    optimizer: dict[str, jax.Array]


def first_state(rows: jax.Array, config: TrainingConfig) -> State:
    """The state before the first step."""
    names = ("start",) if config.optimizer == "directional" else ("exp_avg", "exp_avg_sq")
    fill = jnp.copy if config.optimizer == "directional" else jnp.zeros_like
    return State(rows, rows.copy(), jnp.zeros((), jnp.int32), {name: fill(rows) for name in names})


def turned(
    rows: jax.Array, gradient: jax.Array, start: jax.Array, rate: jax.Array, prior: float
) -> jax.Array:
    """The twin of `tiutils.directional.turned`; all arrays are float32 `(num_vectors, hidden)`."""

    def length_of(vectors: jax.Array) -> jax.Array:
        return jnp.maximum(jnp.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    length = length_of(rows)
    direction = rows / length
    gradient = length * gradient - prior * start / length_of(start)
    gradient -= (gradient * direction).sum(1, keepdims=True) * direction
    new = direction - rate * gradient / length_of(gradient)
    return length * new / length_of(new)


def compile_steps(
    loss: Callable[..., jax.Array], config: TrainingConfig, everywhere: NamedSharding, length: float
) -> Callable[..., Any]:
    """Several optimizer steps as one compiled function; see `Training.steps`."""
    adamw = optax.chain(
        optax.scale_by_adam(config.adam_beta1, config.adam_beta2, config.adam_epsilon),
        optax.add_decayed_weights(config.adam_weight_decay),
    )

    def step(frozen: Any, state: State, samples: Samples, rate: jax.Array) -> Any:
        """One optimizer step: gradients of the micro-batches added up, then the rows moved."""

        def add(sums: Any, micro_batch: Samples) -> Any:
            found = jax.value_and_grad(loss)(state.rows, frozen, micro_batch)
            return jax.tree.map(jnp.add, sums, found), None

        sums, _ = lax.scan(add, (jnp.zeros(()), jnp.zeros_like(state.rows)), samples)
        mean_loss, gradient = jax.tree.map(lambda x: x / config.samples_per_process, sums)
        if config.max_grad_norm is not None:
            gradient *= jnp.minimum(1.0, config.max_grad_norm / (jnp.linalg.norm(gradient) + 1e-6))
        known, taken = state.optimizer, state.taken + 1
        if config.optimizer == "directional":
            rows = turned(state.rows, gradient, known["start"], rate, config.direction_prior)
        else:
            moments = optax.ScaleByAdamState(state.taken, known["exp_avg"], known["exp_avg_sq"])
            change, (moments, _) = adamw.update(gradient, (moments, optax.EmptyState()), state.rows)
            rows = state.rows - rate * change
            known = {"exp_avg": moments.mu, "exp_avg_sq": moments.nu}
        if config.norm_control:
            lengths = jnp.maximum(jnp.linalg.norm(rows, axis=1, keepdims=True), 1e-8)
            rows *= 1 + config.norm_control * (length / lengths - 1)
        mean = rows
        if config.average_rows:
            share = 1 / jnp.minimum(taken, config.average_rows)
            mean = (1 - share) * state.mean + share * rows
        return State(rows, mean, taken, known), mean_loss

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
