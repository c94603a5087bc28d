"""What the four trainings share: atomic checkpoints, averaged weights, a progress line, a time limit."""

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

SAVE_SECONDS = 60.0  # at least, between two checkpoints: a GPU takes a hundred steps in three
PACE = (60, 160)  # a training that is limited by minutes is timed between these steps
SPARE = 0.96  # share of the remaining minutes to plan for: saving takes time, too
UNTIL = math.inf  # on the monotonic clock: when trainings save and stop (`make --minutes`)


class OutOfTime(Exception):
    """The training was saved and stopped because its time is up; started again, it continues."""


def on_gpu() -> bool:
    """Whether to work in the way that suits a GPU: data on the device, results recomputed rather than stored."""
    return torch.cuda.is_available()


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast():
    """bfloat16 where the chip has it; weights and optimizer stay float32."""
    return torch.autocast(device().type, torch.bfloat16, enabled=has_bfloat16())


def has_bfloat16() -> bool:
    """Whether bfloat16 is faster than float32 here. On a CPU without such instructions it is five times slower."""
    if on_gpu():
        return True
    asked = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return bool(asked())


def speed_up(module: torch.nn.Module) -> None:
    """On a GPU: channels last and compiled, in place, so that the state keeps its names."""
    if on_gpu():
        torch.set_float32_matmul_precision("high")
        torch._dynamo.config.suppress_errors = True  # what cannot be compiled runs eagerly
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
    """This process's part of a batch that is the same in all processes."""
    return indices[rank() :: dist.get_world_size()] if dist.is_initialized() else indices


def run_parallel(task: Callable[..., Run | None], processes: int, *arguments) -> Run | None:
    """Run `task` in several processes of one thread each, gradients averaged between them.

    On a shared machine this is faster than one process with several threads: threads synchronize at every operation,
    where one that was suspended holds up all the others; processes synchronize once per step.
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
    """The generator of everything random in a step, so that a resumed run draws what the killed one would have."""
    return np.random.default_rng([seed, step])


class Run:
    """A module with its optimizer, averaged weights and step; saved atomically, resumed if its file exists."""

    def __init__(
        self,
        module: torch.nn.Module,
        path: Path,
        steps: int,
        rate: float,
        betas=(0.9, 0.99),
        decay: float = 0.01,
        outer: tuple[str, ...] | None = None,
    ):
        """To train for `steps`; with `outer`, Muon trains all matrices but those of the modules it names."""
        self.module, self.path, self.rate = module, path, rate
        self.step, self.steps, self.seconds = 0, steps, 0.0
        adam = {"betas": betas, "weight_decay": decay, "fused": True}
        self.optimizer = (
            torch.optim.AdamW(module.parameters(), lr=rate, **adam)
            if outer is None
            else muon.Both(module, outer, rate, **adam)
        )
        self.weights = module.state_dict()  # they stay where they are
        if path.exists():
            self.load()
        else:
            self.average = {key: value.detach().clone() for key, value in self.weights.items()}

    def load(self) -> None:
        """Continue from the file. If it has only averaged weights, the optimizer starts afresh."""
        state = torch.load(self.path, map_location=device(), weights_only=True)
        self.step, self.steps, self.seconds = state["step"], state["steps"], state["seconds"]
        self.average = {key: value.to(self.weights[key]) for key, value in state["average"].items()}
        self.module.load_state_dict(state.get("module", self.average))
        if "optimizer" in state:
            self.optimizer.load_state_dict(state["optimizer"])
        if rank() == 0:
            print(f"resumed {self.path.name} at step {self.step}", flush=True)

    @property
    def along(self) -> float:
        """How much of the training is done, 0 to 1."""
        return self.step / self.steps

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
                "steps": self.steps,
                "seconds": self.seconds,
            },
            part,
        )
        os.replace(part, self.path)

    def descend(self, loss: torch.Tensor, rate: float, keep: float) -> None:
        """One optimizer step at this learning rate; the averaged weights keep a share `keep` of themselves."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(self.module)
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        keep = min(keep, self.step / (self.step + 10))  # a new average forgets fast
        floats = [key for key, value in self.weights.items() if value.is_floating_point()]
        with torch.no_grad():
            torch._foreach_lerp_(
                [self.average[k] for k in floats], [self.weights[k] for k in floats], 1 - keep
            )
            for key in self.weights.keys() - set(floats):
                self.average[key].copy_(self.weights[key])


def cosine(step: int, steps: int, rate: float, warmup: int = 100, floor: float = 0.03) -> float:
    """The learning rate: a linear warm-up, then half a cosine."""
    if step < warmup:
        return rate * (step + 1) / warmup
    along = min(1, (step - warmup) / max(1, steps - warmup))
    return rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * along)))


def steps_for(run: Run, minutes: float, pace: float) -> int:
    """The number of steps that fit into the run's `minutes`, and before UNTIL, at `pace` seconds each."""
    left = min(60 * minutes - run.seconds, UNTIL - time.monotonic())
    return run.step + max(0, int(SPARE * left / pace))


def loop(
    run: Run,
    train_step: Callable[[int], torch.Tensor],
    rate_at: Callable[[int, int], float],
    keep: float,
    minutes: float | None = None,
    save_every: int = 200,
    watch: Callable[[Run], None] | None = None,
) -> None:
    """Train to the last step; `watch` may look at the run at each save.

    `rate_at` gets the step and the number of steps. With `minutes`, as many are taken as fit: their number is measured
    while the learning rate warms up, and stored in the checkpoint. Losses are read only now and then, because reading
    one means waiting for a GPU that could already have its next step.
    """
    shown, saved, losses = time.monotonic(), time.monotonic(), []
    begun, spent, mark = time.monotonic(), run.seconds, 0.0

    def mean_loss() -> float:
        mean = torch.stack(losses).mean().item() if losses else 0.0
        if not math.isfinite(mean):
            raise FloatingPointError(f"loss is {mean} shortly before step {run.step}")
        run.seconds = spent + time.monotonic() - begun
        return mean

    while run.step < run.steps:
        loss = train_step(run.step)
        run.descend(loss, rate_at(run.step, run.steps), keep)
        losses.append(loss.detach())
        if minutes and run.step in PACE:
            mean_loss()
            if run.step == PACE[1] and mark:
                pace = (run.seconds - mark) / (PACE[1] - PACE[0])
                run.steps = steps_for(run, minutes, pace)
                print(
                    f"{run.path.stem}: {1000 * pace:.1f} ms a step, {run.steps} steps", flush=True
                )
            mark = run.seconds
        now, done = time.monotonic(), run.step >= run.steps
        if now - shown > 15 or done:
            loss_now, pace = mean_loss(), run.seconds / run.step
            if rank() == 0:
                print(
                    f"{run.path.stem} {run.step}/{run.steps} loss {loss_now:.4f} "
                    f"{pace:.3f} s a step, {(run.steps - run.step) * pace / 60:.1f} min left",
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
            raise OutOfTime(f"{run.path.stem} stopped at step {run.step} of {run.steps}")


def load_average(path: Path) -> dict[str, torch.Tensor]:
    """The averaged weights of a checkpoint, float32."""
    average = torch.load(path, map_location=device(), weights_only=True)["average"]
    return {k: v.float() if v.is_floating_point() else v for k, v in average.items()}
