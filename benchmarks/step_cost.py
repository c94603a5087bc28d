"""What a training step costs, compared with the bare U-Net.

    python -m benchmarks.step_cost

The floor is the forward and backward pass of the frozen U-Net alone, back to the encoder hidden states: no text
encoder, no optimizer, no drawing of batches. Steps and floors alternate in one process, on one thread of a CPU, in CPU
seconds, which hardly depend on what else the machine does; the median of all rounds counts. Two lower bounds for any
step are computed first: the operations of the matrix products and convolutions, and the bytes of the weights, which
must be read once forward and once backward. `--switches` measures the U-Net in other layouts and formats, of which
`compile` is slow to start. `--model sd15` takes Stable Diffusion 1.5's shapes with random weights. Photos are noise.

Writes benchmarks/step_cost-DEVICE-MODEL.json, and for the bundled model on a CPU the table in benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import flax, programs
from benchmarks.quality import write_between_markers
from tiutils import concept, models, token_embedding
from tiutils.config import TrainingConfig
from tiutils.io import pretrained
from tiutils.training import Training, prepare, training_step

ROOT = programs.ROOT
GOAL = 1.15  # times the floor
SWITCHES = ("channels_last", "bf16", "compile")


def main() -> int:
    """Measure, write and print the results; 1 if the goal is missed."""
    options = parse(sys.argv[1:])
    if options.device == "cpu":
        torch.set_num_threads(1)
    training = make_training(options, model=options.model, photos=options.photos)
    record: dict[str, Any] = {
        "command": " ".join(["python -m benchmarks.step_cost", *sys.argv[1:]]),
        "machine": programs.machine() if options.device == "cpu" else torch.cuda.get_device_name(),
        "batch": options.batch,
        "fewest": fewest(training),
        "floor": measure_floor(training, options),
    }
    stem = f"step_cost-{options.device}-{options.model}"
    (ROOT / "benchmarks" / f"{stem}.json").write_text(json.dumps(record, indent=1) + "\n")
    if (options.device, options.model) == ("cpu", "bundled"):
        write_between_markers(ROOT / "benchmarks" / "README.md", as_markdown(record), "step_cost")
    print(as_markdown(record))
    return 1 if record["floor"]["step"] > GOAL * record["floor"]["floor"] else 0


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step_cost")
    parser.add_argument("--model", choices=("bundled", *flax.ONE_ENCODER), default="bundled")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--photos", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--mixed_precision", choices=("no", "fp16", "bf16"), default="no")
    parser.add_argument("--switches", choices=SWITCHES, nargs="*", default=())
    return parser.parse_args(arguments)


def make_training(
    options: argparse.Namespace, *, model: str = "bundled", photos: int = 3, vocabulary: int = 0
) -> Training:
    """A run that is ready for its first step, on photos of noise, with a longer embedding table if asked for."""
    gpu = options.device == "gpu"
    dtypes = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    parts = models.load(
        pretrained.BUNDLED_MODEL if model == "bundled" else flax.make_model(model),
        device="cuda" if gpu else "cpu",
        dtype=dtypes[options.mixed_precision],
    )
    table = parts.text_encoder.get_input_embeddings()
    if vocabulary > table.num_embeddings:
        longer = nn.Embedding(vocabulary, parts.hidden_size, device=parts.device)
        longer.weight.data[: table.num_embeddings] = table.weight
        parts.text_encoder.set_input_embeddings(longer.requires_grad_(False))
    placeholder = token_embedding.add_placeholder(parts, "<wood-toy>", initializer_token="toy")
    side, noise = parts.resolution, np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for index in range(photos):
            pixels = noise.integers(0, 256, (side, side, 3), np.uint8)
            Image.fromarray(pixels).save(Path(folder, f"{index}.png"))
        config = TrainingConfig(
            folder,
            "<wood-toy>",
            "toy",
            train_batch_size=options.batch,
            max_train_steps=10**6,
            mixed_precision=options.mixed_precision,
            norm_control=0.0,  # not part of the script's step
        )
        accelerator = Accelerator(cpu=not gpu, mixed_precision=config.mixed_precision)
        return prepare(parts, placeholder, concept.load(folder), config, accelerator)


def in_turns(
    works: dict[str, Callable[[int], object]], rounds: int, device: str
) -> dict[str, float]:
    """Seconds for each function: the median of all rounds, after one that does not count."""

    def clock() -> float:
        if device == "gpu":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    taken: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            start = clock()
            work(number)
            taken[name].append(clock() - start)
    return {name: statistics.median(seconds[1:]) for name, seconds in taken.items()}


def bare_unet(training: Training, unet: nn.Module, dtype: torch.dtype) -> Callable[[int], None]:
    """The floor: the forward pass, and the backward pass to the encoder hidden states."""
    parts, batch = training.models, training.config.train_batch_size
    torch.manual_seed(0)
    like = {"device": parts.device, "dtype": dtype}
    latents = torch.randn(batch, *training.dataset.plan.latent_shape, **like)
    timesteps = torch.randint(0, 1000, (batch,), device=parts.device)
    states = torch.randn(batch, 77, parts.hidden_size, **like).requires_grad_()

    def work(_: int) -> None:
        unet(latents, timesteps, states).sample.float().square().mean().backward()
        states.grad = None

    return work


def fewest(training: Training) -> dict[str, float]:
    """Operations in the matrix products of a step and of the floor, and the bytes of the weights they read."""
    parts, found = training.models, {}
    works = {
        "floor": bare_unet(training, parts.unet, parts.unet.dtype),
        "step": lambda number: training_step(training, number),
    }
    for name, work in works.items():
        with FlopCounterMode(display=False) as counter:
            work(0)
        found[f"{name}_operations"] = counter.get_total_flops()
    unet, encoder = (
        sum(p.numel() * p.element_size() for p in part.parameters())
        for part in (parts.unet, parts.text_encoder.base_model)
    )
    table = token_embedding.table_of(parts)
    encoder -= table.numel() * table.element_size()  # only the rows of a prompt's words are read
    return found | {"floor_bytes": 2 * unet, "step_bytes": 2 * (unet + encoder)}


def measure_floor(training: Training, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of a step, of four micro-batches of one, of the floor, and of the floor with switches."""
    parts = training.models
    plain = bare_unet(training, parts.unet, parts.unet.dtype)
    works = {"floor": plain, "step": lambda number: training_step(training, number)}
    if options.batch == 4:
        cut = dataclasses.replace(
            training.config, train_batch_size=1, gradient_accumulation_steps=4
        )
        by_one = dataclasses.replace(training, config=cut)
        works["step 1 × 4"] = lambda number: training_step(by_one, number)
    compiling = {}
    for switch in options.switches:
        unet = models.load(parts.name, device=parts.device, dtype=parts.unet.dtype).unet
        if switch == "channels_last":
            unet = unet.to(memory_format=torch.channels_last)
        elif switch == "bf16":
            unet = unet.to(torch.bfloat16)
        dtype = unet.dtype
        if switch == "compile":
            unet = torch.compile(unet, mode="reduce-overhead" if options.device == "gpu" else None)
        works[f"floor, {switch}"] = bare_unet(training, unet, dtype)
        if switch == "compile":
            start = time.perf_counter()
            works[f"floor, {switch}"](0)
            compiling["compiling, once, by the clock"] = time.perf_counter() - start
    return in_turns(works, options.rounds, options.device) | compiling


def as_markdown(record: dict[str, Any]) -> str:
    """The time of each, and its ratio to the floor."""
    floor, few = record["floor"], record["fewest"]
    lines = ["| | seconds | of the floor |", "|---|--:|--:|"]
    for name, seconds in floor.items():
        share = "" if "once" in name else f"{seconds / floor['floor']:.2f}"
        lines.append(f"| {name} | {seconds:.3f} | {share} |")
    operations = few["step_operations"] / few["floor_operations"]
    lines += ["", f"Fewest operations: floor {few['floor_operations'] / 1e9:.2f} · 10⁹, step "
        f"{few['step_operations'] / 1e9:.2f} · 10⁹, {operations:.2f} times as many. Fewest bytes of weights: "
        f"floor {few['floor_bytes'] / 1e6:.0f} MB, step {few['step_bytes'] / 1e6:.0f} MB."]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
