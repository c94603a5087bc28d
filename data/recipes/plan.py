"""How many steps fit on this machine? Train a little of everything, time it, write `plan.json`.

It is a rehearsal too: every stage runs once at its real size, from pool to export, in a folder of its own, so that what
breaks on a new machine breaks in the first two minutes.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

from . import export, latents, make, pool
from .presets import Preset

STEPS = 48
BOUNDS = (0.2, 3.0)  # of the preset's own steps: a plan beyond them would be another recipe


def rehearsal(preset: Preset) -> Preset:
    """The same sizes and batches, in another folder, for a few steps."""
    counts = {f"{name}_steps": STEPS for name in make.TRAININGS}
    pictures = 2 * pool.CHUNK
    return replace(
        preset, name=preset.name + "-plan", pool=pictures, vae_pool=pictures, minutes=(), **counts
    )


def steps_for(minutes: float, pace: float, guess: int) -> int:
    """How many steps of `pace` seconds fit, within BOUNDS of the guess."""
    low, high = (bound * guess for bound in BOUNDS)
    return round(min(max(60 * minutes / pace, low), high))


def measure(preset: Preset) -> None:
    """Write `plan.json` in the preset's folder; nothing when it is there."""
    path = preset.folder / "plan.json"
    if path.exists():
        return
    small, plan = rehearsal(preset), {}
    for name in ("tokenizer", "evaluator-tokenizer"):
        if (preset.folder / name).exists():
            shutil.copytree(preset.folder / name, small.folder / name, dirs_exist_ok=True)
    pool.build(small)
    for name, minutes in preset.minutes:
        if name == "unet":
            latents.build(small)
        run = make.stage(name, small, 1)
        if run is None or len(run.marks) < 2:
            raise RuntimeError(f"{name} was not measured: delete {small.folder} and try again")
        (first, begun), (last, ended) = run.marks[-2:]
        pace = (ended - begun) / (last - first)
        plan[f"{name}_steps"] = steps_for(minutes, pace, getattr(preset, f"{name}_steps"))
        print(
            f"plan: {name} {pace * 1000:.1f} ms a step, {plan[f'{name}_steps']} steps", flush=True
        )
    export.export(small, small.folder / "tiny-sd")
    shutil.rmtree(small.folder)
    preset.folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(plan, indent=2) + "\n")
