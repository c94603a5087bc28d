"""A model's folder as one file, under the names that the first Stable Diffusion code gave to weights."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tiutils.io import pretrained

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
          "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}  # fmt: skip
ENDS = {"conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2", "conv_norm_out": "out.0", "conv_out": "out.2"}  # fmt: skip
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def save_single_file(folder: Path, path: Path) -> Path:
    """Write the weights of a folder with two blocks of one layer each as one file; returns its path."""
    parts = {part: _weights(folder / part) for part in pretrained.weights_of(folder)}
    tensors = {f"model.diffusion_model.{_unet(n)}": t for n, t in parts["unet"].items()}
    for name, tensor in parts["vae"].items():
        new = _vae(name)
        is_linear = re.search(r"attn_1\.(q|k|v|proj_out)\.weight", new)
        tensors[f"first_stage_model.{new}"] = tensor[:, :, None, None] if is_linear else tensor
    for name, tensor in parts["text_encoder"].items():
        tensors[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = (
            tensor
        )
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next(folder.glob("*model.safetensors")))


def _changed(name: str, table: dict[str, str]) -> str:
    for new, old in table.items():
        if name.startswith(f"{new}."):
            return old + name[len(new) :]
    return name


def _unet(name: str) -> str:
    if match := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
        kind, place, rest = match.groups()
        number = 1 if kind == "attentions" else 2 * int(place)
        return f"middle_block.{number}.{_changed(rest, RESNET)}"
    if match := re.match(r"down_blocks\.(\d)\.(\w+)\.0\.(.*)", name):
        block, kind, rest = match.groups()
        first = 1 + 2 * int(block)  # a layer, then the smaller size
        if kind == "downsamplers":
            return f"input_blocks.{first + 1}.0.op.{rest.removeprefix('conv.')}"
        return f"input_blocks.{first}.{int(kind == 'attentions')}.{_changed(rest, RESNET)}"
    if match := re.match(r"up_blocks\.(\d)\.(\w+)\.(\d)\.(.*)", name):
        block, kind, layer, rest = match.groups()
        if kind == "upsamplers":  # of the first block, which has no attention
            return f"output_blocks.1.1.{rest}"
        number = 2 * int(block) + int(layer)
        return f"output_blocks.{number}.{int(kind == 'attentions')}.{_changed(rest, RESNET)}"
    return _changed(name, ENDS)


def _vae(name: str) -> str:
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    if match := re.match(r"(.*)mid_block\.attentions\.0\.(.*)", name):
        return f"{match[1]}mid.attn_1.{_changed(match[2], ATTENTION)}"
    name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(
        r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{1 - int(m[1])}.block.{m[2]}", name
    )
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{1 - int(m[1])}.upsample", name)
    name = name.replace("conv_shortcut", "nin_shortcut")
    return re.sub(r"(encoder|decoder)\.conv_norm_out", r"\1.norm_out", name)
