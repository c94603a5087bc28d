"""The stages of `benchmarks.gpu`, each a function of `Notes`: measure until the time is up, keep every result."""

from __future__ import annotations

import copy
import dataclasses
import gc
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import gpu_steps, step_cost
from benchmarks.gpu_steps import Setting, bundled, captured_unet, in_turns, ready
from benchmarks.gpu_tables import BOUNDS
from tiutils import inference
from tiutils.config import TrainingConfig
from tiutils.directional import Directional
from tiutils.errors import InputError
from tiutils.io.pretrained import BUNDLED_MODEL
from tiutils.runs import memory, run
from tiutils.runs.cuda_graph import CapturedStep
from tiutils.training import Training, recompute_activations, train_rows, training_step

GIB = 2**30
CAPS = {16: 4, 8: 5, 6: 8, 4: 13, 3: 16, 2.4: 30}  # GiB, and seconds for 20 steps there
Result = dict[str, Any]


class Skipped(Exception):
    """A measurement that this machine, or the remaining time, does not allow."""


@dataclasses.dataclass
class Notes:
    """What a stage has found so far, on disk after each measurement."""

    path: Path
    setting: Setting
    until: float
    script: Path | None = None
    work: Path = dataclasses.field(default_factory=lambda: Path(tempfile.gettempdir()))
    found: Result = dataclasses.field(default_factory=dict)

    @property
    def thin(self) -> bool:
        """Whether this is a rehearsal."""
        return self.setting.device == "cpu"

    def steps(self, full: int, thin: int) -> int:
        """The number of repetitions, on a GPU and in a rehearsal."""
        return thin if self.thin else full

    @property
    def batches(self) -> tuple[int, ...]:
        """The batch sizes that are measured."""
        return (1,) if self.thin else (1, 4)

    def rounds(self, full: int) -> int:
        """How many rounds count."""
        return 1 if self.thin else full

    def left(self) -> float:
        """Seconds until the stage must have ended."""
        return self.until - time.time()

    def measure(self, name: str, work: Callable[[], Any], seconds: float = 2) -> Any:
        """Record what `work` returns and return it; or record why it failed or was skipped, and return None.

        `work` takes about `seconds`; with none given it is never skipped for lack of time."""
        start, result = time.time(), None
        try:
            if seconds and self.left() < (0 if self.thin else seconds):
                raise Skipped(f"{self.left():.0f} seconds were left, about {seconds:g} are needed")
            result = work()
            self.found[name] = result
        except Skipped as reason:
            self.found[name] = {"skipped": str(reason)}
        except Exception as error:
            self.found[name] = {"error": f"{type(error).__name__}: {error}"[:600]}
        self.found.setdefault("seconds", {})[name] = round(time.time() - start, 2)
        self.save()
        return result

    def measure_object(self, name: str, work: Callable[[], Any]) -> Any:
        """The result of `work`, not recorded; None if it failed."""
        kept: list[Any] = []
        self.measure(name, lambda: kept.append(work()), 4)
        return kept[0] if kept else None

    def save(self) -> None:
        """Write everything atomically."""
        half = self.path.with_suffix(".part")
        half.write_text(json.dumps(self.found, indent=1) + "\n")
        os.replace(half, self.path)


def need_cuda(notes: Notes, what: str) -> None:
    """Raise if there is no GPU."""
    if notes.setting.device != "cuda":
        raise Skipped(f"{what} needs CUDA")


# correctness


def correctness(notes: Notes) -> None:
    """Half precision against float32, the loss scaler's overflow, repeated and resumed runs; the bundled model."""
    steps, half = notes.steps(20, 3), notes.setting.half
    runs = {}

    def losses_and_rows(precision: str, device: str | None = None) -> Result:
        training = bundled(notes.setting, precision, steps, device)
        start = training.vectors()
        result = train_rows(training)
        found = {"losses": result.losses, "rows": training.vectors(), "start": start}
        runs[precision, device] = found
        return {"losses": result.losses, "stopped": result.stopped}

    def exact() -> Result:
        torch.backends.cudnn.allow_tf32 = False
        try:
            return losses_and_rows("no")
        finally:
            torch.backends.cudnn.allow_tf32 = True

    notes.measure("float32", exact, 6)
    reference = runs.get(("no", None))
    for precision in ("fp16", "bf16"):

        def in_half(precision: str = precision) -> Result:
            need_cuda(notes, precision)
            return losses_and_rows(precision)

        notes.measure(precision, in_half, 7)

    def tf32() -> Result:
        need_cuda(notes, "TF32")
        losses_and_rows("no", "cuda")
        return difference(reference, runs["no", "cuda"], BOUNDS["no"])

    notes.measure("float32 with cuDNN's TF32, the default", tf32, 3)

    notes.measure("loss scaler", lambda: overflow(notes), 3)
    for precision in dict.fromkeys(("no", half)):
        name = f"deterministic, {precision}"
        notes.measure(name, lambda p=precision: repeated(notes, p), 14)

    def compared() -> Result:
        names = {("no", "cpu"): "no on the CPU", ("fp16", None): "fp16", ("bf16", None): "bf16"}
        return {
            name: difference(reference, runs[key], BOUNDS[key[0]])
            for key, name in names.items()
            if key in runs
        }

    notes.measure("float32 on the CPU", lambda: losses_and_rows("no", "cpu"), 8)
    notes.measure("against float32", compared, 0)


def difference(reference: Result, other: Result, bound: float) -> Result:
    """How far the losses and the rows of two runs are apart."""
    one, two = (np.array(found["losses"]) for found in (reference, other))
    apart = np.abs(two - one) / np.abs(one)
    moved = np.linalg.norm(reference["rows"] - reference["start"])
    rows = np.linalg.norm(other["rows"] - reference["rows"])
    return {
        "losses_max_relative": float(apart.max()),
        "losses_mean_relative": float(apart.mean()),
        "losses_max_absolute": float(np.abs(two - one).max()),
        "bound": bound,
        "within": bool(apart.max() <= bound),
        "beyond": int((apart > bound).sum()),
        "steps": len(apart),
        "rows_relative_to_the_way": float(rows / moved),
        "rows_max_absolute": float(np.abs(other["rows"] - reference["rows"]).max()),
    }


def overflow(notes: Notes) -> Result:
    """A loss scale that is far too large: the rows must not move until it has come down."""
    need_cuda(notes, "the loss scaler")
    training = bundled(notes.setting, "fp16", 60)
    training.config = dataclasses.replace(training.config, norm_control=0.0)
    training.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40)
    before, scales, skipped = training.vectors(), [], 0
    for step in range(60):
        training_step(training, step)
        scales.append(training.scaler.get_scale())
        if not np.array_equal(before, training.vectors()):
            break
        skipped += 1
    return {
        "skipped": skipped,
        "first_scale": scales[0],
        "last_scale": scales[-1],
        "moved_then": skipped < 60,
        "finite": bool(np.isfinite(training.vectors()).all()),
        "was_tried": skipped > 0,
    }


def repeated(notes: Notes, precision: str) -> Result:
    """The same run twice with --deterministic, and once in two halves."""
    steps = notes.steps(20, 4)
    config = TrainingConfig(
        str(gpu_steps.PHOTOS),
        gpu_steps.WORD,
        "toy",
        pretrained_model_name_or_path=str(BUNDLED_MODEL),
        max_train_steps=steps,
        mixed_precision=precision,
        deterministic=True,
    )

    def rows(folder: str, **change: Any) -> np.ndarray:
        there = str(Path(temporary, folder))
        result = run.train(dataclasses.replace(config, output_dir=there, **change))
        embedding = result.models.text_encoder.get_input_embeddings()
        return embedding.rows.detach().cpu().numpy().copy()

    with tempfile.TemporaryDirectory() as temporary:
        try:
            once, twice = rows("once"), rows("twice")
            rows("halves", max_train_steps=steps // 2)
            resumed = rows("halves", resume_from_checkpoint="latest")
        finally:
            torch.use_deterministic_algorithms(False)
    return {
        "repeated_bit_for_bit": bool(np.array_equal(once, twice)),
        "resumed_bit_for_bit": bool(np.array_equal(once, resumed)),
        "repeated_max_difference": float(np.abs(once - twice).max()),
        "resumed_max_difference": float(np.abs(once - resumed).max()),
    }


# speed


def speed(notes: Notes) -> None:
    """Our step, the script's and the bare U-Net, alternately; then the U-Net in other layouts."""
    setting = notes.setting
    notes.measure("chip", lambda: chip(notes), 4)
    training = notes.measure_object("building", lambda: ready(setting, setting.half, with_vae=True))
    if training is None:
        return
    notes.found["precision"] = setting.half
    for batch, seconds in ((1, 25), (4, 21)):
        name = f"batch {batch}"
        notes.measure(
            name, lambda b=batch: compared(notes, gpu_steps.with_batch(training, b)), seconds
        )
    notes.measure("operations", lambda: operations(training), 3)
    for batch in notes.batches:
        variants(notes, gpu_steps.with_batch(training, batch), batch)
    notes.measure("row optimizer", lambda: row_optimizer(notes), 2)
    notes.measure("profile, batch 1", lambda: profile(notes, training), 7)
    for batch in reversed(notes.batches):
        attention_kernels(notes, gpu_steps.with_batch(training, batch), batch)


def chip(notes: Notes) -> Result:
    """The chip's limits: a large matrix product and a large copy."""
    need_cuda(notes, "the chip's rate")
    size = 8192
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    source = torch.randn(2**30, device="cuda")  # 4 GiB
    target = torch.empty_like(source)
    turns = in_turns(
        notes.setting, {"product": lambda _: a @ b, "copy": lambda _: target.copy_(source)}, 3, 5
    )
    source = target = None
    torch.cuda.empty_cache()
    return {
        "bf16_product_tflops": 2 * size**3 / turns["product"]["ms"] / 1e9,
        "copy_tb_a_second": 2 * 4 * 2**30 / turns["copy"]["ms"] / 1e9,
    }


def compared(notes: Notes, training: Training) -> Result:
    """Our step, the script's step and the bare U-Net, alternately, each after its own warm-up."""
    setting, parts = notes.setting, training.models
    works: dict[str, Callable[[int], object]] = {
        "ours": lambda number: training_step(training, number),
        "bare U-Net": step_cost.bare_unet(training, parts.unet, parts.unet.dtype),
    }
    found, script = {}, None
    try:
        if notes.script is None:
            raise Skipped("no --diffusers-script was given")
        script = gpu_steps.Script(notes.script, setting, training)
        script.step()
        works["diffusers' script"] = script.step
    except Exception as error:
        found["diffusers' script"] = {"error": f"{type(error).__name__}: {error}"[:600]}
    try:
        for _ in range(notes.steps(2, 0)):
            for work in works.values():
                work(0)
        rounds, count = notes.rounds(5), notes.steps(5, 1)
        return found | in_turns(setting, works, rounds, count, notes.until - 5)
    finally:
        if script is not None:
            script.end()


def operations(training: Training) -> Result:
    """Floating-point operations of a step and of the bare U-Net, for one image."""
    training = gpu_steps.with_batch(training, 1)
    return step_cost.fewest(training)


def variants(notes: Notes, training: Training, batch: int) -> None:
    """The same steps with the U-Net in channels-last order, and with joined projections."""
    setting, unet = notes.setting, training.models.unet
    rounds, count = notes.rounds(3), notes.steps(4, 1)
    bare = step_cost.bare_unet(training, unet, unet.dtype)

    def in_order() -> Result:
        other = copy.deepcopy(unet).to(memory_format=torch.channels_last)
        one = gpu_steps.with_unet(training, other)
        return in_turns(
            setting,
            {
                "ours": lambda number: training_step(training, number),
                "ours, channels-last": lambda number: training_step(one, number),
                "bare U-Net": bare,
                "bare U-Net, channels-last": step_cost.bare_unet(training, other, other.dtype),
            },
            rounds,
            count,
        )

    def joined() -> Result:
        other = copy.deepcopy(unet)
        other.fuse_qkv_projections()
        other.requires_grad_(False)
        work = step_cost.bare_unet(training, other, other.dtype)
        return in_turns(setting, {"bare U-Net": bare, "joined": work}, rounds, count)

    notes.measure(f"channels-last, batch {batch}", in_order, 11 + batch)
    notes.measure(f"joined projections, batch {batch}", joined, 5)


def attention_kernels(notes: Notes, training: Training, batch: int) -> None:
    """The bare U-Net with each of PyTorch's attention kernels."""
    unet = training.models.unet
    bare = step_cost.bare_unet(training, unet, unet.dtype)

    def attention(kernel: SDPBackend) -> Result:
        def work(number: int) -> None:
            with sdpa_kernel(kernel):
                bare(number)

        works = {"bare U-Net": bare, "kernel": work}
        return in_turns(notes.setting, works, notes.rounds(3), notes.steps(2, 1))

    for name in ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION", "MATH"):
        kernel = getattr(SDPBackend, name)
        notes.measure(f"attention {name}, batch {batch}", lambda k=kernel: attention(k), 3)


def row_optimizer(notes: Notes) -> Result:
    """Microseconds that each optimizer takes for one row and for six, with nothing else in the loop."""
    device = notes.setting.device
    kinds: dict[str, Result] = {"plain": {"foreach": False}, "foreach": {"foreach": True}}
    if device == "cuda":
        kinds["fused"] = {"fused": True}
    works = {}
    for rows in (1, 6):
        for kind, settings in kinds.items():
            row = torch.nn.Parameter(torch.randn(rows, 768, device=device))
            row.grad = torch.randn_like(row)
            optimizer = torch.optim.AdamW([row], lr=5e-3, **settings)
            works[f"AdamW, {kind}, {rows} × 768"] = lambda _, o=optimizer: o.step()
        row = torch.nn.Parameter(torch.randn(rows, 768, device=device))
        row.grad = torch.randn_like(row)
        turning = Directional(row, 0.01, 1e-4, (768,))
        works[f"directional, {rows} × 768"] = lambda _, o=turning: o.step()
    turns = in_turns(notes.setting, works, 3, notes.steps(100, 3))
    return {name: {"us": round(1000 * found["ms"], 2)} for name, found in turns.items()}


def profile(notes: Notes, training: Training) -> Result:
    """How long the device works in a step, and on which kernels."""
    need_cuda(notes, "the profile")
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    training_step(training, 0)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=kinds) as seen:
        for step in range(2):
            training_step(training, step)
        torch.cuda.synchronize()
    spent: dict[str, list[float]] = {}
    for event in seen.events():
        is_kernel = event.device_type == torch.autograd.DeviceType.CUDA
        if is_kernel and not getattr(event, "is_user_annotation", False):
            spent.setdefault(event.name[:90], []).append(event.time_range.elapsed_us())
    most = sorted(spent.items(), key=lambda item: -sum(item[1]))
    return {
        "device_ms_a_step": sum(sum(times) for times in spent.values()) / 2000,
        "kernels_a_step": sum(len(times) for times in spent.values()) / 2,
        "most": [
            {"kernel": name, "ms": sum(times) / 2000, "calls": len(times) / 2}
            for name, times in most[:15]
        ],
    }


# captured


def captured(notes: Notes) -> None:
    """The step and the bare U-Net, captured as CUDA graphs and not; in a process of its own."""
    setting = notes.setting
    notes.found["precision"] = setting.half
    base = notes.measure_object("building", lambda: ready(setting, setting.half))
    if base is None:
        return
    for batch in notes.batches:
        training = gpu_steps.with_batch(base, batch)
        works = capture_all(notes, training, batch)
        rounds, count = notes.rounds(3), notes.steps(5, 1)
        notes.measure(
            f"batch {batch}",
            lambda w=works, r=rounds, c=count: in_turns(setting, w, r, c, notes.until - 3),
            8 + 2 * batch,
        )


def capture_all(notes: Notes, training: Training, batch: int) -> dict[str, Callable[[int], object]]:
    """Everything that can be captured, by name; the losses of each captured step are compared first."""
    setting, parts = notes.setting, training.models
    start = training.rows.detach().clone()
    plain = step_cost.bare_unet(training, parts.unet, parts.unet.dtype)
    works: dict[str, Callable[[int], object]] = {
        "ours": lambda number: training_step(training, number),
        "bare U-Net": plain,
    }

    def fresh(**change: Any) -> Training:
        with torch.no_grad():
            training.rows.copy_(start)
        training.rows.grad = None
        enabled = training.config.mixed_precision == "fp16"
        scaler = torch.amp.GradScaler(setting.device, enabled=enabled)
        optimizer = gpu_steps.make_optimizer(training.rows, training.config)
        return dataclasses.replace(training, scaler=scaler, optimizer=optimizer, **change)

    def losses_of(step: Callable[[int], Any]) -> list[float]:
        return [float(step(number)) for number in range(notes.steps(5, 2))]

    eager = fresh()
    expected = losses_of(lambda number: training_step(eager, number))

    def step(name: str, kind: type[CapturedStep], unet: Any = parts.unet) -> Result:
        session = fresh(models=dataclasses.replace(parts, unet=unet))
        captured, begun = kind(gpu_steps.recorder(setting)), time.time()
        seconds = []

        def one(number: int) -> Any:
            return captured(session, number)

        def timed(number: int) -> float:
            loss = float(one(number))
            seconds.append(time.time() - begun)
            return loss

        losses = losses_of(timed)
        works[name] = one
        apart = max(abs(a - b) / abs(b) for a, b in zip(losses, expected, strict=True))
        return {"capturing_seconds": seconds[0], "losses": losses, "expected": expected,
                "max_relative": apart}  # fmt: skip

    def bare() -> Result:
        begun = time.time()
        works["bare U-Net, captured"] = captured_unet(setting, plain)
        return {"capturing_seconds": time.time() - begun}

    at = f"batch {batch}"
    notes.measure(f"capturing the bare U-Net, {at}", bare, 2)
    kept: list[Any] = []

    def channels_last() -> Any:
        if not kept:
            kept.append(copy.deepcopy(parts.unet).to(memory_format=torch.channels_last))
        return kept[0]

    captures: dict[str, Callable[[str], Result]] = {
        "ours, --capture": lambda name: step(name, CapturedStep, channels_last()),
        "ours, but for the optimizer, captured": lambda name: step(name, CapturedStep),
        "ours, captured": lambda name: step(name, gpu_steps.WholeStep),
        "ours, channels-last, captured": lambda name: step(
            name, gpu_steps.WholeStep, channels_last()
        ),
    }
    for name, capture in captures.items():
        notes.measure(f"capturing {name}, {at}", lambda n=name, c=capture: c(n), 3)
    fresh()
    return works


# memory


def memory_rows(notes: Notes) -> None:
    """What steps reserve, for each row of the counted table; then `--fit` under memory caps."""
    half = notes.setting.half
    for precision in dict.fromkeys((half, "no", "bf16")):
        if notes.thin and precision == "bf16":
            continue
        batches = notes.batches if precision == half else (1,)
        one = notes.measure_object(f"building, {precision}", lambda p=precision: built(notes, p))
        for checkpointing in (False, True):
            for batch in batches if one else ():
                on = "on" if checkpointing else "off"
                notes.measure(
                    f"{precision}, checkpointing {on}, batch {batch}",
                    lambda t=one, c=checkpointing, b=batch: taken(notes, t, c, b),
                    11 if precision == "bf16" and not checkpointing else 3,
                )
        one = None
    for bits in ("8bit", "4bit"):
        notes.found[bits] = {"skipped": "needs bitsandbytes"}
    notes.measure("encoding a photo", lambda: encoding(notes), 3)
    one = notes.measure_object("building for --fit", lambda: built(notes, half))
    if one is not None:
        notes.measure("out of memory", lambda: out_of_memory(notes, one), 3)
    one = notes.measure_object("building for --fit", lambda: built(notes, half))
    for cap in list(CAPS)[: notes.steps(len(CAPS), 2)] if one else ():
        notes.measure(f"fit {cap:g} GiB", lambda c=cap: fitted(notes, one, c), CAPS[cap])
    lift_cap(notes)


def built(notes: Notes, precision: str) -> Training:
    """A run to measure; the memory of the previous one is freed first."""
    lift_cap(notes)
    clean(notes)
    return ready(notes.setting, precision)


def clean(notes: Notes) -> None:
    """Free what is no longer used and reset the peak."""
    gc.collect()
    if notes.setting.device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peaks(notes: Notes) -> Result:
    """The most that PyTorch had reserved and allocated, and what nvidia-smi reports for this process."""
    if notes.setting.device != "cuda":
        return {"note": "peaks need CUDA"}
    free, total = torch.cuda.mem_get_info()
    return {
        "max_reserved": torch.cuda.max_memory_reserved(),
        "max_allocated": torch.cuda.max_memory_allocated(),
        "nvidia_smi": nvidia_smi_bytes(),
        "device_in_use": total - free,
    }


def nvidia_smi_bytes() -> int | None:
    """What nvidia-smi reports for this process, its context included; None where it lists no processes."""
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=15).stdout
        lines = [line.split(",") for line in said.splitlines() if line.count(",") == 1]
        mine = [int(mib) for pid, mib in lines if int(pid) == os.getpid()]
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return mine[0] * 2**20 if mine else None


def taken(notes: Notes, base: Training, checkpointing: bool, batch: int) -> Result:
    """Three steps: the most they reserve, and how long the last two take."""
    training = gpu_steps.with_batch(base, batch)
    training.config = dataclasses.replace(training.config, gradient_checkpointing=checkpointing)
    parts = training.models
    if checkpointing:
        recompute_activations(parts)
    clean(notes)  # the memory in which the weights were made does not belong to the step
    loss = training_step(training, 0)
    notes.setting.synchronize()
    start = time.perf_counter()
    for step in range(1, notes.steps(3, 2)):
        loss = training_step(training, step)
    notes.setting.synchronize()
    ms = 1000 * (time.perf_counter() - start) / notes.steps(2, 1)
    weights = sum(
        p.numel() * p.element_size()
        for part in (parts.unet, *parts.text_encoders)
        for p in part.parameters()
    )
    size = memory.size_of_parts(parts.unet, parts.text_encoders)
    counted = memory.predicted(training.config, size).peak_bytes
    return peaks(notes) | {
        "counted": counted, "weights": weights, "ms": round(ms, 2), "loss": float(loss),
    }  # fmt: skip


@torch.no_grad()
def encoding(notes: Notes) -> Result:
    """The peak while the VAE encodes a photo: text encoder and VAE are on the device, the U-Net is not."""
    clean(notes)
    parts = gpu_steps.random_models(notes.setting, notes.setting.half, with_vae=True)
    parts.unet = None
    clean(notes)
    side = gpu_steps.flax.SHAPES[notes.setting.shapes]["vae"]["sample_size"]
    pixels = torch.randn(1, 3, side, side, device=notes.setting.device, dtype=parts.vae.dtype)
    parts.vae.encode(pixels).latent_dist.sample()
    notes.setting.synchronize()
    return peaks(notes)


# Stable Diffusion XL


def sdxl(notes: Notes) -> None:
    """A step in SDXL's shapes, batch 1: time and memory, with and without checkpointing."""
    shapes = "sdxl-thin" if notes.thin else "sdxl"
    large = dataclasses.replace(notes, setting=dataclasses.replace(notes.setting, shapes=shapes))
    half = notes.setting.half
    one = notes.measure_object(f"building, {half}", lambda: built(large, half))
    for checkpointing in (False, True) if one else ():
        on = "on" if checkpointing else "off"
        notes.measure(
            f"{half}, checkpointing {on}, batch 1",
            lambda c=checkpointing: taken(large, one, c, 1),
            4,
        )


def set_cap(notes: Notes, size: float) -> None:
    """Limit PyTorch to so many bytes of the device."""
    if notes.setting.device == "cuda":
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, size / total))


def lift_cap(notes: Notes) -> None:
    """Lift the limit."""
    if notes.setting.device == "cuda":
        torch.cuda.set_per_process_memory_fraction(1.0)


def planned(
    notes: Notes, base: Training, free: float
) -> tuple[Training, list[memory.Plan], Result]:
    """A run as `--fit` plans it for a batch of four when so many bytes are free, and the leaner plans.

    It reuses the loaded weights, on which checkpointing stays on once it is; caps must therefore come in falling order.
    """
    config = TrainingConfig("", gpu_steps.WORD, "toy", train_batch_size=4, fit=True)
    plan, fallbacks = memory.choose_plan(config, memory.SD15, notes.setting.device, int(free))
    found = {"plan": str(plan), "leaner": [str(one) for one in fallbacks]}
    if plan.quantize or plan.mixed_precision != base.config.mixed_precision:
        raise Skipped(f"--fit chose {plan}, which is not measured here")
    training = gpu_steps.with_batch(base, 4)
    training.config = plan.applied(dataclasses.replace(training.config, fit=True))
    if plan.gradient_checkpointing:
        recompute_activations(training.models)
    return training, list(fallbacks), found


def fitted(notes: Notes, base: Training, cap: float) -> Result:
    """`--fit` on a card of so many GiB: what it chooses, and whether the steps fit."""
    clean(notes)
    set_cap(notes, cap * GIB)
    try:
        training, fallbacks, found = planned(notes, base, cap * GIB)
    except InputError as refusal:
        return {"refused": str(refusal)[:300]}
    before, losses = len(fallbacks), []
    for step in range(notes.steps(20, 1)):
        losses.append(memory.with_memory_retry(training, step, fallbacks=fallbacks))
    found |= peaks(notes)
    return found | {
        "losses": [float(loss) for loss in losses],
        "finite": all(bool(loss.isfinite()) for loss in losses),
        "out_of_memory": before - len(fallbacks),
    }


def out_of_memory(notes: Notes, base: Training) -> Result:
    """A plan that fits, then a cap below what it needs: a leaner plan must finish the same step."""
    need_cuda(notes, "an induced out-of-memory")
    clean(notes)
    training, fallbacks, found = planned(notes, base, 16 * GIB)
    expected = [float(training_step(training, step)) for step in range(2)]
    peak = torch.cuda.max_memory_allocated()
    weights = torch.cuda.memory_allocated()
    set_cap(notes, weights + 0.4 * (peak - weights))
    losses = [
        float(memory.with_memory_retry(training, step, fallbacks=fallbacks)) for step in range(2, 5)
    ]
    lift_cap(notes)
    return found | {
        "before": expected,
        "after": losses,
        "went_on_with": [
            training.config.train_batch_size,
            training.config.gradient_accumulation_steps,
            training.config.gradient_checkpointing,
        ],
        "leaner_left": len(fallbacks),
        "survived": bool(np.isfinite(losses).all()) and len(fallbacks) < len(found["leaner"]),
    }


# JAX, a whole run, compiling


def jax(notes: Notes) -> None:
    """The bundled model in JAX, in separate processes, with an empty and a full compilation cache; and in PyTorch."""
    half = notes.setting.half
    for precision in dict.fromkeys(("no", half)):
        notes.measure(f"PyTorch, {precision}", lambda p=precision: bundled_steps(notes, p), 9)
    gc.collect()
    with tempfile.TemporaryDirectory() as cache:
        for name, precision, seconds in (
            ("JAX, no, empty cache", "no", 40),  # did not end in 31
            ("JAX, no, kept cache", "no", 20),
            ("JAX, bf16, empty cache", "bf16", 40),
        )[: notes.steps(3, 1)]:
            notes.measure(name, lambda p=precision: jax_process(notes, p, Path(cache)), seconds)
    notes.measure("losses", lambda: jax_losses(notes), 0)


def bundled_steps(notes: Notes, precision: str) -> Result:
    """Samples per second of the bundled model in PyTorch, and the first losses."""
    training = bundled(notes.setting, precision, 10**6)
    first = [float(training_step(training, step)) for step in range(notes.steps(20, 3))]
    work = {"step": lambda number: training_step(training, 20 + number)}
    found = in_turns(notes.setting, work, 3, notes.steps(20, 2))["step"]
    batch = training.config.train_batch_size
    return found | {"losses": first, "samples_a_second": 1000 * batch / found["ms"]}


def jax_process(notes: Notes, precision: str, cache: Path) -> Result:
    """One process of `benchmarks.gpu_jax`."""
    told = {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    if notes.thin:
        told |= {"JAX_PLATFORMS": "cpu"}
    words = [sys.executable, "-m", "benchmarks.gpu_jax", precision, str(notes.steps(100, 20))]
    done = subprocess.run(
        words,
        env=os.environ | told,
        cwd=gpu_steps.flax.ROOT,
        capture_output=True,
        text=True,
        timeout=max(1.0, notes.left()),
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-500:])
    return json.loads(done.stdout.splitlines()[-1])


def jax_losses(notes: Notes) -> Result:
    """JAX's first losses against PyTorch's in float32."""
    ours, theirs = (notes.found[name]["losses"] for name in ("PyTorch, no", "JAX, no, empty cache"))
    pairs = list(zip(ours, theirs, strict=False))
    apart = max(abs(a - b) / abs(a) for a, b in pairs)
    return {"compared": len(pairs), "max_relative": apart, "within": apart <= BOUNDS["no"]}


def whole(notes: Notes) -> None:
    """The time from photos to pictures: the bundled model with validation and early stopping, then 64 pictures."""
    kept: Result = {}

    def train(precision: str) -> Result:
        folder = tempfile.mkdtemp()
        config = TrainingConfig(
            str(gpu_steps.PHOTOS),
            gpu_steps.WORD,
            "toy",
            pretrained_model_name_or_path=str(BUNDLED_MODEL),
            max_train_steps=notes.steps(500, 4),
            early_stopping=True,
            early_stopping_window=notes.steps(310, 2),
            early_stopping_steps=notes.steps(10, 1),
            validation_prompt=f"a photo of a {gpu_steps.WORD}",
            validation_steps=notes.steps(100, 4),
            num_validation_images=notes.steps(4, 1),
            mixed_precision=precision,
            output_dir=folder,
        )
        begun = time.time()
        result = run.train(config)
        shutil.rmtree(folder, ignore_errors=True)
        kept["models"] = result.models
        return {
            "steps": result.steps,
            "stopped": result.stopped,
            "seconds_by_stage": result.seconds,
            "seconds": round(time.time() - begun, 2),
            "last_loss": statistics.fmean(result.losses[-10:]),
        }

    def draw(batch: int) -> Result:
        if "models" not in kept:
            raise Skipped("there was no run")
        begun, count = time.time(), notes.steps(64, 2)
        pictures = inference.generate(
            kept["models"],
            f"a photo of a {gpu_steps.WORD}",
            num_images_per_prompt=count,
            num_inference_steps=notes.steps(25, 2),
            batch_size=batch,
        )
        seconds = time.time() - begun
        return {"pictures": len(pictures), "seconds": seconds, "a_second": count / seconds}

    half = notes.setting.half
    notes.measure(f"training, {half}", lambda: train(half), 55)  # 211 steps in 25
    for batch in (8, 64):
        notes.measure(f"64 pictures, {batch} at once", lambda b=batch: draw(b), 5)
    if half != "no":
        notes.measure("training, no", lambda: train("no"), 55)


def compiling(notes: Notes) -> None:
    """`torch.compile` of the U-Net: its repeated blocks, then all of it; timed when the driver grants the device."""
    setting = notes.setting
    training = notes.measure_object("building", lambda: ready(setting, setting.half))
    if training is None:
        return
    unet = training.models.unet
    works = {
        "ours": lambda number: training_step(training, number),
        "bare U-Net": step_cost.bare_unet(training, unet, unet.dtype),
    }

    def compile_(kind: str) -> Result:
        other = copy.deepcopy(unet)
        if kind == "repeated blocks":
            other.compile_repeated_blocks(dynamic=False)
        else:
            other = torch.compile(
                other, dynamic=False, backend="eager" if notes.thin else "inductor"
            )
        one = gpu_steps.with_unet(training, other)
        if notes.thin and kind == "repeated blocks":
            raise Skipped("compiling with Inductor is left out of a rehearsal")
        begun = time.time()
        training_step(one, 0)
        setting.synchronize()
        ended = time.time()
        works[f"ours, {kind} compiled"] = lambda number: training_step(one, number)
        training_step(one, 1)
        return {"compile_seconds": ended - begun - rested(notes.work, begun, ended)}

    for kind in ("repeated blocks", "all"):
        done = notes.measure(f"compiling, {kind}", lambda k=kind: compile_(k), 5)
        if done is not None and not notes.thin:
            wait_for_slot(notes)
        if done is not None:
            rounds, count = notes.rounds(3), notes.steps(4, 1)
            name = f"batch 1, {kind} compiled"
            notes.measure(name, lambda r=rounds, c=count: in_turns(setting, works, r, c), 8)
        slot(notes.work, "ready").unlink(missing_ok=True)
        slot(notes.work, "go").unlink(missing_ok=True)


def slot(work: Path, name: str) -> Path:
    """The files with which the background process asks for the device and is granted it."""
    return work / f"slot.{name}"


def wait_for_slot(notes: Notes) -> None:
    """Ask for the device and wait until nothing else uses it."""
    slot(notes.work, "ready").touch()
    while not slot(notes.work, "go").exists() and notes.left() > 0:
        time.sleep(0.05)


def rested(work: Path, begun: float, ended: float) -> float:
    """How many seconds this process was suspended between two moments."""
    path = work / "rests.json"
    rests = json.loads(path.read_text()) if path.exists() else []
    return sum(max(0.0, min(ended, stop) - max(begun, start)) for start, stop in rests)
