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
        "time_embedding.linear_2": "time_embed.2", "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2", "conv_norm_out": "out.0", "conv_out": "out.2"}  # fmt: skip
OPEN_CLIP = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj",
             "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}  # fmt: skip
OPEN_CLIP_ENDS = {"embeddings.token_embedding": "token_embedding", "final_layer_norm": "ln_final"}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def save_single_file(folder: Path, path: Path) -> Path:
    """Write the weights of a folder with two blocks of one layer each as one file; returns its path."""
    parts = {part: _weights(folder / part) for part in pretrained.weights_of(folder)}
    top_attends = any(name.startswith("up_blocks.0.attentions") for name in parts["unet"])
    tensors = {
        f"model.diffusion_model.{_unet(n, top_attends)}": t for n, t in parts["unet"].items()
    }
    for name, tensor in parts["vae"].items():
        new = _vae(name)
        is_linear = re.search(r"attn_1\.(q|k|v|proj_out)\.weight", new)
        tensors[f"first_stage_model.{new}"] = tensor[:, :, None, None] if is_linear else tensor
    is_xl = "text_encoder_2" in parts
    first = "conditioner.embedders.0" if is_xl else "cond_stage_model"
    for name, tensor in parts["text_encoder"].items():
        tensors[f"{first}.transformer.text_model.{name.removeprefix('text_model.')}"] = tensor
    if is_xl:
        second = _open_clip(parts["text_encoder_2"])
        tensors |= {f"conditioner.embedders.1.model.{n}": t for n, t in second.items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def _open_clip(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of SDXL's second text encoder under OpenCLIP's names: q, k and v in one matrix."""
    renamed = {}
    for name, tensor in weights.items():
        name = name.removeprefix("text_model.")
        if match := re.match(r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)", name):
            three = [weights[f"text_model.{name.replace('q_proj', f'{x}_proj')}"] for x in "qkv"]
            renamed[f"transformer.resblocks.{match[1]}.attn.in_proj_{match[2]}"] = torch.cat(three)
        elif re.search(r"\.[kv]_proj\.", name):
            continue
        elif match := re.match(r"encoder\.layers\.(\d+)\.(.*)", name):
            renamed[f"transformer.resblocks.{match[1]}.{_changed(match[2], OPEN_CLIP)}"] = tensor
        elif name == "text_projection.weight":
            renamed["text_projection"] = tensor.T
        elif name == "embeddings.position_embedding.weight":
            renamed["positional_embedding"] = tensor
        else:
            renamed[_changed(name, OPEN_CLIP_ENDS)] = tensor
    return renamed


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next(folder.glob("*model.safetensors")))


def _changed(name: str, table: dict[str, str]) -> str:
    for new, old in table.items():
        if name.startswith(f"{new}."):
            return old + name[len(new) :]
    return name


def _unet(name: str, top_attends: bool) -> str:
    """The first name of a weight; `top_attends`: whether the smallest block on the way up has attention."""
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
        if kind == "upsamplers":  # of the first block, behind its attention
            return f"output_blocks.1.{1 + top_attends}.{rest}"
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
