"""From public packages to `data/tiny-sd`: `python -m data.recipes.make --preset cpu`, or one stage with `--only`."""

from __future__ import annotations

import argparse
import time

import torch

from . import presets, training

STAGES = (
    "collect",
    "render",
    "toys",
    "pack",
    "pool",
    "vae",
    "tokenizer",
    "text",
    "latents",
    "unet",
    "evaluator",
    "export",
)


def stage(name: str, preset: presets.Preset, processes: int) -> None:
    """Run one stage; each goes on where it was killed, and does nothing when it is done."""
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
        from . import pool

        pool.build(preset)
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

        training.run_parallel(latents.build, processes, preset)
    elif name == "unet":
        from . import train_unet

        train_unet.HiddenStates(preset)  # once, before the processes part
        training.run_parallel(train_unet.train, processes, preset)
    elif name == "evaluator":
        from . import train_evaluator

        train_evaluator.train(preset)
    elif name == "export":
        from . import export

        export.export(preset)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=presets.PRESETS, default="cpu")
    parser.add_argument("--only", choices=STAGES, nargs="+", default=STAGES)
    parser.add_argument(
        "--processes",
        type=int,
        default=1,
        help="for the vae, latents and unet stages, one thread each",
    )
    parser.add_argument("--threads", type=int, help="torch threads (default: all cores)")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    for name in STAGES:
        if name in arguments.only:
            begun = time.monotonic()
            print(f"== {name}", flush=True)
            stage(name, presets.PRESETS[arguments.preset], arguments.processes)
            print(f"== {name}: {(time.monotonic() - begun) / 60:.1f} min", flush=True)


if __name__ == "__main__":
    main()
