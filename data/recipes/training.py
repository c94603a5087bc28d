"""What the three trainings share: atomic checkpoints, averaged weights, a progress line."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast():
    """bfloat16 where the arithmetic allows it; weights and optimizer stay float32."""
    return torch.autocast(device().type, torch.bfloat16)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def share(indices: np.ndarray) -> np.ndarray:
    """This process's part of a batch that all processes drew alike."""
    return indices[rank() :: dist.get_world_size()] if dist.is_initialized() else indices


def run_parallel(task: Callable[..., None], processes: int, *arguments) -> None:
    """Run `task` in several processes of one thread each, gradients averaged between them.

    On a shared machine this beats one process with several threads: threads meet at every operation, where one that
    was put aside holds up all the others; processes meet once a step.
    """
    if processes == 1:
        task(*arguments)
    else:
        torch.multiprocessing.spawn(_enter, (processes, task, arguments), nprocs=processes)


def _enter(number: int, processes: int, task: Callable[..., None], arguments: tuple) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=os.environ.get("MASTER_PORT", "29461"))
    dist.init_process_group("gloo", rank=number, world_size=processes)
    task(*arguments)
    dist.destroy_process_group()


def average_gradients(module: torch.nn.Module) -> None:
    """The mean of all processes' gradients, in one message."""
    if not dist.is_initialized():
        return
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, part in zip(
        gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True
    ):
        gradient.copy_(part.view_as(gradient))


def generator(seed: int, step: int) -> np.random.Generator:
    """Everything random in a step comes from here, so a resumed run draws what the killed one would have."""
    return np.random.default_rng([seed, step])


class Run:
    """A module with its optimizer, averaged weights and step; saved atomically, resumed when a file is there."""

    def __init__(
        self,
        module: torch.nn.Module,
        path: Path,
        rate: float,
        betas=(0.9, 0.99),
        decay: float = 0.01,
    ):
        self.module, self.path, self.step, self.seconds = module, path, 0, 0.0
        self.optimizer = torch.optim.AdamW(
            module.parameters(), lr=rate, betas=betas, weight_decay=decay, fused=True
        )
        self.rate, self.average = rate, {}
        if path.exists():
            state = torch.load(path, map_location=device(), weights_only=True)
            module.load_state_dict(state["module"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.seconds, self.average = (
                state["step"],
                state["seconds"],
                state["average"],
            )
            if rank() == 0:
                print(f"resumed {path.name} at step {self.step}", flush=True)
        else:
            self.average = {
                key: value.detach().clone() for key, value in module.state_dict().items()
            }

    def save(self) -> None:
        if rank() != 0:
            return
        part = self.path.with_suffix(".part")
        torch.save(
            {
                "module": self.module.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "average": self.average,
                "step": self.step,
                "seconds": self.seconds,
            },
            part,
        )
        os.replace(part, self.path)

    def descend(self, loss: torch.Tensor, rate: float, keep: float) -> None:
        """One optimizer step at this learning rate; the averaged weights follow, `keep` of them staying."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(self.module)
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        keep = min(keep, self.step / (self.step + 10))  # a young average forgets fast
        with torch.no_grad():
            for key, value in self.module.state_dict().items():
                if value.is_floating_point():
                    self.average[key].lerp_(value, 1 - keep)
                else:
                    self.average[key].copy_(value)


def cosine(step: int, steps: int, rate: float, warmup: int = 100, floor: float = 0.03) -> float:
    """Warm up, then fall along half a cosine."""
    if step < warmup:
        return rate * (step + 1) / warmup
    along = min(1, (step - warmup) / max(1, steps - warmup))
    return rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * along)))


def loop(
    run: Run,
    steps: int,
    train_step: Callable[[int], torch.Tensor],
    rate_at: Callable[[int], float],
    keep: float,
    save_every: int = 200,
    watch: Callable[[Run], None] | None = None,
) -> None:
    """Train to `steps`; `watch` may look at the run at each save."""
    shown, losses = time.monotonic(), []
    while run.step < steps:
        begun = time.monotonic()
        loss = train_step(run.step)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"loss is {loss.item()} at step {run.step}")
        run.descend(loss, rate_at(run.step), keep)
        losses.append(loss.item())
        run.seconds += time.monotonic() - begun
        if rank() == 0 and (time.monotonic() - shown > 15 or run.step == steps):
            left = (steps - run.step) * run.seconds / run.step
            print(
                f"{run.path.stem} {run.step}/{steps} loss {np.mean(losses):.4f} "
                f"{run.seconds / run.step:.2f} s a step, {left / 60:.1f} min left",
                flush=True,
            )
            shown, losses = time.monotonic(), []
        if run.step % save_every == 0 or run.step == steps:
            run.save()
            if watch and rank() == 0:
                watch(run)


def load_average(path: Path) -> dict[str, torch.Tensor]:
    """The averaged weights of a checkpoint."""
    return torch.load(path, map_location=device(), weights_only=True)["average"]
