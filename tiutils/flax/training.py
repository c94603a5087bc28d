"""The training loop in JAX: the same batches, loss and optimizer as in `tiutils.training`.

Many steps are dispatched at once, as a loop in one compiled program (`steps`), and the host samples the next batches
while the device runs. The loop returns the run state after *each* step (a few kilobytes), so that callbacks,
checkpoints and stops are exact to the step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from tiutils.batches import batch_at, fixed_plan
from tiutils.concept import Concept
from tiutils.config import TrainingConfig, learning_rate_at
from tiutils.errors import InputError
from tiutils.flax import inference, token_embedding
from tiutils.flax.diffusion import LatentDataset, Samples, batch_loss, encode_dataset
from tiutils.flax.models import FlaxModels
from tiutils.flax.steps import State, compile_steps, first_state, precision_of
from tiutils.io.checkpoints import RunState, check_state
from tiutils.protocols import Callback, LoopResult, Progress, identity_of
from tiutils.tokenizer import Placeholder

STEPS_PER_DISPATCH = 10


@dataclass
class Training:
    """Everything a step needs; see `prepare`.

    Attributes:
        steps: the compiled steps: frozen weights, state, samples, learning rates and how many of them count, to the
            state and loss after each step.
        loss: the compiled loss of a micro-batch, summed: rows, frozen weights and samples to a scalar.
        frozen: what the steps read and never change: weights, moments of the photos, prompts, other learned rows.
        state: after the last finished step.
    """

    models: FlaxModels
    placeholder: Placeholder
    dataset: LatentDataset
    config: TrainingConfig
    mesh: Mesh
    state: State
    frozen: Any
    steps: Callable[..., tuple[State, tuple[State, jax.Array]]]
    loss: Callable[..., jax.Array]
    total_steps: int
    packages: tuple[str, ...] = ("jax", "flax", "optax", "transformers")

    def vectors(self) -> np.ndarray:
        """A copy of what is learned on the host, float32 `(num_vectors, hidden)`."""
        return np.array(self.state.mean)

    def set_vectors(self, vectors: np.ndarray) -> None:
        """Replace what is learned, and continue from there."""
        self.state = self.state._replace(rows=jnp.array(vectors), mean=jnp.array(vectors))
        token_embedding.set_rows(self.models, self.placeholder, vectors)

    def fixed_loss(self, num_samples: int) -> float:
        """Mean loss of a batch of `num_samples` samples that is the same at every step."""
        plan, at_once = fixed_plan(self.dataset.plan, num_samples), self.config.train_batch_size
        rows, total = jnp.asarray(self.state.mean), 0.0
        for start in range(0, num_samples, at_once):
            batch = batch_at(plan, 0, start, min(start + at_once, num_samples))
            samples = Samples(*(getattr(batch, name) for name in Samples._fields))
            with jax.default_matmul_precision(precision_of(self.config)):
                total += float(self.loss(rows, self.frozen, samples))
        return total / num_samples

    def predictions(self, prompts: Sequence[str], noise: np.ndarray, timestep: int) -> np.ndarray:
        """What the U-Net predicts for each prompt from the same noise: see `inference.predictions`."""
        return inference.predictions(self.models, prompts, noise, timestep)

    def machine(self) -> dict[str, Any]:
        """Where it runs, for run.json."""
        devices = list(self.mesh.devices.flat)
        kind = devices[0].device_kind
        return {"device": f"{len(devices)} × {kind}", "framework": "flax", "processes": 1}

    def capture(self, step: int) -> RunState:
        """The run state after `step` steps, with the names that PyTorch's has."""
        rows, mean, taken, known = jax.tree.map(np.array, self.state)
        tensors = {"rows": rows} | {f"optimizer.{name}": value for name, value in known.items()}
        if self.config.optimizer == "adamw":
            tensors["optimizer.step"] = taken.astype(np.float32)  # as in PyTorch
        if self.config.average_rows:
            tensors["mean_rows"] = mean
        optimizer = {"optimizer": self.config.optimizer_name, "optimizer_numbers": {}}
        scalars = {**identity_of(self), **optimizer, "scaler": {}}
        return RunState(step, tensors, scalars)


def make_mesh(batch_size: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """All devices on one axis, along which each micro-batch is divided.

    Raises:
        InputError: the batch cannot be divided among them.
    """
    devices = list(devices or jax.devices())
    if batch_size % len(devices):
        near = -(-batch_size // len(devices)) * len(devices)
        raise InputError(
            f"--train_batch_size is {batch_size}, which does not divide over {len(devices)} devices; "
            f"use a multiple of {len(devices)}, such as {near}"
        )
    return Mesh(np.array(devices), ("batch",))


def prepare(
    models: FlaxModels,
    placeholder: Placeholder,
    concept: Concept,
    config: TrainingConfig,
    mesh: Mesh | None = None,
) -> Training:
    """Prepare all that a step needs: dataset, state, frozen weights on every device, the compiled steps."""
    config = config.with_learning_rate(models.hidden_size)
    mesh = mesh or make_mesh(config.train_batch_size)
    everywhere = NamedSharding(mesh, P())
    dataset = encode_dataset(models, concept, placeholder.token, config)
    models.unet.gradient_checkpointing = config.gradient_checkpointing
    frozen = {
        "text_encoder": models.text_encoder,
        "unet": models.unet,
        **{k: v for k, v in dataset._asdict().items() if k != "plan"},
        "rows": models.rows,
        "alphas_cumprod": jnp.asarray(models.signal_levels()),
    }
    loss = functools.partial(
        batch_loss,
        place=token_embedding.place_of(models, placeholder),
        first_id=models.first_id,
        prediction_type=models.prediction_type,
    )
    (length,) = token_embedding.usual_norms(models, placeholder) if config.norm_control else (0.0,)
    rows = jnp.array(token_embedding.rows_of(models, placeholder))  # a copy: buffers are donated
    return Training(
        models,
        placeholder,
        dataset,
        config,
        mesh,
        jax.device_put(first_state(rows, config), everywhere),
        jax.device_put(frozen, everywhere),
        compile_steps(loss, config, everywhere, length),
        jax.jit(loss),
        config.total_steps(len(concept.photos)),
    )


def next_batches(training: Training, step: int) -> tuple[Samples, np.ndarray, int]:
    """Batches and learning rates of the steps from `step` on, and how many of them count; all on the devices."""
    config, plan, total = training.config, training.dataset.plan, training.total_steps
    count = min(STEPS_PER_DISPATCH, total - step)
    numbers = [step + min(k, count - 1) for k in range(STEPS_PER_DISPATCH)]
    batches = {number: batch_at(plan, number) for number in dict.fromkeys(numbers)}
    shape = (config.gradient_accumulation_steps, config.train_batch_size)

    def stack(name: str) -> np.ndarray:
        arrays = [getattr(batches[number], name) for number in numbers]
        values = np.stack([array.reshape(*shape, *array.shape[1:]) for array in arrays])
        return values.astype(np.int32) if values.dtype == np.int64 else values

    sharding = NamedSharding(training.mesh, P(None, None, "batch"))
    samples = Samples(*(jax.device_put(stack(name), sharding) for name in Samples._fields))
    rates = [learning_rate_at(config, number, total) for number in numbers]
    return samples, np.array(rates, np.float32), count


def train_rows(
    training: Training, start: int = 0, callbacks: Sequence[Callback] = ()
) -> LoopResult:
    """The loop: steps from `start` to the end, callbacks after each; a loss that is not finite ends it."""
    result = LoopResult(step=start)
    good_state, good_step = training.state, start
    for step, state, loss in run_steps(training, start):
        result.losses.append(float(loss))
        rows = np.asarray(state.mean)
        if not (np.isfinite(loss) and np.isfinite(rows).all()):
            training.state = good_state
            result.diverge(step + 1, good_step)
            break
        # a finite loss shows that the rows before the step were good
        good_state, good_step = training.state, step
        training.state, result.step = state, step + 1
        token_embedding.set_rows(training.models, training.placeholder, rows)
        rate = learning_rate_at(training.config, step, training.total_steps)
        wishes = [callback(Progress(step + 1, loss, rate, training)) for callback in callbacks]
        if any(wishes):
            result.stopped = "stopped by request"
            break
    token_embedding.set_rows(training.models, training.placeholder, training.vectors())
    return result


def run_steps(training: Training, start: int) -> Iterator[tuple[int, State, np.ndarray]]:
    """Step number, state after it and loss of each step from `start` on, as NumPy arrays.

    It is always one dispatch ahead: while the caller handles one, the device runs the next.
    """
    everywhere = NamedSharding(training.mesh, P())
    # a copy, because it is donated
    state = jax.device_put(jax.tree.map(np.array, training.state), everywhere)
    ahead: list[tuple[int, int, Any]] = []
    for first in range(start, training.total_steps, STEPS_PER_DISPATCH):
        samples, rates, count = next_batches(training, first)
        state, after = training.steps(training.frozen, state, samples, rates, count)
        ahead.append((first, count, after))
        if len(ahead) == 2:
            yield from _unpacked(*ahead.pop(0))
    for rest in ahead:
        yield from _unpacked(*rest)


def _unpacked(first: int, count: int, after: Any) -> Iterator[tuple[int, State, np.ndarray]]:
    states, losses = jax.device_get(after)
    for k in range(count):
        yield first + k, jax.tree.map(lambda part, k=k: part[k], states), losses[k]


def restore(training: Training, state: RunState) -> None:
    """Return to a run state, from JAX or PyTorch.

    Raises:
        InputError: see `checkpoints.check_state`.
    """
    config, now = training.config, training.state
    shape = (now.rows.shape[0], now.rows.shape[1])
    check_state(state, training.placeholder.token, shape, config.optimizer_name)
    rows = state.tensors["rows"]
    mean = state.tensors.get("mean_rows", rows) if config.average_rows else rows
    known = {name: state.tensors[f"optimizer.{name}"] for name in now.optimizer}
    taken = np.int32(state.tensors.get("optimizer.step", state.step))
    values = jax.tree.map(jnp.asarray, State(rows, mean, taken, known))
    training.state = jax.device_put(values, NamedSharding(training.mesh, P()))
    token_embedding.set_rows(training.models, training.placeholder, values.mean)
