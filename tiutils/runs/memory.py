"""What fits into a device's memory, and which switches make it fit, predicted before anything is loaded.

Weights are counted from the model's configuration. The memory a step needs in addition is in memory_table.json, which
`benchmarks/memory.py` counts for Stable Diffusion 1.5 at 512 pixels and for Stable Diffusion XL at 1024: a constant,
and a number of bytes per sample. For other models and sizes it is scaled by the latents' area and the width of the
U-Net's first block, where activations are largest: right for Stable Diffusion 2.x, a little too much for smaller
models.

If memory runs out nevertheless, `with_memory_retry` repeats the step with the next plan that needs less.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiutils.config import TrainingConfig
from tiutils.errors import InputError, OutOfMemory, first_line, out_of_memory
from tiutils.io import pretrained

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

logger = logging.getLogger("tiutils")
GIB = 2**30
# share of the free memory kept for what the table leaves out: workspaces of cuDNN and cuBLAS, fragmentation. Too small
# a margin costs one repeated step, too large a margin costs time in every step
MARGIN = 0.1
BYTES = {"no": 4.0, "fp16": 2.0, "bf16": 2.0, "8bit": 1.0, "4bit": 0.5 + 4 / 64}  # of one weight


@dataclass(frozen=True)
class ModelSize:
    """The sizes of a model that determine its memory.

    Attributes:
        linear: weights in linear layers of the U-Net, those that --quantize packs.
        other: the U-Net's other weights.
        text: weights of the text encoders, always float32.
        activation_scale: size of a sample's activations, compared with the family's model in the table.
        family: "sd15" (Stable Diffusion 1.x and 2.x) or "sdxl", a key of the table.
    """

    linear: int
    other: int
    text: int
    activation_scale: float
    family: str = "sd15"


SD15 = ModelSize(270_049_280, 589_471_684, 123_060_480, 1.0)


@dataclass(frozen=True)
class Plan:
    """Switches, and the memory and time that a step with them is expected to need.

    Attributes:
        peak_bytes: of weights and activations, while training.
        relative_time: of a step, compared with the same model without any switches; see "time" in the table.
    """

    mixed_precision: str
    train_batch_size: int
    gradient_accumulation_steps: int
    gradient_checkpointing: bool
    quantize: str | None
    peak_bytes: int
    relative_time: float

    def applied(self, config: TrainingConfig) -> TrainingConfig:
        """The config with these switches set."""
        names = {field.name for field in dataclasses.fields(config)}
        return dataclasses.replace(config, **{k: v for k, v in vars(self).items() if k in names})

    def __str__(self) -> str:
        words = [
            {"no": "float32"}.get(self.mixed_precision, self.mixed_precision),
            f"batch {self.train_batch_size} × {self.gradient_accumulation_steps}",
        ]
        words += ["gradient checkpointing"] * self.gradient_checkpointing
        words += [f"U-Net in {self.quantize}"] if self.quantize else []
        return f"{', '.join(words)}: about {self.peak_bytes / GIB:.1f} GiB"


@functools.cache
def table() -> dict[str, Any]:
    """memory_table.json, by family."""
    return json.loads((Path(__file__).parent / "memory_table.json").read_text(encoding="utf-8"))


def size_of(folder: Path, resolution: int | None = None) -> ModelSize:
    """The sizes of the model in a folder, from its configurations alone."""
    import torch
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig

    from tiutils.models import ENCODER_KINDS

    encoders = pretrained.text_encoders(folder)
    with torch.device("meta"):  # shapes without values
        unet = UNet2DConditionModel.from_config(pretrained.read_config(folder, "unet"))
        texts = [
            kind(CLIPTextConfig(**pretrained.read_config(folder, part)))
            for kind, part in zip(ENCODER_KINDS, encoders, strict=False)
        ]
    factor = pretrained.vae_factor(pretrained.read_config(folder, "vae"))
    return size_of_parts(unet, texts, resolution // factor if resolution else None)


def size_of_parts(
    unet: UNet2DConditionModel, text_encoders: Sequence[CLIPTextModel], side: int | None = None
) -> ModelSize:
    """The sizes of a model, which may be on the meta device.

    Args:
        unet: the U-Net.
        text_encoders: one, or SDXL's two.
        side: of the latents; the U-Net's own if None.
    """
    import torch

    layers = [m for m in unet.modules() if isinstance(m, torch.nn.Linear)]
    linear = sum(layer.weight.numel() for layer in layers)
    everything = sum(p.numel() for p in unet.parameters())
    family, table_side = ("sd15", 64) if len(text_encoders) == 1 else ("sdxl", 128)
    area = ((side or unet.config.sample_size) / table_side) ** 2
    return ModelSize(
        linear,
        everything - linear,
        sum(p.numel() for encoder in text_encoders for p in encoder.parameters()),
        area * unet.config.block_out_channels[0] / 320,
        family,
    )


def predicted(config: TrainingConfig, shape: ModelSize = SD15) -> Plan:
    """The plan of a run with these settings, from the table."""
    precision, bits = config.mixed_precision, config.quantize
    batch, accumulation = config.train_batch_size, config.gradient_accumulation_steps
    key = ("no" if precision == "no" else "half", config.gradient_checkpointing, bits)
    rows = {
        (r["precision"], r["gradient_checkpointing"], r["quantize"]): r
        for r in table()[shape.family]["rows"]
    }
    fixed, each = rows[key]["activations"]
    weights = shape.linear * BYTES[bits or precision] + shape.other * BYTES[precision]
    peak = weights + 4 * shape.text + shape.activation_scale * (fixed + batch * each)
    start, sample = rows[key]["time"]
    plain_start, plain_sample = rows["no", False, None]["time"]
    time = accumulation * (start + batch * sample)
    plain_time = plain_start + batch * accumulation * plain_sample
    return Plan(
        precision,
        batch,
        accumulation,
        config.gradient_checkpointing,
        bits,
        int(peak),
        time / plain_time,
    )


def plans(config: TrainingConfig, shape: ModelSize, device: str) -> list[Plan]:
    """All plans for a run, in the order in which to try them.

    Switches that are on stay on. Smaller micro-batches and gradient checkpointing do not change what is learned; such
    plans are ordered by time. A GPU always uses half precision. Quantized weights, and bfloat16 on a CPU, where it is
    no faster, change a run slightly and come last.
    """
    samples = config.samples_per_process
    precisions = [config.mixed_precision]
    if config.mixed_precision == "no":
        precisions = ["fp16"] if device == "cuda" else ["no", "bf16"]
    bits: list[str | None] = [config.quantize]
    if not (config.quantize or config.save_as_full_pipeline):
        bits += ["8bit", "4bit"] if importlib.util.find_spec("bitsandbytes") else []
    found = [
        predicted(
            dataclasses.replace(
                config,
                mixed_precision=precision,
                train_batch_size=batch,
                gradient_accumulation_steps=samples // batch,
                gradient_checkpointing=checkpointing,
                quantize=few,
            ),
            shape,
        )
        for precision in precisions
        for batch in range(1, samples + 1)
        if samples % batch == 0
        for checkpointing in {config.gradient_checkpointing, True}
        for few in bits
    ]

    def order(plan: Plan) -> tuple[int, int, float, int]:
        closeness = bits.index(plan.quantize), precisions.index(plan.mixed_precision)
        return *closeness, plan.relative_time, plan.peak_bytes

    return sorted(found, key=order)


def choose_plan(
    config: TrainingConfig, shape: ModelSize, device: str, free: int
) -> tuple[Plan, list[Plan]]:
    """The first plan that fits into `free` bytes, and fallbacks in case it does not fit after all.

    Each fallback needs less memory than the one before; all learn the same.

    Raises:
        InputError: no plan fits.
    """
    ways = plans(config, shape, device)
    budget = free * (1 - MARGIN)
    chosen = next((plan for plan in ways if plan.peak_bytes <= budget), None)
    if chosen is None:
        leanest = min(ways, key=lambda plan: plan.peak_bytes)
        advice = "" if leanest.quantize else "; `pip install bitsandbytes` lets it try 8 and 4 bits"
        raise InputError(
            f"--fit found nothing that fits: the leanest is {leanest}, and {free / GIB:.1f} GiB are free, of which a "
            f"tenth is kept in reserve; close other programs, or give a smaller --resolution{advice}"
        )
    fallbacks, last = [], chosen
    for plan in ways:
        same = (plan.mixed_precision, plan.quantize) == (chosen.mixed_precision, chosen.quantize)
        if same and plan.peak_bytes < last.peak_bytes:
            fallbacks.append(last := plan)
    return chosen, fallbacks


def free_and_total(device: Any) -> tuple[int, int]:
    """Free and total bytes of a CUDA device's memory; for any other `torch.device`, of the machine's."""
    if device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)
    import psutil

    memory = psutil.virtual_memory()
    return memory.available, memory.total


def free_bytes(device: Any) -> int:
    """Bytes that this process can still use of a `torch.device`'s memory; on a CPU, its share of what is free."""
    free, _ = free_and_total(device)
    if device.type == "cuda":
        import torch

        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def with_memory_retry(
    training: Any,
    step: int,
    *,
    fallbacks: list[Plan],
    take_step: Callable[[Any, int], Any] | None = None,
) -> Any:
    """Take a training step; if memory runs out, repeat it with the next plan of `fallbacks`.

    Until its last lines a step changes only gradients, so it can be repeated. `take_step` is `training.training_step`
    by default.

    Raises:
        OutOfMemory: no fallback is left.
    """
    from tiutils import training as loop  # here, as it needs PyTorch

    while True:
        try:
            return (take_step or loop.training_step)(training, step)
        except (RuntimeError, MemoryError) as error:
            if (found := out_of_memory(error)) is None:
                raise
            said = first_line(found)
        # only here: within `except`, the traceback keeps all tensors of the step alive
        training.optimizer.zero_grad()
        empty_cache()
        where = f"out of memory in step {step + 1} ({said[:120]})"
        if not fallbacks:
            raise OutOfMemory(f"{where}; {advice(training.config)}")
        plan = fallbacks.pop(0)
        logger.warning("%s: continuing with %s", where, plan)
        training.config = plan.applied(training.config)  # learns the same
        if plan.gradient_checkpointing:
            loop.recompute_activations(training.models)


def empty_cache() -> None:
    """Return memory that PyTorch caches to the GPU."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def advice(config: TrainingConfig) -> str:
    """What to do after running out of memory."""
    if config.fit:
        return "nothing leaner is left: close other programs, or give a smaller --resolution"
    if config.capture:
        return "replace --capture with --fit (and --resume_from_checkpoint latest, to continue)"
    return "add --fit, which chooses what fits (and --resume_from_checkpoint latest, to continue)"


@contextmanager
def explain_out_of_memory(config: TrainingConfig) -> Iterator[None]:
    """If memory runs out while models are loaded and photos encoded, raise an `InputError` that says what to do."""
    try:
        yield
    except Exception as error:  # whatever a library has made of it
        if (found := out_of_memory(error)) is None:
            raise
        raise InputError(f"out of memory ({first_line(found)[:120]}); {advice(config)}") from error


def explain(config: TrainingConfig, shape: ModelSize = SD15) -> str:
    """How much memory each switch saves, a line each; by default for Stable Diffusion 1.5 at 512 pixels."""
    now = predicted(config, shape)
    without: dict[str, dict[str, Any]] = {
        "mixed_precision": {"mixed_precision": "no"},
        "gradient_checkpointing": {"gradient_checkpointing": False},
        "quantize": {"quantize": None},
        "gradient_accumulation_steps": {
            "train_batch_size": config.samples_per_process,
            "gradient_accumulation_steps": 1,
        },
    }
    lines = [f"a step is expected to take {now.peak_bytes / GIB:.1f} GiB"]
    for name, change in without.items():
        other = predicted(dataclasses.replace(config, **change), shape)
        if other != now:
            lines.append(f"without --{name} it would take {other.peak_bytes / GIB:.1f} GiB")
    if config.use_8bit_adam:
        lines.append(
            "without --use_8bit_adam it would take the same: the moments of the rows are a few kilobytes"
        )
    return "\n".join(lines)
