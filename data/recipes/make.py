"""From public packages to `data/tiny-sd`; README.md beside this says what each stage does.

python -m data.recipes.make --preset cpu                           # everything, on CPUs
python -m data.recipes.make --last tokenizer                       # at home: what a GPU machine needs
python -m data.recipes.make --first pool --minutes 9               # there, until it says `all done`
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import time
from dataclasses import replace

import torch

from . import presets, training

STAGES = (
    "collect",
    "render",
    "toys",
    "pack",
    "tokenizer",
    "pool",
    "vae",
    "text",
    "latents",
    "unet",
    "things",
    "words",
    "evaluator",
    "export",
    "pictures",
)
TRAININGS = ("vae", "text", "unet", "words", "evaluator")
GIVEN = (
    "tokenizer",
    "vae",
    "text",
    "latents",
    "unet",
    "evaluator",
)  # by the model that is gone on from
FIRST_CHUNKS = 24  # of the pool, before the VAE's training begins on a GPU
_beside: dict[str, subprocess.Popen] = {}  # pool and things, composed beside the trainings


def done(name: str, preset: presets.Preset) -> bool:
    """Whether a training has reached its last step, or a tokenizer is there."""
    if preset.start and name in GIVEN:
        return True
    if name == "tokenizer":
        return (preset.folder / "evaluator-tokenizer").exists()
    path = preset.folder / f"{name}.pt"
    if name not in TRAININGS or not path.exists():
        return False
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return state["step"] >= state["steps"]


def compose_pool(preset: presets.Preset) -> None:
    """All of the pool; beside a GPU, which would wait, the rest of it in a process beside what follows."""
    from . import pool

    if not training.on_gpu():
        return pool.build(preset)
    compose_beside("pool", preset)
    first = 0 if preset.start else min(FIRST_CHUNKS, preset.pool // pool.CHUNK)
    while len(pool.files(preset)) < first:
        if _beside["pool"].poll():
            raise RuntimeError("composing failed; what it printed stands above")
        time.sleep(0.5)


def compose_beside(name: str, preset: presets.Preset) -> None:
    """Compose pool or things in a process of its own."""
    command = [sys.executable, "-m", f"data.recipes.{name}", "--preset", preset.name]
    _beside[name] = subprocess.Popen([*command, "--count", str(getattr(preset, name))])


def wait_for(*names: str) -> None:
    """Wait until all pictures of these kinds are composed."""
    for name in names:
        if name not in _beside:
            continue
        patience = training.UNTIL - time.monotonic()
        try:
            failed = _beside[name].wait(None if patience == math.inf else max(0, patience))
        except subprocess.TimeoutExpired:
            raise training.OutOfTime("stopped while pictures were composed") from None
        if failed:
            raise RuntimeError(f"composing {name} failed; what it printed stands above")


def stage(name: str, preset: presets.Preset, processes: int) -> None:
    """Run one stage; each goes on where it was killed, and does nothing when it is done."""
    if done(name, preset):
        return
    if name == "collect":
        from . import collect

        collect.main()
    elif name == "render":
        from . import render

        render.render_all()
    elif name == "toys":
        from . import toys

        toys.main()
    elif name == "pack":
        from . import pack

        pack.build()
    elif name == "pool":
        compose_pool(preset)
    elif name == "vae":
        from . import train_vae

        training.run_parallel(train_vae.train, processes, preset)
    elif name == "tokenizer":
        from . import tokenizer

        tokenizer.build(preset)
    elif name == "text":
        from . import train_text

        train_text.train(preset)
    elif name == "latents":
        from . import latents

        wait_for("pool")
        training.run_parallel(latents.build, processes, preset)
    elif name == "evaluator":
        from . import train_evaluator

        train_evaluator.train(preset)
    elif name == "unet":
        from . import train_unet

        if processes > 1:
            train_unet.HiddenStates(preset)  # once, before the processes part
        training.run_parallel(train_unet.train, processes, preset)
    elif name == "things":
        from . import things

        if training.on_gpu():
            compose_beside("things", preset)
        else:
            things.build(preset)
    elif name == "words":
        from . import train_words

        if processes > 1:
            training.run_parallel(train_words.train, processes, preset)
        else:
            train_words.train(preset, lambda: wait_for("pool", "things"))
    elif name == "export":
        from . import export

        export.export(preset)
    elif name == "pictures":
        from . import pictures

        pictures.draw_all(preset, preset.folder / "pictures")


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
    parser.add_argument("--start", default="", help="go on from this model folder")
    parser.add_argument("--pool", type=int, help="composed pictures with names")
    parser.add_argument("--things", type=int, help="things without names")
    parser.add_argument("--threads", type=int, help="torch threads (default: all cores)")
    arguments = parser.parse_args()
    if arguments.minutes and arguments.processes > 1:
        parser.error("--minutes works with one process: several would not stop at the same step")
    if arguments.minutes:
        training.UNTIL = time.monotonic() + 60 * arguments.minutes
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    given = {k: v for k in ("start", "pool", "things") if (v := getattr(arguments, k))}
    preset = replace(presets.PRESETS[arguments.preset], **given)
    names = STAGES[STAGES.index(arguments.first) : STAGES.index(arguments.last) + 1]
    try:
        for name in arguments.only or names:
            begun = time.monotonic()
            print(f"== {name}", flush=True)
            if begun > training.UNTIL:
                raise training.OutOfTime(f"stopped before {name}")
            stage(name, preset, arguments.processes)
            print(f"== {name}: {(time.monotonic() - begun) / 60:.1f} min", flush=True)
        print("all done", flush=True)
    except training.OutOfTime as stop:
        print(f"{stop}; the same command goes on from here", flush=True)
    finally:
        for process in _beside.values():
            process.terminate()


if __name__ == "__main__":
    main()
