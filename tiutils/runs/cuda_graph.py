"""Training steps whose forward and backward pass are recorded once as a CUDA graph, then replayed.

A step of batch 1 is thousands of small kernels; where the host launches them more slowly than the GPU runs them, it
waits. A graph launches all of them at once. It knows its tensors by their addresses, so each batch is copied into the
buffers that the first one came in. What follows the gradient (learning rate, clipping, loss scaler, optimizer, length
of the rows) is a few kernels and stays outside: it may change from step to step, and recording changes none of it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate.utils import AutocastKwargs
from torch import Tensor

from tiutils.batches import batch_at
from tiutils.diffusion import losses_of
from tiutils.training import Training, add_gradient, move_rows

WARM_UP = 3  # times: libraries choose and allocate what must not happen while a graph is recorded

Work = Callable[[], tuple[Tensor, ...]]
Recorded = tuple[Callable[[], object], tuple[Tensor, ...]]


def record(work: Work) -> Recorded:
    """Record what `work` does on the GPU: what replays it, and the tensors that each replay fills anew."""
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
    """Takes steps as `training.training_step` does, on the same batches; for one process and one device.

    The first call records. Until then, and if recording fails, rows, optimizer and loss scaler are as they were. The
    weights must stay where they are, and settings that decide about the batch as they are.
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
        """Put the batch of `step` where the graph reads it."""
        device = training.rows.device
        arrays = vars(batch_at(training.dataset.plan, step)).values()
        given = [torch.from_numpy(array) for array in arrays]
        if not self.buffers:
            self.buffers = [tensor.to(device, copy=True) for tensor in given]
            return
        for buffer, tensor in zip(self.buffers, given, strict=True):
            # pinned memory need not wait until the last step is done
            buffer.copy_(tensor.pin_memory() if buffer.is_cuda else tensor, non_blocking=True)

    def _work(self, training: Training) -> tuple[Tensor, Tensor]:
        """Forward and backward pass of the batch in the buffers: mean loss, and a new gradient."""
        config, rows = training.config, training.rows
        rows.grad = None
        loss = torch.zeros((), device=rows.device)
        for start in range(0, config.samples_per_process, config.train_batch_size):
            samples = [buffer[start : start + config.train_batch_size] for buffer in self.buffers]
            # what autocast keeps for later would be freed between replays
            with training.accelerator.autocast(AutocastKwargs(cache_enabled=False)):
                losses = losses_of(training.models, training.dataset, *samples)
            loss += add_gradient(training, losses)
        gradient, rows.grad = rows.grad, None  # outside of the graph other steps have their own
        assert gradient is not None
        return loss, gradient
