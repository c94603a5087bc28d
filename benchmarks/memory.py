"""How much memory a training step takes, with every switch on and off, in the shapes of Stable Diffusion 1.5 and XL.

    python -m benchmarks.memory                  counted, on any machine, in ten minutes
    python -m benchmarks.memory --device cuda    Stable Diffusion 1.5's measured on a GPU, with random weights

Writes tiutils/runs/memory_table.json, from which `--fit` plans, benchmarks/memory.json, and the tables in
benchmarks/README.md. Without a GPU the bytes of a step are counted (see `benchmarks.counting`), and the bytes that it
moves stand in for its time. To check the count, a step with a tenth of the channels runs on a CPU, and the bytes
counted are compared with those that PyTorch's allocator gave out. The loss is compared on the bundled model's fixed
batch. What 8-bit Adam saves is measured with real optimizers, of the new rows only, as here, and of the whole table, as
in programs that train all of it.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import counting, programs
from benchmarks.flax import random_parts
from benchmarks.quality import ROOT, write_between_markers
from tiutils import models
from tiutils.config import TrainingConfig
from tiutils.io import pretrained
from tiutils.runs import memory

GIB, MIB = 2**30, 2**20
GOAL = 2.5 * GIB  # for the leanest settings at batch 1
SWITCHES = list(itertools.product(("no", "half"), (False, True), (None, "8bit", "4bit")))
BATCHES = (1, 2, 4)
TABLE = ROOT / "tiutils" / "runs" / "memory_table.json"
RECORD = ROOT / "benchmarks" / "memory.json"


def main() -> int:
    """Count or measure, write and print the results; 1 if the goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory")
    parser.add_argument("--device", choices=("counted", "cuda"), default="counted")
    device = parser.parse_args().device
    is_counted = device == "counted"
    found = count_all("sd15", counting.count_step if is_counted else measure_step)
    records = {
        "sd15": {
            "model": "Stable Diffusion 1.5's shapes, 512 pixels",
            "source": "counted" if is_counted else torch.cuda.get_device_name(),
            "time": "bytes moved" if is_counted else "seconds",
            "rows": [row_of(switches, steps) for switches, steps in found.items()],
        },
        "sdxl": {
            "model": "Stable Diffusion XL's shapes, 1024 pixels",
            "source": "counted",
            "time": "bytes moved",
            "rows": [row_of(switches, steps) for switches, steps in count_all("sdxl").items()],
        },
    }
    TABLE.write_text(json.dumps(records, indent=1) + "\n")
    memory.table.cache_clear()
    more = {
        "machine": programs.machine(),
        "encoding": {p: counting.count_encoding("sd15", p) for p in counting.PRECISIONS},
        "straight": max(bend(steps) for steps in found.values() if len(steps) == len(BATCHES)),
        "against_reality": [against_reality(c, b) for c in (False, True) for b in (None, "8bit")],
        "losses": losses(),
        "adam": adam(),
        "steps": [{"switches": s, "batches": steps} for s, steps in found.items()],
    }
    RECORD.write_text(json.dumps(more, indent=1) + "\n")
    page = ROOT / "benchmarks" / "README.md"
    write_between_markers(page, as_markdown(records, more), "memory")
    write_between_markers(page, adam_as_markdown(more["adam"]), "adam")
    print(as_markdown(records, more), adam_as_markdown(more["adam"]), sep="\n\n")
    leanest = min(r["weights"] + sum(r["activations"]) for r in records["sd15"]["rows"])
    return 0 if leanest <= GOAL else 1


def count_all(
    model: str, take: Callable[..., dict[str, Any]] = counting.count_step
) -> dict[tuple[str, bool, str | None], dict[int, dict[str, Any]]]:
    """Steps of all switches and batches, by switches, then by batch."""
    return {
        switches: {
            batch: take(model, *switches, batch)
            for batch in BATCHES
            if batch in (1, 4) or switches[2] is None  # quantization does not bend the line
        }
        for switches in SWITCHES
    }


def row_of(
    switches: tuple[str, bool, str | None], steps: dict[int, dict[str, Any]]
) -> dict[str, Any]:
    """One row of the table: a straight line through the smallest and the largest batch size."""
    precision, checkpointing, bits = switches
    line = {}
    for key in ("activations", "time"):
        low, high = (steps[batch][key] for batch in (BATCHES[0], BATCHES[-1]))
        each = (high - low) / (BATCHES[-1] - BATCHES[0])
        line[key] = [low - each * BATCHES[0], each]
    return {
        "precision": precision,
        "gradient_checkpointing": checkpointing,
        "quantize": bits,
        "weights": steps[1]["weights"],
        **line,
    }


def bend(steps: dict[int, dict[str, Any]]) -> float:
    """How far the middle batch size is from the line through the other two, relative to its own value."""
    low, middle, high = (steps[batch]["weights"] + steps[batch]["activations"] for batch in BATCHES)
    share = (BATCHES[1] - BATCHES[0]) / (BATCHES[2] - BATCHES[0])
    return abs(middle - (low + share * (high - low))) / middle


def measure_step(
    model: str, precision: str, checkpointing: bool, bits: str | None, batch: int
) -> dict[str, Any]:
    """As `counting.count_step`, measured on a GPU: what PyTorch reserved, seconds, nvidia-smi's figure, the loss."""
    gc.collect()
    torch.cuda.empty_cache()
    dtype = counting.PRECISIONS[precision]
    before = programs.device_bytes()
    parts = counting.ready(random_parts(model, dtype, 49408), False, bits)
    for part in (parts.unet, parts.text_encoder):
        part.to("cuda")
    if checkpointing:
        counting.recompute_activations(parts)
    weights = torch.cuda.memory_allocated()
    learned, half = counting.dataset(parts, batch), None if precision == "no" else dtype
    counting.step(parts, learned, half)  # libraries are loaded, algorithms chosen
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    for _ in range(3):
        loss = counting.step(parts, learned, half)
    torch.cuda.synchronize()
    return {
        "weights": weights,
        "activations": torch.cuda.max_memory_reserved() - weights,
        "time": (time.perf_counter() - start) / 3,
        "nvidia_smi": programs.device_bytes() - before,
        "loss": loss.item(),
    }


def against_reality(checkpointing: bool, bits: str | None) -> dict[str, Any]:
    """A real step on the CPU, with a tenth of the channels: the bytes counted, and those the allocator gave out."""

    def parts_and_material() -> tuple[Any, Any]:
        parts = counting.ready(random_parts("sd15-thin"), checkpointing, bits)
        return parts, counting.dataset(parts, 4)

    parts, learned = parts_and_material()
    counting.step(parts, learned, None)  # the gradient exists now
    with counting.Counter(counting.tensors(parts.unet, parts.text_encoder)) as counter:
        counting.step(parts, learned, None)
    kinds = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=kinds, profile_memory=True) as profile:
        counting.step(parts, learned, None)
    live = peak = 0
    events = profile.profiler.kineto_results.events()
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    switches = {"gradient_checkpointing": checkpointing, "quantize": bits}
    return {**switches, "counted": counter.peak, "given_out": peak}


def losses() -> dict[str, float]:
    """The bundled model's loss on a fixed batch, without a gradient, for each format of the U-Net's weights."""
    from tiutils import concept, diffusion

    found = {}
    formats = [(torch.float32, b) for b in (None, "8bit", "4bit")] + [(torch.bfloat16, None)]
    photos = concept.load(ROOT / "data" / "concepts" / "wood-toy")
    for dtype, bits in formats:
        parts = models.load(pretrained.BUNDLED_MODEL, dtype=dtype, quantize=bits)
        learned = diffusion.encode_dataset(
            parts, photos, "toy", TrainingConfig(timestep_sampling="uniform")
        )
        name = bits or str(dtype).removeprefix("torch.")
        found[name] = diffusion.fixed_loss(parts, diffusion.fixed_batch(learned, 64))
    return found


def adam() -> list[dict[str, Any]]:
    """Bytes of gradient, moments and copies of the table, when the new rows are trained and when the whole table is."""
    import bitsandbytes

    found = []
    cases = {"1 row": 1, "6 rows": 6, "the whole table, 49408 rows": 49408}
    for (what, rows), bits in itertools.product(cases.items(), (32, 8)):
        trained = torch.nn.Parameter(torch.zeros(rows, 768))
        kind = torch.optim.AdamW if bits == 32 else bitsandbytes.optim.AdamW8bit
        optimizer = kind([trained])
        trained.grad = torch.ones_like(trained)
        optimizer.step()
        states = [v for v in optimizer.state[trained].values() if isinstance(v, torch.Tensor)]
        found.append(
            {
                "what": what,
                "adam": bits,
                "gradient": trained.grad.nbytes,
                "moments": sum(state.nbytes for state in states),
                # the diffusers script clones the table, to put all other rows back after each step
                "copy": trained.nbytes if rows == 49408 else 0,
            }
        )
    return found


def table_of(record: dict[str, Any]) -> list[str]:
    """Lines of the table of all switches."""
    plain = record["rows"][0]["time"]
    lines = [
        "| frozen parts | checkpointing | U-Net's linear layers | weights | batch 1 | batch 4 | "
        f"{record['time']} at batch 4 |",
        "|---|---|---|--:|--:|--:|--:|",
    ]
    for row in record["rows"]:
        start, each = row["activations"]
        cells = [row["weights"], *(row["weights"] + start + batch * each for batch in (1, 4))]
        share = (row["time"][0] + 4 * row["time"][1]) / (plain[0] + 4 * plain[1])
        words = [
            "float32" if row["precision"] == "no" else "half",
            "on" if row["gradient_checkpointing"] else "off",
            row["quantize"] or "whole",
            *(f"{cell / GIB:.2f} GiB" for cell in cells),
            f"{share:.2f}",
        ]
        lines.append(f"| {' | '.join(words)} |")
    return lines


def as_markdown(records: dict[str, dict[str, Any]], more: dict[str, Any]) -> str:
    """The tables of all switches, and what stands behind them."""
    record = records["sd15"]
    is_counted = record["source"] == "counted"
    lines = [*table_of(record), ""]
    source = (
        "Counted, with random weights; for measurements on a GPU see below"
        if is_counted
        else f"Measured on {record['source']}, with random weights"
    )
    straight = max(more["straight"], 0)
    real = [r["counted"] / r["given_out"] - 1 for r in more["against_reality"]]
    loss = more["losses"]
    changes = ", ".join(
        f"{name} {100 * (loss[name] / loss['float32'] - 1):+.2f} %"
        for name in ("bfloat16", "8bit", "4bit")
    )
    encoding = max(more["encoding"].values()) / GIB
    lines += [
        f"{source}. Batch sizes in between lie on a line to within {100 * straight:.1f} %. On a CPU, with a "
        f"tenth of the channels, the count differs from what PyTorch's allocator gave out by {100 * min(real):+.1f} to "
        f"{100 * max(real):+.1f} %. Loss on the bundled model's fixed batch, against float32: {changes}; "
        f"checkpointing does not change it. While photos are encoded, before the U-Net is on the device: at most "
        f"{encoding:.2f} GiB.",
        "",
        "Stable Diffusion XL at 1024 pixels, counted in the same way and not measured on a GPU yet:",
        "",
        *table_of(records["sdxl"]),
    ]
    return "\n".join(lines)


def adam_as_markdown(found: list[dict[str, Any]]) -> str:
    """The table of what 8-bit Adam saves."""
    lines = ["| trained | Adam | gradient | moments | copy of the table |", "|---|---|--:|--:|--:|"]
    for row in found:
        sizes = (f"{row[key] / MIB:.3f} MiB" for key in ("gradient", "moments", "copy"))
        lines.append(f"| {row['what']} | {row['adam']}-bit | {' | '.join(sizes)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
