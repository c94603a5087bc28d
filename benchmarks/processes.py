"""What several processes cost: the same training under torchrun with 1, 2 and 4 processes.

    python -m benchmarks.processes

Measured twice: a batch of four split among the processes (1 × 4, 2 × 2, 4 × 1), which learns the same rows, and a batch
of four for each process, where the work grows with their number. The first process reports how long each of its steps
took, in its own CPU seconds and in elapsed seconds; the medians are taken, without the first steps. Efficiency is the
time of a step with one process, divided by its time with n; for the split batch, by n times that. In elapsed seconds it
is the efficiency of this machine with whatever else runs on it; in CPU seconds, of n idle cores, one for each process.

`--device gpu` takes Stable Diffusion 1.5's shapes and up to as many processes as there are GPUs; look at the elapsed
seconds there. Writes benchmarks/processes-DEVICE.json, and for a CPU the table in benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import flax, programs
from benchmarks.quality import write_between_markers

ROOT = programs.ROOT
WORK = ROOT / "build" / "benchmark-processes"
BATCH = 4  # samples of all processes together, or of each
NUMBERS = (1, 2, 4)
WARM_UP = 5  # steps that do not count


def main() -> int:
    """Run all, alternately; write and print the results."""
    options = parse(sys.argv[1:])
    if options.timed:
        return timed(json.loads(options.timed))
    known = numbers(options.device)
    cuts = [(n, BATCH // n) for n in known] + [(n, BATCH) for n in known if n > 1]
    runs = [run(*cut, options) for _ in range(options.rounds) for cut in cuts]
    record = {
        "command": " ".join(["python -m benchmarks.processes", *sys.argv[1:]]),
        "machine": programs.machine(),
        "device": options.device,
        "steps": options.steps,
        "summary": summarize(runs),
        "runs": runs,
    }
    path = ROOT / "benchmarks" / f"processes-{options.device}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    if options.device == "cpu":
        write_between_markers(ROOT / "benchmarks" / "README.md", as_markdown(record), "processes")
    print(as_markdown(record))
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.processes")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--timed", help=argparse.SUPPRESS)  # settings of a torchrun process
    return parser.parse_args(arguments)


def numbers(device: str) -> list[int]:
    """The numbers of processes to try: with GPUs, at most one for each."""
    if device == "cpu":
        return list(NUMBERS)
    import torch

    return [number for number in NUMBERS if number <= max(1, torch.cuda.device_count())]


def run(number: int, share: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train in so many processes, each with its share; returns what the first one reports about its steps."""
    shutil.rmtree(WORK, ignore_errors=True)
    model, resolution = ROOT / "data" / "tiny-sd", 128
    if options.device == "gpu":
        model, resolution = flax.make_model("sd15"), flax.SHAPES["sd15"]["vae"]["sample_size"]
    settings = {
        "pretrained_model_name_or_path": str(model), "train_data_dir": str(flax.photos()),
        "placeholder_token": "<wood-toy>", "initializer_token": "toy", "resolution": resolution,
        "train_batch_size": share, "max_train_steps": options.steps, "output_dir": str(WORK),
    }  # fmt: skip
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    words = ["--nproc_per_node", str(number), "-m", "benchmarks.processes"]
    told = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    told |= {"CUDA_VISIBLE_DEVICES": ""} if options.device == "cpu" else {}
    words = [*torchrun, *words, "--timed", json.dumps(settings)]
    programs.run_measured(words, os.environ | told, "cpu")  # ends all processes if one fails
    found = json.loads((WORK / "timed.json").read_text())
    assert json.loads((WORK / "run.json").read_text())["processes"] == number
    print(f"{number} processes, {share} samples each: {found}", flush=True)
    return {"processes": number, "share": share, **found}


def timed(settings: dict[str, Any]) -> int:
    """What each process does: train. Only the first one's callback is called, which takes the times."""
    import tiutils

    clocks: list[tuple[float, float]] = []

    def look(progress: Any) -> None:
        float(progress.loss)  # waits for the device
        clocks.append((time.perf_counter(), time.process_time()))

    result = tiutils.train(tiutils.TrainingConfig(**settings), callbacks=[look])
    if result.is_main_process:
        steps = zip(clocks[WARM_UP:], clocks[WARM_UP + 1 :], strict=False)
        taken = zip(*((b[0] - a[0], b[1] - a[1]) for a, b in steps), strict=True)
        found = dict(zip(("seconds", "cpu_seconds"), map(statistics.median, taken), strict=True))
        hidden = result.models.text_encoder.config.hidden_size
        found["shared_bytes"] = 4 * (hidden + 1 + 1)  # gradient, loss, whether to stop
        Path(settings["output_dir"], "timed.json").write_text(json.dumps(found))
    return 0


def summarize(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each split: the minimum over all rounds, and the efficiency in both units of time."""
    rows: list[dict[str, Any]] = []
    for number, share in dict.fromkeys((run["processes"], run["share"]) for run in runs):
        mine = [run for run in runs if (run["processes"], run["share"]) == (number, share)]
        row = {"processes": number, "share": share, "shared_bytes": mine[0]["shared_bytes"]}
        for clock in ("seconds", "cpu_seconds"):
            row[clock] = min(run[clock] for run in mine)
            alone = rows[0][clock] if rows else row[clock]
            row[f"{clock}_efficiency"] = alone * share / BATCH / row[clock]
        rows.append(row)
    return rows


def as_markdown(record: dict[str, Any]) -> str:
    """The table."""
    lines = [
        "| processes | samples of each | CPU seconds a step, each process | efficiency, CPU seconds | seconds a step | "
        "efficiency, seconds |",
        "|--:|--:|--:|--:|--:|--:|",
    ]
    for row in record["summary"]:
        shared = row["shared_bytes"]
        lines.append(
            f"| {row['processes']} | {row['share']} | {row['cpu_seconds']:.3f} | "
            f"{row['cpu_seconds_efficiency']:.0%} | {row['seconds']:.2f} | {row['seconds_efficiency']:.0%} |"
        )
    lines += [
        "",
        f"{record['machine']}, bundled model, one thread each, medians of {record['steps'] - WARM_UP} steps. "
        f"What is shared in a step: {shared:,} bytes.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
