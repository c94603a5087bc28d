"""What the four trainings share: atomic checkpoints, averaged weights, a progress line, an end in time."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from . import muon

SAVE_SECONDS = 30.0  # between two checkpoints at least: a GPU makes a hundred steps in three
UNTIL = math.inf  # on the monotonic clock: when trainings save and stop (`make --minutes`)


class OutOfTime(Exception):
    """The training was saved and stopped because its time is up; started again, it goes on."""


def on_gpu() -> bool:
    """Whether to work as suits a GPU: data kept near it, answers computed again rather than remembered."""
    return torch.cuda.is_available()


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast():
    """bfloat16 where the arithmetic allows it; weights and optimizer stay float32."""
    return torch.autocast(device().type, torch.bfloat16)


def speed_up(module: torch.nn.Module) -> None:
    """On a GPU: channels last, and compiled, in place, so that its state keeps its names."""
    if on_gpu():
        torch.set_float32_matmul_precision("high")
        torch._dynamo.config.suppress_errors = True  # what cannot be compiled runs as it is
        module.to(memory_format=torch.channels_last)
        module.compile(dynamic=False)


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal float32 numbers, on the device; a GPU draws its own from a seed of `rng`."""
    if not on_gpu():
        return torch.from_numpy(rng.standard_normal(shape, np.float32))
    own = torch.Generator(device()).manual_seed(int(rng.integers(2**62)))
    return torch.randn(shape, device=device(), generator=own)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def share(indices: np.ndarray) -> np.ndarray:
    """This process's part of a batch that all processes drew alike."""
    return indices[rank() :: dist.get_world_size()] if dist.is_initialized() else indices


def run_parallel(task: Callable[..., Run | None], processes: int, *arguments) -> Run | None:
    """Run `task` in several processes of one thread each, gradients averaged between them.

    On a shared machine this beats one process with several threads: threads meet at every operation, where one that
    was put aside holds up all the others; processes meet once a step.
    """
    if processes == 1:
        return task(*arguments)
    torch.multiprocessing.spawn(_enter, (processes, task, arguments), nprocs=processes)
    return None


def _enter(number: int, processes: int, task: Callable, arguments: tuple) -> None:
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
        outer: tuple[str, ...] | None = None,
    ):
        """With `outer`, Muon trains all matrices but those of the modules it names; else AdamW trains everything."""
        self.module, self.path, self.step, self.seconds = module, path, 0, 0.0
        adam = {"betas": betas, "weight_decay": decay, "fused": True}
        self.optimizer = (
            torch.optim.AdamW(module.parameters(), lr=rate, **adam)
            if outer is None
            else muon.Both(module, outer, rate, **adam)
        )
        self.rate, self.average = rate, {}
        self.marks: list[tuple[int, float]] = []  # (step, seconds) in the middle, for `plan`
        if path.exists():
            state = torch.load(path, map_location=device(), weights_only=True)
            self.step, self.seconds, self.average = (
                state["step"],
                state["seconds"],
                {
                    key: value.to(module.state_dict()[key])
                    for key, value in state["average"].items()
                },
            )
            module.load_state_dict(state.get("module", self.average))
            if (
                "optimizer" in state
            ):  # else it came through `make --only carry`, and its moments begin anew
                self.optimizer.load_state_dict(state["optimizer"])
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
        state = self.module.state_dict()
        floats = [key for key, value in state.items() if value.is_floating_point()]
        with torch.no_grad():
            torch._foreach_lerp_(
                [self.average[k] for k in floats], [state[k] for k in floats], 1 - keep
            )
            for key in state.keys() - set(floats):
                self.average[key].copy_(state[key])


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
    """Train to `steps`; `watch` may look at the run at each save.

    Losses are read only now and then: to read one is to wait for a GPU that could have been given its next step.
    """
    shown, saved, losses = time.monotonic(), time.monotonic(), []
    begun, spent = time.monotonic(), run.seconds
    middle = (steps // 2, steps * 7 // 8)  # compiled by then, and batches of one shape

    def mean_loss() -> float:
        mean = torch.stack(losses).mean().item() if losses else 0.0
        if not math.isfinite(mean):
            raise FloatingPointError(f"loss is {mean} shortly before step {run.step}")
        run.seconds = spent + time.monotonic() - begun
        return mean

    while run.step < steps:
        loss = train_step(run.step)
        run.descend(loss, rate_at(run.step), keep)
        losses.append(loss.detach())
        now, done = time.monotonic(), run.step == steps
        if run.step in middle:
            mean_loss()
            run.marks.append((run.step, run.seconds))
        if now - shown > 15 or done:
            loss_now, pace = mean_loss(), run.seconds / run.step
            if rank() == 0:
                print(
                    f"{run.path.stem} {run.step}/{steps} loss {loss_now:.4f} "
                    f"{pace:.3f} s a step, {(steps - run.step) * pace / 60:.1f} min left",
                    flush=True,
                )
            shown, losses = now, []
        late = now > UNTIL
        if done or late or (run.step % save_every == 0 and now - saved > SAVE_SECONDS):
            mean_loss()
            run.save()
            saved = now
            if watch and rank() == 0 and not late:
                watch(run)
        if late and not done:
            raise OutOfTime(f"{run.path.stem} stopped at step {run.step} of {steps}")


def load_average(path: Path) -> dict[str, torch.Tensor]:
    """The averaged weights of a checkpoint, float32."""
    average = torch.load(path, map_location=device(), weights_only=True)["average"]
    return {k: v.float() if v.is_floating_point() else v for k, v in average.items()}
