"""Training steps whose forward and backward pass are recorded once as a CUDA graph, then replayed.

A step of batch 1 launches thousands of small kernels, and the GPU idles where the host launches them more slowly than
it runs them. A graph launches all of them at once. It refers to tensors by address, so each batch is copied into the
buffers of the first one. What follows the gradient (learning rate, clipping, loss scaler, optimizer, norm of the rows)
takes only a few kernels and stays outside the graph, because it may change from step to step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate.utils import AutocastKwargs
from torch import Tensor

from tiutils.batches import batch_at
from tiutils.diffusion import losses_of
from tiutils.training import Training, add_gradient, move_rows

WARM_UP = 3  # runs before recording, in which libraries select kernels and allocate workspaces

Work = Callable[[], tuple[Tensor, ...]]
Recorded = tuple[Callable[[], object], tuple[Tensor, ...]]


def record(work: Work) -> Recorded:
    """Record `work` as a CUDA graph; returns what replays it, and the tensors that each replay overwrites."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UP):
            work()
    torch.cuda.current_stream().wait_stream(aside)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = work()
    return graph.replay, results


class CapturedStep:
    """Takes the steps of `training.training_step`, on the same batches; for one process and one device.

    The first call records; if that fails, rows, optimizer and loss scaler are unchanged. Afterwards the weights must
    stay at their addresses, and the settings of the batch must not change.
    """

    def __init__(self, record: Callable[[Work], Recorded] = record):
        self.record = record
        self.replay: Callable[[], object] | None = None
        self.buffers: list[Tensor] = []

    def __call__(self, training: Training, step: int) -> Tensor:
        """One optimizer step on the batch of `step`; returns its mean loss, a scalar on the device."""
        self._load(training, step)
        if self.replay is None:
            self.replay, (self.loss, self.gradient) = self.record(lambda: self._work(training))
        self.replay()
        training.rows.grad = self.gradient
        return move_rows(training, step, self.loss.clone())  # the next replay overwrites it

    def _load(self, training: Training, step: int) -> None:
        """Copy the batch of `step` into the buffers that the graph reads."""
        device = training.rows.device
        arrays = vars(batch_at(training.dataset.plan, step)).values()
        given = [torch.from_numpy(array) for array in arrays]
        if not self.buffers:
            self.buffers = [tensor.to(device, copy=True) for tensor in given]
            return
        for buffer, tensor in zip(self.buffers, given, strict=True):
            # a copy from pinned memory need not wait for the previous step
            buffer.copy_(tensor.pin_memory() if buffer.is_cuda else tensor, non_blocking=True)

    def _work(self, training: Training) -> tuple[Tensor, Tensor]:
        """Forward and backward pass of the batch in the buffers: mean loss, and a new gradient."""
        config, rows = training.config, training.rows
        rows.grad = None
        loss = torch.zeros((), device=rows.device)
        for start in range(0, config.samples_per_process, config.train_batch_size):
            samples = [buffer[start : start + config.train_batch_size] for buffer in self.buffers]
            # tensors in autocast's cache would be freed between replays
            with training.accelerator.autocast(AutocastKwargs(cache_enabled=False)):
                losses = losses_of(training.models, training.dataset, *samples)
            loss += add_gradient(training, losses)
        gradient, rows.grad = rows.grad, None  # steps outside the graph get their own gradient
        assert gradient is not None
        return loss, gradient
