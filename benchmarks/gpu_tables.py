"""The tables of `benchmarks.gpu`, made from its gpu.json; what is missing there is shown as not measured."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from benchmarks.quality import ROOT, write_between_markers

GIB = 2**30
NONE = "not measured"
BATCHES = (1, 4)
BOUNDS = {"fp16": 0.01, "bf16": 0.03, "no": 0.01}  # of each loss, relative to float32's
Report = dict[str, Any]


def write(report: Report) -> None:
    """Put the tables between their markers."""
    write_between_markers(ROOT / "benchmarks" / "README.md", everything(report), "gpu")
    text = "\n\n".join([source(report), memory(report), fit(report)])
    write_between_markers(ROOT / "docs" / "memory.md", text, "gpu-memory")


def everything(report: Report) -> str:
    """All tables, each with its heading."""
    parts = {
        "Speed": [
            speed(report),
            launching(report),
            chip(report),
            attention(report),
            profile(report),
        ],
        "Memory of a step": [memory(report), fit(report)],
        "Stable Diffusion XL": [sdxl(report)],
        "Half precision": [precision(report)],
        "JAX": [jax(report)],
        "A whole run": [whole(report)],
        "The rows' optimizer": [optimizer(report)],
    }
    lines = [source(report)]
    unfinished = [
        f"{name}: {found['state'].splitlines()[0]}"
        for name, found in report["stages"].items()
        if found.get("state", "done") != "done"
    ]
    if unfinished:
        lines.append(f"Stages that were not finished: {'; '.join(unfinished)}.")
    for heading, texts in parts.items():
        lines += [f"### {heading} on a GPU", *texts]
    return "\n\n".join(lines)


def source(report: Report) -> str:
    """What was measured where, when, and with which versions."""
    versions = ", ".join(f"{name} {v}" for name, v in report["versions"].items() if v)
    return (
        f"Measured {report['date']}, {report['card']}; random weights in Stable Diffusion 1.5's exact shapes unless "
        f"stated otherwise, 512 pixels; {versions}."
    )


def at(report: Report, *path: str) -> Any:
    """The entry at that path; None if there is none."""
    found: Any = report.get("stages", {})
    for key in path:
        if not isinstance(found, dict) or key not in found:
            return None
        found = found[key]
    return found


def number(value: Any, form: str = ".1f", unit: str = "") -> str:
    """A cell."""
    return NONE if not isinstance(value, (int, float)) else f"{value:{form}}{unit}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells; all but the first column to the right."""
    lines = [f"| {' | '.join(head)} |", "|---|" + "--:|" * (len(head) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


SPEED = {
    "diffusers' script": ("speed", "batch {}", "diffusers' script"),
    "ours": ("speed", "batch {}", "ours"),
    "bare U-Net": ("speed", "batch {}", "bare U-Net"),
    "ours, channels-last": ("speed", "channels-last, batch {}", "ours, channels-last"),
    "bare U-Net, channels-last": ("speed", "channels-last, batch {}", "bare U-Net, channels-last"),
    "ours, `--capture`": ("captured", "batch {}", "ours, --capture"),
    "ours, captured but for the optimizer": (
        "captured", "batch {}", "ours, but for the optimizer, captured",
    ),
    "ours, captured": ("captured", "batch {}", "ours, captured"),
    "ours, captured, channels-last": ("captured", "batch {}", "ours, channels-last, captured"),
    "bare U-Net, captured": ("captured", "batch {}", "bare U-Net, captured"),
    "ours, repeated blocks compiled": (
        "compile", "batch {}, repeated blocks compiled", "ours, repeated blocks compiled",
    ),
    "ours, U-Net compiled": ("compile", "batch {}, all compiled", "ours, all compiled"),
}  # fmt: skip
CAPTURED = "bare U-Net, captured"


def milliseconds(report: Report, name: str, batch: int) -> float | None:
    """A step's, from the table of places."""
    stage, part, work = SPEED[name]
    return at(report, stage, part.format(batch), work, "ms")


def beside(report: Report, name: str, batch: int, work: str = "ours") -> float | None:
    """What another step took in the same rounds."""
    stage, part, _ = SPEED[name]
    return at(report, stage, part.format(batch), work, "ms")


def speed(report: Report) -> str:
    """A step by program and method, with our plain step in the same rounds, and its ratio to other steps."""
    rows = []
    for name in SPEED:
        row = [name]
        for batch in BATCHES:
            ms = milliseconds(report, name, batch)
            row += [number(ms), number(beside(report, name, batch) if ms else None)]
            for other in ("diffusers' script", CAPTURED):
                base = milliseconds(report, other, batch)
                row.append(number(ms / base if ms and base else None, ".2f"))
        rows.append(row)
    head = ["a step"]
    for batch in BATCHES:
        head += [f"ms, batch {batch}", "ours in the same rounds", "of the script's"]
        head += ["of the bare U-Net captured"]
    compiling = [
        f"{kind}: {number(at(report, 'compile', f'compiling, {kind}', 'compile_seconds'), '.0f', ' s')}"
        for kind in ("repeated blocks", "all")
    ]
    apart = [
        found["max_relative"]
        for name, found in (at(report, "captured") or {}).items()
        if isinstance(found, dict) and "max_relative" in found
    ]
    return (
        f"{table(head, rows)}\n\nMedians of alternating rounds; “ours in the same rounds” is our plain step. "
        f"Captured steps: the losses of the first five, at batch 1 and 4, differ from the plain step's by at most "
        f"{number(max(apart, default=None), '.1e')}. Compiling, once: {'; '.join(compiling)}."
    )


def launching(report: Report) -> str:
    """How much of an eager step is launching its kernels."""
    eager, captured = (
        beside(report, CAPTURED, 1, "bare U-Net"),
        milliseconds(report, CAPTURED, 1),
    )
    if not (eager and captured):
        return f"What launching kernels costs: {NONE}."
    steps = [
        f"{beside(report, name, 1) / ms:.1f} times as fast {name.removeprefix('ours, ')}"
        for name in SPEED
        if SPEED[name][0] == "captured" and name.startswith("ours")
        if (ms := milliseconds(report, name, 1))
    ]
    return (
        f"**An eager step waits for the host here.** The bare U-Net, forward and backward, takes {eager:.1f} ms at "
        f"batch 1 when kernels are launched one by one, and {captured:.1f} ms when the same kernels are replayed as a "
        f"CUDA graph: {eager / captured:.1f} times as fast. A whole step of ours is {', '.join(steps)}. So the eager "
        f"rows show how fast this machine's processor and driver launch kernels, and vary with what else it does; "
        f"where kernels are launched faster, or the GPU is slower, the gain is smaller."
    )


def chip(report: Report) -> str:
    """How far the steps are from what the chip can do."""
    rate = at(report, "speed", "chip", "bf16_product_tflops")
    copy = at(report, "speed", "chip", "copy_tb_a_second")
    each = at(report, "speed", "operations", "step_operations")
    floor = at(report, "speed", "operations", "floor_operations")
    image = number(each and each / 1e12, ".2f", " TFLOP")
    text = (
        f"The chip: {number(rate, '.0f', ' TFLOP/s')} in a bf16 product of 8192³, a copy moves "
        f"{number(copy, '.2f', ' TB/s')}, bytes read and written. A step of one image: {image}."
    )
    shares = []
    names = (
        "ours",
        "ours, captured",
        "ours, captured, channels-last",
        "ours, `--capture`",
        CAPTURED,
    )
    for name in names:
        count = floor if name == CAPTURED else each
        for batch in BATCHES:
            ms = milliseconds(report, name, batch)
            if ms and rate and count:
                share = count * batch / (ms / 1000) / (rate * 1e12)
                shares.append(f"{name}, batch {batch}: {100 * share:.0f} %")
    return text + f" Of the product's rate: {'; '.join(shares) or NONE}."


def attention(report: Report) -> str:
    """The bare U-Net with each kernel of attention, and with joined projections."""
    names = {
        "as PyTorch chooses": ("attention FLASH_ATTENTION, batch {}", "bare U-Net"),
        "plain": ("attention MATH, batch {}", "kernel"),
        "flash": ("attention FLASH_ATTENTION, batch {}", "kernel"),
        "memory-efficient": ("attention EFFICIENT_ATTENTION, batch {}", "kernel"),
        "cuDNN": ("attention CUDNN_ATTENTION, batch {}", "kernel"),
        "joined projections": ("joined projections, batch {}", "joined"),
    }
    rows = [
        [name, *(number(at(report, "speed", part.format(b), work, "ms")) for b in BATCHES)]
        for name, (part, work) in names.items()
    ]
    return table(["bare U-Net's attention", "ms, batch 1", "ms, batch 4"], rows)


def profile(report: Report) -> str:
    """What a step consists of."""
    found = at(report, "speed", "profile, batch 1") or {}
    if "kernels_a_step" not in found:
        return f"Which kernels a step consists of: {NONE}."
    busy, kernels = found.get("device_ms_a_step"), found.get("kernels_a_step")
    text = f"In a step of batch 1 the device works {number(busy, '.1f', ' ms')} in {number(kernels, '.0f')} kernels"
    most = [f"{k['ms']:.2f} ms {k['kernel'][:60]}" for k in found.get("most", [])[:5]]
    return text + (f"; most of it: {'; '.join(most)}." if most else ".")


def gib(value: Any) -> str:
    """Bytes as a cell."""
    return number(value / GIB if isinstance(value, (int, float)) else None, ".2f", " GiB")


STEP_HEAD = ("frozen parts", "checkpointing", "batch", "counted", "allocated", "reserved")


def memory(report: Report) -> str:
    """Counted, reserved, and seen from outside."""
    rows = []
    for precision, batch in (("fp16", 1), ("bf16", 1), ("no", 1), ("fp16", 4)):
        for on in ("off", "on"):
            found = at(report, "memory", f"{precision}, checkpointing {on}, batch {batch}") or {}
            name = {"no": "float32"}.get(precision, precision)
            cells = [
                gib(found.get(k))
                for k in ("counted", "max_allocated", "max_reserved", "nvidia_smi")
            ]
            rows.append([name, on, str(batch), *cells, number(found.get("ms"))])
    found = at(report, "memory", "encoding a photo") or {}
    cells = [gib(found.get(k)) for k in ("max_allocated", "max_reserved", "nvidia_smi")]
    rows.append(["encoding a photo", "", "1", "", *cells, ""])
    head = [*STEP_HEAD, "nvidia-smi", "ms per step"]
    note = (
        "nvidia-smi's figure includes the device's context and the libraries. Milliseconds are those of two eager "
        "steps beside other work and cannot be compared. 8 and 4 bits: not measured."
    )
    return f"{table(head, rows)}\n\n{note}"


def sdxl(report: Report) -> str:
    """A step in Stable Diffusion XL's shapes: memory and time."""
    rows = []
    for on in ("off", "on"):
        found = at(report, "sdxl", f"fp16, checkpointing {on}, batch 1") or {}
        cells = [gib(found.get(k)) for k in ("counted", "max_allocated", "max_reserved")]
        rows.append(["fp16", on, "1", *cells, number(found.get("ms"))])
    return f"Random weights in SDXL's exact shapes, 1024 pixels.\n\n{table([*STEP_HEAD, 'ms per step'], rows)}"


def fit(report: Report) -> str:
    """What `--fit` chose under each cap, and whether it fit."""
    rows = []
    for cap in (16, 8, 6, 4, 3, 2.4):
        found = at(report, "memory", f"fit {cap:g} GiB") or {}
        plan = found.get("plan", "refused" if "refused" in found else NONE)
        plan = f"failed: {found['error'][:80]}" if "error" in found else plan
        rows.append([
            f"{cap:g} GiB", plan, gib(found.get("max_reserved")), number(found.get("out_of_memory"), "d"),
        ])  # fmt: skip
    found = at(report, "memory", "out of memory") or {}
    verdict = {True: "continued with a leaner plan", False: "did not continue"}.get(
        found.get("survived"), NONE
    )
    head = [
        "PyTorch's limit",
        "what `--fit` chooses for a batch of four",
        "reserved",
        "times out of memory",
    ]
    return f"{table(head, rows)}\n\nWhen memory was made to run out: {verdict}."


def precision(report: Report) -> str:
    """Half precision against float32."""
    found = dict(at(report, "correctness", "against float32") or {})
    found = {**losses_apart(report), **{k: v for k, v in found.items() if isinstance(v, dict)}}
    tf32 = "float32 with cuDNN's TF32, the default"
    found[tf32] = at(report, "correctness", tf32) or {}
    rows = []
    for name in ("fp16", "bf16", "no on the CPU", tf32):
        one = found.get(name, {})
        shown = {"no on the CPU": "float32 on the CPU"}.get(name, name)
        rows.append([
            shown, percent(one.get("losses_mean_relative")), percent(one.get("losses_max_relative")),
            percent(one.get("bound")), yes(one.get("within")), percent(one.get("rows_relative_to_the_way")),
        ])  # fmt: skip
    head = [
        "bundled model, 20 steps, against float32",
        "losses differ by, mean",
        "at most",
        "bound",
    ]
    lines = [table([*head, "within", "rows, of the way"], rows)]
    beyond = [
        f"{name} in {one['beyond']} of {one['steps']} steps"
        for name, one in found.items()
        if one.get("beyond")
    ]
    if beyond:
        lines.append(
            f"Beyond the bound, which was set beforehand: {'; '.join(beyond)}. A relative difference is largest where "
            f"the loss is small, and grows from step to step as the rows part."
        )
    scaler = at(report, "correctness", "loss scaler") or {}
    lines.append(
        f"A scale far too large: {number(scaler.get('skipped'), 'd')} steps skipped, then the rows moved: "
        f"{yes(scaler.get('moved_then'))}."
    )
    for half in ("no", "fp16"):
        one = at(report, "correctness", f"deterministic, {half}") or {}
        name = {"no": "float32"}.get(half, half)
        lines.append(
            f"`--deterministic`, {name}: repeated bit for bit: {yes(one.get('repeated_bit_for_bit'))}; "
            f"resumed bit for bit: {yes(one.get('resumed_bit_for_bit'))}."
        )
    return "\n\n".join(lines)


def losses_apart(report: Report) -> dict[str, dict[str, Any]]:
    """How far the losses of half precision lie from float32's, of those that were kept."""
    reference = at(report, "correctness", "float32", "losses")
    found: dict[str, dict[str, Any]] = {}
    for name in ("fp16", "bf16"):
        losses = at(report, "correctness", name, "losses")
        if not (reference and losses):
            continue
        apart = [abs(a - b) / abs(b) for a, b in zip(losses, reference, strict=False)]
        found[name] = {
            "losses_max_relative": max(apart),
            "losses_mean_relative": sum(apart) / len(apart),
            "bound": BOUNDS[name],
            "within": max(apart) <= BOUNDS[name],
            "beyond": sum(one > BOUNDS[name] for one in apart),
            "steps": len(apart),
        }
    return found


def percent(value: Any) -> str:
    """A share as a cell."""
    return number(100 * value if isinstance(value, (int, float)) else None, ".2g", " %")


def yes(value: Any) -> str:
    """Yes, no, or not measured."""
    return {True: "yes", False: "no"}.get(value, NONE)


def jax(report: Report) -> str:
    """Samples a second in both frameworks."""
    rows = []
    names = ["PyTorch, no", "PyTorch, fp16"]
    names += ["JAX, no, empty cache", "JAX, no, kept cache", "JAX, bf16, empty cache"]
    for name in names:
        found = at(report, "jax", name) or {}
        said = re.search(r"timed out after ([\d.]+)", str(found.get("error")))
        rate = number(found.get("samples_a_second"), ".0f")
        rows.append([
            name.replace(", no", ", float32"), f"stopped after {float(said[1]):.0f} s" if said else rate,
            number(found.get("compile_seconds"), ".1f") if name.startswith("JAX") else "",
        ])  # fmt: skip
    losses = at(report, "jax", "losses", "max_relative")
    note = (
        f"Difference of JAX's losses from PyTorch's in float32, at most: {number(losses, '.1e')}."
    )
    return f"{table(['bundled model, batch 4', 'samples a second', 'seconds to compile'], rows)}\n\n{note}"


def whole(report: Report) -> str:
    """A run by the clock."""
    rows = []
    for precision in ("fp16", "no"):
        found = at(report, "whole", f"training, {precision}") or {}
        stages = found.get("seconds_by_stage", {})
        text = ", ".join(f"{name} {seconds:.1f}" for name, seconds in stages.items())
        name = {"no": "float32"}.get(precision, precision)
        steps = f"{found['steps']} steps: {text}" if "steps" in found else ""
        rows.append([f"training, {name}", number(found.get("seconds")), steps])
    for batch in (8, 64):
        found = at(report, "whole", f"64 pictures, {batch} at once") or {}
        rate = f"{found['a_second']:.1f} a second" if "a_second" in found else ""
        rows.append([f"64 pictures, {batch} at once", number(found.get("seconds")), rate])
    return table(["bundled model", "seconds", "of which"], rows)


def optimizer(report: Report) -> str:
    """Microseconds of each optimizer's step."""
    found = at(report, "speed", "row optimizer") or {}
    rows = [[name, number(one.get("us"))] for name, one in found.items() if isinstance(one, dict)]
    return table(["optimizer's step", "microseconds"], rows or [["AdamW", NONE]])
