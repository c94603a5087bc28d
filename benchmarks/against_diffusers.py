"""The same training in two programs: `tiutils train` and the unchanged diffusers script, in separate processes.

    python -m benchmarks.against_diffusers --diffusers CHECKOUT

Both train the same model on the same photos with the same flags and seed, alternating: once 1 × 4 (batches of one,
gradients accumulated over four), the field guide's flags, and once 4 × 1, the fastest flags for both. The seconds per
step are the difference between a long and a short run, divided by the difference in steps; the rest of the short run is
start-up: imports, loading, encoding, writing. The minimum over all rounds counts. Each program gets one thread and is
timed in CPU seconds, because these hardly depend on what else the machine does; `--threads 0` lets the programs choose
and compares elapsed seconds.

`--model sd15 --device gpu` takes Stable Diffusion 1.5's shapes with random weights, made once; nothing is downloaded.
Writes benchmarks/against_diffusers-DEVICE-MODEL.json and the table in benchmarks/README.md. The exit status is 1 if a
goal is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks import flax, programs
from benchmarks.quality import write_between_markers

ROOT = programs.ROOT
WORK = ROOT / "build" / "benchmark-diffusers"
PROGRAMS = {"ours": "tiutils", "theirs": "diffusers' script"}
CUTS = {"1x4": (1, 4), "4x1": (4, 1)}
# our step's time as a share of theirs, at most: device, theirs, ours
GOALS = {
    "cpu": {("1x4", "1x4"): 1 / 3, ("4x1", "4x1"): 1 / 2},
    "gpu": {("1x4", "1x4"): 1 / 2, ("4x1", "4x1"): 1 / 2},
}
COMPARED = (("1x4", "1x4"), ("4x1", "4x1"), ("1x4", "4x1"))


def main() -> int:
    """Run both, alternating; write and print the results; 1 if a goal is missed."""
    options = parse(sys.argv[1:])
    runs: list[dict[str, Any]] = []
    for _ in range(options.rounds):
        for steps in options.steps:
            runs += [run(who, cut, steps, options) for cut in CUTS for who in PROGRAMS]
    record = {
        "command": "python -m benchmarks.against_diffusers "
        + " ".join(flax.without_paths(sys.argv[1:])),
        "machine": programs.machine(),
        "device": options.device,
        "model": options.model,
        "threads": options.threads,
        "compared": "cpu_seconds" if options.threads == 1 else "seconds",
        "summary": summarize(runs, options.steps),
        "runs": runs,
    }
    name = f"against_diffusers-{options.device}-{options.model}"
    (ROOT / "benchmarks" / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    if (options.device, options.model) == ("cpu", "bundled"):
        readme = ROOT / "benchmarks" / "README.md"
        write_between_markers(readme, as_markdown(record), "against_diffusers")
    print(as_markdown(record))
    return 1 if missed(record) else 0


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.against_diffusers")
    parser.add_argument("--diffusers", required=True, help="a checkout")
    parser.add_argument("--model", choices=("bundled", *flax.ONE_ENCODER), default="bundled")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--steps", type=int, nargs=2, default=(10, 50), metavar=("SHORT", "LONG"))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="0: let the programs choose")
    parser.add_argument("--mixed_precision", choices=("no", "fp16", "bf16"), default="no")
    return parser.parse_args(arguments)


def command(who: str, cut: str, steps: int, options: argparse.Namespace) -> list[str]:
    """The command that trains for `steps` steps and writes one checkpoint, after the last."""
    if options.model == "bundled":
        model, resolution = ROOT / "data" / "tiny-sd", 128
    else:
        model = flax.make_model(options.model)
        resolution = flax.SHAPES[options.model]["vae"]["sample_size"]
    batch, accumulation = CUTS[cut]
    flags = {
        "pretrained_model_name_or_path": model, "train_data_dir": flax.photos(),
        "placeholder_token": "<wood-toy>", "initializer_token": "toy", "resolution": resolution,
        "train_batch_size": batch, "gradient_accumulation_steps": accumulation,
        "learning_rate": 5e-4, "lr_scheduler": "constant", "lr_warmup_steps": 0, "seed": 0,
        "mixed_precision": options.mixed_precision, "max_train_steps": steps,
        "checkpointing_steps": steps, "save_steps": 10**6, "output_dir": WORK / who,
    }  # fmt: skip
    start = [sys.executable, "-m", "benchmarks.diffusers_script", options.diffusers]
    if who == "ours":
        start = [sys.executable, "-m", "tiutils", "train", *flax.plainly()]
    return [*start, *(str(word) for flag in flags.items() for word in flax.dashed(flag))]


def run(who: str, cut: str, steps: int, options: argparse.Namespace) -> dict[str, Any]:
    """Run one program to its end."""
    shutil.rmtree(WORK / who, ignore_errors=True)
    told = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    told |= {"CUDA_VISIBLE_DEVICES": ""} if options.device == "cpu" else {}
    told |= {"OMP_NUM_THREADS": str(options.threads)} if options.threads else {}
    words = command(who, cut, steps, options)
    found = programs.run_measured(words, os.environ | told, options.device)
    found["checkpoint_bytes"] = folder_bytes(WORK / who / f"checkpoint-{steps}")
    print(f"{who} {cut}, {steps} steps: {found}", flush=True)
    return {"who": f"{who} {cut}", "steps": steps, "cache": "warm", **found}


def folder_bytes(folder: Path) -> int:
    """The total size of the files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def summarize(runs: list[dict[str, Any]], steps: tuple[int, int]) -> dict[str, dict[str, float]]:
    """For each program and batch split: seconds per step, start-up, peak memory, checkpoint size."""
    summary = flax.summarize(runs, steps)
    for who, found in summary.items():
        short, long = (
            [run for run in runs if run["who"] == who and run["steps"] == length]
            for length in steps
        )
        for measure in ("seconds", "cpu_seconds"):
            least = min(run[measure] for run in short)
            found[f"startup_{measure}"] = least - steps[0] * found[measure]
        found["peak_bytes"] = max(run["peak_bytes"] for run in long)
        found["checkpoint_bytes"] = max(run["checkpoint_bytes"] for run in long)
    return summary


def ratio(record: dict[str, Any], theirs: str, ours: str) -> float:
    """Our step's time as a share of theirs."""
    summary, measure = record["summary"], record["compared"]
    return summary[f"ours {ours}"][measure] / summary[f"theirs {theirs}"][measure]


def missed(record: dict[str, Any]) -> list[tuple[str, str]]:
    """The goals that are missed."""
    goals = GOALS[record["device"]]
    return [cuts for cuts, share in goals.items() if ratio(record, *cuts) > share]


def as_markdown(record: dict[str, Any]) -> str:
    """The table, and the ratios under it."""
    second = {"cpu_seconds": "CPU seconds", "seconds": "seconds"}[record["compared"]]
    lines = [
        f"| batch × accumulation | program | {second} a step | {second} to start up | peak memory | checkpoint |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for who, found in record["summary"].items():
        program, cut = who.split()
        step, startup = found[record["compared"]], found[f"startup_{record['compared']}"]
        lines.append(
            f"| {cut.replace('x', ' × ')} | {PROGRAMS[program]} | {step:.3f} | {startup:.1f} "
            f"| {found['peak_bytes'] / 2**20:.0f} MiB | {found['checkpoint_bytes'] / 2**10:,.0f} KiB |"
        )
    shares = [
        f"{ratio(record, *cuts):.2f} (their {cuts[0]}, our {cuts[1]})".replace("x", " × ")
        for cuts in COMPARED
    ]
    return "\n".join([*lines, "", f"Our step's time as a share of theirs: {'; '.join(shares)}."])


if __name__ == "__main__":
    sys.exit(main())
