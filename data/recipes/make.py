"""From public packages to `data/tiny-sd`; README.md beside this says what each stage does.

python -m data.recipes.make                                        # the bundled model, on CPUs
python -m data.recipes.make --preset gpu --last tokenizer          # at home: what a GPU machine needs
python -m data.recipes.make --preset gpu --first plan --minutes 9  # there, until it says `all done`
"""

from __future__ import annotations

import argparse
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence

import torch

from . import presets, training

STAGES = (
    "collect",
    "render",
    "toys",
    "pack",
    "tokenizer",
    "plan",
    "pool",
    "vae",
    "text",
    "latents",
    "evaluator",
    "unet",
    "export",
    "pictures",
)
FOR_A_BASE = tuple(s for s in STAGES[: STAGES.index("unet") + 1] if s not in ("plan", "evaluator"))
TRAININGS = ("vae", "text", "evaluator", "unet")
_composing: subprocess.Popen | None = None  # the rest of the pool, beside the VAE's training


def done(name: str, preset: presets.Preset) -> bool:
    """Whether a training has reached its last step, or a tokenizer is there."""
    if name == "tokenizer":
        return (preset.folder / "evaluator-tokenizer").exists()
    path = preset.folder / f"{name}.pt"
    if name not in TRAININGS or not path.exists():
        return False
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return state["step"] >= getattr(preset, f"{name}_steps")


def compose_pool(preset: presets.Preset) -> None:
    """What the VAE learns from; the rest of the pool in a process beside what follows."""
    from . import pool

    global _composing
    pool.build(preset, preset.vae_pool)
    if preset.vae_pool:
        command = [sys.executable, "-m", "data.recipes.pool", "--preset", preset.name]
        _composing = subprocess.Popen(command)


def whole_pool(preset: presets.Preset) -> None:
    """Wait for all of the pool."""
    from . import pool

    if _composing:
        patience = training.UNTIL - time.monotonic()
        try:
            _composing.wait(timeout=None if patience == math.inf else max(0, patience))
        except subprocess.TimeoutExpired:
            raise training.OutOfTime("stopped while pictures were composed") from None
    pool.build(preset)


def stage(name: str, preset: presets.Preset, processes: int) -> training.Run | None:
    """Run one stage; each goes on where it was killed, and does nothing when it is done."""
    if done(name, preset):
        return None
    if name == "collect":
        from . import collect

        collect.main()
    elif name == "render":
        from . import render

        render.render_all(preset.world)
    elif name == "toys":
        from . import toys

        toys.main()
    elif name == "pack":
        from . import pack

        pack.build(preset.world)
    elif name == "plan" and preset.minutes:
        from . import plan

        plan.measure(preset)
    elif name == "pool":
        compose_pool(preset)
    elif name == "vae" and preset.base:
        shutil.copy(preset.base.folder / "vae.pt", preset.folder / "vae.pt")
    elif name == "vae":
        from . import train_vae

        return training.run_parallel(train_vae.train, processes, preset)
    elif name == "tokenizer":
        from . import tokenizer

        tokenizer.build(preset)
    elif name == "text":
        from . import train_text

        whole_pool(preset)
        return train_text.train(preset)
    elif name == "latents":
        from . import latents

        training.run_parallel(latents.build, processes, preset)
    elif name == "evaluator":
        from . import train_evaluator

        return train_evaluator.train(preset)
    elif name == "unet":
        from . import train_unet

        if processes > 1:
            train_unet.HiddenStates(preset)  # once, before the processes part
        return training.run_parallel(train_unet.train, processes, preset)
    elif name == "export":
        from . import export

        export.export(preset)
    elif name == "pictures":
        from . import pictures

        pictures.draw_all(preset, preset.folder / "pictures")
    return None


def in_order(name: str, stages: Sequence[str]) -> list[tuple[str, str]]:
    """Presets and stages to run; where all are asked for, first what the preset goes on from."""
    base = presets.PRESETS[name].begins
    whole = stages[0] == STAGES[0] and "unet" in stages
    first = [(base, stage) for stage in FOR_A_BASE] if base and whole else []
    return [*first, *((name, stage) for stage in stages)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=presets.PRESETS, default=presets.BUNDLED)
    parser.add_argument("--only", choices=STAGES, nargs="+", help="just these stages")
    parser.add_argument("--first", choices=STAGES, default=STAGES[0])
    parser.add_argument("--last", choices=STAGES, default="export")
    parser.add_argument("--minutes", type=float, help="save and stop when they are over")
    parser.add_argument(
        "--processes",
        type=int,
        default=1,
        help="for the vae, latents and unet stages, one thread each",
    )
    parser.add_argument("--threads", type=int, help="torch threads (default: all cores)")
    arguments = parser.parse_args()
    if arguments.minutes and arguments.processes > 1:
        parser.error("--minutes works with one process: several would not stop at the same step")
    if arguments.minutes:
        training.UNTIL = time.monotonic() + 60 * arguments.minutes
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    names = STAGES[STAGES.index(arguments.first) : STAGES.index(arguments.last) + 1]
    try:
        for preset, name in in_order(arguments.preset, arguments.only or names):
            begun = time.monotonic()
            print(f"== {preset} {name}", flush=True)
            if begun > training.UNTIL:
                raise training.OutOfTime(f"stopped before {preset} {name}")
            stage(name, presets.get(preset), arguments.processes)
            print(f"== {preset} {name}: {(time.monotonic() - begun) / 60:.1f} min", flush=True)
        print("all done", flush=True)
    except training.OutOfTime as stop:
        print(f"{stop}; the same command goes on from here", flush=True)
    finally:
        if _composing:
            _composing.terminate()


if __name__ == "__main__":
    main()
