"""The steps that `benchmarks.gpu` measures: with Stable Diffusion 1.5's shapes, plain and captured, and the script's.

Weights are random and made on the device itself; nothing is downloaded, and only photos are read from disk.
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

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from benchmarks import flax
from benchmarks.diffusers_script import torchvision_stand_in
from tiutils import concept, diffusion, models, token_embedding
from tiutils.batches import BatchPlan
from tiutils.config import AS_THE_SCRIPT, TrainingConfig
from tiutils.io.pretrained import BUNDLED_MODEL
from tiutils.models import Models
from tiutils.runs import cuda_graph
from tiutils.runs.cuda_graph import CapturedStep, Recorded, Work
from tiutils.training import Training, make_optimizer, prepare, recompute_activations

VOCABULARY = 49408 + 1  # Stable Diffusion 1.5's rows, and the one that the script adds
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
        """Half precision where the device benefits from it, else float32."""
        return "fp16" if self.device == "cuda" else "no"

    def synchronize(self) -> None:
        """Wait until the device has finished all its work."""
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
    """A run with random weights, ready for its first step; its photos are noise."""
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
    dataset = diffusion.LatentDataset(
        views,
        torch.full_like(views, 0.1),
        torch.cat([token_embedding.tokenize(t, sentences) for t in parts.tokenizers], 1).to(device),
        BatchPlan(0, batch * accumulation, (6,) * 5, len(sentences), shape, 1000),
    )
    rows = token_embedding.rows_of(parts, placeholder)
    return Training(
        parts,
        placeholder,
        dataset,
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
        parts.vae = types.SimpleNamespace(config=parts.vae.config)  # the shapes are read from it
    for part in (*parts.text_encoders, parts.unet, *[parts.vae] * with_vae):
        part.requires_grad_(False).eval()
    return parts


def accelerator(setting: Setting, precision: str) -> Accelerator:
    """A new accelerator; accelerate would remember the previous one's precision."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=setting.device == "cpu", mixed_precision=precision)


def bundled(setting: Setting, precision: str, steps: int, device: str | None = None) -> Training:
    """A run of the bundled model on the course's photos, with the program's own defaults."""
    where = Setting(device or setting.device, setting.shapes)
    parts = models.load(BUNDLED_MODEL, device=where.device, dtype=DTYPES[precision])
    placeholder = token_embedding.add_placeholder(parts, WORD, initializer_token="toy")
    config = TrainingConfig(
        str(PHOTOS), WORD, "toy", max_train_steps=steps, mixed_precision=precision
    )
    photos = concept.load(PHOTOS)
    return prepare(parts, placeholder, photos, config, accelerator(where, precision))


def with_batch(training: Training, batch: int) -> Training:
    """The same run with another batch size."""
    dataset = training.dataset
    plan = dataclasses.replace(dataset.plan, batch_size=batch)
    return dataclasses.replace(
        training,
        config=dataclasses.replace(training.config, train_batch_size=batch),
        dataset=dataclasses.replace(dataset, plan=plan),
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
    """Milliseconds for one call of each function: the median of all rounds, after one that does not count.

    A round is `count` calls between two moments at which the device is idle. After three rounds, none is started later
    than `until`, a value of `time.time()`.
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


def again(work: Work) -> Recorded:
    """A substitute for `cuda_graph.record` on a CPU: replaying repeats the work."""
    results = work()

    def replay() -> None:
        for tensor, value in zip(results, work(), strict=True):
            tensor.copy_(value)

    return replay, results


def recorder(setting: Setting) -> Callable[[Work], Recorded]:
    """The function that records work on this device."""
    return cuda_graph.record if setting.device == "cuda" else again


class WholeStep(CapturedStep):
    """A captured step whose graph includes the optimizer, to see what that gains.

    For a constant learning rate, without clipping or control of lengths.
    """

    def __call__(self, training: Training, step: int) -> Tensor:
        """One optimizer step on the batch of `step`; returns the loss, which the next call overwrites."""
        self._load(training, step)
        if self.replay is None:
            rows, config = training.rows, training.config
            start = rows.detach().clone()
            training.optimizer = torch.optim.AdamW(
                [rows],
                lr=config.learning_rate,
                betas=(config.adam_beta1, config.adam_beta2),
                weight_decay=config.adam_weight_decay,
                eps=config.adam_epsilon,
                **({"fused": True, "capturable": True} if rows.is_cuda else {}),
            )
            self.replay, (self.loss, self.gradient) = self.record(lambda: self._all(training))
            self._forget(training, start)
        self.replay()
        return self.loss

    def _all(self, training: Training) -> tuple[Tensor, Tensor]:
        loss, gradient = self._work(training)
        training.rows.grad = gradient
        training.scaler.step(training.optimizer)
        training.scaler.update()
        training.rows.grad = None
        return loss, gradient

    @torch.no_grad()
    def _forget(self, training: Training, start: Tensor) -> None:
        """Undo what the warm-up has trained, in place: the graph refers to these tensors."""
        scaler = training.scaler
        training.rows.copy_(start)
        for value in training.optimizer.state[training.rows].values():
            if isinstance(value, Tensor):
                value.zero_()
        if scaler.is_enabled() and scaler._scale is not None:
            scaler._scale.fill_(scaler._init_scale)
            scaler._growth_tracker.zero_()


def captured_unet(setting: Setting, work: Callable[[int], object]) -> Callable[[int], object]:
    """The bare U-Net's forward and backward as a graph."""

    def once() -> tuple[Tensor, ...]:
        work(0)
        return ()

    replay, _ = recorder(setting)(once)
    return lambda number: replay()


class _Enough(BaseException):
    """Raised to end the script's thread."""


class Script:
    """diffusers' `textual_inversion.py`, unchanged, in a thread that waits before each step until it is told to go on.

    It shares the frozen U-Net and VAE with our step, and has a text encoder of its own with as many rows. While the
    thread is alive, `from_pretrained` returns these to it. It waits where it advances its progress bar. Trackers are
    turned off.
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
            raise TimeoutError(f"the script did not reach its next step in {seconds} seconds")
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
    """A text encoder like the run's, with a plain table of `VOCABULARY` rows and all weights trainable."""
    encoder = copy.deepcopy(parts.text_encoder)
    encoder.set_input_embeddings(encoder.get_input_embeddings().table)
    return encoder.requires_grad_(True).train()


def long_tokenizer(parts: Models) -> Any:
    """The bundled tokenizer without the new word, as long as Stable Diffusion 1.5's: the script reads its length."""
    tokenizer = copy.deepcopy(parts.text_encoder.get_input_embeddings().tokenizer_before)
    kind = type(tokenizer)
    tokenizer.__class__ = type(kind.__name__, (kind,), {"__len__": lambda self: VOCABULARY})
    return tokenizer
