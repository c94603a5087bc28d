"""Samples per second: JAX and PyTorch here, diffusers' script, and the Flax script that diffusers has dropped.

    python -m benchmarks.flax --diffusers CHECKOUT --old_diffusers CHECKOUT --old_env PYTHON

(a) `tiutils train --framework flax`  (b) `tiutils train`  (c) diffusers' `textual_inversion.py`, unchanged
(d) `textual_inversion_flax.py` of diffusers 0.39 with transformers 4.57, see `benchmarks.flax_script`

All four train the same model (random weights, see SHAPES) on the same photos with the same batch, in separate
processes, alternating. The seconds per step are the difference between a long and a short run, divided by the
difference in steps, so that imports, loading and compiling do not count; the minimum over all rounds is taken for each
length. The compile time, stated separately, is how much longer the first run takes with an empty compilation cache
than with a full one. With --threads 1, CPU seconds are compared instead of elapsed seconds: on one thread they are what
an idle machine would take, and they hardly depend on what else the machine does. They include in full the time in which
the host draws batches, which (a) does while the device works.

Writes benchmarks/flax-DEVICE-MODEL.json and prints the table; the page shows the one for --device cpu --model small.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tiutils.config import AS_THE_SCRIPT

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "benchmark-flax"
NAMES = {
    "a": "tiutils, JAX",
    "b": "tiutils, PyTorch",
    "c": "diffusers' script, PyTorch",
    "d": "diffusers 0.39's script, Flax",
}
GOALS = {"d": 1.5, "c": 1.7}  # the goal: how many times as fast as each of these JAX should be here
# The bundled model's shapes, but with channels that 32 groups divide: the old Flax U-Net allows no other number.
SMALL = {
    "unet": {
        "block_out_channels": (64, 128, 160), "layers_per_block": 1, "attention_head_dim": 4,
        "cross_attention_dim": 256, "sample_size": 16,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    },
    "vae": {"block_out_channels": (32, 64, 128), "layers_per_block": 1, "sample_size": 64},
    "text": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 3, "num_attention_heads": 4},
}  # fmt: skip
SD15 = {
    "unet": {
        "block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2, "attention_head_dim": 8,
        "cross_attention_dim": 768, "sample_size": 64,
    },
    "vae": {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 512},
    "text": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
}  # fmt: skip
# Stable Diffusion 1.5's depth, heads and blocks with a tenth of its channels, to try --model sd15 on a CPU.
SD15_THIN = {
    "unet": SD15["unet"] | {"block_out_channels": (32, 64, 128, 128), "cross_attention_dim": 96, "sample_size": 16},
    "vae": SD15["vae"] | {"block_out_channels": (32, 32, 64, 64), "sample_size": 128},
    "text": SD15["text"] | {"hidden_size": 96, "intermediate_size": 384},
}  # fmt: skip
# only for counting bytes: it is not trained in JAX
SDXL = {
    "unet": {
        "block_out_channels": (320, 640, 1280), "layers_per_block": 2, "attention_head_dim": [5, 10, 20],
        "cross_attention_dim": 2048, "sample_size": 128, "transformer_layers_per_block": [1, 2, 10],
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "vae": SD15["vae"] | {"sample_size": 1024},
    "text": SD15["text"],
    "text_2": {
        "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
        "projection_dim": 1280, "hidden_act": "gelu",
    },
}  # fmt: skip
# SDXL's blocks and depths with a tenth of its channels, to rehearse on a CPU.
SDXL_THIN = {
    "unet": SDXL["unet"] | {
        "block_out_channels": (32, 64, 128), "attention_head_dim": [1, 2, 4], "cross_attention_dim": 96 + 128,
        "sample_size": 16, "addition_time_embed_dim": 32, "projection_class_embeddings_input_dim": 128 + 6 * 32,
    },
    "vae": SD15_THIN["vae"],
    "text": SD15_THIN["text"],
    "text_2": SDXL["text_2"] | {
        "hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 2, "projection_dim": 128,
    },
}  # fmt: skip
SHAPES = {
    "small": SMALL, "sd15": SD15, "sd15-thin": SD15_THIN, "sdxl": SDXL, "sdxl-thin": SDXL_THIN,
}  # fmt: skip
ONE_ENCODER = tuple(
    name for name, shapes in SHAPES.items() if "text_2" not in shapes
)  # for JAX and the scripts


def main() -> int:
    """Make the model, run all four alternately, print and write the results; 1 if a goal is missed."""
    options = parse(sys.argv[1:])
    model = make_model(options.model)
    which = [key for key in NAMES if key in options.only and command(key, options, model, 1)]
    runs: list[dict[str, Any]] = []
    for key in which:
        if key in "ad":  # fills the compilation cache, which was empty
            shutil.rmtree(cache_of(key), ignore_errors=True)
            runs.append(run(key, options, model, options.steps[0], "cold"))
    for _ in range(options.rounds):
        for steps in options.steps:
            runs += [run(key, options, model, steps, "warm") for key in which]
    record = {
        "command": "python -m benchmarks.flax " + " ".join(without_paths(sys.argv[1:])),
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "device": options.device,
        "model": options.model,
        "batch": options.batch,
        "compared": "cpu_seconds" if options.threads else "seconds",
        "summary": summarize(runs, options.steps),
        "runs": runs,
    }
    path = ROOT / "benchmarks" / f"flax-{options.device}-{options.model}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(as_markdown(record))
    return 1 if missed(record) else 0


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flax")
    parser.add_argument("--diffusers", help="a checkout, for (c)")
    parser.add_argument("--old_diffusers", help="a checkout at v0.39.0, for (d)")
    parser.add_argument("--old_env", help="its interpreter, for (d): see benchmarks.flax_script")
    parser.add_argument("--model", choices=ONE_ENCODER, default="small")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, nargs=2, default=(20, 120), metavar=("SHORT", "LONG"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, choices=(1,), help="one; all cores if left out")
    parser.add_argument("--mixed_precision", choices=("no", "bf16"), default="no", help="not (d)")
    parser.add_argument("--only", default="abcd", help="letters of those to run")
    return parser.parse_args(arguments)


def make_model(name: str) -> Path:
    """A folder with a Stable Diffusion of the named shapes and random weights, made once."""
    from tiutils import models

    folder = WORK / name
    return folder if folder.exists() else models.save(random_parts(name), folder)


def random_parts(name: str, dtype: Any = None, vocabulary: int | None = None) -> Any:
    """The same in memory: `models.Models`, U-Net and VAE in `dtype`, in training mode and not frozen.

    `vocabulary` is the number of rows of the embedding table; the bundled tokenizer's by default.
    """
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from tiutils import models
    from tiutils.io import pretrained

    torch.manual_seed(0)
    shapes = SHAPES[name]
    tokenizer = pretrained.load_tokenizer(pretrained.BUNDLED_MODEL)
    ends = {f"{end}_token_id": getattr(tokenizer, f"{end}_token_id") for end in ("bos", "eos")}
    blocks = len(shapes["vae"]["block_out_channels"])
    kinds = {"down_block_types": ["DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"]}
    text_encoders = tuple(
        kind(CLIPTextConfig(vocab_size=vocabulary or len(tokenizer), **shapes[text], **ends))
        for kind, text in ((CLIPTextModel, "text"), (CLIPTextModelWithProjection, "text_2"))
        if text in shapes
    )
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype or usual)  # fake tensors cannot be cast in place
    vae = AutoencoderKL(**shapes["vae"], **{k: v * blocks for k, v in kinds.items()})
    unet = UNet2DConditionModel(**shapes["unet"])
    torch.set_default_dtype(usual)
    return models.Models(
        name=name,
        tokenizers=(tokenizer,) * len(text_encoders),
        text_encoders=text_encoders,
        vae=vae,
        unet=unet,
        noise_scheduler=DDPMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
        ),
    )


def command(key: str, options: argparse.Namespace, model: Path, steps: int) -> list[str]:
    """The command that trains for `steps` steps; empty if what it needs was not given."""
    ours = [sys.executable, "-m", "tiutils", "train", *plainly()]
    start = {
        "a": [*ours, "--framework", "flax"],
        "b": ours,
        "c": options.diffusers
        and [sys.executable, "-m", "benchmarks.diffusers_script", options.diffusers],
        "d": options.old_env
        and [options.old_env, "-m", "benchmarks.flax_script", options.old_diffusers],
    }[key]
    flags = {
        "pretrained_model_name_or_path": model,
        "train_data_dir": photos(),
        "placeholder_token": "<wood-toy>",
        "initializer_token": "toy",
        "resolution": SHAPES[options.model]["vae"]["sample_size"],
        "train_batch_size": options.batch,
        "learning_rate": 5e-4,
        "max_train_steps": steps,
        "save_steps": 10**6,
        "output_dir": WORK / "out" / key,
    }
    if key != "d":
        flags |= {"checkpointing_steps": 10**6, "mixed_precision": options.mixed_precision}
    return start and [*start, *(str(word) for flag in flags.items() for word in dashed(flag))]


def dashed(flag: tuple[str, Any]) -> tuple[str, Any]:
    """`--name`, value."""
    return f"--{flag[0]}", flag[1]


def plainly() -> list[str]:
    """Flags that turn off what our program does and the scripts do not."""
    return [f"--{name}={value}" for name, value in AS_THE_SCRIPT.items()]


def photos() -> Path:
    """A folder with nothing but the photos: the scripts open every file they find."""
    folder = WORK / "photos"
    folder.mkdir(parents=True, exist_ok=True)
    for path in (ROOT / "data" / "concepts" / "wood-toy").glob("*.jpg"):
        shutil.copy(path, folder)
    return folder


def cache_of(key: str) -> Path:
    """Where JAX caches what it compiles for (a) and (d)."""
    return WORK / f"compiled-{key}"


def environment(key: str, options: argparse.Namespace) -> dict[str, str]:
    """The environment variables of the process."""
    told = {
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(cache_of(key)),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    if options.device == "cpu":
        told |= {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
    if options.threads:
        flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        told |= {"OMP_NUM_THREADS": "1", "XLA_FLAGS": flags}
    return os.environ | told


def run(
    key: str, options: argparse.Namespace, model: Path, steps: int, cache: str
) -> dict[str, Any]:
    """Run one to its end: elapsed seconds, and CPU seconds of all its threads."""
    shutil.rmtree(WORK / "out" / key, ignore_errors=True)
    words = command(key, options, model, steps)
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        words, env=environment(key, options), cwd=ROOT, capture_output=True, text=True
    )
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{NAMES[key]} failed:\n{done.stderr[-3000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{key} {steps:4} steps, {cache}: {seconds:6.1f} s, {cpu:6.1f} s of CPU", flush=True)
    found = {"who": key, "steps": steps, "cache": cache}
    return found | {"seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2)}


def summarize(runs: list[dict[str, Any]], steps: tuple[int, int]) -> dict[str, dict[str, float]]:
    """For each: elapsed and CPU seconds per step, and of compiling."""
    short, long = steps
    summary: dict[str, dict[str, float]] = {}
    for key in dict.fromkeys(run["who"] for run in runs):
        summary[key] = {}
        for measure in ("seconds", "cpu_seconds"):
            mine = [run for run in runs if run["who"] == key]
            cold, *warm = (
                min((r[measure] for r in mine if (r["cache"], r["steps"]) == kind), default=None)
                for kind in (("cold", short), ("warm", short), ("warm", long))
            )
            summary[key][measure] = (warm[1] - warm[0]) / (long - short)
            if cold is not None:
                summary[key][f"compile_{measure}"] = cold - warm[0]
    return summary


def missed(record: dict[str, Any]) -> list[str]:
    """The goals that were measured and missed."""
    measured = record["summary"].keys()
    return [
        key for key, goal in GOALS.items() if {"a", key} <= measured and ratio(record, key) < goal
    ]


def ratio(record: dict[str, Any], key: str) -> float:
    """How many times as fast (a) is as another program."""
    summary, measure = record["summary"], record["compared"]
    return summary[key][measure] / summary["a"][measure]


def as_markdown(record: dict[str, Any]) -> str:
    """The table."""
    compared, batch = record["compared"], record["batch"]
    second = {"cpu_seconds": "CPU second", "seconds": "second"}[compared]
    lines = [
        f"| | {second}s a step | samples a {second} | (a) is faster by | compiling, once |",
        "|---|--:|--:|--:|--:|",
    ]
    for key, found in record["summary"].items():
        faster = f"{ratio(record, key):.2f} ×" if "a" in record["summary"] and key != "a" else ""
        compiling = f"compile_{compared}"
        once = f"{found[compiling]:.0f} {second}s" if compiling in found else ""
        step = found[compared]
        lines.append(
            f"| ({key}) {NAMES[key]} | {step:.3f} | {batch / step:.1f} | {faster} | {once} |"
        )
    return "\n".join(lines)


def without_paths(arguments: list[str]) -> list[str]:
    """The command, without the names of this machine's folders."""
    names = {"--diffusers": "CHECKOUT", "--old_diffusers": "CHECKOUT", "--old_env": "PYTHON"}
    before = ["", *arguments]
    return [names.get(flag, word) for flag, word in zip(before, arguments, strict=False)]


if __name__ == "__main__":
    sys.exit(main())
