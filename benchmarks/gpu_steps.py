"""What `benchmarks.gpu` measures: steps with Stable Diffusion 1.5's shapes, plain, captured, and those of the script.

Weights are random and made on the device itself; nothing is downloaded, nothing but photos read from a disk.
"""

from __future__ import annotations

import copy
import dataclasses
import runpy
import statistics
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from benchmarks import flax
from benchmarks.diffusers_script import torchvision_stand_in
from tiutils import concept, diffusion, models, token_embedding
from tiutils.batches import Batch, BatchPlan, batch_at
from tiutils.config import AS_THE_SCRIPT, TrainingConfig
from tiutils.models import Models
from tiutils.training import Training, make_optimizer, prepare, recompute_activations

VOCABULARY = 49408 + 1  # Stable Diffusion 1.5's rows, and the new word's, which the script adds
DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
WORD = "<wood-toy>"
PHOTOS = flax.ROOT / "data" / "concepts" / "wood-toy"


@dataclasses.dataclass(frozen=True)
class Setting:
    """Where and how large: the GPU and Stable Diffusion 1.5, or a CPU and its layout in thin widths."""

    device: str
    shapes: str

    @property
    def half(self) -> str:
        """Half precision, where the device gains by it."""
        return "fp16" if self.device == "cuda" else "no"

    def synchronize(self) -> None:
        """Wait until the device has done all that it was given."""
        if self.device == "cuda":
            torch.cuda.synchronize()


def ready(
    setting: Setting,
    precision: str,
    batch: int = 1,
    *,
    accumulation: int = 1,
    checkpointing: bool = False,
    with_vae: bool = False,
) -> Training:
    """A run of random weights, ready for its first step; what it learns from is noise."""
    parts = random_models(setting, precision, with_vae)
    device = parts.device
    placeholder = token_embedding.add_placeholder(parts, WORD, initializer_token="toy")
    config = TrainingConfig(
        "",
        WORD,
        "toy",
        train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        gradient_checkpointing=checkpointing,
        mixed_precision=precision,
        learning_rate=5e-4,
        max_train_steps=10**6,
        **AS_THE_SCRIPT,
    )
    if checkpointing:
        recompute_activations(parts)
    sentences = [t.format(WORD) for t in concept.templates("object")]
    shape = parts.latent_shape()
    views = torch.randn(30, *shape, device=device)
    material = diffusion.Material(
        views,
        torch.full_like(views, 0.1),
        token_embedding.tokenize(parts.tokenizer, sentences).to(device),
        BatchPlan(0, batch * accumulation, (6,) * 5, len(sentences), shape, 1000),
    )
    rows = token_embedding.rows_of(parts, placeholder)
    return Training(
        parts,
        placeholder,
        material,
        config,
        accelerator(setting, precision),
        rows,
        make_optimizer(rows, config),
        torch.amp.GradScaler(setting.device, enabled=precision == "fp16"),
        10**6,
        0.0,
    )


def random_models(setting: Setting, precision: str, with_vae: bool = False) -> Models:
    """The frozen parts, made on the device."""
    with torch.device(setting.device):
        parts = flax.random_parts(setting.shapes, DTYPES[precision], VOCABULARY)
    if not with_vae:
        parts.vae = types.SimpleNamespace(config=parts.vae.config)  # its shapes are asked for
    for part in (parts.text_encoder, parts.unet, *[parts.vae] * with_vae):
        part.requires_grad_(False).eval()
    return parts


def accelerator(setting: Setting, precision: str) -> Accelerator:
    """A new one: accelerate remembers the precision of the last."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=setting.device == "cpu", mixed_precision=precision)


def bundled(setting: Setting, precision: str, steps: int, device: str | None = None) -> Training:
    """A run of the bundled model on the course's photos, with the program's own defaults."""
    where = Setting(device or setting.device, setting.shapes)
    parts = models.load(models.BUNDLED_MODEL, device=where.device, dtype=DTYPES[precision])
    placeholder = token_embedding.add_placeholder(parts, WORD, initializer_token="toy")
    config = TrainingConfig(
        str(PHOTOS), WORD, "toy", max_train_steps=steps, mixed_precision=precision
    )
    photos = concept.load(PHOTOS)
    return prepare(parts, placeholder, photos, config, accelerator(where, precision))


def with_batch(training: Training, batch: int) -> Training:
    """The same run with another batch."""
    material = training.material
    plan = dataclasses.replace(material.plan, batch_size=batch)
    return dataclasses.replace(
        training,
        config=dataclasses.replace(training.config, train_batch_size=batch),
        material=dataclasses.replace(material, plan=plan),
    )


def with_unet(training: Training, unet: Any) -> Training:
    """The same run with another U-Net."""
    return dataclasses.replace(training, models=dataclasses.replace(training.models, unet=unet))


def in_turns(
    setting: Setting,
    works: dict[str, Callable[[int], object]],
    rounds: int,
    count: int,
    until: float = float("inf"),
) -> dict[str, dict[str, Any]]:
    """Milliseconds that one call of each takes: the median of all rounds, after one that does not count.

    A round is `count` calls between two moments when the device is idle. No round is begun after `until`, of
    `time.time()`, once three count.
    """
    taken: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        if number > 3 and time.time() > until:
            break
        for name, work in works.items():
            setting.synchronize()
            start = time.perf_counter()
            for k in range(count):
                work(number * count + k)
            setting.synchronize()
            taken[name].append(1000 * (time.perf_counter() - start) / count)
    return {
        name: {
            "ms": round(statistics.median(ms[1:]), 4),
            "rounds": [round(value, 4) for value in ms[1:]],
            "calls_a_round": count,
        }
        for name, ms in taken.items()
    }


class Graph:
    """Work that is captured once as a CUDA graph, then replayed; on a CPU it is simply done again."""

    def __init__(self, setting: Setting, work: Callable[[], object]):
        self.work, self.graph = work, None
        if setting.device == "cuda":
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(3):  # libraries choose and allocate what must not happen within
                    work()
            torch.cuda.current_stream().wait_stream(aside)
            torch.cuda.synchronize()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                work()

    def replay(self) -> None:
        if self.graph is None:
            self.work()
        else:
            self.graph.replay()


class CapturedStep:
    """`training.training_step` with fixed shapes as a CUDA graph: batches are copied into the buffers that it reads.

    With `whole` the optimizer's step is captured as well, otherwise it follows each replay. For one process and one
    micro-batch, a constant learning rate, no clipping, captions, masks or weights of timesteps.
    """

    def __init__(self, setting: Setting, training: Training, *, whole: bool):
        self.training, self.whole = training, whole
        rows, config = training.rows, training.config
        self.plan = training.material.plan
        self.buffers = [torch.from_numpy(a).to(rows.device) for a in arrays_of(self.plan, 0)]
        self.loss = torch.zeros((), device=rows.device)
        start = rows.detach().clone()
        settings = {"fused": True, "capturable": True} if rows.is_cuda else {}
        self.optimizer = torch.optim.AdamW(
            [rows],
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            weight_decay=config.adam_weight_decay,
            eps=config.adam_epsilon,
            **settings,
        )
        rows.grad = None
        self.graph = Graph(setting, self._captured)
        # the graph writes into this gradient; other steps are to have one of their own
        self.gradient, rows.grad = rows.grad, None
        self._forget(start)

    def __call__(self, step: int) -> Tensor:
        """One optimizer step on the batch of `step`; returns the loss, which the next call overwrites."""
        for buffer, array in zip(self.buffers, arrays_of(self.plan, step), strict=True):
            given = torch.from_numpy(array)
            buffer.copy_(given.pin_memory() if buffer.is_cuda else given, non_blocking=True)
        self.graph.replay()
        if not self.whole:
            if self.graph.graph is not None:
                self.training.rows.grad = self.gradient
            self._update()
            self.training.rows.grad = None
        return self.loss

    @torch.no_grad()
    def _forget(self, start: Tensor) -> None:
        """Undo what the warm-up has trained, in place: the graph knows these tensors."""
        rows, scaler = self.training.rows, self.training.scaler
        rows.copy_(start)
        for value in self.optimizer.state[rows].values():
            if isinstance(value, Tensor):
                value.zero_()
        if scaler.is_enabled() and scaler._scale is not None:
            scaler._scale.fill_(scaler._init_scale)
            scaler._growth_tracker.zero_()

    def _captured(self) -> None:
        training = self.training
        training.rows.grad = None
        half = DTYPES[training.config.mixed_precision]
        device = training.rows.device.type
        # what autocast keeps for later would be freed between replays
        is_half = half != torch.float32
        with torch.autocast(
            device, half if is_half else None, enabled=is_half, cache_enabled=False
        ):
            losses = losses_of(training.models, training.material, *self.buffers)
        loss = losses.mean()
        training.scaler.scale(loss).backward()
        self.loss.copy_(loss.detach())
        if self.whole:
            self._update()

    def _update(self) -> None:
        self.training.scaler.step(self.optimizer)
        self.training.scaler.update()


def arrays_of(plan: BatchPlan, step: int) -> list[np.ndarray]:
    """The arrays of a step's batch, in the order of `losses_of`."""
    batch: Batch = batch_at(plan, step)
    return [batch.views, batch.prompts, batch.timesteps, batch.latent_noise, batch.noise]


def losses_of(
    parts: Models,
    material: diffusion.Material,
    views: Tensor,
    prompts: Tensor,
    timesteps: Tensor,
    latent_noise: Tensor,
    noise: Tensor,
) -> Tensor:
    """`diffusion.losses_at` of a batch that lies on the device already."""
    latents = material.mean[views] + material.std[views] * latent_noise
    states = parts.text_encoder(material.prompt_ids[prompts])[0]
    return diffusion.diffusion_loss(parts, latents, noise, timesteps, states)


def captured_unet(setting: Setting, work: Callable[[int], object]) -> Callable[[int], None]:
    """The bare U-Net's forward and backward as a graph."""
    graph = Graph(setting, lambda: work(0))
    return lambda number: graph.replay()


class _Enough(BaseException):
    """Ends the script's thread."""


class Script:
    """diffusers' `textual_inversion.py`, unchanged, in a thread that waits before each step until it is asked for.

    It gets the same frozen U-Net and VAE as our step, a text encoder of its own, and a table of as many rows. It asks
    for them by `from_pretrained`, which hands them out while the thread lives; where it moves its progress bar on, it
    waits. Trackers are shut off.
    """

    def __init__(self, script: Path, setting: Setting, training: Training):
        self.script, self.error, self.ended = script, None, False
        self.asked, self.done = threading.Semaphore(0), threading.Semaphore(0)
        parts = training.models
        encoder = plain_text_encoder(setting, parts)
        self.parts = {
            "CLIPTokenizer": long_tokenizer(parts),
            "CLIPTextModel": encoder,
            "AutoencoderKL": parts.vae,
            "UNet2DConditionModel": parts.unet,
            "DDPMScheduler": parts.noise_scheduler,
        }
        self.folder = tempfile.TemporaryDirectory()
        self.flags = {
            "pretrained_model_name_or_path": "random",
            "train_data_dir": flax.photos(),
            "placeholder_token": WORD,
            "initializer_token": "toy",
            "resolution": parts.resolution,
            "train_batch_size": training.config.train_batch_size,
            "learning_rate": 5e-4,
            "mixed_precision": training.config.mixed_precision,
            "max_train_steps": 10**6,
            "save_steps": 10**6,
            "checkpointing_steps": 10**6,
            "output_dir": self.folder.name,
        }
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        self._wait(25)

    def step(self, number: int = 0) -> None:
        """One optimizer step of the script."""
        self.asked.release()
        self._wait(25)

    def end(self) -> None:
        """Let the thread end."""
        self.ended = True
        self.asked.release()
        self.thread.join(20)

    def _wait(self, seconds: float) -> None:
        if not self.done.acquire(timeout=seconds):
            raise TimeoutError(f"the script did not come on in {seconds} seconds")
        if self.error is not None:
            raise RuntimeError(f"the script failed: {self.error!r}") from self.error

    def _pause(self) -> None:
        self.done.release()
        self.asked.acquire()
        if self.ended:
            raise _Enough

    def _run(self) -> None:
        try:
            with self._in_its_place():
                runpy.run_path(str(self.script), run_name="__main__")
        except _Enough:
            pass
        except BaseException as error:
            self.error = error
        self.done.release()

    def _in_its_place(self) -> Any:
        import contextlib

        import accelerate.tracking
        import diffusers
        import tqdm.auto
        import transformers

        run = self

        class Bar(tqdm.auto.tqdm):
            def __init__(self, *args: Any, **looks: Any):
                super().__init__(*args, **{**looks, "disable": True})
                run._pause()

            def update(self, n: float = 1) -> None:
                run._pause()

        stack = contextlib.ExitStack()
        for name, part in self.parts.items():
            owner = getattr(transformers if name.startswith("CLIP") else diffusers, name)
            give = mock.patch.object(owner, "from_pretrained", lambda *a, _part=part, **k: _part)
            stack.enter_context(give)
        stack.enter_context(mock.patch.object(tqdm.auto, "tqdm", Bar))
        trackers = mock.patch.object(accelerate.tracking, "_available_trackers", [])
        stack.enter_context(trackers)
        words = [str(word) for flag in self.flags.items() for word in flax.dashed(flag)]
        stack.enter_context(mock.patch.object(sys, "argv", [str(self.script), *words]))
        try:
            import torchvision  # noqa: F401
        except Exception:
            stack.enter_context(
                mock.patch.dict(sys.modules, {"torchvision": torchvision_stand_in()})
            )
        return stack


def plain_text_encoder(setting: Setting, parts: Models) -> Any:
    """A text encoder as the run's, with a plain table of `VOCABULARY` rows and all weights free to train."""
    encoder = copy.deepcopy(parts.text_encoder)
    encoder.set_input_embeddings(encoder.get_input_embeddings().table)
    return encoder.requires_grad_(True).train()


def long_tokenizer(parts: Models) -> Any:
    """The bundled tokenizer without the new word, as long as Stable Diffusion 1.5's: the script sizes its table so."""
    tokenizer = copy.deepcopy(parts.text_encoder.get_input_embeddings().tokenizer_before)
    kind = type(tokenizer)
    tokenizer.__class__ = type(kind.__name__, (kind,), {"__len__": lambda self: VOCABULARY})
    return tokenizer
