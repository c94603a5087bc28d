"""Write `data/tiny-sd`: the five parts in Stable Diffusion 1.5's layout, fp16, readable by transformers 4.57 and 5."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from tiutils.word_encoder import WordEncoder

from ..world import pack
from . import latents, presets, train_evaluator, train_words
from .presets import Preset


def write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def save_half(state: dict[str, torch.Tensor], path: Path) -> None:
    """Write floats as fp16, in key order, so that the same weights give the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = {
        k: v.detach().cpu().half().contiguous() if v.is_floating_point() else v
        for k, v in sorted(state.items())
    }
    save_file(half, path, metadata={"format": "pt"})


def text_encoder_files(encoder, folder: Path) -> None:
    """Write the text encoder, with `text_model.` before its keys: otherwise transformers 4 loads random weights.

    The config says float32 under both of its names; otherwise transformers would load a half-precision text encoder
    beside diffusers' float32 U-Net, and the stock pipeline would fail.
    """
    state = {
        "text_model." + k.removeprefix("text_model."): v for k, v in encoder.state_dict().items()
    }
    state = {k: v for k, v in state.items() if not k.endswith("position_ids")}
    save_half(state, folder / "model.safetensors")
    config = encoder.config.to_dict()
    names = [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
        "projection_dim",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "hidden_act",
        "layer_norm_eps",
        "attention_dropout",
        "initializer_range",
        "initializer_factor",
    ]
    kept = {name: config[name] for name in names}
    kept |= {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "dtype": "float32",
        "torch_dtype": "float32",
    }
    write_json(folder / "config.json", kept)


def evaluator_files(preset: Preset, folder: Path) -> None:
    """Write the evaluator as a `CLIPModel` folder of its own, with tokenizer and picture settings, in fp16."""
    clip = train_evaluator.load_evaluator(preset)
    state = {k: v for k, v in clip.state_dict().items() if not k.endswith("position_ids")}
    save_half(state, folder / "model.safetensors")
    shared = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
    shared += ["projection_dim", "hidden_act"]
    ends = ["bos_token_id", "eos_token_id", "pad_token_id"]
    own = {
        "text_config": ["vocab_size", "max_position_embeddings", *ends],
        "vision_config": ["image_size", "patch_size", "num_channels"],
    }
    towers = {
        part: {name: getattr(getattr(clip.config, part), name) for name in (*shared, *names)}
        for part, names in own.items()
    }
    config = {"architectures": ["CLIPModel"], "model_type": "clip", **towers}
    config |= {"projection_dim": clip.config.projection_dim}
    write_json(folder / "config.json", config | {"dtype": "float32", "torch_dtype": "float32"})
    side = preset.size
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": side},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    write_json(folder / "preprocessor_config.json", processor)
    both = shutil.ignore_patterns("tokenizer.json")  # repeats vocab.json and merges.txt
    shutil.copytree(preset.folder / "evaluator-tokenizer", folder, ignore=both, dirs_exist_ok=True)


def module_files(module, folder: Path, **changed) -> None:
    """Write config and fp16 weights of a diffusers module."""
    module.register_to_config(**changed)
    module.save_config(folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("_name_or_path", None)
    write_json(folder / "config.json", config)
    save_half(module.state_dict(), folder / "diffusion_pytorch_model.safetensors")


def word_encoder_files(words: WordEncoder, folder: Path) -> None:
    """Write the network that guesses a row from a photo's latents, with its sizes."""
    write_json(folder / "config.json", words.sizes)
    save_half(words.state_dict(), folder / "model.safetensors")


def write_credits(path: Path) -> None:
    """Write who made the pictures that the model was trained on."""
    lines = [
        "# Whose models the training pictures show",
        "",
        "Changes: rendered, cropped, recolored, composed.",
    ]
    heading, author = None, None
    for license, library, maker, title in pack.credits():
        if (license, library) != heading:
            heading, author = (license, library), None
            lines += ["", f"## {library} ({license})", ""]
        lines += [f"- {maker}: {title}"] if maker != author else []
        lines[-1] += f", {title}" if maker == author else ""
        author = maker
    path.write_text("\n".join(lines) + "\n")


def export(preset: Preset, target: Path | None = None) -> None:
    """Build the folder beside the old one and swap them; the card is kept.

    It is in the preset's working folder, to be inspected before it is copied over `data/tiny-sd`.
    """
    target = target or preset.folder / "tiny-sd"
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(Path(preset.start or preset.folder) / "tokenizer", part / "tokenizer")
    road = train_words.load_road(preset)
    text_encoder_files(road.text, part / "text_encoder")
    word_encoder_files(road.words, part / "word_encoder")
    module_files(
        latents.load_vae(preset),
        part / "vae",
        scaling_factor=latents.scaling_factor(preset),
    )
    module_files(road.unet, part / "unet")
    if preset.start:
        shutil.copytree(Path(preset.start) / "evaluator", part / "evaluator")
    elif (
        preset.folder / "evaluator.pt"
    ).exists():  # the evaluator may be trained later, and elsewhere
        evaluator_files(preset, part / "evaluator")
    scheduler = {
        "_class_name": "PNDMScheduler",
        "_diffusers_version": "0.39.0",
        "skip_prk_steps": True,
    }
    scheduler |= {"clip_sample": False, "trained_betas": None, "timestep_spacing": "leading"}
    write_json(
        part / "scheduler" / "scheduler_config.json", scheduler | presets.scheduler_settings()
    )
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.39.0",
        "_guidance_scale": 2.5,  # read by tiutils, ignored by diffusers
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_json(part / "model_index.json", index)
    write_credits(part / "CREDITS.md")
    if (target / "README.md").exists():
        shutil.copy(target / "README.md", part / "README.md")
    shutil.rmtree(target, ignore_errors=True)
    os.replace(part, target)
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    print(f"{target.name}: {size / 2**20:.1f} MiB", flush=True)
