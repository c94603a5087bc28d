"""The training step and the loop: noise in, one gradient to a few rows, repeat.

A step is a pure function of the seed, its number, and the run state (rows, optimizer, loss scaler). Callbacks show and
save progress; nothing here generates images, prints, or uploads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tiutils.concept import Concept
from tiutils.config import TrainingConfig, learning_rate_at
from tiutils.diffusion import (
    LatentDataset,
    encode_dataset,
    fixed_batch,
    fixed_loss,
    losses_at,
    predictions,
)
from tiutils.directional import Directional
from tiutils.errors import OutOfMemory
from tiutils.io.checkpoints import RunState, check_state
from tiutils.models import Models
from tiutils.protocols import Callback, LoopResult, Progress, identity_of
from tiutils.token_embedding import rows_of, usual_norms
from tiutils.tokenizer import Placeholder


@dataclass
class Training:
    """Everything a step needs; see `prepare`.

    Attributes:
        rows: what is learned, as the model has it between steps; with --average_rows, the mean.
        newest_rows: with --average_rows, the rows that the next step continues from; otherwise None.
    """

    models: Models
    placeholder: Placeholder
    dataset: LatentDataset
    config: TrainingConfig
    accelerator: Accelerator
    rows: nn.Parameter
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    total_steps: int
    usual_norms: tuple[float, ...]
    newest_rows: Tensor | None = None
    packages: tuple[str, ...] = ("torch", "diffusers", "transformers", "accelerate")

    def vectors(self) -> np.ndarray:
        """A copy of what is learned on the host, float32 `(num_vectors, hidden)`."""
        return _to_host(self.rows)

    def set_vectors(self, vectors: np.ndarray) -> None:
        """Replace what is learned, and continue from there."""
        self.rows.data.copy_(torch.from_numpy(vectors))
        if self.newest_rows is not None:
            self.newest_rows.copy_(self.rows.data)

    def fixed_loss(self, num_samples: int) -> float:
        """Mean loss of a batch that is the same at every step."""
        batch = fixed_batch(self.dataset, num_samples)
        with self.accelerator.autocast():
            return fixed_loss(self.models, batch, self.config.train_batch_size)

    def predictions(self, prompts: Sequence[str], noise: np.ndarray, timestep: int) -> np.ndarray:
        """What the U-Net predicts for each prompt; see `diffusion.predictions`."""
        at_once = self.config.train_batch_size
        parts = [prompts[k : k + at_once] for k in range(0, len(prompts), at_once)]
        return np.concatenate([predictions(self.models, part, noise, timestep) for part in parts])

    def machine(self) -> dict[str, Any]:
        """Where it runs, for run.json."""
        accelerator = self.accelerator
        return {"device": str(accelerator.device), "processes": accelerator.num_processes}

    def capture(self, step: int) -> RunState:
        """The run state after `step` steps."""
        tensors = {"rows": self.vectors()}
        if self.newest_rows is not None:
            tensors = {"rows": _to_host(self.newest_rows), "mean_rows": self.vectors()}
        numbers: dict[str, Any] = {}
        for name, value in self.optimizer.state[self.rows].items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{name}"] = _to_host(value)
            else:
                numbers[name] = value
        optimizer = {"optimizer": type(self.optimizer).__name__, "optimizer_numbers": numbers}
        scalars = {**identity_of(self), **optimizer, "scaler": self.scaler.state_dict()}
        return RunState(step, tensors, scalars)


def _to_host(tensor: Tensor) -> np.ndarray:
    """A copy, because the next step writes into the tensor."""
    return tensor.detach().cpu().numpy().copy()


def prepare(
    models: Models,
    placeholder: Placeholder,
    concept: Concept,
    config: TrainingConfig,
    accelerator: Accelerator,
    scaler: torch.amp.GradScaler | None = None,
) -> Training:
    """Prepare all that a step needs: dataset, rows, optimizer, loss scaler, and the switches that save memory."""
    config = config.with_learning_rate(models.hidden_sizes[0])
    dataset = encode_dataset(models, concept, placeholder.token, config, accelerator.num_processes)
    if config.enable_xformers_memory_efficient_attention:
        models.unet.enable_xformers_memory_efficient_attention()
    if config.gradient_checkpointing:
        recompute_activations(models)
    rows = rows_of(models, placeholder)
    if scaler is None:
        scaler = torch.amp.GradScaler(models.device.type, enabled=config.mixed_precision == "fp16")
    return Training(
        models,
        placeholder,
        dataset,
        config,
        accelerator,
        rows,
        make_optimizer(rows, config, models.hidden_sizes),
        scaler,
        config.total_steps(len(concept.photos), accelerator.num_processes),
        usual_norms(models, placeholder) if config.norm_control else (),
        rows.detach().clone() if config.average_rows else None,
    )


def recompute_activations(models: Models) -> None:
    """Turn on gradient checkpointing in the U-Net and the text encoders."""
    models.unet.enable_gradient_checkpointing()
    for encoder in models.text_encoders:
        recompute = getattr(encoder, "activation_checkpointing_enable", None)  # the newer name
        (recompute or encoder.gradient_checkpointing_enable)({"use_reentrant": False})
        encoder.train()  # transformers recomputes only in training mode; CLIP has no dropout


def make_optimizer(
    rows: nn.Parameter, config: TrainingConfig, widths: Sequence[int] | None = None
) -> torch.optim.Optimizer:
    """The optimizer of the rows and nothing else; each step sets its learning rate.

    `widths` are those of the text encoders' vectors; None if there is one.
    """
    rate = config.with_learning_rate(rows.shape[1]).peak_learning_rate()
    if config.optimizer == "directional":
        return Directional(rows, rate, config.direction_prior, widths or rows.shape[1:])
    settings: dict[str, Any] = {
        "betas": (config.adam_beta1, config.adam_beta2),
        "weight_decay": config.adam_weight_decay,
        "eps": config.adam_epsilon,
    }
    if config.use_8bit_adam:
        import bitsandbytes

        return bitsandbytes.optim.AdamW8bit([rows], lr=rate, **settings)
    # fused AdamW reads the loss scaler's verdict on the GPU; the plain one would synchronize at each step
    return torch.optim.AdamW([rows], lr=rate, fused=rows.is_cuda or None, **settings)


def training_step(training: Training, step: int) -> Tensor:
    """One optimizer step on the batch of `step`; returns its mean loss, a scalar on the device.

    Each process takes its share of the batch in micro-batches, adds up gradients, and shares the sum with the others:
    a tensor of `num_vectors × hidden` numbers.
    """
    config, accelerator = training.config, training.accelerator
    share = config.samples_per_process
    first = accelerator.process_index * share
    loss = torch.zeros((), device=training.rows.device)
    for start in range(first, first + share, config.train_batch_size):
        with accelerator.autocast():
            losses = losses_at(
                training.models, training.dataset, step, start, start + config.train_batch_size
            )
        loss += add_gradient(training, losses)
    return move_rows(training, step, loss)


def add_gradient(training: Training, losses: Tensor) -> Tensor:
    """Add a micro-batch's share of the gradient to that of the rows; returns its share of the mean loss."""
    loss = losses.sum() / training.config.samples_per_process
    training.scaler.scale(loss).backward()
    return loss.detach()


def move_rows(training: Training, step: int, loss: Tensor) -> Tensor:
    """Finish a step once the rows have their gradient; returns the mean loss over all processes."""
    config, accelerator, rows = training.config, training.accelerator, training.rows
    if accelerator.num_processes > 1 and rows.grad is not None:
        shared = accelerator.reduce(torch.cat([rows.grad.flatten(), loss[None]]), reduction="mean")
        rows.grad.copy_(shared[:-1].view_as(rows))
        loss = shared[-1]
    for group in training.optimizer.param_groups:
        group["lr"] = learning_rate_at(
            config, step, training.total_steps, accelerator.num_processes
        )
    if config.max_grad_norm is not None:
        training.scaler.unscale_(training.optimizer)
        nn.utils.clip_grad_norm_([rows], config.max_grad_norm)
    training.scaler.step(training.optimizer)
    training.scaler.update()
    if config.norm_control:
        halves = rows.detach().split(training.models.hidden_sizes, dim=1)
        for half, usual in zip(halves, training.usual_norms, strict=True):
            lengths = half.norm(dim=1, keepdim=True).clamp(min=1e-8)
            half *= 1 + config.norm_control * (usual / lengths - 1)
    training.optimizer.zero_grad()
    return loss


def average_rows(training: Training, step: int, mean: Tensor) -> None:
    """With --average_rows: keep this step's rows for the next step, and put the mean in their place.

    After step k: mean ← mean + (rows − mean) / min(k, N), which is the plain mean of the first N steps' rows, and from
    then on one that decays by 1 − 1/N. Averaging the iterates of stochastic descent is due to Polyak & Juditsky (1992);
    counting the first N steps avoids the correction that Adam's means need (Kingma & Ba 2015, section 3).

    Args:
        training: its rows have just taken the step.
        step: its number, from 0.
        mean: float32 `(num_vectors, hidden)`, the mean after the previous step.
    """
    if training.newest_rows is not None:
        training.newest_rows.copy_(training.rows.data)
        count = min(step + 1, training.config.average_rows)
        training.rows.data.copy_(torch.lerp(mean, training.newest_rows, 1 / count))


def train_rows(
    training: Training,
    start: int = 0,
    callbacks: Sequence[Callback] = (),
    *,
    take_step: Callable[[Training, int], Tensor] | None = None,
) -> LoopResult:
    """The loop: steps from `start` to the end, callbacks after each; a loss that is not finite ends it.

    `take_step` replaces `training_step`: `memory.with_memory_retry` retries where memory runs out,
    `cuda_graph.CapturedStep` replays a recorded step.
    """
    take_step = take_step or training_step
    result = LoopResult(step=start)
    rows, on_cpu = training.rows, training.rows.device.type == "cpu"
    losses: list[Tensor] = []
    good_rows, good_step = rows.detach().clone(), start
    for step in range(start, training.total_steps):
        rows_before = rows.detach().clone()
        if training.newest_rows is not None:
            rows.data.copy_(training.newest_rows)
        try:
            losses.append(take_step(training, step))
        except OutOfMemory as error:  # the run state is unchanged
            rows.data.copy_(rows_before)
            result.stopped, result.out_of_memory = str(error), True
            break
        average_rows(training, step, rows_before)
        # reading a loss waits for the device, so on a GPU it is read only every tenth step
        if on_cpu or (step + 1) % 10 == 0 or step + 1 == training.total_steps:
            if not (torch.stack(losses[-10:]).isfinite().all() and rows.isfinite().all()):
                rows.data.copy_(good_rows)
                result.diverge(step + 1, good_step)
                break
            good_rows, good_step = rows_before, step  # the rows of the last finite loss
        result.step = step + 1
        lr = training.optimizer.param_groups[0]["lr"]
        progress = Progress(result.step, losses[-1], lr, training)
        wishes = [callback(progress) for callback in callbacks]
        if _agreed(training.accelerator, any(wishes)):
            result.stopped = "stopped by request"
            break
    result.losses = torch.stack(losses).tolist() if losses else []
    return result


def _agreed(accelerator: Accelerator, wish: bool) -> bool:
    """Whether any process wants to stop: all of them must stop after the same step."""
    if accelerator.num_processes == 1:
        return wish
    wishes = torch.tensor(float(wish), device=accelerator.device)
    return bool(accelerator.reduce(wishes, reduction="sum") > 0)


def restore(training: Training, state: RunState) -> None:
    """Return to a run state.

    Raises:
        InputError: see `check_state`.
    """
    rows, token = training.rows, training.placeholder.token
    check_state(state, token, (rows.shape[0], rows.shape[1]), type(training.optimizer).__name__)
    training.set_vectors(state.tensors["rows"].copy())
    if training.newest_rows is not None and "mean_rows" in state.tensors:
        rows.data.copy_(torch.from_numpy(state.tensors["mean_rows"].copy()))
    optimizer_state: dict[str, Any] = dict(state.scalars["optimizer_numbers"])
    for name, array in state.tensors.items():
        if name.startswith("optimizer."):
            # plain AdamW keeps its step count on the CPU; all else is on the device of the rows
            fused = training.optimizer.param_groups[0].get("fused")
            device = "cpu" if array.ndim == 0 and not fused else training.rows.device
            value = torch.from_numpy(array.copy()).to(device)
            optimizer_state[name.removeprefix("optimizer.")] = value
    training.optimizer.state[training.rows] = optimizer_state
    if state.scalars["scaler"]:  # empty if the run was begun in another precision or in JAX
        training.scaler.load_state_dict(state.scalars["scaler"])
