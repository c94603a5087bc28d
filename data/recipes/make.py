"""Make the bundled model from public packages; README.md beside this file says what each stage does.

python -m data.recipes.make --preset cpu                           # everything, on CPUs
python -m data.recipes.make --last tokenizer                       # with a network: what a GPU machine needs
python -m data.recipes.make --first pool --minutes 9               # on the GPU, until it prints `all done`
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from .networks import (
    export,
    latents,
    pool,
    presets,
    thing_pool,
    tokenizer,
    train_evaluator,
    train_text,
    train_unet,
    train_vae,
    train_words,
    training,
)
from .networks.presets import Preset
from .results import pictures
from .world import collect, pack, render, toys

TRAININGS = ("vae", "text", "unet", "words", "evaluator")
# supplied by the model of --start
GIVEN = ("tokenizer", "vae", "text", "latents", "unet", "evaluator")
COMPOSERS = {"pool": pool, "things": thing_pool}
FIRST_CHUNKS = 24  # of the pool, before training the VAE begins on a GPU
_composing: dict[str, subprocess.Popen] = {}  # pool and things, composed while the trainings run


def done(name: str, preset: Preset) -> bool:
    """Whether a training has reached its last step; for the tokenizer, whether it exists."""
    if preset.start and name in GIVEN:
        return True
    if name == "tokenizer":
        return (preset.folder / "evaluator-tokenizer").exists()
    path = preset.folder / f"{name}.pt"
    if name not in TRAININGS or not path.exists():
        return False
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return state["step"] >= state["steps"]


def compose(name: str, preset: Preset) -> None:
    """Compose pool or things: here, or on a GPU machine in a process that runs beside the trainings."""
    if not training.on_gpu():
        return COMPOSERS[name].build(preset)
    command = [sys.executable, "-m", COMPOSERS[name].__name__, "--preset", preset.name]
    _composing[name] = subprocess.Popen([*command, "--count", str(getattr(preset, name))])


def compose_pool(preset: Preset) -> None:
    """The pool; on a GPU machine, returns as soon as there is enough for the first training."""
    compose("pool", preset)
    first = 0 if preset.start else min(FIRST_CHUNKS, preset.pool // pool.CHUNK)
    while len(pool.files(preset)) < first:
        if _composing["pool"].poll():
            raise RuntimeError("composing failed; its own output above says why")
        time.sleep(0.5)


def wait_for(*names: str) -> None:
    """Wait until pool or things are complete."""
    for name in names:
        if name not in _composing:
            continue
        patience = training.UNTIL - time.monotonic()
        try:
            failed = _composing[name].wait(None if patience == math.inf else max(0, patience))
        except subprocess.TimeoutExpired:
            raise training.OutOfTime(f"stopped while {name} was being composed") from None
        if failed:
            raise RuntimeError(f"composing {name} failed; its own output above says why")


def encode_pool(preset: Preset, processes: int) -> None:
    """The pool's latents."""
    wait_for("pool")
    training.run_parallel(latents.build, processes, preset)


def train_denoiser(preset: Preset, processes: int) -> None:
    """The U-Net; processes that train together read hidden states that are computed once beforehand."""
    if processes > 1:
        train_unet.HiddenStates(preset)
    training.run_parallel(train_unet.train, processes, preset)


def train_all_together(preset: Preset, processes: int) -> None:
    """Word encoder, text encoder and U-Net."""
    if processes > 1:
        training.run_parallel(train_words.train, processes, preset)
    else:
        train_words.train(preset, lambda: wait_for("pool", "things"))


STAGES: dict[str, Callable[[Preset, int], object]] = {
    "collect": lambda preset, processes: collect.main(),
    "render": lambda preset, processes: render.render_all(),
    "toys": lambda preset, processes: toys.main(),
    "pack": lambda preset, processes: pack.build(),
    "tokenizer": lambda preset, processes: tokenizer.build(preset),
    "pool": lambda preset, processes: compose_pool(preset),
    "vae": lambda preset, processes: training.run_parallel(train_vae.train, processes, preset),
    "text": lambda preset, processes: train_text.train(preset),
    "latents": encode_pool,
    "unet": train_denoiser,
    "things": lambda preset, processes: compose("things", preset),
    "words": train_all_together,
    "evaluator": lambda preset, processes: train_evaluator.train(preset),
    "export": lambda preset, processes: export.export(preset),
    "pictures": lambda preset, processes: pictures.draw_all(preset, preset.folder / "pictures"),
}


def main() -> None:
    """Run the requested stages in order; each continues where it was stopped."""
    arguments = parse()
    if arguments.minutes:
        training.UNTIL = time.monotonic() + 60 * arguments.minutes
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    given = {k: v for k in ("start", "pool", "things") if (v := getattr(arguments, k))}
    preset = replace(presets.PRESETS[arguments.preset], **given)
    order = list(STAGES)
    names = order[order.index(arguments.first) : order.index(arguments.last) + 1]
    try:
        for name in arguments.only or names:
            start = time.monotonic()
            print(f"== {name}", flush=True)
            if start > training.UNTIL:
                raise training.OutOfTime(f"stopped before {name}")
            if not done(name, preset):
                STAGES[name](preset, arguments.processes)
            print(f"== {name}: {(time.monotonic() - start) / 60:.1f} min", flush=True)
        print("all done", flush=True)
    except training.OutOfTime as stop:
        print(f"{stop}; run the same command again to continue", flush=True)
    finally:
        for process in _composing.values():
            process.terminate()


def parse() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=presets.PRESETS, default=presets.BUNDLED)
    parser.add_argument("--only", choices=STAGES, nargs="+", help="run only these stages")
    parser.add_argument("--first", choices=STAGES, default=next(iter(STAGES)))
    parser.add_argument("--last", choices=STAGES, default="export")
    parser.add_argument("--minutes", type=float, help="save and stop after this long")
    parser.add_argument(
        "--processes",
        type=int,
        default=1,
        help="train vae, unet and words, and make latents, in this many processes of one thread",
    )
    parser.add_argument("--start", default="", help="continue from the model in this folder")
    parser.add_argument("--pool", type=int, help="number of composed pictures with captions")
    parser.add_argument("--things", type=int, help="number of things without names")
    parser.add_argument("--threads", type=int, help="torch threads (default: all cores)")
    arguments = parser.parse_args()
    if arguments.minutes and arguments.processes > 1:
        parser.error("--minutes needs --processes 1: several would not stop at the same step")
    return arguments


if __name__ == "__main__":
    main()
