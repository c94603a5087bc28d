"""The file formats of learned embeddings: how each is recognized, and where its vectors are.

    safetensors, torch's `.bin` and `.pt` (zip, and the older stream), `.npy`, PNG with A1111's data

A format is recognized by its first bytes, never by the extension. No code from a file is run, and the unpacked size is
checked before anything is unpacked. Layouts were checked against diffusers, A1111's web UI, kohya's sd-scripts,
InvokeAI, ai-toolkit, and OneTrainer in autumn 2026.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from tiutils.io import pickles

MAX_TEXT = 4 * 2**20  # bytes of JSON or pickle: as text, 75 vectors for SD 1.5 take 1.3 MB
MAX_UNPACKED = 64 * 2**20
MAX_PIXELS = 4096**2  # of a picture that contains an embedding
MAX_ENTRIES = 32  # of a pickle or JSON, as each may claim MAX_VALUES values
MAX_FACT = 1000  # characters in one metadata entry of an A1111 file
VALUE_BYTES = {"Double": 8, "Long": 8, "Half": 2, "BFloat16": 2, "Short": 2,
               "Byte": 1, "Char": 1, "Bool": 1}  # fmt: skip
A1111_KEY = "sd-ti-embedding"
A1111_FACTS = {"step": "steps", "sd_checkpoint_name": "base_model"}  # A1111's keys and ours
NAMELESS = ("emb_params", "emp_params")  # kohya, InvokeAI and ai-toolkit; OneTrainer
# text encoders by the keys that various programs use, mostly for SDXL
ENCODERS = {"clip_l": "clip_l", "clip_g": "clip_g", "t5": "t5", "llama": "llama", "gemma": "gemma",
            "text_encoders_0": "clip_l", "text_encoders_1": "clip_g"}  # fmt: skip


@dataclass
class Content:
    """What a file contains.

    Attributes:
        layout: the format, in words.
        words: word (None where the file names none) → text encoder ("" where it names none) → vectors.
        metadata: as text.
    """

    layout: str
    words: dict[str | None, dict[str, Any]]
    metadata: dict[str, str] = field(default_factory=dict)


def parse(data: bytes) -> Content:
    """Recognize a file's format and extract its words.

    Raises:
        pickles.UnsafePickle: a pickle that contains more than data.
        Exception: of any type, for files that are damaged or contain something else.
    """
    # safetensors: the header's length in eight bytes, then JSON
    if data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data) - 8:
        return _safetensors(data)
    for start, reader in READERS.items():
        if data.startswith(start):
            return reader(data)
    for start, meaning in OTHER_FILES.items():
        if data.startswith(start):
            raise ValueError(meaning)
    raise ValueError("it is cut short, or in an unknown format" if data else "it is empty")


def _safetensors(data: bytes) -> Content:
    import safetensors

    length = int.from_bytes(data[:8], "little")
    if length > MAX_TEXT:
        raise ValueError(f"a header of {length} bytes")
    tensors = dict(safetensors.deserialize(data))
    metadata = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
    arrays = {}
    for name, tensor in tensors.items():
        values = pickles.floats(tensor["data"], tensor["dtype"])
        arrays[name] = values.reshape(tensor["shape"])
    return _from_entries(arrays, metadata)


def _torch_zip(data: bytes) -> Content:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > MAX_UNPACKED:
            raise ValueError("it unpacks to far more than an embedding")
        names = {name.partition("/")[2]: name for name in archive.namelist()}
        if "data.pkl" not in names:
            raise ValueError("a zip archive, but not torch's")
        if "byteorder" in names and archive.read(names["byteorder"]) != b"little":
            raise ValueError("big-endian values")
        content = archive.read(names["data.pkl"])
        if len(content) > MAX_TEXT:
            raise ValueError("a pickle far larger than an embedding's")
        tree = pickles.interpret(io.BytesIO(content))
        return _from_tree(tree, lambda key: archive.read(names[f"data/{key}"]))


def _torch_stream(data: bytes) -> Content:
    """Before torch 1.6: five pickles (magic number, version, machine, content, keys), then the values."""
    stream = io.BytesIO(data)
    if pickles.interpret(stream) != 0x1950A86A20F9469CFC6C:
        raise ValueError("a pickle, but not torch's")
    kinds: dict[str, str] = {}
    _, machine, tree, keys = (pickles.interpret(stream, kinds) for _ in range(4))
    if not machine["little_endian"]:
        raise ValueError("big-endian values")
    storages = {}
    for key in map(str.strip, keys):  # fails unless they are text
        count = int.from_bytes(stream.read(8), "little")
        storages[key] = stream.read(count * VALUE_BYTES.get(kinds[key], 4))
    return _from_tree(tree, storages.__getitem__)


def _npy(data: bytes) -> Content:
    """A NumPy array of numbers, or of one pickled dict, as diffusers' Flax script saved it."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    shape, is_fortran, dtype = read_header(stream)
    rest = stream.read()
    if dtype.hasobject:
        if len(rest) > MAX_TEXT:
            raise ValueError("a pickle far larger than an embedding's")
        tree = pickles.numpy_values(pickles.interpret(io.BytesIO(rest)))
    elif dtype.kind != "f" or math.prod(shape) * dtype.itemsize != len(rest):
        raise ValueError(f"{dtype} values of shape {shape}, expected floats (n, hidden)")
    else:
        order: Literal["F", "C"] = "F" if is_fortran else "C"
        tree = np.frombuffer(rest, dtype).reshape(shape, order=order)
    return dataclasses.replace(_from_tree(tree, _no_storage), layout="NumPy")


def _png(data: bytes) -> Content:
    """A1111's picture with an embedding in a text chunk, or in the low bits of its margins."""
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
        if picture.width * picture.height > MAX_PIXELS:
            raise ValueError(f"a picture of {picture.width} × {picture.height} pixels")
        picture.load()
        chunk = picture.info.get(A1111_KEY)
        if isinstance(chunk, str):
            text = base64.b64decode(chunk[: 2 * MAX_TEXT])
        else:
            text = _hidden_text(np.asarray(picture.convert("RGB")))
    if len(text) > MAX_TEXT:
        raise ValueError("far more text than in an embedding")
    return dataclasses.replace(_from_tree(json.loads(text), _no_storage), layout="A1111 picture")


def _hidden_text(pixels: np.ndarray) -> bytes:
    """What A1111 hid in the uint8 `pixels` (height, width, 3) of a picture.

    On either side of the picture is a block of noise, separated by a column whose four low bits are 0. The low bits of
    the left block are the low halves of the bytes of a zlib stream, those of the right block the high halves; both are
    XORed with a fixed sequence of pseudorandom numbers.
    """
    inside = (pixels > 0).all(axis=2)
    rows, columns = (np.flatnonzero(np.any(inside, axis=axis)) for axis in (1, 0))
    if not len(rows):
        raise ValueError("a picture without an embedding")
    bits = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] & 15
    black = np.flatnonzero(~bits.any(axis=(0, 2)))
    low, high = (bits[:, : black[0]], bits[:, black[-1] + 1 :]) if len(black) else (bits, bits)
    if len(black) < 2 or low.shape != high.shape or low.size > MAX_TEXT:
        raise ValueError("a picture without an embedding")
    noise = np.fromiter(_noise(), np.uint8, low.size) & 15
    stream = (low.ravel() ^ noise) | (high.ravel() ^ noise) << 4
    return zlib.decompressobj().decompress(stream.tobytes(), MAX_TEXT + 1)


def _noise() -> Iterator[int]:
    """The linear congruential generator of Numerical Recipes, as A1111 uses it."""
    state = 0
    while True:
        state = (1664525 * state + 1013904223) % 2**32
        yield state % 255


def _no_storage(key: str) -> bytes:
    raise ValueError("a tensor without values")


def _from_tree(tree: Any, fetch: Callable[[str], bytes]) -> Content:
    """From unpickled or JSON data, whose arrays are still to be read."""
    if not isinstance(tree, dict):
        return Content("a bare array", {None: {"": _array(tree, fetch)}})
    if len(tree) > MAX_ENTRIES:
        raise ValueError(f"{len(tree)} entries, expected words: is it a model or a LoRA?")
    if "string_to_param" not in tree:
        return _from_entries({key: _array(value, fetch) for key, value in tree.items()}, {})
    vectors = pickles.parameters(tree["string_to_param"])
    if len(vectors) > MAX_ENTRIES:
        raise ValueError(f"{len(vectors)} words")
    facts: dict[str, str] = {
        str(A1111_FACTS.get(key, key)): str(value)
        for key, value in tree.items()
        if isinstance(value, str | int | float) and len(str(value)) < MAX_FACT
    }
    words = {None if w == "*" else w: {"": _array(v, fetch)} for w, v in vectors.items()}
    if len(words) == 1 and facts.get("name"):
        words = {facts.pop("name"): words.popitem()[1]}
    return Content("A1111", words, facts)


def _array(value: Any, fetch: Callable[[str], bytes]) -> np.ndarray:
    if isinstance(value, pickles.Tensor):
        return value.array(fetch)
    if isinstance(value, dict) and "TORCHTENSOR" in value:  # A1111's JSON
        return np.array(value["TORCHTENSOR"], np.float64)
    value = pickles.numpy_values(value)
    if not isinstance(value, np.ndarray):
        raise ValueError(f"a {type(value).__name__}, expected {{word: floats (n, hidden)}}")
    return value


def _from_entries(entries: dict[Any, np.ndarray], metadata: dict[str, str]) -> Content:
    """From named arrays; their names tell the layout."""
    names = sorted(repr(key)[:40] for key in entries)  # safetensors has no fixed order
    found = f"{len(names)} entries ({', '.join(names[:5])}{', …' if len(names) > 5 else ''})"
    if not entries or not all(isinstance(key, str) for key in entries):
        raise ValueError(f"{found}, expected a word")
    if any(
        key.removesuffix("_out") in (*ENCODERS, *NAMELESS) for key in entries if key[-4:] == "_out"
    ):
        raise ValueError(f"{found}: these vectors replace a text encoder's output, not a token")
    if entries.keys() <= ENCODERS.keys():
        by_encoder = {ENCODERS[key]: entries[key] for key in ENCODERS if key in entries}
        return Content(" + ".join(by_encoder), {_name(metadata): by_encoder}, metadata)
    if len(entries) == 1:
        (name,) = entries
        if name in NAMELESS:
            return Content(name, {_name(metadata): {"": entries[name]}}, metadata)
    elif len({array.shape[-1:] for array in entries.values()}) > 1 or any(
        array.ndim not in (1, 2) or key.endswith((".weight", ".bias", ".alpha"))
        for key, array in entries.items()
    ):
        raise ValueError(f"{found}, expected words: is it a model or a LoRA?")
    return Content("diffusers", {key: {"": entries[key]} for key in sorted(entries)}, metadata)


def _name(metadata: dict[str, str]) -> str | None:
    """The word named in the metadata; in ai-toolkit's files it is a JSON string."""
    name = metadata.get("name", "")
    return (json.loads(name) if name.startswith('"') else name) or None


READERS: dict[bytes, Callable[[bytes], Content]] = {
    b"PK\x03\x04": _torch_zip,
    b"\x80": _torch_stream,
    b"\x93NUMPY": _npy,
    b"\x89PNG\r\n\x1a\n": _png,
}
OTHER_FILES = {
    b"<": "a web page: download the file itself, not the page about it",
    b"version https://git-lfs": "a pointer of Git LFS: fetch the file with `git lfs pull`",
    b"\xff\xd8\xff": "a JPEG picture, which cannot contain an embedding: ask for the PNG",
    b"RIFF": "a WEBP picture: ask for the PNG",
}
