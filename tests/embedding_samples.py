"""Handmade samples of each program's files of learned words: name → (file name, bytes, word, vectors).

Keys and values are those that the programs write; torch and NumPy save the files.
"""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from safetensors.numpy import save


def vectors(count: int = 2, hidden: int = 8) -> np.ndarray:
    """Float32 numbers that half precision represents exactly."""
    numbers = np.random.default_rng(count * hidden).integers(-64, 64, (count, hidden))
    return (numbers / 128).astype(np.float32)


def torch_bytes(content: object, **options: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def numpy_bytes(content: object, version: tuple[int, int] | None = None) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asanyarray(content), version=version)
    return buffer.getvalue()


def a1111_content(values: np.ndarray) -> dict:
    return {
        "string_to_token": {"*": 265}, "string_to_param": {"*": values}, "name": "a1111-toy",
        "step": 500, "sd_checkpoint": "81761151", "sd_checkpoint_name": "v1-5-pruned-emaonly",
    }  # fmt: skip


def as_tensors(content: dict) -> dict:
    parameters = {name: torch.tensor(v) for name, v in content["string_to_param"].items()}
    return content | {"string_to_param": parameters}


def a1111_json(values: np.ndarray) -> bytes:
    content = a1111_content(values)
    content["string_to_param"] = {"*": {"TORCHTENSOR": values.tolist()}}
    return json.dumps(content).encode()


def png(pixels: np.ndarray, text: bytes | None = None, *, compressed: bool = False) -> bytes:
    information = PngImagePlugin.PngInfo()
    if text is not None:
        chunk = base64.b64encode(text).decode()
        information.add_text("sd-ti-embedding", chunk, zip=compressed)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", pnginfo=information)
    return buffer.getvalue()


def picture(height: int = 64, width: int = 48) -> np.ndarray:
    return np.random.default_rng(7).integers(1, 256, (height, width, 3)).astype(np.uint8)


def noise(count: int) -> np.ndarray:
    """A1111's pseudorandom numbers, term by term."""
    numbers, state = [], 0
    for _ in range(count):
        state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
        numbers.append(state % 255)
    return np.array(numbers, np.uint8)


def picture_with_margins(values: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The picture between two blocks of noise whose low bits contain the embedding."""
    data = np.frombuffer(zlib.compress(a1111_json(values), 9), np.uint8)
    height = len(inside)
    data = np.resize(data, -(-len(data) // (3 * height)) * 3 * height)  # repeated up to the end
    blocks = []
    for seed, half in enumerate((data & 15, data >> 4)):
        decoration = np.random.default_rng(seed).integers(1, 16, half.size).astype(np.uint8) << 4
        blocks.append((half ^ (noise(half.size) & 15) ^ decoration).reshape(height, -1, 3))
    gap = np.zeros((height, 1, 3), np.uint8)
    return np.concatenate([blocks[0], gap, inside, gap, blocks[1]], axis=1)


def samples() -> dict[str, tuple[str, bytes, str, np.ndarray]]:
    one, two = vectors(1), vectors(2)
    tensor = torch.tensor(two)
    parameter = torch.nn.Parameter(tensor)
    old = {"_use_new_zipfile_serialization": False}
    first_script = {
        "string_to_token": {"*": torch.tensor(265)},
        "string_to_param": torch.nn.ParameterDict({"*": parameter}),
    }
    ai_toolkit = {"name": '"trigger"', "step": "300", "string_to_param": '{"*": "emb_params"}'}
    margins = picture_with_margins(two, picture())
    return {
        "diffusers": ("learned_embeds.safetensors", save({"<toy>": two}), "<toy>", two),
        "diffusers .bin": ("learned_embeds.bin", torch_bytes({"<toy>": tensor}), "<toy>", two),
        "concept library": (
            "learned_embeds.bin", torch_bytes({"<toy>": tensor[0]}, **old), "<toy>", two[:1],
        ),
        "A1111": ("x.pt", torch_bytes(as_tensors(a1111_content(two))), "a1111-toy", two),
        "A1111, old torch": (
            "x.pt", torch_bytes(as_tensors(a1111_content(two)), **old), "a1111-toy", two,
        ),
        "first script": ("my-toy.pt", torch_bytes(first_script), "my-toy", two),
        "kohya": (
            "kohya-toy.safetensors",
            save({"emb_params": two.astype(np.float16)}, {"ss_steps": "1600"}), "kohya-toy", two,
        ),
        "kohya .pt": ("kohya-toy.pt", torch_bytes({"emb_params": tensor}), "kohya-toy", two),
        "ai-toolkit": ("x.safetensors", save({"emb_params": two}, ai_toolkit), "trigger", two),
        "OneTrainer": ("one-toy.safetensors", save({"emp_params": two}), "one-toy", two),
        "Flax script": ("learned_embeds.npy", numpy_bytes({"<toy>": one[0]}), "<toy>", one),
        "NumPy": ("np-toy.npy", numpy_bytes(np.asfortranarray(two)), "np-toy", two),
        "NumPy 2.0": ("np-toy.npy", numpy_bytes(two, (2, 0)), "np-toy", two),
        "bare tensor": ("bare-toy.pt", torch_bytes(tensor), "bare-toy", two),
        "picture": ("x.png", png(picture(), a1111_json(two)), "a1111-toy", two),
        "picture, zTXt": (
            "x.png", png(picture(), a1111_json(two), compressed=True), "a1111-toy", two,
        ),
        "picture, margins": ("x.png", png(margins), "a1111-toy", two),
    }  # fmt: skip


def header_first(header: dict) -> bytes:
    """A safetensors file with this header."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(64)
